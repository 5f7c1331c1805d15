"""Tables of measured runs: what is read from them, and what is said of those that can't be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from measured_rows import ROW

from sim.errors import InputError
from sim.studies.fidelity.fidelity_study import RunPrediction
from sim.studies.fidelity.findings import as_json, compare_peer, errors_of, slot_choice
from sim.studies.fidelity.measured_runs import COLUMNS, METRICS, MeasuredRun, read_lengths, read_runs, scenario_of


def table(folder: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    path = folder / "runs.csv"
    lines = [",".join(columns), *(",".join(row[name] for name in columns) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def lengths(folder: Path) -> Path:
    path = folder / "lengths.json"
    side = {"min": 4, "max": 1024, "bin_share": [0.5, 0.3, 0.2]}
    path.write_text(json.dumps({"prompt": side, "output": side}), encoding="utf-8")
    return path


def test_a_row_becomes_a_scenario(tmp_path: Path) -> None:
    [run] = read_runs(table(tmp_path, ROW))
    assert run.offered_rps == 4.0
    assert run.regime == "unsaturated"
    scenario = scenario_of(run, read_lengths(lengths(tmp_path)), "h100-64gb/llama-3.1-8b/assumed")
    assert scenario.workload.duration == 3600.06
    assert [kind.rank for kind in scenario.adapters.mix] == [8, 32]
    assert scenario.adapters.mix[0].share == pytest.approx(2 / 3)
    assert scenario.cache.gpu.slots == 8
    assert scenario.cache.eviction == "vllm-lru", "the preset fills it in"
    assert not scenario.fleet.prefix_caching, "the preset has it on, the servers had it off"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "gpt"}, r"runs.csv:2: model: not a value \(got gpt, allowed: llama-3.1-8b-instruct"),
        ({"gpu_slots": "0"}, r"runs.csv:2: gpu_slots: not a value \(got 0, allowed: a whole number, 1 or more\)"),
        ({"adapter_rates_rps": "0.5|x"}, r"runs.csv:2: adapter_rates_rps: not a value \(got 0.5|x"),
        ({"adapters_per_rate": "4|9"}, r"runs.csv:2: adapters_per_rate: rates, counts and adapters don't agree"),
        ({"tpot_mean_ms": "nan"}, r"runs.csv:2: tpot_mean_ms: not a value \(got nan"),
        ({"ttft_p99_ms": ""}, r"runs.csv:2: ttft_p99_ms: not a value"),
    ],
)
def test_a_bad_value_is_named_with_its_line(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_runs(table(tmp_path, ROW | changes))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = table(tmp_path, ROW, columns=tuple(name for name in COLUMNS if name not in ("host_slots", "req_per_s")))
    with pytest.raises(InputError, match=r"runs.csv:1: columns are missing \(got host_slots, req_per_s\)"):
        read_runs(path)
    with pytest.raises(InputError, match="the table has no rows"):
        read_runs(table(tmp_path))
    with pytest.raises(InputError, match="the table can't be read"):
        read_runs(tmp_path / "none.csv")


def test_bad_lengths_are_named(tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text('{"prompt": {"min": 1, "max": 9}}', encoding="utf-8")
    with pytest.raises(InputError, match=r"l.json: prompt: not a histogram of lengths"):
        read_lengths(tmp_path / "l.json")
    (tmp_path / "l.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"l.json: the lengths are not JSON"):
        read_lengths(tmp_path / "l.json")


def predicted(run: MeasuredRun, factor: float, *, calibrated: bool = False, **changes: float) -> RunPrediction:
    values = {name: value * factor for name, value in run.measured.items()} | changes
    return RunPrediction(run, values, 1.0, calibrated)


def some_runs(folder: Path, *changes: dict[str, str]) -> list[MeasuredRun]:
    return read_runs(table(folder, *(ROW | change for change in changes)))


def test_errors_leave_out_what_calibrated(tmp_path: Path) -> None:
    runs = some_runs(tmp_path, *({"case": str(number)} for number in range(4)))
    predictions = [predicted(run, factor) for run, factor in zip(runs, (1.1, 0.8, 1.0), strict=False)]
    predictions.append(predicted(runs[3], 9.0, calibrated=True))
    told = as_json(predictions)
    assert (told["runs"], told["calibration_runs"]) == (3, 1)
    for name in METRICS:
        assert told["metrics"][name]["ape_p50"] == pytest.approx(0.1)
        assert told["metrics"][name]["log10_abs_p50"] == pytest.approx(0.0414, abs=1e-4)
    assert told["by_regime"]["slot-limited"]["req_per_s"] is None


def test_gaps_that_the_client_made_are_not_compared(tmp_path: Path) -> None:
    runs = some_runs(tmp_path, {}, {"adapter_rates_rps": "60|30"}, {"itl_p50_ms": "0.01"})
    errors = errors_of([predicted(run, 1.5) for run in runs], "itl_p50_ms")
    assert errors["runs"] == 1


def test_slots_are_chosen_by_the_predicted_p99(tmp_path: Path) -> None:
    slots = [("8", "300"), ("16", "100"), ("32", "105")]
    runs = some_runs(tmp_path, *({"gpu_slots": count, "host_slots": "64", "ttft_p99_ms": p99} for count, p99 in slots))
    good = slot_choice([predicted(run, 1.0) for run in runs])
    assert good is not None
    assert good == {"groups": 1, "right": 1.0, "within_10pct": 1.0, "most_slots_within_10pct": 1.0}
    near = slot_choice([predicted(run, 1.0, ttft_p99_ms=-run.gpu_slots) for run in runs])
    assert (near["right"], near["within_10pct"]) == (0.0, 1.0)
    bad = slot_choice([predicted(run, 1.0, ttft_p99_ms=run.gpu_slots) for run in runs])
    assert bad["within_10pct"] == 0.0
    assert slot_choice([predicted(runs[0], 1.0)]) is None


def test_a_peer_stands_beside_on_shared_runs(tmp_path: Path) -> None:
    columns = (*COLUMNS, "output_tok_per_s", "ttft_mean_ms")
    rows = [ROW | {"case": case, "output_tok_per_s": "100", "ttft_mean_ms": "50"} for case in "ab"]
    runs = read_runs(table(tmp_path, *rows, columns=columns))
    peer = tmp_path / "peer.csv"
    peer.write_text(
        "model,workload_group,case,output_throughput,itl,ttft,finished_requests\n"
        "llama-3.1-8b-instruct,g,a,120,42,100,14364\n",
        encoding="utf-8",
    )
    rows_of = {
        words: (count, theirs, ours)
        for words, count, theirs, ours in compare_peer([predicted(run, 1.05) for run in runs], peer)
    }
    assert rows_of["tokens/s"] == (1, pytest.approx(0.2), pytest.approx(0.05))
    assert rows_of["mean ITL"] == (1, pytest.approx(1.0), pytest.approx(0.05))
    assert rows_of["mean TTFT"] == (1, pytest.approx(1.0), pytest.approx(0.05))
    assert rows_of["requests/s"][1] == pytest.approx(0.0, abs=1e-4)
    peer.write_text("model,case\nx,y\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"peer.csv:1: columns are missing"):
        compare_peer([], peer)
