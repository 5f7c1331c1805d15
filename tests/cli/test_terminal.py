"""What a terminal of 60, 80 or 120 columns shows: lines that fit, whole words, marks; a pipe shows none of it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from command_line import CommandLine
from hypothesis import given
from hypothesis import strategies as st

from reports.render.terminal import fitted, piped, rich_table, wrapped, wrapped_command
from reports.table import Table
from sim.cli import streams

WIDTHS = (60, 80, 120)
SMALL = """\
schema_version: 1
name: small
workload:
  requests: 800
  arrivals: {process: poisson, rate: 4/s}
  popularity: {law: zipf, exponent: 0.9}
  tokens: {prompt: {law: fixed, value: 100}, output: {law: fixed, value: 20}}
adapters: {count: 100, rank: 16}
cache: {gpu: {slots: 24}, host: {slots: 100}}
slo: {miss_ratio: 45%, ttft_p99: 5 s}
sweep: {cache.gpu.slots: [8, 60], router.policy: [round-robin, random]}
plan: {minimize: cache.gpu.slots, values: [8, 60]}
fleet: {replicas: 2}
"""
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def terminal(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    """Return the command line with its output on a terminal; COLUMNS says how wide it is."""
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.setattr(streams._Guard, "isatty", lambda guard: True)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return loraplan


def plain(text: str) -> str:
    return _STYLE.sub("", text)


def shown(table: Table, width: int) -> str:
    """Return what a terminal shows of a table."""
    from rich.console import Console

    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        for part in fitted(table, width, marks=True):
            console.print(part)
    return captured.get()


def fits(line: str, width: int) -> bool:
    """Return whether a line needs no more columns, or is one word that can't be broken, perhaps behind a label."""
    return len(line.rstrip()) <= width or re.fullmatch(r" *(\w+  +)?\S+", line) is not None


# Lines


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "line",
    [
        "small: The SLO is met: p99 TTFT is 115 ms (110 to 120), within the 1 s target.",
        "  Traffic: the hottest 1 / 10 / 20 % of 200 adapters get 20.6 % / 54.4 % / 67 % of the requests; it is about "
        "as spread out as 82 equally popular adapters.",
        "tables  runs/a-rather-long-name-of-a-scenario-for-this/points.csv, runs/another/requests.parquet",
        "",
        "one",
        "  NVIDIA H100 64GB · llama-3.1-8b · vllm (rules of 0.31 and 0.32) · profile h100-64gb/llama-3.1-8b/assumed",
    ],
)
def test_a_line_is_broken_between_words_and_hangs(line: str, width: int) -> None:
    lines = wrapped(line, width)
    assert " ".join(" ".join(lines).split()) == " ".join(line.split())
    assert all(fits(each, width) for each in lines)
    assert lines[0].startswith(line[: len(line) - len(line.lstrip())])
    first = len(line) - len(line.lstrip())
    indents = {len(each) - len(each.lstrip()) for each in lines[1:]}
    assert indents <= {len("tables  ") if line.startswith("tables") else first + 2}


def test_a_number_and_its_unit_stay_on_one_line() -> None:
    for width in range(20, 60):
        for line in wrapped("p99 TTFT is 115 ms (110 to 120), 20 % more, and 17 s, and 1.5 GB of memory.", width):
            assert not re.match(r"\s*(ms|%|s|GB)\b", line), (width, line)


def test_a_word_longer_than_the_line_stays_whole() -> None:
    path = "/tmp/" + "x" * 90
    assert wrapped(f"report  {path}", 60)[-1].strip() == path or path in wrapped(f"report  {path}", 60)[0]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_command_stays_one_for_a_shell(width: int) -> None:
    command = "vllm serve MODEL --enable-lora --max-loras 48 --max-lora-rank 16 --max-cpu-loras 400 --max-num-seqs 256"
    lines = wrapped_command("vLLM      ", command, width)
    assert all(len(line) <= width for line in lines)
    assert all(line.endswith(" \\") for line in lines[:-1])
    joined = "".join(f"{line.removesuffix(chr(92))}" for line in lines).removeprefix("vLLM")
    assert joined.split() == command.split()


# Tables


def test_what_goes_on_below_leaves_out_rows_without_content() -> None:
    rows = [[f"metric {row}", "1.5 ms", "a remark of many words " * 3 if row == 2 else ""] for row in range(4)]
    text = shown(Table("", ["metric", "value", "remark"], rows, words=(2,)), 40)
    assert [text.count(f"metric {row}") for row in range(4)] == [1, 1, 2, 1]
    assert "remark of" in text


CELL = st.sampled_from(["", "1", "12.5 ms *", "–", "p99 TTFT", "漢字 x", "é", " lead", "trail ", "unclear: miss ratio"])


@given(st.data(), st.integers(1, 5), st.integers(0, 5), st.integers(0, 2))
def test_a_pipe_gets_what_rich_prints(data: st.DataObject, columns: int, rows: int, keys: int) -> None:
    row = st.lists(CELL, min_size=columns, max_size=columns)
    from rich.console import Console

    verdicts = {(0, columns - 1): "met"} if rows and data.draw(st.booleans()) else {}
    words = tuple(data.draw(st.lists(st.integers(0, columns - 1))))
    cells = data.draw(st.lists(row, min_size=rows, max_size=rows))
    table = Table("", data.draw(row), cells, words=words, verdicts=verdicts, keys=keys)
    console = Console(width=10_000, highlight=False)
    with console.capture() as captured:
        console.print(rich_table(table, range(columns), {}, marks=False))
    assert piped(table) == [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [40, *WIDTHS])
def test_a_table_too_wide_goes_on_below_with_its_first_column(width: int) -> None:
    head = ["router policy", *(f"metric number {i}" for i in range(9))]
    rows = [[f"policy-{row}", *(f"{row}.{i} ms" for i in range(9))] for row in range(3)]
    text = shown(Table("", head, rows), width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    parts = text.count("policy-0")
    assert parts == text.count("policy-2")
    assert parts > 1 or width > 60
    for row in rows:
        for cell in row[1:]:
            assert text.count(f" {cell}") == 1, "no cell is cut or broken"


def test_a_number_and_its_unit_stay_on_one_line_of_a_cell() -> None:
    cell = "104 ms (better: −41.4 ms to −29.9 ms)"
    for width in range(40, 60):
        lines = shown(Table("", ["change of something", "p99"], [["rank 16, all layers", cell]]), width).splitlines()
        assert not [line for line in lines if re.search(r"  ms\b", line)], width
        assert all(len(line.rstrip()) <= width for line in lines)


def test_columns_that_can_be_spared_are_left_out_and_named() -> None:
    table = Table("", ["name", "one", "two", "three"], [["n" * 20, *["12345678"] * 3]], optional=(1, 3))
    seen = {width: shown(table, width) for width in (60, 42, 32)}
    assert seen[60].split() == ["name", "one", "two", "three", "n" * 20, *["12345678"] * 3]
    assert seen[42].splitlines()[0].split() == ["name", "two", "three"]
    assert seen[42].splitlines()[-1].rstrip() == "A wider terminal also shows: one"
    assert seen[32].splitlines()[0].split() == ["name", "two"]
    assert "one, three" in " ".join(seen[32].split())


def test_without_a_terminal_a_table_is_one_piece() -> None:
    lines = piped(Table("", ["a", *["b c"] * 9], [["1", *["2"] * 9]], verdicts={(0, 1): "met"}))
    assert len(lines) == 2
    assert "✓" not in "".join(lines)


# Commands


@pytest.mark.parametrize("command", ["run", "sweep", "plan", "compare"])
def test_what_a_command_prints_fits_and_says_the_same(
    terminal: CommandLine, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    arguments = {"compare": ["one", "other", "--quiet"]}.get(command, ["small.yaml", "--quiet"])
    if command == "compare":
        for folder, slots in (("one", 8), ("other", 60)):
            terminal("run", "small.yaml", "--quiet", "--out", folder, "--set", f"cache.gpu.slots={slots}")
    shown = {}
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        again = ["--out", f"page-{width}"] if command == "compare" else []
        shown[width] = plain(terminal(command, *arguments, *again).out)
        assert "\xa0" not in shown[width]
        assert [line for line in shown[width].splitlines() if not fits(line, width)] == []
    monkeypatch.setattr(streams._Guard, "isatty", lambda guard: False)
    piped = terminal(command, *arguments).out
    sentences = [line for line in piped.splitlines() if re.match(r"  [A-Zp]", line)]
    assert max(map(len, sentences)) > 80, "lines of a pipe are not wrapped"
    for width in WIDTHS:
        flat = " ".join(shown[width].split())
        assert [line for line in sentences if " ".join(line.split()) not in flat] == []


def test_the_answer_is_five_lines_and_the_rest_comes_with_all(
    terminal: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for command in ("run", "sweep"):
        short = plain(terminal(command, "small.yaml", "--quiet").out).partition("\n\n")[0].splitlines()
        labels = [re.split(r"  +", line.strip())[0] for line in short[1:]]
        assert labels == ["Set", "First limit", "Bill", "Trust", "All numbers and findings: --all, and the report."]
        every = plain(terminal(command, "small.yaml", "--quiet", "--all").out)
        assert every.splitlines()[:5] == short[:5]
        assert "\nevictions" in every or "\nGPU slots" in every


def test_marks_and_colours_need_a_terminal_that_takes_them(
    terminal: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    met, missed = "cache.gpu.slots=60", "cache.gpu.slots=8"
    run = ["run", "small.yaml", "--quiet", "--set"]
    assert plain(terminal(*run, met).out).startswith("✓ small: The SLO is ")
    coloured = terminal(*run, missed).out
    assert plain(coloured).startswith("✗ small: The SLO is ")
    assert "\x1b[1;31m✗" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    quiet = terminal(*run, missed).out
    assert quiet.replace("\x1b[1m", "").startswith("✗ small: ")
    assert "31m" not in quiet
    matrix = plain(terminal("sweep", "small.yaml", "--quiet", "--all").out)
    assert re.search(r"\nGPU slots +round-robin +random *\n8 +✗ .*\(miss ratio\) +✗ .*\n60 +✓ \d.* ✓ \d", matrix)
    swept = plain(terminal("sweep", "small.yaml", "--all", "--over", "cache.gpu.slots=8,60").out)
    assert re.findall(r"\n\d+ +([✓✗?] (?:met|not met: miss ratio|unclear))", swept) == [
        "✗ not met: miss ratio",
        "✓ met",
    ]
    monkeypatch.setattr(streams._Guard, "isatty", lambda guard: False)
    for command in (run[:-1], ["sweep", "small.yaml", "--quiet"]):
        piped = terminal(*command).out
        assert not set("✓✗\x1b") & set(piped)


def test_a_headline_about_an_impact_has_no_mark(terminal: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A green mark next to thousands of stale answers would say that all is well."""
    monkeypatch.setenv("COLUMNS", "120")
    lost = "faults=[{kind: misrouting, probability: 50%}]"
    shown = plain(terminal("run", "small.yaml", "--quiet", "--set", "cache.gpu.slots=60", "--set", lost).out)
    assert re.match(r"small: The SLO is (probably )?met, but the misrouting affected ", shown), shown


# Snapshots


@pytest.mark.parametrize("width", [60, 80, 110, 200])
def test_snapshots_fit_and_are_what_commands_print(
    terminal: CommandLine, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "terminal_snapshots.py"))
    text = (tool["SNAPSHOTS"] / f"{width}-columns.txt").read_text(encoding="utf-8")
    parts = dict(part.split("\n", 1) for part in re.split(r"(?m)^\$ loraplan ", text)[1:])
    assert list(parts) == [*tool["QUICK"], *tool["SIMULATING"]]
    for command, shown in parts.items():
        assert [line for line in shown.splitlines() if not fits(line, width)] == [], command
    monkeypatch.setenv("COLUMNS", str(width))
    for command in tool["QUICK"]:
        ended = terminal(*command.split())
        both = ended.err + ended.out
        assert parts[command].strip("\n") == tool["plain"](both).strip("\n"), command
