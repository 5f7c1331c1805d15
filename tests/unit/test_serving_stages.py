"""Tables of serving stages: what their cells mean, and what is predicted for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from strategies import write_profile
from typer.testing import CliRunner

from reports.table import Table
from sim.cli import app
from sim.errors import InputError
from sim.studies.fidelity.measured_runs import read_table
from sim.studies.fidelity.report import stage_report
from sim.studies.fidelity.serving_stages import Stage, StagePrediction, errors_by_server, predict_stages, stages_of

ROW = {
    "id": "one",
    "version": "0.12.0",
    "gpu": "h100",
    "tp": "1",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "prompt_tokens": "100.4",
    "answer_tokens": "21",
    "arrivals": "constant",
    "rate_per_s": "2",
    "ttft_mean_ms": "12",
    "tpot_mean_ms": "10",
}


def table(folder: Path, *rows: dict[str, str]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(row.get(name, "") for name in names) for row in rows)]
    path = folder / "stages.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def stages(folder: Path, *rows: dict[str, str]) -> list[Stage]:
    return stages_of(read_table(table(folder, *rows)))


def test_a_row_says_which_server_and_which_load(tmp_path: Path) -> None:
    plain, repeated, loop = stages(
        tmp_path,
        ROW,
        ROW
        | {
            "version": "0.15.1 (traced)",
            "prompts_repeat": "yes (44 prompts in turn)",
            "arrivals": "poisson (recorded)",
        },
        ROW
        | {"arrivals": "closed", "clients": "8", "rate_per_s": "", "prefix_caching": "off", "prompts_repeat": "yes"},
    )
    assert (plain.server.gpu, plain.server.model, plain.server.engine) == ("h100-80gb", "llama-3.1-8b", "vllm-0.12.0")
    assert (plain.prompt, plain.answer, plain.rate_per_s, plain.cv, plain.cached) == (100, 21, 2, 0, False)
    assert plain.measured == {"ttft_mean": 0.012, "tpot_mean": 0.01}
    assert (repeated.server.engine, repeated.cv, repeated.cached) == ("vllm-0.15.1", 1, True)
    assert (loop.clients, loop.cached, loop.load) == (8, False, "8 clients")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arrivals": "bursty"}, "stages.csv:2: arrivals: unknown arrivals (got bursty, allowed: constant, poisson"),
        ({"arrivals": "closed"}, "stages.csv:2: clients: a closed loop has clients"),
        ({"rate_per_s": "0"}, "stages.csv:2: rate_per_s: not a value (got 0, allowed: above 0"),
        ({"gpu": "h900"}, "stages.csv:2: gpu: not a value (got h900, allowed: "),
        ({"model": "gpt-5"}, "stages.csv:2: model: not a value (got gpt-5, allowed: "),
        ({"version": "newest"}, "stages.csv:2: version: not a value (got newest"),
        ({"version": "0.99"}, "stages.csv:2: version: unknown engine (got vllm-0.99, allowed: "),
        ({"tpot_mean_ms": "0"}, "stages.csv:2: tpot_mean_ms: not a time (got 0"),
        ({"tpot_mean_ms": "", "ttft_mean_ms": ""}, "stages.csv:2: ttft_mean_ms: nothing was measured"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, change: dict[str, str], said: str) -> None:
    with pytest.raises(InputError) as raised:
        stages(tmp_path, ROW | change)
    assert said in str(raised.value)


def test_a_table_without_times_is_refused(tmp_path: Path) -> None:
    without = {name: value for name, value in ROW.items() if not name.endswith("_ms")}
    with pytest.raises(InputError, match="nothing was measured"):
        stages(tmp_path, without)


def test_what_is_predicted_follows_from_the_profile(tmp_path: Path) -> None:
    """One request at a time: a synchronous step takes 10 ms and 0.1 ms a token, so a cached prompt saves its blocks."""
    rows = (ROW, ROW | {"prompts_repeat": "yes"})
    both = stages(tmp_path, *rows)
    profile = write_profile({"fixed_s": 0.01, "tokens": [[0, 0.0], [1000, 0.1]]})
    plain, repeated = predict_stages(both, {stage.server: profile for stage in both}, jobs=1)
    assert plain.predicted["tpot_mean"] == pytest.approx(0.0101)
    assert plain.predicted["ttft_mean"] == pytest.approx(0.01 + 1e-4 * 100, rel=1e-6)
    assert repeated.predicted["ttft_mean"] == pytest.approx(0.01 + 1e-4 * (100 - 96), rel=1e-6), "6 blocks are cached"
    assert plain.error("tpot_mean") == pytest.approx(0.01)
    assert errors_by_server([plain], "tpot_mean") == {
        "llama-3.1-8b on h100-80gb": (1, pytest.approx(0.01), pytest.approx(0.01), pytest.approx(0.01))
    }


def test_fidelity_prints_measured_beside_predicted(tmp_path: Path) -> None:
    file = table(tmp_path, ROW, ROW | {"id": "two", "rate_per_s": "4"})
    said = CliRunner().invoke(app, ["fidelity", str(file), "--json", "--quiet", "--jobs", "1"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert [each["name"] for each in found["stages"]] == ["one", "two"]
    metric = found["stages"][0]["metrics"]["tpot_mean_s"]
    assert metric["error"] == pytest.approx(metric["predicted"] / metric["measured"] - 1)
    assert set(found["errors"]) == {"tpot_mean_s", "ttft_mean_s"}
    assert found["errors"]["tpot_mean_s"]["llama-3.1-8b on h100-80gb"]["stages"] == 2
    shown = CliRunner().invoke(app, ["fidelity", str(file), "--quiet", "--jobs", "1"])
    assert "2/s constant" in shown.stdout
    assert "TPOT mean: measured, predicted, error" in " ".join(shown.stdout.split())
    refused = CliRunner().invoke(app, ["fidelity", str(file), "--out", str(tmp_path / "x")])
    assert "goes with tables of served hours" in str(refused.exception)


def test_stages_without_a_profile_are_left_out_and_named(tmp_path: Path) -> None:
    file = table(tmp_path, ROW, ROW | {"id": "two", "tp": "3"})
    said = CliRunner().invoke(app, ["fidelity", str(file), "--json", "--jobs", "1"])
    assert [each["name"] for each in json.loads(said.stdout)["stages"]] == ["one"]
    assert (
        "note: the stages of llama-3.1-8b on 3 x h100-80gb are left out: tp: llama-3.1-8b can't be split" in said.stderr
    )
    assert "overloaded" not in said.stderr
    alone = CliRunner().invoke(app, ["fidelity", str(table(tmp_path, ROW | {"tp": "3"}))])
    assert "--" not in str(alone.exception), "the table has no options"


def test_every_server_has_a_row_whatever_was_measured_on_it(tmp_path: Path) -> None:
    ends = {"ttft_mean_ms": "", "tpot_mean_ms": "", "e2e_p99_ms": "250"}
    rows = stages(tmp_path, ROW | ends, ROW | {"id": "two", "tp": "2"})
    both = [
        StagePrediction(stage, "own", {name: 2 * value for name, value in stage.measured.items()}) for stage in rows
    ]

    def tables(predictions: list[StagePrediction]) -> list[Table]:
        return [part for part in stage_report(predictions, {}).terminal if isinstance(part, Table)]

    stage, server = tables(both[:1])
    assert stage.rows == [["one", "llama-3.1-8b on h100-80gb", "2/s constant", "250.0 500.0 ms +100%"]]
    assert server.rows == [["llama-3.1-8b on h100-80gb", "1", "100.0% 100.0% +100.0%"]]
    _, server = tables(both)
    assert [row[:3] for row in server.rows] == [
        ["llama-3.1-8b on 2 x h100-80gb", "1", "100.0% 100.0% +100.0%"],
        ["llama-3.1-8b on h100-80gb", "1", ""],
        ["all", "2", ""],
    ]


def test_an_overloaded_server_is_named(tmp_path: Path) -> None:
    """21 steps of 0.1 s an answer: one at a time, less than 0.5 of 2 requests/s are served."""
    rows = stages(tmp_path, ROW, ROW | {"id": "hot", "max_num_seqs": "1"})
    profile = write_profile({"fixed_s": 0.1})
    calm, hot = predict_stages(rows, {rows[0].server: profile}, jobs=1)
    assert (calm.overloaded, hot.overloaded) == (False, True)
    said = CliRunner().invoke(app, ["fidelity", str(table(tmp_path, ROW | {"id": "hot", "rate_per_s": "900"}))])
    assert "note: stage hot: the predicted server is overloaded" in said.stderr


def test_an_empty_table_is_told_which_tables_there_are(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    said = CliRunner().invoke(app, ["fidelity", str(tmp_path / "empty.csv")])
    assert "the table is empty (allowed: served hours or serving stages" in str(said.exception)
