"""Policies from outside: the example of docs/own-policy.md, in Python and installed, and what can be wrong with one."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

import loraplan
from loraplan import run
from sim.errors import InputError
from sim.policies.replay.cache_replay import replayable
from sim.results.run_directory.store import read_run
from sim.spec.policies import EVICTIONS, ROUTERS
from sim.spec.scenario_file import load_scenario
from sim.studies.cache.study import CacheSizes, study_cache

PAGE = Path(__file__).resolve().parents[2] / "docs/own-policy.md"
FILES: dict[str, str] = dict(
    re.findall(r"^<!-- file: (.*?) -->\n```\w+\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
)
SMALL = {"workload.requests": 1500, "run.replications": 2, "fleet.engine": "continuous", "cache.host": None}
NAME = "small-of-oldest"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files, from which Python imports."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


@pytest.fixture
def policy(example: Path) -> type:
    found: type = import_module("small_of_oldest").SmallOfOldest
    return found


def install(folder: Path, name: str, points: dict[str, dict[str, str]]) -> None:
    """Leave in a folder what an installer leaves of a package: its name, its version and its entry points."""
    place = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [line for group, of in points.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in of.items()))]
    (place / "entry_points.txt").write_text("\n".join(lines) + "\n")
    forget()


def forget() -> None:
    for registry in (EVICTIONS, ROUTERS):
        registry.__dict__.pop("installed", None)


@pytest.fixture
def installed(example: Path) -> Iterator[Path]:
    """The same folder, with the page's package installed in it."""
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    install(example, project["name"], project["entry-points"])
    yield example
    forget()


def same(one: loraplan.Results, other: loraplan.Results) -> bool:
    def values(results: loraplan.Results) -> list[Any]:
        return [[repr(metric) for metric in point.metrics.values()] for point in results.points]

    return values(one) == values(other)


# From Python.


def test_of_equal_adapters_the_example_is_lru(policy: type) -> None:
    mine = loraplan.run("quickstart", {**SMALL, "cache.eviction": NAME}, jobs=1, evictions={NAME: policy})
    assert same(mine, loraplan.run("quickstart", SMALL, jobs=1))


def test_a_sweep_in_workers_gives_what_one_process_gives(policy: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.studies.sweep.SMALL_RUN", 0)  # so little is not worth workers otherwise
    over = {"cache.gpu.slots": [8, 16], "cache.eviction": ["lru", NAME]}
    two = loraplan.sweep("quickstart", over, SMALL, jobs=2, evictions={NAME: policy})
    one = loraplan.sweep("quickstart", over, SMALL, jobs=1, evictions={NAME: policy})
    assert same(two, one)


def test_workers_that_are_there_already_get_the_class_as_it_is_now(
    example: Path, policy: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.studies.sweep.SMALL_RUN", 0)
    values = {**SMALL, "cache.eviction": NAME}
    first = loraplan.run("quickstart", values, jobs=2, evictions={NAME: policy})
    file = example / "small_of_oldest.py"
    file.write_text(file.read_text().replace("in self._idle if", "in reversed(self._idle) if"))
    sys.modules.pop("small_of_oldest")
    newest = import_module("small_of_oldest").SmallOfOldest
    second = loraplan.run("quickstart", values, jobs=2, evictions={NAME: newest})
    assert not same(first, second)
    assert same(second, loraplan.run("quickstart", values, jobs=1, evictions={NAME: newest}))


def test_a_class_of_a_script_reaches_the_workers(example: Path) -> None:
    script = FILES["small_of_oldest.py"] + (
        "\nfrom loraplan import run\nfrom sim.studies import sweep\nsweep.SMALL_RUN = 0\n"
        f"if __name__ == '__main__':\n    found = run('quickstart', { ({**SMALL, 'cache.eviction': NAME})!r}, jobs=2,"
        f" evictions={{{NAME!r}: SmallOfOldest}})\n    print(found.value('miss_ratio'))\n"
    )
    (example / "script.py").write_text(script)
    ended = python(example, "script.py")
    assert float(ended) == loraplan.run("quickstart", SMALL, jobs=1).value("miss_ratio")


def python(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PAGE.parents[1]), str(folder)])}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_script_of_the_page_runs(example: Path) -> None:
    printed = python(example, "compare_policies.py")
    assert "miss_ratio" in printed
    assert f"eviction {NAME}" in printed


def test_a_what_if_tries_what_a_call_gives(policy: type) -> None:
    values = {**SMALL, "workload.requests": 3000}
    found = loraplan.plan(
        "quickstart", values, minimize={"cache.gpu.slots": (32, 64, 32)}, what_if=True, jobs=1, evictions={NAME: policy}
    )
    rows = found.what_if.set_index(["change", "metric"])
    assert rows.loc[(f"eviction {NAME}", "miss_ratio"), "word"] == "same" or (
        rows.loc[(f"eviction {NAME}", "miss_ratio"), "one"] == rows.loc[(f"eviction {NAME}", "miss_ratio"), "other"]
    )


def test_a_router_of_ones_own(example: Path) -> None:
    even_odd = import_module("even_odd").EvenOdd
    values = {**SMALL, "fleet.replicas": 2, "workload.arrivals.rate": "12/s", "router.policy": "even-odd"}
    requests = loraplan.run("quickstart", values, jobs=1, routers={"even-odd": even_odd}).requests
    number = requests["adapter"].astype(str).str.extract(r"(\d+)$")[0].astype(int)
    assert (requests["replica"] == number % 2).all()


def test_a_cache_replay_of_a_class(policy: type) -> None:
    from numpy import arange, int32, tile

    entry = EVICTIONS.given({NAME: policy}, "evictions")[NAME]
    result = study_cache(tile(arange(6, dtype=int32), 50), None, ["lru", entry], CacheSizes([4], by_slots=True))
    lru, mine = result.points
    assert (mine.policy, mine.misses) == (NAME, lru.misses)


def test_a_loaded_scenario_takes_policies_later(policy: type) -> None:
    loaded = loraplan.load_scenario("quickstart", SMALL)
    mine = loraplan.run(loaded, {"cache.eviction": NAME}, jobs=1, evictions={NAME: policy})
    assert same(mine, loraplan.run(loaded, jobs=1))
    with pytest.raises(InputError, match=rf"unknown eviction policy \(got {NAME}"):
        loraplan.run(loaded, {"cache.eviction": NAME}, jobs=1)


def test_results_of_other_code_are_not_reused(example: Path, policy: type, tmp_path: Path) -> None:
    def key() -> list[str]:
        sys.modules.pop("small_of_oldest", None)
        mine = import_module("small_of_oldest").SmallOfOldest
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        loraplan.run("quickstart", {**SMALL, "cache.eviction": NAME}, jobs=1, out=out, evictions={NAME: mine})
        found: list[str] = read_run(out).manifest["point_keys"]
        return found

    first = key()
    assert key() == first
    file = example / "small_of_oldest.py"
    file.write_text(file.read_text().replace(", 4)", ", 3)"))
    assert key() != first


def test_compare_reads_a_run_whose_policy_is_gone(policy: type, loraplan: CommandLine, tmp_path: Path) -> None:
    run("quickstart", SMALL, jobs=1, out=tmp_path / "one")
    mine = {**SMALL, "cache.eviction": NAME}
    run("quickstart", mine, jobs=1, out=tmp_path / "two", evictions={NAME: policy})
    assert [each["key"] for each in loraplan.data("compare", "one", "two")["differs"]] == ["cache.eviction"]


# Installed.


@pytest.mark.slow
def test_the_commands_of_the_page(installed: Path, loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    (block,) = re.findall(
        r"^```sh\npip install \.\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    short = ["--set", "workload.requests=2000", "--set", "run.replications=2"]
    for line in block.splitlines():
        words = shlex.split(line)
        simulates = words[1] in ("run", "sweep", "plan")
        loraplan.succeeds(*words[1:], *(short if simulates else []), *(["--out", words[1]] if simulates else []))
    misses = {
        point.set["cache.eviction"]: point.metrics["miss_ratio"].value for point in read_run(Path("sweep")).points
    }
    assert misses[NAME] == misses["lru"] == read_run(Path("run")).points[0].metrics["miss_ratio"].value
    assert f"eviction {NAME}" in [row["label"] for row in read_run(Path("plan")).manifest["what_if"]]
    rows = Path("runs/cache-tenants/cache.csv").read_text().splitlines()
    counts = [row.split(",", 1)[1] for row in rows[1:]]
    assert counts[: len(counts) // 2] == counts[len(counts) // 2 :], "in slots, it is LRU"


def test_an_installed_policy_stands_in_errors_and_in_the_schema(installed: Path, loraplan: CommandLine) -> None:
    assert f"cycle, {NAME}); did you mean '{NAME}'?" in loraplan.refused(
        "check", "quickstart", "--set", "cache.eviction=small-of-oldst"
    )
    schema = json.loads(loraplan("schema").out)
    assert NAME in schema["$defs"]["Cache"]["properties"]["eviction"]["enum"]


def test_a_name_of_loraplan_can_not_be_taken(example: Path, policy: type) -> None:
    install(example, "impostor", {"loraplan.evictions": {"lru": "small_of_oldest:SmallOfOldest"}})
    assert load_scenario("quickstart").scenario.eviction_policy.origin == ""
    forget()
    with pytest.raises(InputError, match=r"evictions: this name is that of another eviction policy \(got lru"):
        loraplan.run("quickstart", SMALL, jobs=1, evictions={"lru": policy})


def test_a_scenario_can_not_name_code(example: Path) -> None:
    for name in ("small_of_oldest:SmallOfOldest", "small_of_oldest.SmallOfOldest"):
        with pytest.raises(InputError, match="unknown eviction policy"):
            load_scenario("quickstart", [f'cache.eviction="{name}"'])
    assert "small_of_oldest" not in sys.modules


# What can be wrong.

BROKEN = {
    "absent": ("nowhere:Nothing", "ModuleNotFoundError: No module named 'nowhere'"),
    "misspelt": ("broken:Mispelt", "AttributeError: module 'broken' has no attribute 'Mispelt'"),
    "raises": ("broken:Raises", "making it from its context raises ValueError: no"),
    "function": ("broken:function", "it is no class but <function function"),
    "lacks": ("broken:Lacks", "it lacks loaded, remove, coming (None will do)"),
}
CODE = """
class Raises:
    def __init__(self, context):
        raise ValueError("no")

def function(context): ...

class Lacks:
    touched = None
    def __init__(self, context): ...
    def idle(self, adapter): ...
    busy = victim = idle
    def __len__(self): return 0
"""


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_named(name: str, example: Path, loraplan: CommandLine) -> None:
    target, problem = BROKEN[name]
    (example / "broken.py").write_text(CODE)
    install(example, "their-policies", {"loraplan.evictions": {name: target}})
    ended = loraplan("run", "quickstart", "--all", "--set", f"cache.eviction={name}")
    sys.modules.pop("broken", None)
    forget()
    assert ended.code == 2
    origin = f"package their-policies 1.0 (entry point loraplan.evictions: {name} = {target})"
    assert ended.err.startswith(f"error: --set: cache.eviction: '{name}' from {origin} can't be used: {problem}")
    assert "Traceback" not in ended.err


def test_a_what_if_goes_on_without_a_broken_package(example: Path) -> None:
    install(example, "their-policies", {"loraplan.evictions": {"absent": "nowhere:Nothing"}})
    found = loraplan.plan("quickstart", SMALL, minimize={"cache.gpu.slots": (32, 64, 32)}, what_if=True, jobs=1)
    forget()
    rows = {row["label"]: row for row in read_run(found.path).manifest["what_if"]}
    assert "No module named 'nowhere'" in rows["eviction absent"]["refused"]
    assert rows["eviction gdsf"]["refused"] is None


def test_a_replay_names_a_broken_package(example: Path) -> None:
    install(example, "their-policies", {"loraplan.evictions": {"absent": "nowhere:Nothing"}})
    with pytest.raises(InputError, match=r"package their-policies 1.0"):
        replayable("absent")
    forget()


def test_a_victim_in_use_ends_the_run_with_a_reason(policy: type) -> None:
    class Wrong(policy):  # type: ignore[misc]
        def victim(self, spared: object = ()) -> int:
            return 199

    with pytest.raises(InputError, match=r"'wrong' from evictions= can't be used: victim\(\) returned 199, but the"):
        loraplan.run("quickstart", {**SMALL, "cache.eviction": "wrong"}, jobs=1, evictions={"wrong": Wrong})


def test_a_choice_of_no_replica_ends_the_run_with_a_reason() -> None:
    class Wrong:
        reads: frozenset[str] = frozenset()

        def __init__(self, context: object) -> None: ...

        def choose(self, adapter: int, number: int) -> int:
            return 2

    values = {**SMALL, "fleet.replicas": 2, "router.policy": "wrong"}
    with pytest.raises(InputError, match=r"choose\(\) returned 2, but the replicas that are up are: 0, 1"):
        loraplan.run("quickstart", values, jobs=1, routers={"wrong": Wrong})
    Wrong.reads = frozenset({"everything"})
    with pytest.raises(InputError, match=r"router.policy: .*'reads' must be a frozenset"):
        loraplan.run("quickstart", values, jobs=1, routers={"wrong": Wrong})


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"a,b": dict}, "evictions: not a name"),
        ({"": dict}, "evictions: not a name"),
        ({"mine": "small_of_oldest:SmallOfOldest"}, "evictions.mine: not a class"),
        ({"mine": lambda context: None}, "evictions.mine: not a class"),
    ],
)
def test_what_a_call_may_give(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        loraplan.run("quickstart", SMALL, jobs=1, evictions=given)
