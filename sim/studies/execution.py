"""How a study is carried out: on which workers, for which command, and where it reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim.studies.backends.pool import Local, Pool

if TYPE_CHECKING:
    from sim.world.replication import Simulate

Progress = Callable[[int, int], None]
"""Called with the tasks done and the tasks there are."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What a study needs to run that changes none of its numbers.

    :ivar pool: where it simulates; a local pool uses one worker process for each core. The pool stays open.
    :ivar command: the command line that reproduces the study, for its manifest.
    :ivar on_progress: called as tasks finish.
    :ivar recording_of: used in place of ``simulate`` for the short runs of headroom.
    """

    pool: Pool = field(default_factory=Local)
    command: str = ""
    on_progress: Progress = lambda done, total: None
    recording_of: Simulate | None = None


@contextmanager
def executing(
    opened: AbstractContextManager[Pool], bar: AbstractContextManager[Progress], command: str = ""
) -> Iterator[Execution]:
    """Open a pool and a progress bar for as long as a study runs."""
    with opened as pool, bar as progress:
        yield Execution(pool, command, progress)
