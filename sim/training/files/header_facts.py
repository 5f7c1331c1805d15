"""Facts from the header of an adapter's weights: ranks, modules, sizes, and extras beyond plain LoRA.

The adapters of a fleet have few different headers, so ``KnownHeaders`` keeps facts by a header's digest: 10,000 equal
headers are checked once.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from sim.cells import printable
from sim.errors import InputError
from sim.training.files.engine_rules import Extra
from sim.training.files.safetensors_header import DTYPES, Header, parse_header, read_raw_header

_SIDES = {"A": 0, "embedding_A": 0, "B": 1, "embedding_B": 1}
_LAYER = re.compile(r"\.(?:layers|layer|h|blocks|block)\.(\d{1,9})\.")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out", "embeddings")
LIMIT = 32_000_000
"""Bytes of an adapter's header, at most: twice those for 58 layers of 256 experts."""

_KEPT_HEADERS, _KEPT_BYTES = 64, 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """The content of an adapter's weights file.

    :ivar ranks: all ranks of its modules, rising; most adapters have one.
    :ivar targets: last parts of the module names, such as ``q_proj``, sorted.
    :ivar dtypes: number formats by our names, sorted.
    :ivar tensors: in the file; ``parameters``: numbers in them; ``lora_parameters``: those of pairs of A and B.
    :ivar bytes: of all tensors, without the header; ``file_bytes``: of the file.
    :ivar layers: layers that have one of its modules, by the numbers in their names.
    :ivar extras: what it has besides plain LoRA.
    :ivar header_digest: equal for files with equal headers.
    """

    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    dtypes: tuple[str, ...]
    tensors: int
    parameters: int
    lora_parameters: int
    bytes: int
    file_bytes: int
    layers: int
    extras: tuple[Extra, ...]
    header_digest: str

    @property
    def rank(self) -> int:
        """The largest rank: what an engine pads to."""
        return self.ranks[-1]

    def as_fields(self) -> dict[str, Any]:
        """Return these facts by name, to build another class of facts about the same file."""
        return {field.name: getattr(self, field.name) for field in fields(AdapterFacts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFacts(AdapterFacts):
    """Facts from the header alone.

    :ivar even: whether every layer has every module.
    :ivar others: tensors that belong to no pair of A and B: DoRA magnitudes, saved modules.
    """

    even: bool
    others: tuple[str, ...]


class KnownHeaders:
    """Facts of headers read before: the last 64, each of at most 512 KiB."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int], HeaderFacts] = OrderedDict()

    def read(self, path: Path) -> HeaderFacts:
        """Return the facts of a file.

        :raises InputError: if it can't be read or belongs to no adapter.
        """
        raw, size = read_raw_header(path, LIMIT)
        key = hashlib.blake2b(raw, digest_size=16).hexdigest(), size
        facts = self._known.get(key)
        if facts is not None:
            self._known.move_to_end(key)
            return facts
        facts = _facts(parse_header(raw, size, path), size, key[0])
        if len(raw) <= _KEPT_BYTES:
            self._known[key] = facts
            if len(self._known) > _KEPT_HEADERS:
                self._known.popitem(last=False)
        return facts


def _facts(header: Header, size: int, digest: str) -> HeaderFacts:
    pairs, others = _pairs(header)
    ranks = _ranks(pairs, str(header.path))
    targets = {name.rpartition(".")[2] for name in pairs}
    by_layer = Counter(found[1] for found in map(_LAYER.search, pairs) if found)
    dtypes = {DTYPES.get(name, name) for name in {tensor.dtype for tensor in header.tensors}}
    return HeaderFacts(
        ranks=ranks,
        targets=tuple(sorted(targets)),
        dtypes=tuple(sorted(dtypes)),
        tensors=len(header.tensors),
        parameters=sum([prod(tensor.shape) for tensor in header.tensors]),
        lora_parameters=sum([prod(a) + prod(b) for a, b in pairs.values() if a is not None and b is not None]),
        bytes=sum([tensor.end - tensor.start for tensor in header.tensors]),
        file_bytes=size,
        layers=len(by_layer),
        even=len(set(by_layer.values())) <= 1,
        others=others,
        extras=_extras(targets, others),
        header_digest=digest,
    )


Pairs = dict[str, list[tuple[int, ...] | None]]


def _pairs(header: Header) -> tuple[Pairs, tuple[str, ...]]:
    """Return the shapes of A and B by module, and the tensors that belong to no pair."""
    path = str(header.path)
    pairs: Pairs = {}
    others = []
    for tensor in header.tensors:
        module, found, rest = tensor.name.rpartition(".lora_")
        side = _SIDES.get(rest.partition(".")[0])
        if not found or side is None or rest.endswith(".bias"):
            others.append(tensor.name)
            continue
        if len(tensor.shape) < 2 or 0 in tensor.shape:
            raise InputError("not a LoRA matrix", file=path, key=printable(tensor.name), got=tensor.shape)
        both = pairs.setdefault(module, [None, None])
        if both[side] is not None:
            raise InputError("two matrices for one side", file=path, key=printable(tensor.name))
        both[side] = tensor.shape
    if not pairs:
        raise InputError("no LoRA matrices in this file", file=path, hint="is it a full model?")
    return pairs, tuple(others)


def _ranks(pairs: Pairs, path: str) -> tuple[int, ...]:
    """Return all ranks; each A (r, d_in) must have its B (d_out, r)."""
    ranks = set()
    for module, (a, b) in pairs.items():
        if a is None or b is None:
            missing = "lora_A" if a is None else "lora_B"
            raise InputError(f"a LoRA pair lacks its {missing}", file=path, key=printable(module))
        if a[0] != b[1]:
            raise InputError(
                "the ranks of a LoRA pair differ",
                file=path,
                key=printable(module),
                got=f"A {a}, B {b}",
                allowed="A (rank, d_in) and B (d_out, rank)",
            )
        ranks.add(a[0])
    return tuple(sorted(ranks))


def _extras(targets: set[str], others: tuple[str, ...]) -> tuple[Extra, ...]:
    found: set[Extra] = set()
    if not targets.isdisjoint(_EMBEDDINGS):
        found.add("LoRA on embeddings")
    for name in others:
        parts = name.split(".")
        if "lora_magnitude_vector" in name:
            found.add("DoRA")
        elif "trainable_tokens" in name or "token_adapter" in name:
            found.add("trained tokens")
        elif name.endswith(".bias"):
            found.add("bias")
        elif "modules_to_save" in parts or not set(parts).intersection(_EMBEDDINGS):
            found.add("saved modules")
        else:
            found.add("saved embeddings")
    return tuple(sorted(found))
