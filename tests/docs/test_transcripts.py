"""``tools/transcripts.py``: what loraplan says is what is recorded in ``tools/same``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scripts import ROOT
from typer.main import get_command

from sim.cli import app

sys.path.append(str(ROOT / "tools"))

import transcripts

NAMES = transcripts.names("")
ELSEWHERE = {"ui", "mcp", "schema", "profiles build", *map("calibrate {}".format, ("all", "steps", "loads", "serve"))}
"""Commands that serve, measure this machine, need tables that not everybody has, or print a file that is there."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_loraplan_says_what_is_recorded(name: str, tmp_path: Path) -> None:
    found = transcripts.replay(transcripts.file_of(name).read_text(encoding="utf-8"), tmp_path)
    changed = transcripts.difference(name, found)
    assert not changed, "\n".join([*changed, f"if that is wanted: python tools/same.py --record --only {name}"])


def test_every_command_is_recorded() -> None:
    recorded = "\n".join(transcripts.file_of(name).read_text(encoding="utf-8") for name in NAMES)
    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {
        f"{name} {member}".strip()
        for name, command in commands.items()
        for member in getattr(command, "commands", ("",))
    }
    assert known >= ELSEWHERE
    assert not {name for name in known - ELSEWHERE if f"\n$ loraplan {name}" not in f"\n{recorded}"}


PAGE = """<!doctype html><title>A page</title><style>p {color: red}</style><script>let x = "<p>";</script>
<h1>Slots</h1><p>p99 is <b>12&nbsp;ms</b>,
fine.</p><svg><desc>Lowest 3</desc><text>not this</text></svg><p>after</p>
<table><tr><th>a</th><th>b</th></tr>ROWS</table><dl><dt>seed</dt><dd>1</dd></dl><pre>top:
  deep: 2

end</pre>"""


def test_of_a_page_a_reader_sees_lines_and_rows(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE.replace("ROWS", "<tr><td>1</td><td>2</td></tr>" * 3), encoding="utf-8")
    table = ["a | b", "1 | 2", "1 | 2", "1 | 2"]
    listing = ["top:", "  deep: 2", "end"]
    assert transcripts.shown(page) == [
        "A page", "Slots", "p99 is 12 ms, fine.", "Lowest 3", "after", *table, "seed | 1", *listing,
    ]  # fmt: skip


def test_what_is_left_out_of_a_long_table_counts(tmp_path: Path) -> None:
    lines = []
    for last in ("8", "9"):
        page = tmp_path / "page.html"
        rows = "".join(f"<tr><td>{number}</td></tr>" for number in [*range(40), last])
        page.write_text(PAGE.replace("ROWS", rows), encoding="utf-8")
        lines.append(transcripts.shown(page))
    one, other = lines
    changed = [(a, b) for a, b in zip(one, other, strict=True) if a != b]
    assert [a.partition(" lines, ")[0] for a, _ in changed] == ["(and 34"]


def test_what_differs_from_run_to_run_does_not_count() -> None:
    for one, other in (
        ("started 2026-11-30T03:05:18+00:00", "started 2027-01-02T13:45:08.123Z"),
        ("took | 41.1 s", "took | 2.5 min"),
        ("by loraplan 0.1.0", "by loraplan 0.12.3"),
        ("hash f36b861d550e5d8b", "hash 71827f3e68ce8516"),
        (' "wall_s": 0.125,', ' "wall_s": 3e-05,'),
        ("see …/.venv/lib/site-packages/sim/data.yaml:3", "see …/sim/data.yaml:3"),
    ):
        assert transcripts.constant(one) == transcripts.constant(other)
    for kept in ("p99 41.1 s", "vllm-0.32", "12345678 requests", "a 0.1.0 b", "x" * transcripts.COLUMNS):
        assert transcripts.constant(kept) == kept
    assert transcripts.constant("x" * 999 + "a") != transcripts.constant("x" * 999 + "b")


def test_a_transcript_says_what_to_do_and_what_came_of_it(tmp_path: Path) -> None:
    text = """# Bad input, a file, and Python.
$ write mine.yaml
    cache:
      gpu: {slots: 4}

    # a comment of the file
$ show mine.yaml
    something else
$ loraplan run nowhere.yaml
>>> half = 21
>>> half * 2
"""
    found = transcripts.replay(text, tmp_path)
    assert [step for step, _ in transcripts.steps(found)] == [step for step, _ in transcripts.steps(text)]
    below = {step: [line for line in lines if line] for step, lines in transcripts.steps(found)}
    assert below["$ show mine.yaml"] == below["$ write mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8").count("\n") == 4
    assert below["$ loraplan run nowhere.yaml"][-1] == "[exit 2]"
    assert below[">>> half * 2"] == ["42"]
    (tmp_path / "again").mkdir()
    again = transcripts.replay(found, tmp_path / "again")
    assert again == found, "what was recorded can be recorded again"


def test_a_changed_sentence_is_shown() -> None:
    recorded = transcripts.file_of("text/start").read_text(encoding="utf-8")
    assert transcripts.difference("text/start", recorded) == []
    changed = transcripts.difference("text/start", recorded.replace("error: ", "oh: ", 1))
    assert sum(line.startswith("+    oh: ") for line in changed) == 1
