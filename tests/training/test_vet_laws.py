"""Laws of vetting, whatever the log: an answer instead of a traceback, and the same one for the same facts."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.studies.vet.report import vet_report
from sim.training.vet_adapters import vet_path

FIXTURES = sorted(file.parent for file in (Path(__file__).resolve().parent / "fixtures").glob("*/made.json"))

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=6), st.just([]), st.just({})
)
VALUES = st.one_of(st.floats(0, 10), st.floats(0, 10), ODD)
KEYS = st.sampled_from(
    [
        "loss",
        "eval_loss",
        "grad_norm",
        "learning_rate",
        "epoch",
        "eval_accuracy",
        "eval_f1",
        "eval_runtime",
        "eval_samples_per_second",
        "train_samples_per_second",
        "train_steps_per_second",
        "eval_x_loss",
        "eval_wer",
    ]
)
ENTRIES = st.one_of(
    st.builds(
        lambda step, rest: {"step": step} | rest,
        st.one_of(st.integers(0, 60), ODD),
        st.dictionaries(KEYS, VALUES, max_size=5),
    ),
    ODD,
)
HEADS = st.fixed_dictionaries(
    {},
    optional={
        key: st.one_of(st.integers(0, 100), ODD)
        for key in ("global_step", "max_steps", "train_batch_size", "best_global_step", "best_model_checkpoint")
    },
)
CONFIGS = st.dictionaries(
    st.sampled_from(
        ["r", "target_modules", "lora_dropout", "base_model_name_or_path", "quantization_config", "load_in_4bit"]
    ),
    st.one_of(
        ODD,
        st.integers(1, 64),
        st.lists(st.sampled_from(["q_proj", "v_proj", "up_proj"])),
        st.just("all-linear"),
        st.just("unsloth/llama-3-8b-bnb-4bit"),
        st.just({"load_in_4bit": True}),
    ),
)


def vetted(folder: Path, state: object, config: object) -> list[dict[str, Any]]:
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (one,) = vet_path(folder)
    report = vet_report([one], None, None)
    assert report.terminal[0]
    for finding in one.findings:
        assert finding.evidence
        assert finding.remedies
        for evidence in finding.evidence:
            assert len(evidence.steps) == len(evidence.values)
    found: list[dict[str, Any]] = report.data
    return found


@examples(150)
@given(HEADS, st.lists(ENTRIES, max_size=60), CONFIGS)
def test_any_log_has_an_answer(head: dict[str, Any], rows: list[Any], config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        vetted(Path(folder), head | {"log_history": rows}, config)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trainer_state.json"
        file.write_bytes(raw)
        with pytest.raises(InputError) as raised:
            vet_path(file)
        assert str(raised.value).startswith(str(file))


def findings(folder: Path, state: dict[str, Any], config: str) -> list[dict[str, Any]]:
    (found,) = vetted(folder, state, json.loads(config))
    return [{key: finding[key] for key in ("mode", "confidence")} for finding in found["findings"]]


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.name)
def test_order_repetition_and_pace_change_nothing(fixture: Path, tmp_path: Path) -> None:
    state = json.loads((fixture / "trainer_state.json").read_text())
    config = (fixture / "adapter_config.json").read_text()
    rows = state["log_history"]
    expected = findings(tmp_path, state, config)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert findings(tmp_path, state | {"log_history": shuffled}, config) == expected
    assert findings(tmp_path, state | {"log_history": rows + rows[: len(rows) // 2]}, config) == expected
    for pace in (7, 1000):  # steps and batches in an epoch alike: as many steps, each with fewer examples
        faster = ("step", "train_steps_per_second")
        slower = [row | {key: pace * row[key] for key in faster if row.get(key) is not None} for row in rows]
        whole = state | {"log_history": slower, "global_step": pace * state["global_step"]}
        whole |= {
            "best_global_step": pace * (state.get("best_global_step") or 0),
            "max_steps": pace * state["max_steps"],
        }
        assert findings(tmp_path, whole, config) == expected
