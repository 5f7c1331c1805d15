"""``loraplan vet`` as somebody meets it: what it prints, its exit codes, and what it says of bad input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from command_line import CommandLine
from log_samples import falling, history, write_config, write_log

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
    assert loraplan("vet", "stuck").code == 0
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
