"""``loraplan fidelity RUNS.csv``: predictions, their table and page, going on after a stop, and bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import CommandLine
from measured_rows import ROW, SLORA_ROW

from sim.studies.fidelity import fidelity_study as study
from sim.studies.fidelity.measured_runs import COLUMNS, METRICS
from validation.published import slora_runs

MINUTE = ROW | {"duration_s": "60.0", "max_lora_rank": "16", "adapter_rank_mix": "8|16"}


def prepare(*rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> None:
    side = {"min": 4, "max": 1024, "bin_share": [0.5, 0.3, 0.2]}
    Path("sharegpt_lengths.json").write_text(json.dumps({"prompt": side, "output": side}), encoding="utf-8")
    lines = [",".join(columns), *(",".join((MINUTE | row)[name] for name in columns) for row in rows)]
    Path("runs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_every_run_is_predicted_and_compared(loraplan: CommandLine) -> None:
    prepare({}, {"case": "_4_", "gpu_slots": "4", "ttft_p99_ms": "900"}, {"model": "qwen-2.5-7b-instruct"})
    told = loraplan.data("fidelity", "runs.csv", "--out", "o", "--jobs", "1")
    assert (told["runs"], told["slot_choice"]["groups"]) == (3, 1)
    assert json.loads(Path("o/fidelity.json").read_text(encoding="utf-8")) == told
    with open("o/predictions.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["case"] for row in rows] == ["_8_", "_4_", "_8_"]
    assert 3 < float(rows[0]["predicted_req_per_s"]) < 5


def test_runs_of_s_lora_are_predicted_by_a_script(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["slora_runs.py", "runs.csv", *options])
        slora_runs.main()
        return capsys.readouterr().out

    rows = [SLORA_ROW, SLORA_ROW | {"adapter_rate_rps": "0.1", "sent": "80", "ttft_p99_ms": "", "unfinished": "40"}]
    lines = [",".join(SLORA_ROW), *(",".join(row.values()) for row in rows)]
    Path("runs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = json.loads(predict("--json", "--out", "o", "--jobs", "1"))
    assert (told["runs"], told["calibration_runs"], told["slot_choice"]) == (2, 0, None)
    assert set(told["metrics"]) == {*METRICS, "ttft_mean_ms", "loads_per_request"}
    assert set(told["by_regime"]) == {"unsaturated", "saturated"}
    assert told["by_regime"]["saturated"]["ttft_p99_ms"] is None, "the quantile falls among the unfinished"
    assert told["metrics"]["loads_per_request"]["runs"] == 2
    assert told["metrics"]["running_mean"] is None
    page = Path("o/report.html").read_text(encoding="utf-8")
    assert "engine s-lora behind the front end s-lora; arrivals as they were sent" in page
    table = predict("--out", "o")
    assert "loads per request" in table
    assert "mean batch size" not in table
    assert "runs.csv:1: columns are missing (got workload_group, " in loraplan("fidelity", "runs.csv").err


def test_what_was_predicted_before_is_not_simulated_again(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare({}, {"case": "_4_", "gpu_slots": "4"})
    first = loraplan.succeeds("fidelity", "runs.csv", "--jobs", "1")
    assert "p99 TTFT" in first.out
    table = Path("runs/fidelity-runs/predictions.csv")
    whole = table.read_text(encoding="utf-8")
    kept = Path("runs/fidelity-runs/predicted.jsonl")
    lines = kept.read_text(encoding="utf-8").splitlines()
    kept.write_text(f"{lines[0]}\n{lines[1][:50]}", encoding="utf-8")  # as after a kill in the middle of a line
    calls = []
    simulate = study.predict_run
    monkeypatch.setattr(study, "predict_run", lambda *given: calls.append(given) or simulate(*given))
    loraplan.succeeds("fidelity", "runs.csv", "--jobs", "1")
    assert len(calls) == 1, "the row that was left is used again"
    assert _without_time(table.read_text(encoding="utf-8")) == _without_time(whole)


def _without_time(table: str) -> list[dict[str, str]]:
    return [
        {name: cell for name, cell in row.items() if name != "wall_s"} for row in csv.DictReader(table.splitlines())
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"max_lora_rank": "128", "adapter_rank_mix": "64|128"},
            "runs.csv:2: adapters.rank: more than twice what the profile h100-64gb/llama-3.1-8b/vllm-0.8.5 covers (got "
            "128",
        ),
        (
            {"gpu_slots": "384", "host_slots": "384", "max_lora_rank": "32", "adapter_rank_mix": "32"},
            "runs.csv:2: cache.gpu.slots: the adapter cache leaves too little GPU memory for a KV cache (got 384, "
            "allowed: up to ",
        ),
        ({"model": "mystery"}, "runs.csv:2: model: not a value (got mystery"),
    ],
)
def test_a_run_that_cannot_be_predicted_is_named(loraplan: CommandLine, row: dict[str, str], said: str) -> None:
    prepare(row)
    err = loraplan.refused("fidelity", "runs.csv")
    assert said in err
    assert "Traceback" not in err


def test_other_bad_input_is_named(loraplan: CommandLine) -> None:
    prepare({}, columns=tuple(name for name in COLUMNS if name != "host_slots"))
    assert "runs.csv:1: columns are missing (got host_slots)" in loraplan("fidelity", "runs.csv").err
    prepare({})
    assert (
        "--profile-dir: no profile for this model (got llama-3.1-8b"
        in loraplan("fidelity", "runs.csv", "--profile-dir", ".").err
    )
    assert "no.json: the lengths can't be read" in loraplan("fidelity", "runs.csv", "--lengths", "no.json").err
    assert "--jobs: not a number of workers" in loraplan("fidelity", "runs.csv", "--jobs", "0").err
    assert "give either measured runs or a record" in loraplan("fidelity", "runs.csv", "--record", "r.json").err
    Path("llama-3.1-8b.json").write_text("{", encoding="utf-8")
    assert "the profile is not JSON" in loraplan("fidelity", "runs.csv", "--profile-dir", ".").err


def test_a_profile_can_only_be_fitted_to_what_is_there(loraplan: CommandLine) -> None:
    Path("empty").mkdir()
    assert (
        "DIR: nothing to fit in this folder (got empty, allowed: steps.parquet and loads.parquet)"
        in loraplan.refused("calibrate", "fit", "empty", "--out", "p.json")
    )
