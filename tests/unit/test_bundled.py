"""Bundled scenarios, the schema for editors, and the cost of importing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scenario_samples import BASE, base, refusal, write

from sim.errors import OutputError, ScenarioError
from sim.spec import scenario_file
from sim.spec.scenario import scenario_schema, schema_text
from sim.spec.scenario_file import bundled_scenarios, copy_scenario, load_scenario

__all__ = ["base"]  # a fixture, used by its name


# Sources


def test_a_source_that_is_no_file_is_refused(base: Path) -> None:
    assert refusal("missing.yaml").startswith("missing.yaml: no such file")
    assert refusal(base.parent).startswith(f"{base.parent}: is a folder")


def test_a_folder_of_results_does_not_hide_the_bundled_scenario_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_scenario("quickstart").scenario.name == "quickstart"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the bundled scenarios."""
    folder = tmp_path / "scenarios"
    text = BASE.replace("    law: zipf\n    exponent: 0.9", "    law: weights\n    file: traces/w.csv")
    write(folder / "weighted.yaml", f"# yaml-language-server: $schema=schema/scenario.schema.json\n{text}")
    write(folder / "plain.yaml", BASE)
    write(folder / "traces" / "w.csv", "1\n2\n")
    monkeypatch.setattr(scenario_file, "bundled_folder", lambda: folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_bundled_scenarios_are_found_by_name(folder: Path) -> None:
    assert list(bundled_scenarios().items()) == [("plain", "A base."), ("weighted", "A base.")]
    assert load_scenario("plain").source == "plain"
    child = write(Path("child.yaml"), "extends: weighted\nname: child\n")
    assert load_scenario(str(child)).data["workload"]["popularity"]["file"] == f"{folder}/traces/w.csv"
    assert refusal("plane") == (
        "no file and no bundled scenario is called 'plane' (allowed: a YAML file, or a name from loraplan scenarios "
        "list); did you mean 'plain'?"
    )


def test_a_copy_brings_its_files_and_overwrites_nothing(folder: Path) -> None:
    target = copy_scenario("weighted", Path())
    assert target == Path("weighted.yaml")
    assert Path("traces/w.csv").read_text() == "1\n2\n"
    assert f"$schema=file://{folder}/schema/scenario.schema.json\n" in target.read_text()
    assert load_scenario("weighted.yaml").data["workload"]["popularity"]["file"] == str(Path("traces/w.csv").resolve())
    target.write_text("mine")
    with pytest.raises(OutputError, match=r"weighted\.yaml: this file already exists"):
        copy_scenario("weighted", Path())
    with pytest.raises(OutputError, match=r"traces/w\.csv: this file already exists"):
        copy_scenario("weighted", Path("other.yaml"))
    assert not Path("other.yaml").exists()
    assert target.read_text() == "mine"
    with pytest.raises(OutputError, match=r"nowhere/x\.yaml: can't write this file: No such file"):
        copy_scenario("plain", Path("nowhere/x.yaml"))
    with pytest.raises(ScenarioError, match="called 'none'"):
        copy_scenario("none", Path())


# The schema, and the cost of importing


def test_the_committed_schema_is_current() -> None:
    committed = scenario_file.bundled_folder() / "schema" / "scenario.schema.json"
    assert committed.read_text(encoding="utf-8") == schema_text(), f"loraplan schema > {committed}"


def test_the_schema_knows_whole_files_and_overlays() -> None:
    schema = scenario_schema()
    defs = schema["$defs"]
    assert defs["Scenario"]["required"] == ["schema_version", "name", "workload", "adapters"]
    assert defs["Scenario"]["properties"]["workload"]["$ref"] == "#/$defs/Workload"
    assert "extends" not in defs["Scenario"]["properties"]
    overlay = defs["Scenario.overlay"]
    assert "required" not in overlay
    assert overlay["additionalProperties"] is False
    assert overlay["properties"]["extends"]["type"] == "string"
    assert overlay["properties"]["workload"]["anyOf"][0]["$ref"] == "#/$defs/Workload.overlay"
    assert "description" in defs["Fleet"]["properties"]["replicas"]
    assert "continuous" in defs["Fleet"]["properties"]["engine"]["anyOf"][0]["enum"]
    text = json.dumps(schema)
    for reference in set(text.split('"#/$defs/')[1:]):
        assert reference.split('"')[0] in defs


def test_reading_a_scenario_imports_nothing_heavy() -> None:
    code = (
        "import sys, sim.spec.scenario_file\n"
        "heavy = {'pandas', 'scipy', 'matplotlib', 'pyarrow', 'torch', 'simpy', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
