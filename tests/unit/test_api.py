"""The verbs for notebooks and scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from catalogue_names import ALWAYS_THERE

import loraplan
from sim import api
from sim.errors import InputError
from sim.results.catalogue import UNITS

SMALL = {"workload.requests": 2000, "run.replications": 2}


def test_a_run_gives_numbers_tables_and_words(tmp_path: Path) -> None:
    result = loraplan.run("quickstart", SMALL, out=tmp_path / "run", jobs=1)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    metric = summary["points"][0]["metrics"]["ttft_p99_s"]
    assert result.value("ttft_p99_s") == metric["value"]
    assert result.metrics.loc["ttft_p99_s", "hi"] == metric["hi"]
    assert set(result.metrics.index) <= set(UNITS)
    assert len(result.requests) == 2000
    assert result.answer.headline in repr(result)
    html = result._repr_html_()
    assert result.answer.headline in html
    assert "<table>" in html
    assert result.report() == tmp_path / "run/report.html"
    with pytest.raises(InputError, match=r"ttft_p98_s: no such metric \(allowed: miss_ratio, "):
        result.value("ttft_p98_s")


def test_a_run_that_is_there_is_read(tmp_path: Path) -> None:
    first = loraplan.run("quickstart", SMALL, out=tmp_path / "run", jobs=1)
    written = (tmp_path / "run/requests.parquet").stat().st_mtime_ns
    again = loraplan.run("quickstart", SMALL, out=tmp_path / "run", jobs=1)
    assert (tmp_path / "run/requests.parquet").stat().st_mtime_ns == written
    assert again.value("e2e_mean_s") == first.value("e2e_mean_s")


def test_headroom_is_added_to_a_run_that_lacks_it(tmp_path: Path) -> None:
    def run(*, headroom: bool) -> loraplan.Results:
        return loraplan.run("cache-thrash", SMALL, headroom=headroom, out=tmp_path / "run", jobs=1)

    without = run(headroom=False)
    assert without.headroom is None
    assert without.answer.headroom == ""
    assert "headroom" not in json.loads((tmp_path / "run/summary.json").read_text())
    found = run(headroom=True)
    assert "times the traffic" in found.answer.headroom
    assert json.loads((tmp_path / "run/summary.json").read_text())["headroom"] == found.headroom.summary()
    again = run(headroom=True)
    assert again.headroom == found.headroom
    assert again.value("e2e_mean_s") == without.value("e2e_mean_s")


def test_a_temporary_run_lives_as_long_as_its_result() -> None:
    result = loraplan.run("quickstart", SMALL, jobs=1)
    path = result.path
    assert path.exists()
    del result
    assert not path.exists()


def test_a_sweep_gives_a_table_with_the_swept_keys() -> None:
    points = loraplan.sweep(
        "quickstart", {"cache.gpu.slots": [16, 32], "cache.eviction": ["lru", "fifo"]}, SMALL, jobs=1
    )
    table = points.table("miss_ratio", "ttft_p99_s")
    assert points.table()[["miss_ratio", "ttft_p99_s"]].equals(table), "without names, every metric"
    assert table.index.names == ["cache.gpu.slots", "cache.eviction"]
    assert table.loc[(16, "lru"), "miss_ratio"] > table.loc[(32, "lru"), "miss_ratio"]
    assert len(points.frame) == 4 * len(ALWAYS_THERE)
    assert points.answer.headline


def test_a_plan_gives_what_it_found_and_how() -> None:
    loaded = loraplan.load_scenario("quickstart", SMALL)
    found = loraplan.plan(loaded, minimize={"cache.gpu.slots": (8, 64, 8)}, jobs=1, seed=2)
    assert found.feasible
    assert found.found == {"cache.gpu.slots": found.point.set["cache.gpu.slots"]}
    assert {"cache.gpu.slots", "word", "replications"} <= set(found.looks.columns)
    assert found.grades["cache.gpu.slots"].is_monotonic_increasing
    assert found.grades["probability"].between(0, 1).all()
    assert found.what_if.empty
    assert f"Use {found.found['cache.gpu.slots']} GPU slots: " in found._repr_html_()
    against = loraplan.compare(found, loraplan.run(loaded, {"cache.gpu.slots": 96}, jobs=1))
    assert f"96 GPU slots instead of {found.found['cache.gpu.slots']}" in against.answer, "the recommended design"


def test_questions_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="not a range"):
        loraplan.plan("quickstart", minimize={"cache.gpu.slots": (8,)})
    with pytest.raises(InputError, match="a plan needs exactly one of minimize and maximize"):
        loraplan.plan("quickstart", minimize={"a": (1, 2)}, maximize={"a": (1, 2)})
    with pytest.raises(InputError, match=r"slo: an empty mapping changes nothing"):
        loraplan.run("quickstart", {"slo": {}})
    assert not loraplan.load_scenario("quickstart", {"slo": None}).scenario.slo.terms()
    with pytest.raises(InputError, match=r"unknown key .*did you mean 'slots'"):
        loraplan.run("quickstart", {"cache.gpu.slot": 8})
    with pytest.raises(InputError, match=r"^values: fleet\.replicas: out of range \(got 0, allowed: above 0\)$"):
        loraplan.run("quickstart", {"fleet.replicas": 0})
    with pytest.raises(InputError, match=r"^values: fleet\.replicas: out of range"):
        loraplan.run(loraplan.load_scenario("quickstart"), {"fleet.replicas": 0})
    for wrong in ([], 16, "12/s"):
        with pytest.raises(InputError, match=r"^over: fleet\.replicas: no values to sweep \(got .*; such as \{"):
            loraplan.sweep("quickstart", {"fleet.replicas": wrong})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"^over: not values by dotted key \(got \[cache\.gpu\.slots\]\); such as \{"):
        loraplan.sweep("quickstart", ["cache.gpu.slots"])  # type: ignore[arg-type]
    for wrong in ("cache.gpu.slots=8", ["cache.gpu.slots=8"], {5: 6}):
        with pytest.raises(InputError, match=r"^values: not values by dotted key \(got .*\); such as \{"):
            loraplan.run("quickstart", wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^minimize: not values by dotted key \(got cache\.gpu\.slots\); such as \{"):
        loraplan.plan("quickstart", minimize="cache.gpu.slots")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^over: fleet\.replicas: given in values, too; leave out"):
        loraplan.sweep("quickstart", {"fleet.replicas": [1, 2]}, {"fleet.replicas": 3})
    with pytest.raises(InputError, match=r"^over: nothing to sweep; such as \{.*or write a sweep: block"):
        loraplan.sweep("quickstart", {}, {"sweep": None})
    with pytest.raises(InputError, match=r"not a number of workers \(got -7, allowed: -1, or 1 and more\)"):
        loraplan.run("quickstart", jobs=-7)


def test_two_runs_are_compared_by_result_or_folder(tmp_path: Path) -> None:
    one = loraplan.run("quickstart", SMALL | {"cache.gpu.slots": 16}, out=tmp_path / "one", jobs=1)
    other = loraplan.run("quickstart", SMALL | {"cache.gpu.slots": 64}, jobs=1)
    found = loraplan.compare(one, other)
    with pytest.raises(InputError, match=r"other: not a run \(got 2,"):
        loraplan.compare(one, 2)  # type: ignore[arg-type]
    assert found.answer in repr(found)
    row = found.differences.set_index("metric").loc["miss_ratio"]
    assert (row["one"], row["other"]) == (one.value("miss_ratio"), other.value("miss_ratio"))
    assert row["word"] == "clearly better"
    again = loraplan.compare(tmp_path / "one", other)
    assert again.differences.equals(found.differences)


def test_the_public_face_has_what_it_names() -> None:
    assert all(getattr(loraplan, name) is not None for name in loraplan.__all__)
    assert loraplan.run is api.run
    with pytest.raises(AttributeError, match="has no attribute 'sleep'"):
        loraplan.sleep  # noqa: B018


@pytest.mark.parametrize("name", ["sim", "loraplan"])
def test_importing_the_package_costs_nothing(name: str) -> None:
    heavy = "{'numpy', 'pandas', 'pydantic', 'sim.api'}"
    code = f"import sys, {name}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_bad_seed_is_named_as_the_argument_it_is(seed: int) -> None:
    for call in (loraplan.run, loraplan.load_scenario):
        with pytest.raises(InputError, match=r"^seed: run\.seed: out of range"):
            call("quickstart", seed=seed)
