"""The history of benchmarks: what is kept, what is compared, and that nothing in it can fail a build."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from validation.benches import bench, bench_compare
from validation.benches.bench_history import Figures, append, compare, read, table


def figures(worth: float) -> Figures:
    return Figures(worth, 1e6 / worth, 1.5e6, 120.0)


def history(folder: Path, *worths: float) -> Path:
    path = folder / "history.jsonl"
    for worth in worths:
        append("quick", {"plain": figures(worth)}, path)
    return path


def test_a_row_is_held_against_the_median_of_the_last_five_runs_of_its_mode(tmp_path: Path) -> None:
    path = history(tmp_path, 99, 8, 9, 50, 10, 11)
    append("full", {"plain": figures(1)}, path)
    runs, notes = read(path)
    assert notes == []
    (row,) = compare("quick", {"plain": figures(11)}, runs)
    assert (row.before, row.runs, row.ratio) == (10, 5, 1.1)


def test_what_is_kept_says_when_with_which_code_and_how_fast(tmp_path: Path) -> None:
    kept = json.loads(history(tmp_path, 8).read_text())
    assert set(kept) == {"date", "code", "python", "mode", "rows"}
    assert kept["rows"]["plain"] == {"worth": 8.0, "requests_per_s": 125_000, "bare_per_s": 1.5e6, "peak_mb": 120.0}


@pytest.mark.parametrize(("worth", "named"), [(12.1, True), (11.9, False), (5.0, False)])
def test_a_slower_row_is_named(tmp_path: Path, worth: float, named: bool) -> None:
    runs, _ = read(history(tmp_path, 10))
    lines = table(compare("quick", {"plain": figures(worth), "made anew": figures(3)}, runs))
    assert (lines[-1] == "slower by more than 20% than the median of the last 5 runs: plain") == named
    assert lines[2].split() == ["made", "anew", "3.0", "–", "0", "new"]


@pytest.mark.parametrize(
    "torn",
    [
        '{"mode": "quick", "rows": {"pl',
        "[]",
        '{"mode": "quick", "rows": {"plain": {"worth": NaN}}}',
        '{"mode": "quick", "rows": {"plain": {"worth": 1' + 400 * "0" + "}}}",
        "7",
        "\x00\udcff",
    ],
)
def test_a_torn_line_is_left_out_and_the_next_run_stands_apart(tmp_path: Path, torn: str) -> None:
    path = history(tmp_path, 8)
    with path.open("ab") as file:
        file.write(torn.encode(errors="surrogateescape"))
    append("quick", {"plain": figures(10)}, path)
    runs, notes = read(path)
    assert notes == ["history.jsonl:2: this line can't be read: left out"]
    assert [run["rows"]["plain"]["worth"] for run in runs] == [8, 10]


def test_the_comparison_fails_on_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(name: str, quick: bool) -> Figures:
        if name == "broken":
            raise subprocess.CalledProcessError(1, name, stderr="Traceback\nValueError: no such row\n")
        return figures(20)

    monkeypatch.setattr(bench, "measured", measured)
    monkeypatch.setattr(bench_compare, "ROWS", ("plain", "broken"))
    monkeypatch.setattr("sys.argv", ["bench_compare.py"])
    path = tmp_path / "none.jsonl"
    bench_compare.main(path)
    out = capsys.readouterr().out
    assert "broken: not measured: ValueError: no such row" in out
    assert "none.jsonl: no history to compare with: No such file or directory" in out
    assert not path.exists()
    history(tmp_path, 10).rename(path)
    before = path.read_bytes()
    bench_compare.main(path)
    assert "slower by more than 20%" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_rows_that_ci_compares_are_rows_of_the_benchmark() -> None:
    assert set(bench_compare.ROWS) <= {*bench.rows(True), *bench.saturated(True), *bench.fleets(True)}
