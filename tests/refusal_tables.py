"""Tables of refusals: groups of changes or commands, each with all that is said of it.

``…`` in an answer stands for any text, such as of a library or of this machine. With ``RECORD=1`` in the environment,
tests write into the tables what is said today. Read the diff then.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

WIDTH = 119


@dataclass(frozen=True)
class Refusal:
    """One row of a table: a change of what its group has, and the answer to it."""

    table: Path
    group: dict[str, Any]
    change: str
    answer: str

    def compare(self, said: str) -> None:
        if "RECORD" not in os.environ or self._is(said):
            assert self._is(said), f"{said}\n\nis not\n\n{self.answer}"
            return
        text = self.table.read_text(encoding="utf-8")
        old, new = (row(self.change, answer) for answer in (self.answer, said))
        assert old in text, "the row is not written as it would be recorded"
        self.table.write_text(text.replace(old, new), encoding="utf-8")

    def _is(self, said: str) -> bool:
        return re.fullmatch(".*".join(map(re.escape, self.answer.split("…"))), said, re.DOTALL) is not None


def refusals(folder: Path) -> list[Any]:
    """Return the rows of all tables in a folder, as parameters of a test."""
    return [
        pytest.param(Refusal(table, group, change, answer), id=f"{name}: {change}"[:80])
        for table in sorted(folder.glob("*.yaml"))
        for name, group in YAML(typ="safe").load(table).items()
        for change, answer in group["refused"].items()
    ]


def row(change: str, answer: str) -> str:
    """Return a row as its table has it."""
    key = _quoted(change)
    one = f"    {key}: {_quoted(answer)}"
    if len(one) <= WIDTH and "\n" not in answer:
        return one
    return f"    ? {_block(change)}\n    : {_block(answer)}" if len(key) > 110 else f"    {key}: {_block(answer)}"


def _quoted(text: str) -> str:
    if re.fullmatch(r"[\w.]([\w./=,; -]*[\w./=,-])?", text) and not re.fullmatch(r"[\d.]+", text):
        return text
    return (
        f"'{text}'"
        if ('"' in text or "\\" in text) and not re.search(r"['\n]", text)
        else json.dumps(text, ensure_ascii=False)
    )


def _block(text: str) -> str:
    lines = text.split("\n")
    if len(lines) > 1 and max(map(len, lines)) <= WIDTH - 6:
        return "|-\n" + textwrap.indent(text, "      ")
    folded = [textwrap.wrap(line, WIDTH - 6, break_long_words=False, break_on_hyphens=False) for line in lines]
    return ">-\n" + "\n\n".join(textwrap.indent("\n".join(each), "      ") for each in folded)
