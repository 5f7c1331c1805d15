"""A census of adapter folders: each adapter, which are alike, and which can't be read.

It reads directory entries, each configuration and the header of each weights file. ``copies`` then reads a few blocks
of files with equal sizes and headers, and whole files only where these blocks are equal too.
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
from sim.training.files.base_model_names import known_model
from sim.training.files.header_facts import AdapterFacts, KnownHeaders

_SHORT = {f"{name}_proj": name for name in MODULES}
_MOST_TARGETS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(AdapterFacts):
    """One adapter of a census; every text is printable, and it has at most 32 targets.

    :ivar folder: relative to the folder of the census; "." for that itself. ``path``: its weights.
    :ivar model: our name of its base model, None where we have none.
    """

    folder: str
    path: Path
    alpha: float | None
    base_model: str | None
    model: str | None

    @property
    def modules(self) -> tuple[str, ...]:
        """Its targets by their names in scenarios, if they have one: ``q`` for ``q_proj``, in our order."""
        order = {name: place for place, name in enumerate(MODULES)}
        short = (_SHORT.get(name, name) for name in self.targets)
        return tuple(sorted(short, key=lambda name: (order.get(name, len(order)), name)))

    @property
    def target_words(self) -> str:
        """Its targets in a word: ``all-linear`` or ``q,v``."""
        return "all-linear" if self.modules == MODULES else ",".join(self.modules)


@dataclass(frozen=True, slots=True)
class Failure:
    """A folder that is no usable LoRA adapter.

    :ivar kind: ``not LoRA``: another kind of adapter, which may be fine; ``unreadable``: something is wrong with it.
    """

    folder: str
    kind: Literal["not LoRA", "unreadable"]
    problem: str


@dataclass(frozen=True, slots=True)
class Census:
    """Everything found below a folder, in the order of folder names."""

    root: Path
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.bytes for entry in self.entries)


@dataclass(frozen=True, slots=True)
class AlikeAdapters:
    """Adapters alike in rank, targets, number format, base model and extras.

    :ivar first: one of them; ``smallest`` and ``largest``: bytes of tensors.
    """

    first: Entry
    count: int
    bytes: int
    smallest: int
    largest: int


def take_census(root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Census:
    """Read all adapter folders below ``root``; a bad one becomes a ``Failure``.

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


def groups(entries: Iterable[Entry]) -> list[AlikeAdapters]:
    """Return groups of alike adapters, the largest group first."""
    found: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        key = entry.ranks, entry.targets, entry.dtypes, entry.base_model, entry.extras
        found.setdefault(key, []).append(entry)
    kinds = [
        AlikeAdapters(
            alike[0], len(alike), sum(e.bytes for e in alike), min(e.bytes for e in alike), max(e.bytes for e in alike)
        )
        for alike in found.values()
    ]
    return sorted(kinds, key=lambda kind: (-kind.count, -kind.bytes, kind.first.folder))


def _entry(adapter: AdapterFile, root: Path) -> Entry:
    base = None if adapter.base_model is None else printable(adapter.base_model.strip())
    return Entry(
        folder=_below(adapter.folder, root),
        path=adapter.path,
        alpha=adapter.alpha,
        base_model=base or None,
        model=known_model(base or ""),
        **{**adapter.as_fields(), "targets": _printable_names(adapter.targets)},
    )


def _printable_names(targets: Sequence[str]) -> tuple[str, ...]:
    """Return the first module names, made printable: there may be a hundred thousand."""
    return tuple(printable(name, 40) for name in targets[:_MOST_TARGETS])


def _below(folder: Path, root: Path) -> str:
    return printable(str(folder.relative_to(root) if folder.is_relative_to(root) else folder), 200)


def _problem(error: InputError, folder: Path) -> str:
    """Return an error without the folder's path, which is shown next to it."""
    text = str(error).removeprefix(f"{error.file}: ")
    name = Path(error.file or folder).name
    return printable(text if name == folder.name else f"{name}: {text}", 400)
