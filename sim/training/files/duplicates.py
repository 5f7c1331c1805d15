"""Finds duplicate adapters: files with equal content, without reading all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.training.files.census import Entry

BLOCK = 4096
SAMPLES = 4
READ_LIMIT = 20 * 10**9
"""Bytes that are read whole, at most: 20 GB take about 20 s from a fast disk."""

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Copies:
    """Groups of files with equal content.

    :ivar sets: folders of equal files, each in order.
    :ivar unread: files that have a likely twin and were not read, because ``READ_LIMIT`` was reached.
    :ivar bytes_read: of the files that were read whole.
    """

    sets: tuple[tuple[str, ...], ...]
    unread: int
    bytes_read: int


def find_copies(
    entries: Sequence[Entry],
    *,
    limit: int = READ_LIMIT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Copies:
    """Return the adapters whose weights files are equal byte for byte.

    Equal sizes and headers, known from the census, come first. Most fleets have thousands of those, so four blocks of 4
    KiB of each are compared next. Only files that agree in these too are read whole, and their SHA-256 decides.
    """
    likely = [
        twins
        for alike in _alike(entries, lambda entry: (entry.file_bytes, entry.header_digest))
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
    return Copies(tuple(sorted(found)), unread, read)


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
    return _sha256(entry.path)


def _sha256(path: Path) -> bytes | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError:
        return None
    return digest.digest()
