"""A report as a value: what is empty is left out, the rest is shown in its order, and files are whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_report import Page

from reports.document import Code, Columns, File, Heading, Paragraph, Report, Section, method
from reports.render.html import page, write
from reports.table import Table
from sim.cli.output import finish

TABLE = Table("Numbers", ["", "value"], [["a", "1"]], "Of one.")


def report(*sections: Section, files: tuple[File, ...] = ()) -> Report:
    return Report(
        "trace",
        "t.csv",
        {"a": 1},
        ["All is well.", "", TABLE],
        headline="Well.",
        sections=lambda: sections,
        files=files,
    )


def test_a_section_without_parts_is_left_out_of_the_page_and_of_its_list() -> None:
    empty = Section("none", "Nothing", None, Columns([None], []), *[], listed="None")
    text = page(report(empty, Section("some", "Something", None, TABLE, listed="Some")))
    assert 'href="#some"' in text
    assert 'id="some"' in text
    assert "none" not in Page(text).ids
    assert ">None<" not in text


def test_parts_stand_in_their_order_and_markup_stays_text() -> None:
    parts = ("one <b>", "two", Heading("Three"), Paragraph("four"), Columns(["five"], [TABLE]), Code("six", "Six"))
    text = page(report(Section("some", "Something", *parts), method("seven", command="loraplan trace t.csv")))
    wanted = ("one &lt;b&gt;", "two", "<h3>Three", "four", "five", "Numbers", ">six<", "seven", "Do it again")
    places = [text.index(each) for each in wanted]
    assert places == sorted(places)
    assert "<li>one &lt;b&gt;</li><li>two</li>" in text


def test_files_are_written_from_text_data_and_functions_of_the_folder(tmp_path: Path) -> None:
    files = (File("a.txt", "a"), File("b.json", {"b": 1}), File("c.txt", lambda folder: folder.name), File("d", None))
    write(report(files=files), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", "b.json", "c.txt", "report.html"}
    assert json.loads((tmp_path / "b.json").read_text()) == {"b": 1}
    assert (tmp_path / "c.txt").read_text() == tmp_path.name


def test_the_terminal_names_labelled_files_and_json_is_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = report(files=(File("a.txt", "a", "text", "next {}"), File("b.txt", "b")))
    finish(found, tmp_path, as_json=False, quiet=True)
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["All is well.", ""]
    assert said[-3:] == [f"report  {tmp_path}/report.html", f"text    {tmp_path}/a.txt", f"next {tmp_path}/a.txt"]
    assert "Of one." in said
    finish(found, None, as_json=True, quiet=True)
    assert json.loads(capsys.readouterr().out) == {"a": 1}
