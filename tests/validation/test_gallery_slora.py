"""S-LoRA in the gallery: its anchors are met by the numbers in the program, and rows of a file are judged."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from validation.gallery.__main__ import main
from validation.gallery.slora import ANCHORS, MEASURED, RANK_RUN, SETTINGS, T1, moved

ROW = {
    "gpu": "a10g",
    "setting": "S1",
    "system": "slora",
    "adapters": "1",
    "rate_rps": "1",
    "cv": "1",
    "alpha": "1",
    "duration_s": "30",
    "req_per_s": "0.9",
    "ttft_mean_s": "0.3",
    "latency_mean_s": "11",
    "slo6s_attainment": "",
}


def write(path: Path, *rows: dict[str, str]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, (*SETTINGS, *MEASURED.values()))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_anchors_are_met_by_the_fitted_numbers() -> None:
    for anchor in {each.host: each for each in ANCHORS.values()}.values():
        for run, names in anchor.rows:
            found = run.predicted(moved(run.gpu, run.model, anchor.host, anchor.prompt))
            for name in names:
                assert found[name] == pytest.approx(run.published[name], rel=0.02), f"{run.name}: {name}"
    factors = ANCHORS[RANK_RUN.gpu, RANK_RUN.model]
    found = RANK_RUN.predicted(moved(RANK_RUN.gpu, RANK_RUN.model, factors.host, factors.prompt))
    assert found["requests_per_s"] == pytest.approx(RANK_RUN.published["requests_per_s"], rel=0.01), "the rank term"


def test_rows_of_a_file_are_predicted(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(shared / "papers" / "slora_paper_runs.csv", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["setting"] == "S1" and row["gpu"] == "a100-80"]
    kept = [{name: row[name] for name in ROW} for row in rows]
    assert (
        main(["slora", "--rows", str(write(tmp_path / "rows.csv", *kept, ROW | {"adapters": "", "cv": ""})), "--json"])
        == 0
    )
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["entry"], row["anchor"]) for row in found] == [(T1, True), (T1, False), (T1, False)]
    for row in found:
        assert row["published"].keys() == row["predicted"].keys() == MEASURED.keys()
        for name, bound in (("requests_per_s", 0.03), ("ttft_mean_s", 0.15)):
            assert row["predicted"][name] == pytest.approx(row["published"][name], rel=bound), row["name"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "h100"}, "rows.csv:2: gpu: not a value (got h100, allowed: a10g, a100-40, a100-80)"),
        ({"setting": "S4"}, "rows.csv:2: setting: the KV pool of this model on this card isn't known (got S4"),
        ({"adapters": "few"}, "rows.csv:2: adapters: not a value (got few, allowed: a whole number)"),
        ({"rate_rps": "0"}, "rows.csv:2: rate_rps: the client can't send that (got 0, allowed: 0.0333333 to 33333.3)"),
        ({"cv": "0"}, "rows.csv:2: cv: the client can't send that (got 0, allowed: 0.01 to 100)"),
        ({"adapters": ""}, "rows.csv: no run can be predicted"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], said: str
) -> None:
    assert main(["slora", "--rows", str(write(tmp_path / "rows.csv", ROW | changes))]) == 2
    assert said in capsys.readouterr().err
