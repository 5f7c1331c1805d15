"""A census of adapter folders: what each one is, which are alike, and which can't be read.

What is read: directory entries, each configuration, and each weights file's header. Of files whose sizes and headers
are equal, a few blocks; and only those whose blocks are equal too are read whole (``copies``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sim.cells import printable
from sim.errors import InputError
from sim.traffic.adapters import MODULES
from sim.training.files.adapter_folder import AdapterFile, NotLoraError, find_adapters, read_adapter
from sim.training.files.base_models import known_model
from sim.training.files.engine_rules import Extra
from sim.training.files.header_facts import KnownHeaders

_SHORT = {f"{name}_proj": name for name in MODULES}
_MOST_TARGETS = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One adapter of a census; every text can be printed.

    :ivar folder: below the census's own; "." for that itself. ``path``: its weights.
    :ivar targets: last parts of its modules' names as the file has them, the first 32.
    :ivar model: our name of its base model, None where we have none.
    """

    folder: str
    path: Path
    ranks: tuple[int, ...]
    alpha: float | None
    targets: tuple[str, ...]
    dtypes: tuple[str, ...]
    tensors: int
    parameters: int
    lora_parameters: int
    bytes: int
    file_bytes: int
    layers: int
    base_model: str | None
    model: str | None
    extras: tuple[Extra, ...]
    header_digest: str

    @property
    def rank(self) -> int:
        """The largest rank: what an engine pads to."""
        return self.ranks[-1]

    @property
    def modules(self) -> tuple[str, ...]:
        """Its targets by the names of scenarios where they have one: ``q`` for ``q_proj``, in our order."""
        order = {name: place for place, name in enumerate(MODULES)}
        short = (_SHORT.get(name, name) for name in self.targets)
        return tuple(sorted(short, key=lambda name: (order.get(name, len(order)), name)))

    @property
    def target_words(self) -> str:
        """Its targets in a word: ``all-linear`` or ``q,v``."""
        return "all-linear" if self.modules == MODULES else ",".join(self.modules)


@dataclass(frozen=True, slots=True)
class Failure:
    """A folder that is no adapter we can take.

    :ivar kind: ``not LoRA``: another kind of adapter, nothing is wrong with it; ``unreadable``: something is.
    """

    folder: str
    kind: Literal["not LoRA", "unreadable"]
    problem: str


@dataclass(frozen=True, slots=True)
class Census:
    """All that was found below a folder, in the order of the folders' names."""

    root: Path
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.bytes for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Group:
    """Adapters alike in rank, targets, number format, base model and extras.

    :ivar first: one of them; ``smallest`` and ``largest``: bytes of tensors.
    """

    first: Entry
    count: int
    bytes: int
    smallest: int
    largest: int


def take_census(root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Census:
    """Read all adapter folders below ``root``; a bad one becomes a ``Failure`` and stops nothing.

    :raises InputError: if ``root`` is no folder, can't be listed, or has no adapters below it.
    """
    blocked: list[OSError] = []
    folders = list(find_adapters(root, blocked))
    failures = [
        Failure(
            _below(Path(os.fsdecode(error.filename or root)), root),
            "unreadable",
            f"can't list this folder: {error.strerror or error}",
        )
        for error in blocked
    ]
    if not folders:
        why = failures[0].problem if failures else "no adapters here or in the folders below"
        raise InputError(
            why,
            file=printable(str(root), 300),
            hint="a PEFT adapter folder has adapter_config.json and adapter_model.safetensors",
        )
    entries = []
    known = KnownHeaders()
    for done, folder in enumerate(folders):
        if done % 100 == 0:
            progress(done, len(folders))
        try:
            entries.append(_entry(read_adapter(folder, root, known), root))
        except InputError as error:
            kind: Literal["not LoRA", "unreadable"] = "not LoRA" if isinstance(error, NotLoraError) else "unreadable"
            failures.append(Failure(_below(folder, root), kind, _problem(error, folder)))
    progress(len(folders), len(folders))
    return Census(root, tuple(entries), tuple(sorted(failures, key=lambda failure: failure.folder)))


def groups(entries: Iterable[Entry]) -> list[Group]:
    """Return the kinds of adapters, those with most adapters first."""
    found: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        key = entry.ranks, entry.targets, entry.dtypes, entry.base_model, entry.extras
        found.setdefault(key, []).append(entry)
    kinds = [
        Group(
            alike[0], len(alike), sum(e.bytes for e in alike), min(e.bytes for e in alike), max(e.bytes for e in alike)
        )
        for alike in found.values()
    ]
    return sorted(kinds, key=lambda kind: (-kind.count, -kind.bytes, kind.first.folder))


def _entry(adapter: AdapterFile, root: Path) -> Entry:
    base = None if adapter.base_model is None else printable(adapter.base_model.strip())
    return Entry(
        _below(adapter.folder, root),
        adapter.path,
        adapter.ranks,
        adapter.alpha,
        _named(adapter.targets),
        adapter.dtypes,
        adapter.tensors,
        adapter.parameters,
        adapter.lora_parameters,
        adapter.bytes,
        adapter.file_bytes,
        adapter.layers,
        base or None,
        known_model(base or ""),
        adapter.extras,
        adapter.header_digest,
    )


def _named(targets: Sequence[str]) -> tuple[str, ...]:
    """Return module names that can be printed, and not a hundred thousand of them."""
    return tuple(printable(name, 40) for name in targets[:_MOST_TARGETS])


def _below(folder: Path, root: Path) -> str:
    return printable(str(folder.relative_to(root) if folder.is_relative_to(root) else folder), 200)


def _problem(error: InputError, folder: Path) -> str:
    """Return an error without the folder's path, which stands beside it."""
    text = str(error).removeprefix(f"{error.file}: ")
    name = Path(error.file or folder).name
    return printable(text if name == folder.name else f"{name}: {text}", 400)
