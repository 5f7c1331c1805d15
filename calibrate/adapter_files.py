"""Adapter files from strangers, read safely: the header alone, without torch, and never a pickle.

A safetensors file is eight bytes with the length of a header (little-endian), the header as JSON, and the tensors'
bytes. Everything the header claims is checked before it is used, because whoever made the file may have lied.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sim.errors import InputError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
HEADER_LIMIT = 100_000_000
"""Bytes of a header, at most: the limit of the safetensors library."""

_CONFIG_LIMIT = 1 << 20
_DIMENSIONS_LIMIT = 8
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
DTYPES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F8_E4M3": "fp8"}
"""Our names of the number formats that adapters come in; others keep the name of the file format."""

_PICKLES = {
    b"PK\x03\x04": "a zip archive, as torch.save writes: a pickle",
    b"\x80\x02": "a pickle", b"\x80\x03": "a pickle", b"\x80\x04": "a pickle", b"\x80\x05": "a pickle",
    b"\x1f\x8b": "a gzip archive",
}  # fmt: skip
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_NEVER = "loading a pickle runs whatever code its maker put in; re-save it as safetensors on a machine you can lose"
_SIDES = {"A": 0, "embedding_A": 0, "B": 1, "embedding_B": 1}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header gives it.

    :ivar start: its first byte in the file; ``end``: one beyond its last.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: tensors in the order of their bytes, which fill the file to its end."""

    path: Path
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What an adapter folder holds, known from its header and its configuration.

    :ivar folder: as it was asked for; ``path``: its weights, links resolved.
    :ivar ranks: all ranks of its modules, rising; most adapters have one.
    :ivar targets: last parts of the module names, such as ``q_proj``, sorted.
    :ivar dtypes: number formats by our names, sorted.
    :ivar tensors: in the file; ``bytes``: of all tensors, without the header.
    :ivar base_model: as the configuration names it; ``alpha``: its scaling; ``None`` where it doesn't say.
    :ivar others: tensors that belong to no pair of A and B: DoRA magnitudes, saved modules.
    """

    folder: Path
    path: Path
    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    dtypes: tuple[str, ...]
    tensors: int
    bytes: int
    base_model: str | None
    alpha: float | None
    others: tuple[str, ...]

    @property
    def rank(self) -> int:
        """The largest rank: what an engine pads to."""
        return self.ranks[-1]


def read_adapter(folder: Path, root: Path | None = None) -> AdapterFile:
    """Return the facts of an adapter folder as PEFT writes it.

    :param root: the folder that nothing may lead out of; the adapter's own where not given.
    :raises InputError: naming the file and what is wrong with it.
    """
    root = folder if root is None else root
    path = _inside(folder / WEIGHTS, root)
    if not path.exists():
        _refuse_pickles(folder)
        raise InputError(f"no {WEIGHTS} here", file=str(folder), hint="a PEFT adapter folder has one")
    header, config = read_header(path), _read_config(_inside(folder / CONFIG, root))
    ranks, targets, others = _pairs(header)
    _agree(config, ranks, folder / CONFIG)
    return AdapterFile(
        folder, path, ranks, targets, tuple(sorted({DTYPES.get(t.dtype, t.dtype) for t in header.tensors})),
        len(header.tensors), sum(tensor.end - tensor.start for tensor in header.tensors),
        config.get("base_model_name_or_path"), config.get("lora_alpha"), others,
    )  # fmt: skip


def only_dtype(adapter: AdapterFile) -> str:
    """Return the number format of all tensors.

    :raises InputError: if they have several: a time per byte would mean nothing. Names a tensor of each.
    """
    if len(adapter.dtypes) == 1:
        return adapter.dtypes[0]
    examples = {DTYPES.get(t.dtype, t.dtype): t.name for t in reversed(read_header(adapter.path).tensors)}
    raise InputError(
        "this adapter mixes number formats, so its load can't be timed", file=str(adapter.path),
        got=_printable(", ".join(f"{dtype}: {examples[dtype]}" for dtype in adapter.dtypes), 300),
        allowed="one for all tensors", hint="re-save it in one format",
    )  # fmt: skip


def find_adapters(root: Path) -> Iterator[Path]:
    """Yield the folders below ``root`` that look like adapters, sorted; links to folders aren't followed.

    :raises InputError: if the folder can't be listed.
    """
    if not root.is_dir():
        raise InputError("no such folder", file=str(root))
    for place, folders, files in os.walk(root):
        folders.sort()
        if CONFIG in files or WEIGHTS in files:
            yield Path(place)


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file, checked against the file.

    :raises InputError: if the file can't be read, is a pickle, is cut short or contradicts itself.
    """
    if path.suffix in _PICKLE_SUFFIXES:
        raise InputError("this file is a pickle by its name and is not read", file=str(path), hint=_NEVER)
    raw, size = _read_raw(path)
    try:
        data = json.loads(raw, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError("the header is not JSON", file=str(path), got=_printable(str(error))) from None
    if not isinstance(data, dict):
        raise InputError("the header is not a JSON object", file=str(path))
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(value) is not str for value in metadata.values()):
        raise InputError("the header's __metadata__ is not a table of texts", file=str(path))
    begin = 8 + len(raw)
    tensors = sorted(
        (_tensor(name, facts, begin, path) for name, facts in data.items()), key=lambda t: (t.start, t.end)
    )
    at = begin
    for tensor in tensors:
        if tensor.start != at:
            raise InputError(
                "tensors overlap or leave a gap", file=str(path), key=_printable(tensor.name), got=tensor.start - begin,
                allowed=f"data from byte {at - begin}",
            )  # fmt: skip
        at = tensor.end
    if at != size:
        short = "cut short" if at > size else "longer than its header says"
        raise InputError(
            f"this file is {short}", file=str(path), got=f"{size} bytes", allowed=f"{at} bytes",
            hint="copy or download it again",
        )  # fmt: skip
    return Header(path, tuple(tensors), metadata)


def _read_raw(path: Path) -> tuple[bytes, int]:
    """Return the header's bytes and the file's size."""
    try:
        # without O_NONBLOCK the open of a named pipe would wait for a writer for ever
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise InputError("this is not a regular file", file=str(path))
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            _check_start(start, length, facts.st_size, path)
            return start[8:] + file.read(length - 1), facts.st_size
    except OSError as error:
        raise InputError(f"can't read this file: {error.strerror or error}", file=str(path)) from None


def _check_start(start: bytes, length: int, size: int, path: Path) -> None:
    """Refuse what can't be a header before a byte of it is read; a length of 0x0280 looks like a pickle, so ``{``
    decides."""
    if length <= HEADER_LIMIT and start[8:] == b"{":
        if length > size - 8:
            raise InputError(
                "this file is cut short within its header", file=str(path), got=f"{size} bytes",
                allowed=f"at least {length + 8} bytes", hint="copy or download it again",
            )  # fmt: skip
        return
    for magic, what in _PICKLES.items():
        if start.startswith(magic):
            raise InputError(f"this is no safetensors file but {what}; it is not loaded", file=str(path), hint=_NEVER)
    if len(start) < 9:
        raise InputError("too short for a safetensors file", file=str(path), got=f"{size} bytes")
    if length > HEADER_LIMIT:
        raise InputError(
            "the header's length can't be true", file=str(path), got=f"{length} bytes",
            allowed=f"up to {HEADER_LIMIT} bytes, and no more than the file's {size}",
            hint="this is no safetensors file",
        )  # fmt: skip
    raise InputError("no safetensors file: its header doesn't start with {", file=str(path), got=repr(start[8:]))


def _tensor(name: str, facts: Any, begin: int, path: Path) -> Tensor:
    def wrong(problem: str, got: object, allowed: str | None = None) -> InputError:
        return InputError(problem, file=str(path), key=_printable(name), got=_printable(str(got)), allowed=allowed)

    if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("not a tensor", facts, "dtype, shape and data_offsets")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    bits = _BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        raise wrong("unknown number format", dtype, ", ".join(_BITS))
    if type(shape) is not list or len(shape) > _DIMENSIONS_LIMIT or not _counts(shape):
        raise wrong("not a shape", shape, f"up to {_DIMENSIONS_LIMIT} whole numbers from 0")
    if type(offsets) is not list or len(offsets) != 2 or not _counts(offsets) or offsets[0] > offsets[1]:
        raise wrong("not a range of bytes", offsets, "[first byte, one beyond the last]")
    if prod(shape) * bits != (offsets[1] - offsets[0]) * 8:
        raise wrong(f"shape {shape} of {dtype} doesn't fill its bytes", offsets, f"{prod(shape) * bits / 8:g} bytes")
    return Tensor(name, dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _counts(values: Sequence[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _pairs(header: Header) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    """Return ranks, targets and the tensors that belong to no pair; each A (r, d_in) must have its B (d_out, r)."""
    path = str(header.path)
    pairs: dict[str, list[tuple[int, ...] | None]] = {}
    others = []
    for tensor in header.tensors:
        module, found, rest = tensor.name.rpartition(".lora_")
        side = _SIDES.get(rest.partition(".")[0])
        if not found or side is None:
            others.append(tensor.name)
            continue
        if len(tensor.shape) < 2 or 0 in tensor.shape:
            raise InputError("not a LoRA matrix", file=path, key=_printable(tensor.name), got=tensor.shape)
        both = pairs.setdefault(module, [None, None])
        if both[side] is not None:
            raise InputError("two matrices for one side", file=path, key=_printable(tensor.name))
        both[side] = tensor.shape
    ranks = set()
    for module, (a, b) in pairs.items():
        if a is None or b is None:
            missing = "lora_A" if a is None else "lora_B"
            raise InputError(f"a LoRA pair lacks its {missing}", file=path, key=_printable(module))
        if a[0] != b[1]:
            raise InputError(
                "the ranks of a LoRA pair differ", file=path, key=_printable(module), got=f"A {a}, B {b}",
                allowed="A (rank, d_in) and B (d_out, rank)",
            )  # fmt: skip
        ranks.add(a[0])
    if not pairs:
        raise InputError("no LoRA matrices in this file", file=path, hint="is it a full model?")
    return tuple(sorted(ranks)), tuple(sorted({name.rpartition(".")[2] for name in pairs})), tuple(others)


def _read_config(path: Path) -> dict[str, Any]:
    """Return ``adapter_config.json``; what is used of it has the right type."""
    try:
        if not path.is_file():
            raise InputError(f"no {CONFIG} here", file=str(path.parent), hint="a PEFT adapter folder has one")
        with path.open("rb") as file:
            raw = file.read(_CONFIG_LIMIT + 1)
        if len(raw) > _CONFIG_LIMIT:
            raise InputError("this configuration is too long", file=str(path), allowed=f"{_CONFIG_LIMIT} bytes")
        config = json.loads(raw)
    except OSError as error:
        raise InputError(f"can't read this file: {error.strerror or error}", file=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise InputError("this configuration is not JSON", file=str(path), got=_printable(str(error))) from None
    if not isinstance(config, dict):
        raise InputError("this configuration is not a JSON object", file=str(path))
    for key, kinds in (("base_model_name_or_path", (str,)), ("lora_alpha", (int, float)), ("r", (int,))):
        value = config.get(key)
        if value is not None and type(value) not in kinds:
            raise InputError("not of the right type", file=str(path), key=key, got=_printable(str(value)))
    return config


def _agree(config: Mapping[str, Any], ranks: tuple[int, ...], path: Path) -> None:
    """Refuse a configuration whose rank is not that of the weights; ``rank_pattern`` may give modules others."""
    rank = config.get("r")
    if rank is not None and not config.get("rank_pattern") and ranks != (rank,):
        raise InputError(
            "the configuration's rank is not that of the weights", file=str(path), key="r", got=rank,
            allowed=", ".join(map(str, ranks)),
        )  # fmt: skip


def _inside(path: Path, root: Path) -> Path:
    """Return a path with links resolved.

    :raises InputError: if it leads out of ``root``.
    """
    try:
        real, home = path.resolve(), root.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise InputError("this path can't be followed", file=str(path), got=str(error)) from None
    if not real.is_relative_to(home):
        raise InputError(
            "this path leads out of the folder", file=str(path), got=str(real), allowed=f"files below {home}",
            hint="copy the adapter instead of linking to it",
        )  # fmt: skip
    return real


def _refuse_pickles(folder: Path) -> None:
    for suffix in _PICKLE_SUFFIXES:
        path = folder / f"adapter_model{suffix}"
        if path.exists():
            raise InputError(f"{path.name} is a pickle and is never loaded", file=str(path), hint=_NEVER)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands there twice")
    return table


def _printable(text: str, limit: int = 120) -> str:
    """Return a stranger's text so that it can be printed: no control characters, no lone surrogates."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return short if short.isprintable() else ascii(short)
