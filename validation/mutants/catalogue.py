"""All mutants, from the text files beside this one: copies of the program with one mistake that tests should notice.

An entry is a name with what goes wrong, the file, the tests that are most likely to notice, the old text and the new
one, and for a mutant that gives the same results, why no test can notice::

    = copies-are-hidden: scheduling ahead hides copies to the GPU as well as reading
    in sim/world/replica/continuous.py
    by tests/property/test_async.py
    - step.growth_s * (steps - 1) + self._copy_s
    + step.growth_s * (steps - 1)
    ! why no test can notice

Old and new text are one mark per line of code. A line that starts with a space continues the first one, ``#`` begins a
comment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One mistake that someone might make.

    :ivar name: unique, for ``--only``.
    :ivar file: relative to the root of the repository; ``old`` occurs there exactly once, and ``new`` replaces it.
    :ivar tests: test files, or tests (``file::name``); they run first.
    :ivar explained: empty where tests should notice.
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


def read(text: str) -> Iterator[Mutant]:
    """Yield the entries of a file."""
    for entry in f"\n{text}".split("\n= ")[1:]:
        name, _, rest = entry.partition(":")
        why, *lines = rest.strip(" ").split("\n")
        marked: dict[str, list[str]] = defaultdict(list)
        for line in lines:
            if line and not line.startswith("#"):
                mark, _, words = line.partition(" ")
                marked[mark].append(words)
        yield Mutant(
            name,
            marked["in"][0],
            "\n".join(marked["-"]),
            "\n".join(marked["+"]),
            " ".join([why, *map(str.strip, marked[""])]),
            tuple(" ".join(marked["by"]).split()),
            " ".join(marked["!"]),
        )


MUTANTS = tuple(
    mutant for file in sorted(Path(__file__).parent.glob("*.txt")) for mutant in read(file.read_text(encoding="utf-8"))
)
