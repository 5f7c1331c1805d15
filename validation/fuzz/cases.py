"""What a fuzz case is: files in an empty folder and the command lines to run there, both following from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Drawn = TypeVar("Drawn")


@dataclass(frozen=True)
class Case:
    """One case.

    :ivar files: bytes by relative path; None: an empty folder.
    :ivar lines: arguments of ``loraplan``, one list a command, run in this order whatever the one before said.
    :ivar prepare: writes what is no plain file (a run directory, a link) before the commands run.
    :ivar lawful: whether results must satisfy the laws: where numbers in them were changed, nobody can tell.
    """

    files: dict[str, bytes | None]
    lines: list[list[str]]
    prepare: list[Callable[[Path], None]] = field(default_factory=list)
    lawful: bool = True

    def write(self, folder: Path) -> None:
        """Write the files into a folder."""
        for prepare in self.prepare:
            prepare(folder)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.mkdir(exist_ok=True)
            else:
                path.write_bytes(content)


def drawn(strategy: st.SearchStrategy[Drawn], number: int) -> Drawn:
    """Return the example of a strategy that belongs to a number: the same in every process.

    Hypothesis begins with the simplest example; the one after it is the first that follows from the seed.
    """
    found: list[Drawn] = []

    @seed(number)
    @settings(
        max_examples=2,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(example: Drawn) -> None:
        found.append(example)

    draw()
    return found[-1]
