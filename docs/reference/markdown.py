"""Tables in Markdown."""

from __future__ import annotations

import re


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return linked(" ".join(text.replace("``", "`").split()).replace("|", "\\|"))


def linked(text: str) -> str:
    """Return text in which the pages that a terminal would name by their files are links."""
    return re.sub(r"\bdocs/([\w-]+)\.md\b", lambda page: f"[{page[1].replace('-', ' ')}]({page[1]}.md)", text)


def either(words: list[str]) -> str:
    """Return words as a choice: ``a, b or c``."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
