"""``docs/outputs.py``: what it takes for current, and how it brings a page up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import script

outputs = script("outputs")


def test_an_output_matches_only_what_it_shows() -> None:
    printed = ["quick: met, 612 ms", "", "metric  value", "p99      12 s", "", "report  runs/q/report.html"]
    cut = ["quick: met, 612 ms", "…", "p99      12 s", "…"]
    assert outputs.matches(printed, printed)
    assert outputs.matches(cut, printed)
    assert outputs.matches(["quick: met, …", "…"], printed)
    assert outputs.matches([], [])
    assert not outputs.matches([], printed)
    assert not outputs.matches(printed[:-1], printed)
    assert not outputs.matches([*printed, "…"], printed), "a cut leaves out something"
    assert not outputs.matches(["…", "p99      12 s"], printed)
    for at, line in enumerate(printed):
        for shown in (printed, cut):
            changed = [*printed[:at], line.replace("2", "3") + " ", *printed[at + 1 :]]
            assert outputs.matches(shown, changed) == (line not in shown)


CASES = {
    "nothing is shown yet": ([], ["a", "b"], ["a", "b"]),
    "numbers and a verdict": (
        ["q: met", "…", "p99  12 s", "…"],
        ["q: not met", "x", "y", "p99  13 s", "z"],
        ["q: not met", "…", "p99  13 s", "…"],
    ),
    "rows keep their labels": (
        ["slots  p99", "8      12 s", "…", "32      9 s"],
        ["slots  p99", "8      19 s", "16     12 s", "24      9 s", "32      8 s"],
        ["slots  p99", "8      19 s", "…", "32      8 s"],
    ),
    "a new sentence between two": (
        ["q: met", "  One.", "  Two.", "…"],
        ["q: met", "  One.", "  Refused: 3 %.", "  Two.", "", "table"],
        ["q: met", "  One.", "  Refused: 3 %.", "  Two.", "…"],
    ),
    "a sentence less": (["q: met", "  Gone for good.", "  Two."], ["q: met", "  Two."], ["q: met", "  Two."]),
    "more lines before the first": (
        ["q: met", "…"],
        ["  slots 8: unclear", "  slots 16: met", "  slots 12: met", "q: met", "", "table"],
        ["  slots 8: unclear", "  slots 16: met", "  slots 12: met", "q: met", "…"],
    ),
    "other words": (
        ["q: The SLO is met: p99 TTFT is 612 ms.", "…"],
        ["q: The SLO is probably not met: p99 TTFT is 1.2 s.", "", "table"],
        ["q: The SLO is probably not met: p99 TTFT is 1.2 s.", "…"],
    ),
    "nothing left to leave out": (["a", "…", "b"], ["a", "b"], ["a", "b"]),
    "cuts within a line": (
        ["error: …/a.csv:4: time (got 1.1, …; sort it"],
        ["error: …/a.csv:5: time (got 1.2, rising); sort it"],
        ["error: …/a.csv:5: time (got 1.2, …; sort it"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_output_is_brought_up_to_date(case: str) -> None:
    shown, printed, now = CASES[case]
    assert outputs.refreshed(shown, printed) == now
    assert outputs.matches(now, printed)
    assert outputs.refreshed(now, printed) == now


@given(
    shown=st.lists(st.sampled_from(["…", "a 1", "a 2", "b: …", "b: 3", ""]), max_size=6),
    printed=st.lists(st.sampled_from(["a 1", "a 2", "a 3", "b: 3", "b: 4", "c", ""]), max_size=6),
)
def test_whatever_was_shown_the_new_output_matches(shown: list[str], printed: list[str]) -> None:
    now = outputs.refreshed(shown, printed)
    assert outputs.matches(now, printed)
    assert (now == shown) == outputs.matches(shown, printed)


def test_a_page_is_rewritten_but_for_what_it_leaves_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Line 4 says 24 rows, 99.5 % of them.\n\n```console\n$ loraplan scenarios copy cache-thrash\nslow.yaml 99.5 %\n"
        "$ loraplan check cache-thrash.yaml\n$ loraplan check nothing\nerror: …\n$ echo $?\n3\n```\n",
        encoding="utf-8",
    )
    (tmp_path / "work").mkdir()
    after, problems = outputs.rewritten(page, list(outputs.replay(page, tmp_path / "work", long=False)))
    before = page.read_text(encoding="utf-8")
    assert after == before.replace("slow.yaml 99.5 %", "cache-thrash.yaml").replace(
        "check cache-thrash.yaml\n",
        "check cache-thrash.yaml\ncache-thrash.yaml: ok\n  fixed · all times given by the scenario\n",
    )
    assert [problem.splitlines()[0] for problem in problems] == ["7: exits with 2, not 3: loraplan check nothing"]
    assert list(outputs.stale_prose(before, after)) == [(1, "99.5 %")]


def test_blocks_that_need_an_absent_extra_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "```console\n$ loraplan scenarios list\n```\n"
        "<!-- needs: kernels -->\n```console\n$ loraplan schema\n$ loraplan nonsense\n$ echo $?\n2\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    ran = []

    def run(command: str, folder: Path) -> object:
        ran.append(command)
        return outputs.Ended(2 if "nonsense" in command else 0, ["printed"])

    monkeypatch.setattr(outputs, "run", run)
    for there in (False, True):
        ran.clear()
        monkeypatch.setitem(outputs.EXTRAS, "kernels", "json" if there else "no_such_package")
        done = list(outputs.replay(page, tmp_path, long=False))
        assert [command.needs for command, _ in done] == ["", "kernels", "kernels"]
        assert [ended is not None for _, ended in done] == [True, there, there]
        assert len(ran) == (3 if there else 1)
        assert ("loraplan schema\nprinted" in outputs.rewritten(page, done)[0]) == there
    page.write_text(text.replace("kernels", "kernel"), encoding="utf-8")
    with pytest.raises(outputs.PageError, match="needs the extra 'kernel', which is none of kernels"):
        list(outputs.replay(page, tmp_path, long=False))
