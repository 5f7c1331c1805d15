"""Rollouts that require a vetting: held, sent out, refused; what that avoided; and that inputs are part of a result."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from log_samples import LEARNED, write_adapter
from scenario_samples import refusal, write

from reports.render.html import page
from sim.errors import InputError
from sim.results.model import HeldBack
from sim.results.point import Point
from sim.results.run_directory.store import read_run
from sim.spec.scenario_file import LoadedScenario, load_scenario
from sim.studies.backends.pool import Local
from sim.studies.changes.report import held_table
from sim.studies.design import build, make_design
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.studies.execution import Execution
from sim.studies.run.answer import answer
from sim.studies.run.findings import sweep_answer
from sim.studies.run.report import run_report
from sim.studies.short_runs import steady
from sim.studies.sweep import run_study, task_of
from sim.studies.vetting_gate import digest_weights, release

SCENARIO = """\
schema_version: 1
name: gated
workload:
  duration: 4 min
  arrivals: {process: poisson, rate: 8/s}
adapters: {count: 20, rank: 4}
fleet: {engine: continuous, replicas: 2}
cache: {gpu: {slots: 8}}
slo: {ttft_p99: 1 s}
run: {replications: 2, warmup: 10%}
"""
VET = "rollouts:\n  - {strategy: STRATEGY, at: 2 min, weights: new/v2, require: vet}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A scenario whose rollout needs a vetting, beside the folder of a version that got stuck."""
    write_adapter(tmp_path / "new" / "v2")
    return scenario(tmp_path)


def scenario(folder: Path, rollouts: str = VET, strategy: str = "new-name") -> Path:
    return write(folder / "gated.yaml", SCENARIO + rollouts.replace("STRATEGY", strategy))


def run(file: Path, out: str, *sets: dict[str, Any]) -> Path:
    return run_study(load_scenario(str(file)), list(sets) or [{}], file.parent / out, Execution(Local(1))).path


def said(loaded: LoadedScenario) -> str:
    with pytest.raises(InputError) as caught:
        task_of(0, loaded, {})
    return str(caught.value)


# Held, or sent out


def held_back(point: Point) -> HeldBack:
    assert point.held_back is not None
    return point.held_back


@pytest.mark.parametrize("strategy", ["new-name", "in-place"])
def test_a_held_rollout_leaves_the_tables_of_a_scenario_without_it(file: Path, strategy: str) -> None:
    from pyarrow import parquet

    held = run(scenario(file.parent, strategy=strategy), "held")
    without = run(scenario(file.parent, ""), "without")
    assert (held / "points.csv").read_bytes() == (without / "points.csv").read_bytes()
    assert parquet.read_table(held / "requests.parquet").equals(parquet.read_table(without / "requests.parquet"))


def test_what_was_avoided_is_the_same_traffic_with_the_version_out(file: Path) -> None:
    (point,) = read_run(run(file, "held")).points
    gone = evaluate_scenario(load_scenario(str(file), ["rollouts.0.require=none"]).scenario).point
    held = held_back(point)
    for name, found in held.metrics.items():
        assert found.other == pytest.approx(gone.metrics[name].value)
    versions = gone.version_mix["versions"]
    assert max(versions["2"]) == 1.0
    assert 0 < held.answered.value < held.requests == gone.impact.requests / gone.impact.replications
    assert held.by_rollout == [held.answered]
    assert (held.metrics["rollout_loads"].change or 0) > 0


@pytest.mark.parametrize("strategy", ["new-name", "drain-then-swap"])
def test_every_answer_by_a_held_version_is_counted(file: Path, strategy: str) -> None:
    path = str(scenario(file.parent, strategy=strategy))
    held = held_back(evaluate_scenario(load_scenario(path, ["run.replications=1"]).scenario).point)
    otherwise = load_scenario(path, ["run.replications=1", "rollouts.0.require=none"]).scenario
    requests = evaluate_scenario(otherwise, EvaluationOptions(requests=True)).requests
    table = requests.to_pandas()
    by_the_new = table[(table["status"] == "completed") & (table["version"] == 2)]
    assert held.answered.value == len(by_the_new) > 0
    assert by_the_new["arrival_s"].min() > 100  # it begins at two minutes


def test_a_version_that_passes_goes_out_and_is_said_to(file: Path) -> None:
    write_adapter(file.parent / "new" / "v2", LEARNED, rank=8)
    world = build(load_scenario(str(file)).scenario)
    assert "rollouts.0 vetted: passes" in world.notes
    assert world.pools[0].population.rank.max() == 8  # from its folder
    (point,) = read_run(run(file, "out")).points
    assert not point.held_back
    assert "2" in point.version_mix["versions"]


def test_rank_of_the_scenario_counts_more_than_that_of_the_folder(file: Path) -> None:
    loaded = load_scenario(str(file), ["rollouts.0.require=none", "rollouts.0.rank=32"])
    design = make_design(loaded.scenario)
    assert design.world.pools[0].population.rank.max() == 32
    # Without the rollout it is the same server: slots for rank 32, for adapters of the old rank.
    assert design.baseline is not None
    for world in (design.baseline, build(steady(loaded.scenario))):
        assert world.pools[0].population.rank.max() < 32
        assert world.pools[0].kv_tokens == design.world.pools[0].kv_tokens
        assert world.pools[0].population.slot_rank == 32


def test_slots_are_made_for_the_rank_that_is_asked() -> None:
    small, large, made = (
        build(load_scenario("quickstart", [setting]).scenario).pools[0]
        for setting in ("adapters.rank=16", "adapters.rank=64", "adapters.max_rank=64")
    )
    assert made.kv_tokens == large.kv_tokens < small.kv_tokens
    assert made.population.size_bytes[0] == small.population.size_bytes[0]


def test_what_can_be_judged_in_part_passes_and_is_said(file: Path) -> None:
    log = file.parent / "new" / "v2" / "trainer_state.json"
    state = json.loads(log.read_text())
    state["log_history"] = [entry for entry in state["log_history"] if "loss" in entry]  # no validation
    log.write_text(json.dumps(state))
    notes = release(load_scenario(str(file)).scenario).notes
    assert notes == (
        "rollouts.0 vetted: passes",
        "rollouts.0: v2: too little is known to judge overfitting, underfitting, domain-shift",
    )


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        (None, "no trainer_state.json here, in a checkpoint or above: how it was trained is unknown"),
        (2, "2 losses: too few to see a divergence; at least 8 are needed"),
    ],
)
def test_what_cannot_be_judged_is_held_and_says_why(file: Path, entries: int | None, why: str) -> None:
    log = file.parent / "new" / "v2" / "trainer_state.json"
    state = json.loads(log.read_text())
    state["log_history"] = state["log_history"][:entries]
    log.unlink() if entries is None else log.write_text(json.dumps(state))
    (point,) = read_run(run(file, "held")).points
    (note,) = [each for each in point.warnings if each.startswith("rollouts.0 ")]
    assert note.startswith("rollouts.0 is held back: v2 can't be judged, so it doesn't pass (require: none ")
    assert why in note
    assert held_back(point).rollouts[0].vetted[0]["judged"] is False
    headline = answer(point, {"ttft_p99_s": 1.0}).headline
    assert "Held back: rollouts.0, v2 can't be judged. The version held back would have answered " in headline
    assert release(load_scenario(str(file), ["rollouts.0.require=none"]).scenario).held_back == ()


def test_one_that_cannot_be_judged_holds_all_of_a_folder(file: Path) -> None:
    shutil.rmtree(file.parent / "new" / "v2")
    for name in ("a", "b"):
        write_adapter(file.parent / "new" / "v2" / name, LEARNED)
    assert not release(load_scenario(str(file)).scenario).held_back
    (file.parent / "new" / "v2" / "b" / "trainer_state.json").unlink()
    released = release(load_scenario(str(file)).scenario)
    assert released.held_back
    assert released.notes[0].startswith("rollouts.0 is held back: v2/b can't be judged")


def test_others_go_out_under_their_own_numbers(file: Path) -> None:
    write_adapter(file.parent / "new" / "v3", LEARNED)
    rollouts = (
        "rollouts:\n  - {strategy: new-name, at: 1 min, share: 50%, weights: new/v2, require: vet}\n"
        "  - {strategy: new-name, at: 2 min, share: 50%, weights: new/v3, require: vet}\n"
    )
    (point,) = read_run(run(scenario(file.parent, rollouts), "two")).points
    assert [row.rollout for row in held_back(point).rollouts] == [0]
    assert {event["text"].partition(":")[0] for event in point.events} == {"rollouts.1"}


def test_a_fault_that_needs_swaps_goes_with_the_last_of_them(file: Path) -> None:
    path = scenario(
        file.parent, VET + "faults:\n  - {kind: named-prefixes, share: 10%, lifetime: 1 min}\n", strategy="in-place"
    )
    (point,) = read_run(run(path, "prefixes")).points
    assert point.held_back


def test_the_gate_can_be_swept(file: Path) -> None:
    sets: list[dict[str, Any]] = [{"rollouts.0.require": word} for word in ("none", "vet")]
    data = read_run(run(file, "sweep", *sets))
    out, held = data.points
    assert out.version_mix
    assert held.held_back
    told = sweep_answer(data.points, {"ttft_p99_s": 1.0})
    assert told.headline.startswith("Held back at 1 of 2 points: rollouts.0, v2 shows underfitting (likely). ")
    assert "With none, 2 replications are too few to tell what the rollout did: " in " ".join(told.details)
    assert told.setting == "rollouts.0.require: vet, the nearest to the SLO.", "not the one that lets it out"
    assert "What holding it back avoided" in page(run_report(data))


# What is refused


def test_a_gate_needs_the_versions_folder(file: Path) -> None:
    line = (SCENARIO + VET).count("\n")
    assert refusal(scenario(file.parent, VET.replace("weights: new/v2, ", ""))) == (
        f"{file}:{line}: rollouts.0.weights: a version that must be vetted needs its folder; such as weights: sales-v2"
    )
    shutil.rmtree(file.parent / "new")
    assert said(load_scenario(str(scenario(file.parent)))) == (
        f"{file}:{line}: rollouts.0.weights: no such folder (got {file.parent}/new/v2)"
    )
    write(file.parent / "new" / "v2", "a file")
    assert "this is a file, not an adapter folder" in said(load_scenario(str(file)))


def test_files_that_cannot_be_read_are_an_error_and_no_pass(file: Path) -> None:
    log = file.parent / "new" / "v2" / "trainer_state.json"
    whole = log.read_text()
    log.write_text(whole[:100])
    assert "rollouts.0.weights: the new version can't be vetted: " in said(load_scenario(str(file)))
    log.write_text(whole)
    config = log.parent / "adapter_config.json"
    kept = config.read_text()
    config.write_text("[]")
    assert "rollouts.0.weights: the new version can't be vetted: " in said(load_scenario(str(file)))
    config.write_text(kept)
    write_adapter(log.parent / "beside", LEARNED)
    (log.parent / "beside" / "trainer_state.json").write_text("{")  # among several, too
    assert "rollouts.0.weights: the new version can't be vetted: " in said(load_scenario(str(file)))
    shutil.rmtree(log.parent / "beside")
    (log.parent / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    assert "rollouts.0.weights: the new version can't be vetted: " in said(load_scenario(str(file)))


def test_pipes_and_devices_stop_nothing(file: Path) -> None:
    folder = file.parent / "new" / "v2"
    before = digest_weights(folder)
    (folder / "config.json").symlink_to("/dev/zero")
    assert "leads out of the folder (got /dev/zero" in said(load_scenario(str(file)))
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert digest_weights(folder) == before
    (folder / "trainer_state.json").unlink()
    os.mkfifo(folder / "trainer_state.json")
    assert release(load_scenario(str(file)).scenario).held_back  # and nobody waits for who writes into a pipe


def test_adapters_of_several_shapes_need_a_rollout_each(file: Path) -> None:
    write_adapter(file.parent / "new" / "v2" / "a", LEARNED, rank=8)
    write_adapter(file.parent / "new" / "v2" / "b", LEARNED, rank=16)
    assert "the adapters in this folder differ in shape" in said(load_scenario(str(file)))
    assert release(load_scenario(str(scenario(file.parent, strategy="in-place"))).scenario).held_back


# Paths and digests


def test_folders_are_found_beside_the_scenario_and_from_where_a_value_is_set(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path / "elsewhere" / "v9", LEARNED)
    monkeypatch.chdir(tmp_path / "elsewhere")
    written = load_scenario(str(file)).scenario.rollouts[0].weights
    assert written == str(file.parent / "new" / "v2")
    given = load_scenario(str(file), ["rollouts.0.weights=v9"])
    assert given.scenario.rollouts[0].weights == str(tmp_path / "elsewhere" / "v9")
    swept = load_scenario(str(file)).with_values({"rollouts.0.weights": "v9"})
    assert swept.scenario.rollouts[0].weights == str(tmp_path / "elsewhere" / "v9")


def test_a_version_that_was_trained_again_is_another_input(file: Path) -> None:
    folder, loaded = file.parent / "new" / "v2", load_scenario(str(file))
    before = task_of(0, loaded, {}).inputs
    assert before["rollouts.0.weights"] == digest_weights(folder)
    write(folder / "README.md", "not read, so not part of it")
    assert task_of(0, loaded, {}).inputs == before
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_dropout": 0.1}))
    changed = task_of(0, loaded, {}).inputs
    assert changed != before
    write_adapter(folder, LEARNED)
    assert task_of(0, loaded, {}).inputs not in (before, changed)


# Words


def test_the_report_says_what_was_held_and_why(file: Path) -> None:
    data = read_run(run(file, "held"))
    (point,) = data.points
    told = answer(point, {"ttft_p99_s": 1.0})
    value, total = held_back(point).answered.value, held_back(point).requests
    assert told.headline.startswith("The SLO is not met: p99 TTFT is ")
    assert " target. Held back: rollouts.0, v2 shows underfitting (likely). The version " in told.headline
    assert f"held back would have answered {value:,.0f} of {total:,} requests" in told.headline
    assert told.details[0].startswith("If it had been rolled out: p99 TTFT ")
    assert any(
        warning.startswith("rollouts.0 is held back: v2 shows underfitting (likely): the training loss was ")
        for warning in point.warnings
    )
    table = held_table(point, "")
    assert table.rows[0][:2] == ["requests answered by the version held back", "0"]
    assert "What holding it back avoided" in page(run_report(data))
    summary = json.loads((data.path / "summary.json").read_text())
    assert summary["points"][0]["held"]["answered"]["value"] == value
