"""A census of adapter folders: each adapter, which are alike, and which can't be read.

It reads directory entries, each configuration and the header of each weights file. ``find_copies`` then reads a few
blocks of files with equal sizes and headers, and whole files only where these blocks are equal too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from sim.cells import printable
from sim.errors import InputError
from sim.spec.scenario import Targets
from sim.traffic.adapters import DENSE, MODULES, TARGETS, parameters_per_rank
from sim.training.files.adapter_folder import (
    AdapterFacts,
    AdapterFile,
    KnownHeaders,
    NotLoraError,
    find_adapters,
    read_adapter,
)
from sim.training.files.engine_rules import Extra

# Base models by their names in configurations: ``meta-llama/Llama-3.1-8B-Instruct`` is our ``llama-3.1-8b``.

_NO_FAMILY = ("tiny",)
"""Our names that many other names begin with."""


def known_model(name: str) -> str | None:
    """Return our name of a base model, or None.

    A name counts if its last part begins with ours: fine-tuned and quantised versions have the same layers.
    ``Entry.fits`` tells whether an adapter's matrices match.
    """
    last = name.rstrip("/").rpartition("/")[2].lower().replace("_", "-").removeprefix("meta-")
    found = [ours for ours in DENSE if last == ours or (ours not in _NO_FAMILY and last.startswith(f"{ours}-"))]
    return max(found, key=len, default=None)


_SHORT = {f"{name}_proj": name for name in MODULES}
_IN_EXPERTS = frozenset({"gate", "up", "down", "w1", "w2", "w3", "gate_up_proj", "base_layer", "experts"})
"""Names of what is in experts, whose models have no other modules of these names."""
_MOST_TARGETS = 32
_PARTIAL: Extra = "part of the layers"


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
        order = {name: place for place, name in enumerate(TARGETS)}
        short = {_SHORT.get(name, name) for name in self.targets}
        if self.experts:
            short = {self.experts if name in _IN_EXPERTS else name for name in short}
        return tuple(sorted(short, key=lambda name: (order.get(name, len(order)), name)))

    @property
    def fits(self) -> bool | None:
        """Whether its matrices are as large as those layers of its model that it has ask for; None: not known."""
        if self.model is None or len(self.ranks) > 1 or not set(self.modules) <= set(MODULES):
            return None
        shape = DENSE[self.model]
        whole = self.rank * parameters_per_rank(shape, self.modules)  # type: ignore[arg-type]
        return self.layers <= shape.layers and self.lora_parameters * shape.layers == whole * self.layers

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
    entry = Entry(
        folder=_below(adapter.folder, root),
        path=adapter.path,
        alpha=adapter.alpha,
        base_model=base or None,
        model=known_model(base or ""),
        # Only the first module names: there may be a hundred thousand.
        **{**adapter.as_fields(), "targets": tuple(printable(name, 40) for name in adapter.targets[:_MOST_TARGETS])},
    )
    if not entry.fits or entry.model is None or entry.layers == DENSE[entry.model].layers or _PARTIAL in entry.extras:
        return entry
    return replace(entry, extras=(*entry.extras, _PARTIAL))


def _below(folder: Path, root: Path) -> str:
    return printable(str(folder.relative_to(root) if folder.is_relative_to(root) else folder), 200)


def _problem(error: InputError, folder: Path) -> str:
    """Return an error without the folder's path, which is shown next to it."""
    text = str(error).removeprefix(f"{error.file}: ")
    name = Path(error.file or folder).name
    return printable(text if name == folder.name else f"{name}: {text}", 400)


# Turns the adapters of a census into a few kinds for a scenario's ``mix``, with sizes from the files.

MOST_KINDS = 16


@dataclass(frozen=True, slots=True)
class MixKind:
    """Adapters that a scenario treats as alike.

    :ivar rank: the largest of them; ``size``: bytes of one adapter's tensors, the mean where ``exact`` is false.
    """

    count: int
    rank: int
    targets: Targets
    size: int
    exact: bool


def kinds_of(entries: Sequence[Entry], most: int = MOST_KINDS) -> list[MixKind]:
    """Return the kinds of the adapters, the most frequent first; their counts add up to all.

    Adapters of equal rank, targets and bytes are a kind. If there are more than ``most``, sizes are merged first, then
    the kinds with the closest sizes: a merged kind has the larger rank, the targets of both and the mean size, so that
    the total bytes stay the same.
    """
    counted: dict[tuple[int, Targets, int], int] = {}
    for entry in entries:
        key = entry.rank, _targets(entry), entry.bytes
        counted[key] = counted.get(key, 0) + 1
    kinds = [MixKind(count, rank, targets, size, True) for (rank, targets, size), count in counted.items()]
    if len(kinds) > most:
        alike: dict[tuple[int, Targets], MixKind] = {}
        for kind in kinds:
            known = alike.get((kind.rank, kind.targets))
            alike[kind.rank, kind.targets] = kind if known is None else _merged(known, kind)
        kinds = [*alike.values()]
    kinds.sort(key=lambda kind: (kind.size, kind.rank))
    while len(kinds) > 4 * most:  # thousands of kinds: all neighbours at once, or this would take minutes
        kinds = [_merged(*kinds[at : at + 2]) if at + 1 < len(kinds) else kinds[at] for at in range(0, len(kinds), 2)]
    while len(kinds) > most:
        gaps = [upper.size - lower.size for lower, upper in pairwise(kinds)]
        place = gaps.index(min(gaps))
        kinds[place : place + 2] = [_merged(kinds[place], kinds[place + 1])]
    return sorted(kinds, key=lambda kind: (-kind.count, kind.size, kind.rank))


def _targets(entry: Entry) -> Targets:
    """Return its targets as scenarios have them; all linear layers where it has none of those."""
    ours = tuple(name for name in TARGETS if name in entry.modules)
    return "all-linear" if not ours or ours == MODULES else ours  # type: ignore[return-value]


def _merged(one: MixKind, other: MixKind) -> MixKind:
    count = one.count + other.count
    both: Targets = "all-linear"
    if one.targets != "all-linear" and other.targets != "all-linear":
        union = tuple(name for name in TARGETS if name in one.targets or name in other.targets)
        both = "all-linear" if union == MODULES else union
    size = round((one.size * one.count + other.size * other.count) / count)
    return MixKind(count, max(one.rank, other.rank), both, size, exact=one.exact and one.size == other.size)


# Finds duplicate adapters: files with equal content, without reading all of them.

BLOCK = 4096
SAMPLES = 4
READ_LIMIT = 20 * 10**9
"""Bytes that are read whole, at most: 20 GB take about 20 s from a fast disk."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Groups of equal adapters.

    :ivar sets: their folders, each in order.
    :ivar unread: files that have a likely twin and were not read, because ``READ_LIMIT`` was reached.
    """

    sets: tuple[tuple[str, ...], ...]
    unread: int


def find_copies(
    entries: Sequence[Entry],
    *,
    limit: int = READ_LIMIT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Copies:
    """Return the adapters with equal weights files, byte for byte, and equal settings.

    Equal sizes, headers and settings, known from the census, come first. Most fleets have thousands of those, so four
    blocks of 4 KiB of each are compared next. Only files that agree in these too are read whole, and their SHA-256
    decides.
    """
    likely = [
        twins
        for alike in _alike(entries, lambda entry: (entry.file_bytes, entry.digest))
        for twins in _alike(alike, _samples)
    ]
    total = sum(entry.file_bytes for twins in likely for entry in twins)
    found: list[tuple[str, ...]] = []
    unread = read = 0
    for twins in likely:
        size = sum(entry.file_bytes for entry in twins)
        if read + size > limit:
            unread += len(twins)
            continue
        found += [tuple(entry.folder for entry in equal) for equal in _alike(twins, _content)]
        read += size
        progress(read, total)
    return Copies(tuple(sorted(found)), unread)


def _alike(entries: Iterable[Entry], key: Callable[[Entry], object]) -> list[list[Entry]]:
    """Return groups of two and more with equal keys; an entry whose key is None is like no other."""
    found: dict[object, list[Entry]] = {}
    for entry in entries:
        value = key(entry)
        if value is not None:
            found.setdefault(value, []).append(entry)
    return [alike for alike in found.values() if len(alike) > 1]


def _samples(entry: Entry) -> bytes | None:
    """Return a digest of blocks spread over the tensors' bytes; None if the file changed or can't be read."""
    begin, last = entry.file_bytes - entry.bytes, max(entry.file_bytes - BLOCK, 0)
    places = sorted({min(begin + (last - begin) * i // (SAMPLES - 1), last) for i in range(SAMPLES)})
    digest = hashlib.blake2b(digest_size=16)
    try:
        with entry.path.open("rb", buffering=0) as file:
            for place in places:
                file.seek(max(place, 0))
                digest.update(file.read(BLOCK))
    except OSError:
        return None
    return digest.digest()


def _content(entry: Entry) -> bytes | None:
    try:
        with entry.path.open("rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
