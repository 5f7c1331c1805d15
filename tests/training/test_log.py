"""Logs from strangers: what stands there is read, what is odd is said, and nothing ends in a traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from log_samples import closing, falling, history, write_config, write_log

from sim.errors import InputError
from sim.training.logs.training_facts import gather
from sim.training.logs.training_log import LOG_LIMIT, find_log, read_log


def test_the_series_of_a_log(tmp_path: Path) -> None:
    rows = [
        {"epoch": 0.5, "loss": 2.5, "grad_norm": 1.5, "learning_rate": 1e-4, "step": 10},
        {"epoch": 1.0, "loss": 2.0, "grad_norm": 0.5, "learning_rate": 5e-5, "step": 20},
        {
            "epoch": 1.0,
            "eval_loss": 1.9,
            "eval_accuracy": 0.6,
            "eval_runtime": 2.0,
            "eval_samples_per_second": 50.0,
            "eval_steps_per_second": 5.0,
            "step": 20,
        },
    ]
    log = read_log(write_log(tmp_path, rows, best_global_step=20, global_step=20))
    assert log.loss.steps == (10, 20)
    assert log.grad_norm.values == (1.5, 0.5)
    assert log.eval_loss.values == (1.9,)
    assert set(log.metrics) == {"accuracy"}
    assert (log.steps_per_epoch, log.eval_examples, log.best_step) == (20, 100, 20)
    assert log.notes == ()


@pytest.mark.parametrize(
    ("rows", "name", "steps", "values", "notes"),
    [
        ([{"loss": math.nan, "step": 1}, {"loss": 2.0, "step": 2}], "loss", (1, 2), "(nan, 2.0)", ()),
        ([{"grad_norm": math.inf, "step": 1}], "grad_norm", (1,), "(inf,)", ()),
        ([{"loss": 1e400, "step": 1}], "loss", (1,), "(inf,)", ()),
        ([{"loss": "2.5", "step": 1}], "loss", (1,), "(2.5,)", ()),  # as older Trainers wrote them
        ([{"grad_norm": "nan", "step": 1}], "grad_norm", (1,), "(nan,)", ()),
        ([{"loss": 1.0, "step": 9}, {"loss": 2.0, "step": 3}], "loss", (3, 9), "(2.0, 1.0)", ()),
        (
            [{"loss": 3.0, "step": 1}, {"loss": 2.0, "step": 2}, {"loss": 1.0, "step": 2}, {"loss": 0.5, "step": 3}],
            "loss",
            (1, 2, 3),
            "(3.0, 1.0, 0.5)",
            ("step 2 stands there more than once, as after a resumption: the later entry counts",),
        ),
        (
            [{"eval_b_loss": 2.0, "eval_a_loss": 1.0, "step": 1}],
            "eval_loss",
            (1,),
            "(1.0,)",
            ("2 validation sets: judged by eval_a_loss",),
        ),
    ],
)
def test_entries_become_series(
    tmp_path: Path, rows: list[Any], name: str, steps: tuple[int, ...], values: str, notes: tuple[str, ...]
) -> None:
    log = read_log(write_log(tmp_path, rows))
    series = getattr(log, name)
    assert (series.steps, str(series.values), log.notes) == (steps, values, notes)
    assert all(map(math.isfinite, series.finite().values))


@pytest.mark.parametrize(
    ("entry", "note"),
    [
        ({"loss": 1.0}, "1 of 2 entries have no step that can be read: left out"),
        ({"loss": 1.0, "step": -1}, "1 of 2 entries have no step"),
        ({"loss": 1.0, "step": "two"}, "1 of 2 entries have no step"),
        ("not an entry", "1 of 2 entries have no step"),
        ({"loss": [1.0], "step": 2}, "1 values of loss are no numbers: left out"),
        ({"loss": None, "step": 2}, "1 values of loss are no numbers"),
        ({"loss": True, "step": 2}, "1 values of loss are no numbers"),
        ({"loss": "9" * 500, "step": 2}, "1 values of loss are no numbers"),
    ],
)
def test_an_odd_entry_is_left_out_with_a_note(tmp_path: Path, entry: object, note: str) -> None:
    log = read_log(write_log(tmp_path, [{"loss": 2.0, "step": 1}, entry]))
    assert log.loss.values == (2.0,)
    assert log.notes[0].startswith(note)


def test_numbers_too_large_for_a_float_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "trainer_state.json"
    file.write_text(
        '{"log_history": [{"loss": 1' + "0" * 400 + ', "step": 1}, {"loss": 1.0, "step": 1' + "0" * 50 + "}]}"
    )
    assert len(read_log(file).loss) == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "this log is not JSON"),
        ("[]", "this log is not a JSON object"),
        ("{", "this log is not JSON"),
        ("[" * 100_000, "this log is not JSON"),
        ('{"a": ' * 50_000, "this log is not JSON"),
        ("{}", "no log_history in this file (allowed: a trainer_state.json"),
        ('{"log_history": {}}', "no log_history in this file (got dict"),
        ('{"log_history": "x"}', "no log_history in this file (got str"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trainer_state.json"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        read_log(file)
    assert str(raised.value).startswith(f"{file}: {says}")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "trainer_state.json"
    file.write_bytes(b"\xff\xfe\xff{}")
    with pytest.raises(InputError, match="this log is not JSON"):
        read_log(file)


@pytest.mark.promise("training log: 64 MiB")
def test_a_log_too_long_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    file = tmp_path / "trainer_state.json"
    with file.open("wb") as out:
        out.truncate(LOG_LIMIT + 1)
    with pytest.raises(InputError, match="it is larger than 64 MiB"):
        read_log(file)


@pytest.mark.parametrize(
    ("state", "step"),
    [
        ({"best_global_step": 20, "best_model_checkpoint": "x/checkpoint-30"}, 20),
        ({"best_model_checkpoint": "./results/checkpoint-2800"}, 2800),
        ({"best_model_checkpoint": r"out\checkpoint-7"}, 7),
        ({"best_model_checkpoint": "results/best"}, None),
        ({"best_model_checkpoint": 3}, None),
        ({"best_global_step": None}, None),
    ],
)
def test_the_best_step_in_newer_and_older_logs(tmp_path: Path, state: dict[str, Any], step: int | None) -> None:
    assert read_log(write_log(tmp_path, [], **state)).best_step == step


def test_the_weights_of_a_checkpoint_are_its_own(tmp_path: Path) -> None:
    rows = history(falling(3, 1))
    assert read_log(write_log(tmp_path / "out", rows, best_global_step=100)).kept_step == 100
    assert read_log(write_log(tmp_path / "out" / "checkpoint-400", rows, best_global_step=100)).kept_step == 400


def test_a_step_has_as_many_examples_as_the_closing_entry_says(tmp_path: Path) -> None:
    rows = [*history(falling(3, 1), epochs=2), closing(400, batch=64)]
    log = read_log(write_log(tmp_path, rows, train_batch_size=4))
    assert (log.batch, log.steps_per_epoch) == (64, 200)


def test_where_a_log_is_looked_for(tmp_path: Path) -> None:
    adapter = tmp_path / "out" / "adapter"
    write_config(adapter)
    assert find_log(adapter) is None
    above = write_log(tmp_path / "out", [])
    assert find_log(adapter) == above
    old, new = (write_log(adapter / f"checkpoint-{step}", []) for step in (900, 1000))
    assert find_log(adapter) == new != old
    own = write_log(adapter, [])
    assert find_log(adapter) == own


def test_a_log_above_several_adapters_belongs_to_none(tmp_path: Path) -> None:
    write_log(tmp_path, [])
    for name in ("a", "b"):
        write_config(tmp_path / name)
    assert find_log(tmp_path / "a") is None


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = write_log(tmp_path / "elsewhere", [])
    write_config(tmp_path / "adapter")
    (tmp_path / "adapter" / "trainer_state.json").symlink_to(secret)
    with pytest.raises(InputError, match="this path leads out of the folder"):
        find_log(tmp_path / "adapter")


@pytest.mark.parametrize("name", ["adapter_config.json", "config.json"])
def test_configurations_behind_links_that_lead_out_are_not_read(tmp_path: Path, name: str) -> None:
    write_log(tmp_path / "adapter", [])
    (tmp_path / "secret.json").write_text(json.dumps({"r": 4, "load_in_4bit": True}))
    (tmp_path / "adapter" / name).symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match="this path leads out of the folder"):
        gather(tmp_path / "adapter", None, None, None, None)


def test_facts_that_files_and_names_give(tmp_path: Path) -> None:
    write_config(tmp_path, 8, ["model.layers.0.self_attn.q_proj", "v_proj"], lora_dropout=0.05)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4, "quant_method": "gptq"}}))
    facts = gather(tmp_path, None, None, None, None)
    assert (facts.rank, facts.modules, facts.dropout, facts.base_bits) == (8, ("q_proj", "v_proj"), 0.05, 4)
    assert facts.attention_only
    assert facts.parameters == 8 * 425_984
    assert gather(tmp_path, None, None, 16, 50).base_bits == 16
    assert gather(tmp_path, None, None, 16, 50).examples == 50


@pytest.mark.parametrize(
    ("base", "known"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 32),
        ("meta-llama/Meta-Llama-3-8B", 32),
        ("Qwen/Qwen2.5-7B-Instruct", 28),
        ("mistralai/Mistral-7B-v0.1", 32),
        ("meta-llama/Llama-2-70b-hf", 80),
        ("tiny", None),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", None),
        ("gpt2", None),
        (None, None),
        ("x" * 10_000, None),
    ],
)
def test_the_shape_of_a_named_base(tmp_path: Path, base: str | None, known: int | None) -> None:
    write_config(tmp_path, 8, "all-linear", base_model_name_or_path=base)
    shape = gather(tmp_path, None, None, None, None).shape
    assert (shape.layers if shape else None) == known
