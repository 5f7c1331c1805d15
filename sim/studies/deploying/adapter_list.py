"""Adapters that a server registers at its start: read from a folder, checked against what was simulated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sim.errors import InputError
from sim.spec.engine_flags.flag import Replica, largest_rank
from sim.training.files.census import take_census

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario

MOST_LISTED = 1000
"""Adapters on one command line, at most; Linux allows 2 MB for all of it."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True, slots=True)
class ListedAdapter:
    """An adapter by the name that requests give it.

    :ivar folder: where it is, relative to the folder of all adapters.
    """

    name: str
    folder: str


def list_adapters(folder: Path, scenario: Scenario) -> list[ListedAdapter]:
    """Return the adapters of a folder, each named after its own folder.

    :raises InputError: if one can't be read, has a name that command lines can't hold or a larger rank than was
        simulated, or their number is not the one that was simulated.
    """
    census, key = take_census(folder), "--adapters"
    if census.failures:
        first = census.failures[0]
        raise InputError("this is no LoRA adapter", key=key, got=f"{folder / first.folder}: {first.problem}")
    count, simulated = len(census.entries), scenario.adapters.count
    if simulated is not None and count != simulated:
        raise InputError(
            "another number of adapters was simulated",
            key=key,
            got=f"{count:,} in {folder}",
            allowed=f"{simulated:,} (adapters.count)",
            hint=f"--set adapters.count={count}, or leave --adapters out and load adapters while the server runs",
        )
    if count > MOST_LISTED:
        raise InputError(
            "too many adapters for a command line",
            key=key,
            got=f"{count:,}",
            allowed=f"up to {MOST_LISTED:,}",
            hint="leave --adapters out and load them while the server runs",
        )
    limit = largest_rank(Replica(scenario))
    for entry in census.entries:
        if max(entry.ranks, default=0) > limit:
            raise InputError(
                "an adapter has a larger rank than was simulated",
                key=key,
                got=f"{entry.folder} with rank {max(entry.ranks)}",
                allowed=f"up to {limit} (adapters.rank)",
                hint=f"--set adapters.rank={max(entry.ranks)}",
            )
        if _NAME.fullmatch(_name(entry.folder, folder)) is None:
            raise InputError(
                "an adapter's folder has a name that command lines can't hold",
                key=key,
                got=entry.folder,
                allowed="letters, digits, dots, dashes and underscores, a letter or digit first",
                hint="rename the folder",
            )
    return [ListedAdapter(_name(entry.folder, folder), entry.folder) for entry in census.entries]


def _name(below: str, root: Path) -> str:
    return root.resolve().name if below == "." else below
