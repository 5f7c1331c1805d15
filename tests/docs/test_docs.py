"""README and docs say what is so: commands print what they show, links lead somewhere, tables are current."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import ROOT, script
from typer.main import get_command

from sim.cli import app
from sim.policies.costs import load_seconds
from sim.policies.replica_memory import slots_bytes
from sim.spec.engines import DEFAULT_ENGINE
from sim.spec.files.tree import plain
from sim.spec.files.yaml_tree import yaml_mapping
from sim.spec.profile_choice import DEFAULT_GPU, DEFAULT_MODEL
from sim.spec.scenario_file import load_scenario
from sim.studies.design import grid
from sim.studies.headroom import COARSE, FINE
from sim.traffic.adapters import SHAPES, parameters_per_rank
from sim.world.build import build_world

LONG = bool(os.environ.get("LORAPLAN_DOCS_LONG"))


outputs = script("outputs")
PAGES: list[Path] = outputs.PAGES

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"(?<![\w./-])(?:sim|reports|calibrate|tests|tools)/[\w./*-]*")
_COMMAND_CELL = re.compile(r"`(--(?:set|over) [^`|]*)`")


def commands_of(page: Path) -> list[Any]:
    return [step for step in outputs.steps(page.read_text(encoding="utf-8")) if isinstance(step, outputs.Command)]


with_commands = [page for page in PAGES if commands_of(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page", with_commands, ids=lambda page: page.name)
def test_commands_print_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    stale = []
    done = list(outputs.replay(page, tmp_path, LONG))
    for command, ended in done:
        if ended is None:
            continue
        where = f"{page.name}:{command.line}: {command.text}"
        assert ended.code == command.code, "\n".join([where, *ended.printed[-20:]])
        # What loraplan prints of its own accord needs no escapes: a no-break space came out as one.
        assert not re.search(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}", "\n".join(ended.printed)), where
        if not outputs.matches(command.shown, ended.printed):
            now = outputs.refreshed(command.shown, ended.printed)
            stale.append("\n".join(difflib.unified_diff(command.shown, now, where, "what it prints", n=0, lineterm="")))
    if (whole := outputs.whole_file(page)) is not None:  # also what the page leaves out
        kept, now = whole.read_text(encoding="utf-8"), outputs.transcript(done)
        stale += difflib.unified_diff(kept.splitlines(), now.splitlines(), whole.name, "what is printed", lineterm="")
    lacking = {command.needs for command, ended in done if ended is None and command.needs}
    assert not stale, "\n".join([*stale, f"run .venv/bin/python docs/outputs.py {page.relative_to(ROOT)}"])
    if lacking:
        pytest.skip(f"the other commands are current; some need an extra that is not installed: {', '.join(lacking)}")


def test_of_readme_and_tutorial_every_command_is_kept_whole() -> None:
    for page, name in outputs.WHOLE.items():
        kept = (ROOT / "tests" / "docs" / "whole" / name).read_text(encoding="utf-8").splitlines()
        assert [line[2:] for line in kept if line.startswith("$ ")] == [
            command.text for command in commands_of(page) if not command.long
        ]
        assert "…" not in {line.strip() for line in kept}, f"{name} leaves out nothing"


def test_every_output_can_be_compared() -> None:
    hidden = [
        f"{page.name}:{command.line}: {command.text}"
        for page in with_commands
        for command in commands_of(page)
        if not any(outputs.CUT not in line and line.strip() for line in command.shown)
        and not any(line.startswith(("error: ", "note: ")) for line in command.shown)
    ]
    assert not hidden, "only the exit code of these counts: show a line of what they print"


def test_commands_that_no_test_runs_have_options_that_exist() -> None:
    """Those in plain blocks need a GPU, a cluster, or files that are not here."""
    found = 0
    for page in PAGES:
        for block in outputs.BLOCK.finditer(page.read_text(encoding="utf-8")):
            if block["kind"] == "console":
                continue
            for line in block["body"].replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if line.startswith("loraplan ") else []
                if not words or "[OPTIONS]" in words:
                    continue
                command: Any = get_command(app)
                options = {option for param in command.params for option in param.opts}
                for word in words[1:]:
                    command = getattr(command, "commands", {}).get(word, command)
                    options |= {option for param in command.params for option in param.opts}
                given = {word.partition("=")[0] for word in words if word.startswith("--")}
                assert not hasattr(command, "commands") or given, f"{page.name}: no such command: {line}"
                assert given <= options, f"{page.name}: no such option: {line}"
                found += 1
    assert found >= 30


def test_commands_of_the_reference_table_are_valid() -> None:
    cells = _COMMAND_CELL.findall((ROOT / "docs" / "validation.md").read_text(encoding="utf-8"))
    assert len(cells) >= 5
    for cell in cells:
        words = shlex.split(cell)
        assert set(words[::2]) <= {"--set", "--over"}, cell
        pairs = list(zip(words[::2], words[1::2], strict=True))
        loaded = load_scenario("cache-thrash", [value for option, value in pairs if option == "--set"])
        over = dict(value.split("=", 1) for option, value in pairs if option == "--over")
        for values in grid(loaded, {key: text.split(",") for key, text in over.items()}):
            loaded.with_values({key: _number(value) for key, value in values.items()})


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(other), f"{page.name}: {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    index = ROOT / "docs" / "index.md"
    reached = {
        (start.parent / target.partition("#")[0]).resolve()
        for start in (ROOT / "README.md", index)
        for target in _LINK.findall(start.read_text(encoding="utf-8"))
    }
    assert index in reached
    assert set(PAGES) - {ROOT / "README.md"} <= reached


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = {path.rstrip("./") for path in _PATH.findall(page.read_text(encoding="utf-8"))}
    missing = sorted(path for path in named if not any(ROOT.glob(path)))
    assert not missing, f"{page.name} names files that do not exist"


def test_the_readme_is_short_and_its_pictures_are_small() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    pictures = [ROOT / target for target in _LINK.findall(text) if target.endswith(".png")]
    assert len(pictures) == 2
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert picture.stat().st_size < 200_000, picture.name


def test_pages_can_be_read_in_one_sitting() -> None:
    """A page is about one subject; longer ones are cut."""
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]
    words = {page.name: len(page.read_text(encoding="utf-8").split()) for page in pages}
    assert {name: count for name, count in words.items() if count >= 4000} == {}


def test_the_skill_says_what_agents_look_for() -> None:
    head, text = outputs.SKILL.read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n")
    found = plain(yaml_mapping(head.encode(), "SKILL.md"))
    assert found["name"] == outputs.SKILL.parent.name
    assert "Use it for" in found["description"]
    assert len(found["description"]) < 1024
    assert len(re.findall(r"^## \d+\. ", text, re.MULTILINE)) == 10
    assert not _LINK.findall(text), "it is copied to where there are no pages"


@pytest.mark.slow
def test_the_action_posts_the_answer_and_fails_with_the_command(tmp_path: Path) -> None:
    action: Any = plain(yaml_mapping((ROOT / "action.yml").read_bytes(), "action.yml"))
    step = action["runs"]["steps"][-1]
    assert all("${{" not in each.get("run", "") for each in action["runs"]["steps"]), "what they hold would be run"
    assert set(step["env"].values()) == {f"${{{{ inputs.{name} }}}}" for name in ("scenario", "command", "args")}
    program = tmp_path / "loraplan"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sim.cli "$@"\n')
    program.chmod(0o755)
    summary = tmp_path / "summary.md"
    paths = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "GITHUB_STEP_SUMMARY": str(summary)}
    run = {"COMMAND": "run", "SCENARIO": "cache-thrash", "ARGS": "--no-headroom --set workload.requests=1000"}
    for changed, code, said in (
        ({"ARGS": f"{run['ARGS']} --set 'slo={{e2e_p99: 100 s}}'"}, 0, ("run: The answer is yes", "SLO is met")),
        (
            {"ARGS": f"{run['ARGS']} --set 'slo={{e2e_p99: 1 ms}}'"},
            1,
            ("run: The answer is not a sure yes", "above the 1 ms target"),
        ),
        ({"SCENARIO": "$(touch made)", "COMMAND": "plan", "ARGS": ""}, 2, ("plan: The input can't be used", "error: ")),
    ):
        summary.write_text("")
        environment = {**os.environ, **paths, **run, **changed}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done
        assert all(words in summary.read_text() for words in said)
        assert done.stdout.strip() in summary.read_text()
    assert not (tmp_path / "made").exists()


def test_pages_name_no_machine() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path in (f"{ROOT.parent}/", "/home/", "/tmp/", "/root/", "localhost", "../shared"):
            assert path not in text, f"{page.name} names {path}"


def test_extras_are_installed_from_a_clone() -> None:
    for path in (*PAGES, *(ROOT / "sim").rglob("*.py"), *(ROOT / "calibrate").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pip install '?loraplan", text), f"{path.name}: loraplan is on no package index"


def test_the_page_of_profiles_counts_the_bundled_ones() -> None:
    count = len(list((ROOT / "scenarios" / "profiles").rglob("*.json")))
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    assert f"This version bundles {count} profiles" in page


@pytest.mark.slow
def test_generated_tables_are_current() -> None:
    stale = [path.name for path, text in script("generate").pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run python docs/generate.py: {', '.join(stale)}"


def test_the_adapter_table_is_what_the_shapes_give() -> None:
    rows = re.findall(
        r"^\| ([a-z0-9.\-, ]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$",
        (ROOT / "docs" / "model.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    seen = set()
    for names, *numbers in rows:
        for name in names.split(", "):
            shape = SHAPES[name]
            counted = [parameters_per_rank(shape, t) for t in (("q", "v"), ("q", "k", "v", "o"), "all-linear")]
            assert [int(number.replace(",", "")) for number in numbers] == counted, name
            seen.add(name)
    assert seen == set(SHAPES)


def test_the_table_of_memory_is_what_shapes_and_slots_give() -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\d+) \| (\d+) MB \| (\d+) MB \| (\d+) MB \|$", page, re.MULTILINE)
    for model, *numbers in rows:
        shape, (rank, *printed) = SHAPES[model], [int(number) for number in numbers]
        copies = [2 * rank * parameters_per_rank(shape, targets) for targets in ("all-linear", ("q", "v"))]
        assert [round(size / 1e6) for size in (*copies, slots_bytes(shape, 32, rank) / 32)] == printed, (model, rank)
    assert len(rows) == 7


def test_the_table_of_experts_is_what_vllm_allocates() -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "tests" / "calibrate" / "vllm_expert_buffers.json").read_text(encoding="utf-8"))
    layers = {"mixtral-8x7b": 32, "qwen3-30b-a3b": 48, "gpt-oss-20b": 24, "gpt-oss-120b": 36}
    columns = (
        {"gpus": 1},
        {"gpus": 8},
        {"gpus": 8, "sharded": True},
        {"gpus": 8, "ep": True},
        {"gpus": 1, "shared": True},
    )
    for model, count in layers.items():
        sizes = []
        for wanted in columns:
            given = {"model": model, "rank": 16, **wanted}
            (row,) = (row for row in record["rows"] if {k: v for k, v in row.items() if k not in "AB"} == given)
            sizes.append(f"{count * sum(row['A'] + row['B']) / record['slots'] / 1e6:,.0f} MB")
        assert f"| {model} | {' | '.join(sizes)} |\n" in page


def test_the_load_times_on_the_page_are_those_of_the_default_profile() -> None:
    page = " ".join((ROOT / "docs" / "model.md").read_text(encoding="utf-8").split())
    found = re.search(r"takes (\d+), (\d+) and (\d+) ms at rank 8, 16 and 32 .* takes ([\d.]+) ms at each rank", page)
    assert found
    default = [f"fleet.gpu={DEFAULT_GPU}", f"adapters.base_model={DEFAULT_MODEL}"]
    for rank, printed in zip((8, 16, 32), found.groups()[:3], strict=True):
        world = build_world(load_scenario("quickstart", [*default, f"adapters.rank={rank}"]).scenario)
        assert world.pools[0].profile is not None
        load = world.pools[0].profile.load
        assert printed == f"{1e3 * load_seconds(load.storage, world.pools[0].population)[0]:.0f}"
        assert found[4] == f"{1e3 * load_seconds(load.host, world.pools[0].population)[0]:.1f}"


def test_pages_name_the_default_engine_and_the_lengths_of_the_runs_for_headroom() -> None:
    engines = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert f"`{DEFAULT_ENGINE}`, the default" in engines
    headroom = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert f"Simulations of {COARSE:,} requests bracket" in headroom
    assert f"Simulations of {FINE:,} requests narrow" in headroom


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", outputs.BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
