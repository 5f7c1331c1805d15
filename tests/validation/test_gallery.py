"""The gallery's program: what it prints, refuses and returns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from sim.errors import InputError
from validation.gallery import __main__ as gallery
from validation.gallery import page
from validation.gallery.entry import Bar, Entry, Row, Source
from validation.gallery.sglang_17913 import PUBLISHED, SOURCE, predict

ROWS = [
    Row("made-up", "anchored", {"ttft_s": 1.0}, {"ttft_s": 1.0}, anchor=True),
    Row("made-up", "judged", {"ttft_s": 2.0}, {"ttft_s": 1.5}, band={"ttft_s": (1.0, 1.8)}),
]


def made_up(limit: float) -> Source:
    def bars(rows: Sequence[Row]) -> list[Bar]:
        assert [row.name for row in rows] == ["judged"], "anchors are not judged"
        return [Bar("error", 0.25, limit)]

    entry = Entry("made-up", "A made-up result", "nobody", "none", "none", bars)
    return Source([entry], lambda path: ROWS)


@pytest.mark.parametrize(("limit", "code", "word"), [(0.3, 0, "met   "), (0.2, 1, "MISSED")])
def test_a_missed_bar_is_the_exit_code_and_stays_on_the_page(
    limit: float,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    source = made_up(limit)
    monkeypatch.setattr(gallery, "SOURCES", {"vtc": "vtc"})
    monkeypatch.setattr(gallery, "source_of", lambda name: source)
    assert gallery.main([]) == code
    assert f"{word} error: 0.25" in capsys.readouterr().out
    page.write({"vtc": source}, {"vtc": ROWS}, tmp_path / "gallery.md", tmp_path)
    text = (tmp_path / "gallery.md").read_text(encoding="utf-8")
    assert f"| [A made-up result](#a-made-up-result) | 1, 25 % | {1 - code} of 1 | `vtc` |" in text
    assert f"- **{word.capitalize().strip()}**: error: 25 % (at most {limit * 100:g} %)" in text
    assert "| judged | 1.5 [1 to 1.8] (2) |" in text
    assert "<svg" in (tmp_path / "gallery-made-up.svg").read_text(encoding="utf-8")


def test_json_has_a_line_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gallery, "source_of", lambda name: made_up(1.0))
    assert gallery.main(["vtc", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["anchor"]
    assert second["name"] == "judged"
    assert (second["published"], second["predicted"]) == ({"ttft_s": 2.0}, {"ttft_s": 1.5})


def test_the_page_in_docs_has_every_entry_of_its_sources() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    sources = [name for name in gallery.SOURCES if f"| `{name}` |\n" in text]
    assert {"sglang-17913", "hours", "data-sheets", "unsettled"} <= set(sources)
    for entry in (entry for name in sources for entry in gallery.source_of(name).entries):
        assert f"## {entry.title}\n" in text, "run make gallery"
        assert entry.about in text, "run make gallery"


def test_sglang_is_near_its_p50_over_a_few_orders() -> None:
    (row,) = predict(None, orders=8)
    assert row.published == PUBLISHED
    assert row.band is not None
    assert row.predicted["e2e_p50_s"] == pytest.approx(PUBLISHED["e2e_p50_s"], rel=0.1)
    assert row.band["e2e_p90_s"][0] < row.predicted["e2e_p90_s"] < row.band["e2e_p90_s"][1]
    assert len(SOURCE.entries[0].bars([row])) == 5


def test_other_rows_of_sglang_may_have_other_settings(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("name,slots,drain_wait_s,e2e_p99_s\nas many slots,6,,15\ndrained,3,5,30\n")
    free, drained = predict(file, orders=2)
    assert set(free.predicted) == {"e2e_p99_s", "share_of_orders_near"}
    assert free.predicted["e2e_p99_s"] < drained.predicted["e2e_p99_s"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,slot,e2e_p50_s\na,3,7\n", "rows.csv:1: unknown columns (got slot, allowed: name, adapters, slots"),
        ("slots,e2e_p50_s\n3,7\n", "rows.csv:1: columns are missing (got name)"),
        ("name,slots,e2e_p50_s\na,two,7\n", "rows.csv:2: slots: not a value (got two, allowed: a whole number, 1 or"),
        ("name,e2e_p50_s\na,0\n", "rows.csv:2: e2e_p50_s: not a latency (got 0, allowed: seconds above 0)"),
        ("name,e2e_p50_s\na,\n", "rows.csv:2: e2e_p50_s: nothing was measured"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        predict(file, orders=1)
    assert said in str(error.value)


def test_options_that_do_not_go_together_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.main(["data-sheets", "--rows", "rows.csv"]) == 2
    assert "this source takes no rows" in capsys.readouterr().err
    for arguments in (["--rows", "rows.csv"], ["sglang-17913", "--page"]):
        with pytest.raises(SystemExit) as left:
            gallery.main(arguments)
        assert left.value.code == 2
