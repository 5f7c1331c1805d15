"""``loraplan vet`` as somebody meets it: what it prints, exit codes, bad input, and what a fleet pays for remedies."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from command_line import CommandLine
from log_samples import LEARNED, falling, history, write_adapter, write_config, write_log

STUCK = history(falling(2.5, 1.2, 30), falling(2.5, 1.3, 30), accuracy=falling(0.2, 0.7, 30))
HEALTHY = history(falling(3, 0.5), falling(3, 0.6), accuracy=falling(0.1, 0.95))


@pytest.fixture
def stuck(tmp_path: Path) -> Path:
    write_config(tmp_path / "stuck", 4, ["q_proj", "v_proj"])
    write_log(tmp_path / "stuck", STUCK)
    return tmp_path / "stuck"


def test_check_fails_what_is_likely(loraplan: CommandLine, stuck: Path) -> None:
    assert loraplan("vet", "stuck", "--check").code == 1
    write_log(stuck, HEALTHY)
    ended = loraplan("vet", "stuck", "--check", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "stuck: nothing found\n", "")


def test_many_adapters_begin_with_a_summary(loraplan: CommandLine, stuck: Path) -> None:
    write_config(stuck.parent / "fine")
    write_log(stuck.parent / "fine", HEALTHY)
    write_config(stuck.parent / "unknown")
    lines = loraplan("vet", ".").out.splitlines()
    assert lines[:3] == ["3 adapters: 1 underfitting, 1 with nothing found, 1 that can't be judged", "", lines[2]]
    assert lines[2] == "stuck: underfitting (likely)"
    assert lines[-1] == "can't be judged: unknown"


def test_check_fails_what_cannot_be_judged(loraplan: CommandLine, stuck: Path) -> None:
    (stuck / "trainer_state.json").unlink()
    loraplan.succeeds("vet", "stuck")
    assert loraplan("vet", "stuck", "--check").code == 1
    (one,) = loraplan.data("vet", "stuck")
    assert (one["passes"], one["judged"]) == (False, False)


def test_json_has_everything(loraplan: CommandLine, stuck: Path) -> None:
    write_log(stuck, history(lambda at: 2.0 if at < 0.5 else math.nan))
    (one,) = loraplan.data("vet", "stuck", "--base-bits", "4")
    assert set(one) == {"path", "passes", "judged", "adapter", "findings", "unjudged", "notes"}
    assert one["passes"] is False
    assert one["adapter"]["rank"] == 4
    (finding,) = one["findings"]
    assert (finding["mode"], finding["confidence"]) == ("divergence", "certain")
    assert finding["evidence"][0]["values"][0] is None
    assert [cure["base_quantization"] for cure in finding["cures"]] == ["int8", "bf16", None, None]


def test_a_log_alone(loraplan: CommandLine, tmp_path: Path) -> None:
    file = write_log(tmp_path / "run", HEALTHY)
    assert loraplan("vet", str(file)).out == f"{file}: nothing found\n"


def test_a_threshold_is_set(loraplan: CommandLine, stuck: Path) -> None:
    assert loraplan("vet", "stuck", "--threshold", "mediocre_metric=0.6").out == "stuck: nothing found\n"


def test_bad_files_among_many_are_notes(loraplan: CommandLine, stuck: Path) -> None:
    for name, text in (("broken", "{"), ("listed", "[]")):
        write_config(stuck.parent / name)
        (stuck.parent / name / "trainer_state.json").write_text(text)
    (stuck.parent / "listed" / "adapter_config.json").write_text("[]")
    (stuck / "adapter_model.safetensors").write_bytes(b"\x80\x02")
    found = {one["path"]: one for one in loraplan.data("vet", ".")}
    assert found["broken"]["notes"][-1].startswith("the log can't be used: broken/trainer_state.json: this log is not")
    assert found["listed"]["notes"][-1].startswith("the configuration can't be used: ")
    assert found["stuck"]["findings"][0]["mode"] == "underfitting"
    assert found["stuck"]["notes"][0].startswith("the weights can't be used: ")
    write_log(stuck, HEALTHY)
    ended = loraplan("vet", "stuck", "--check")
    assert (ended.code, ended.out) == (1, "stuck: can't be judged\n"), "nothing can serve it"
    assert "3 that can't be judged" in loraplan("vet", ".").out


QUICK = ("--set", "workload.requests=400", "--set", "run.replications=2", "--set", "cache.host=null")


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")


def test_prices_are_kept(loraplan: CommandLine) -> None:
    write_adapter(Path("stuck"))
    found = loraplan.data("vet", "stuck", "--scenario", "retrain-1000-adapters", *QUICK)
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
