"""What a mutant is: a copy of the program with one mistake in it, which the tests should notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One mistake that someone might make.

    :ivar name: unique, for ``--only``.
    :ivar file: relative to the root of the repository; ``old`` occurs there exactly once, and ``new`` replaces it.
    :ivar why: what goes wrong.
    :ivar tests: test files, or tests (``file::name``), that are most likely to notice; they run first.
    :ivar explained: why no test can notice, for a mutant that gives the same results; otherwise empty.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]
    explained: str = ""

    def source(self, root: Path) -> str:
        """Return the text of its file with the mistake in it.

        :raises LookupError: where ``old`` doesn't occur exactly once; the entry needs to be adapted to the code.
        """
        text = (root / self.file).read_text(encoding="utf-8")
        count = text.count(self.old)
        if count != 1:
            raise LookupError(f"mutant {self.name}: its old text occurs {count} times in {self.file}, not once")
        return text.replace(self.old, self.new)

    def apply(self, root: Path) -> None:
        """Write the mistake into a copy of the tree.

        :raises LookupError: as ``source``.
        """
        (root / self.file).write_text(self.source(root), encoding="utf-8")
