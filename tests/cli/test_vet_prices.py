"""``loraplan vet --scenario``: what the fleet pays for the remedies that were found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import CommandLine
from stuck_adapter import LEARNED, write_adapter

QUICK = ("--set", "workload.requests=400", "--set", "run.replications=2", "--set", "cache.host=null")


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")


def test_prices_are_kept(loraplan: CommandLine) -> None:
    write_adapter(Path("stuck"))
    ended = loraplan("vet", "stuck", "--scenario", "retrain-1000-adapters", *QUICK, "--json")
    found = json.loads(ended.out)
    assert [one["path"] for one in found["vetted"]] == ["stuck"]
    assert found["priced"]["run"] == "runs/retrain-1000-adapters-cures"
    assert [(row["who"], row["memory"]["slots"]) for row in found["priced"]["changes"][-2:]] == [
        ("one adapter", [64, 32]),
        ("all adapters", [64, 32]),
    ]
    assert found["priced"]["as_it_is"]["miss_ratio"]["value"] > 0


def test_a_healthy_adapter_costs_nothing(loraplan: CommandLine) -> None:
    write_adapter(Path("fine"), LEARNED)
    ended = loraplan.succeeds("vet", "fine", "--scenario", "retrain-1000-adapters")
    assert ended.out.endswith("None of the remedies changes what serving costs, so there is nothing to price.\n")
    assert not Path("runs").exists()
    assert loraplan.data("vet", "fine", "--scenario", "retrain-1000-adapters")["priced"] is None


def test_a_gated_run_says_what_was_held(loraplan: CommandLine) -> None:
    write_adapter(Path("v2"))
    Path("gated.yaml").write_text(
        "schema_version: 1\nextends: quickstart\nname: gated\nworkload: {requests: 2000}\nrun: {replications: 1}\n"
        "rollouts: [{strategy: in-place, at: 2 min, adapter: 0, weights: v2, require: vet}]\n"
    )
    ended = loraplan.succeeds("run", "gated.yaml")
    assert ended.out.startswith("gated: The SLO is probably met: ")
    assert " Held back: rollouts.0, v2 shows underfitting (likely). The version held back " in ended.out.splitlines()[0]
    assert "note: rollouts.0 is held back: v2 shows underfitting (likely): the training loss was " in ended.err
    assert loraplan("check", "gated.yaml", "--set", "rollouts.0.weights=v3").err.startswith(
        "error: --set: rollouts.0.weights: no such folder (got "
    )
