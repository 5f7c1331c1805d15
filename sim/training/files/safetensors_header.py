"""Reads the header of an untrusted safetensors file safely: without torch, and never a pickle.

A safetensors file is eight bytes with the length of a header (little-endian), the header as JSON, and the tensors'
bytes. Everything in the header is checked before it is used, because the file may be malicious.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from sim.cells import printable
from sim.errors import InputError
from sim.reading import brackets_fit, open_regular

HEADER_LIMIT = 100_000_000
"""Bytes of a header, at most: the limit of the safetensors library."""

_DIMENSIONS_LIMIT = 8
_FIELDS = {"dtype", "shape", "data_offsets"}
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
DTYPES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32", "F8_E4M3": "fp8"}
"""Our names of the number formats that adapters come in; others keep the name of the file format."""

_PICKLES = {
    b"PK\x03\x04": "a zip archive, as torch.save writes: a pickle",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x1f\x8b": "a gzip archive",
}
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
NEVER_LOADED = "loading a pickle runs the code in it; re-save it as safetensors on a disposable machine"


class Tensor(NamedTuple):
    """A tensor as the header gives it; a tuple, because a census makes millions.

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


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file, checked against the file.

    :raises InputError: if the file can't be read, is a pickle, is cut short or contradicts itself.
    """
    raw, size = read_raw_header(path)
    return parse_header(raw, size, path)


def parse_header(raw: bytes, size: int, path: Path) -> Header:
    """Return a header from its bytes and its file's size, checked; ``path`` is for messages.

    :raises InputError: if it contradicts itself or the size.
    """
    if not brackets_fit(raw):
        raise InputError("too many brackets for a header", file=str(path), hint="this is no safetensors file")
    try:
        data = json.loads(raw, object_pairs_hook=_no_twins)
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the header is not JSON: {printable(str(error))}", file=str(path)) from None
    if not isinstance(data, dict):
        raise InputError("the header is not a JSON object", file=str(path))
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(type(value) is not str for value in metadata.values()):
        raise InputError("the header's __metadata__ is not a table of texts", file=str(path))
    begin = 8 + len(raw)
    tensors = sorted(
        (_tensor(name, facts, begin, path) for name, facts in data.items()), key=attrgetter("start", "end")
    )
    at = begin
    for tensor in tensors:
        if tensor.start != at:
            raise InputError(
                "tensors overlap or leave a gap",
                file=str(path),
                key=printable(tensor.name),
                got=tensor.start - begin,
                allowed=f"data from byte {at - begin}",
            )
        at = tensor.end
    if at != size:
        short = "cut short" if at > size else "longer than its header says"
        raise InputError(
            f"this file is {short}",
            file=str(path),
            got=f"{size} bytes",
            allowed=f"{at} bytes",
            hint="copy or download it again",
        )
    return Header(path, tuple(tensors), metadata)


def read_raw_header(path: Path, limit: int = HEADER_LIMIT) -> tuple[bytes, int]:
    """Return the header's bytes and the file's size.

    :param limit: bytes of a header, at most.
    :raises InputError: if the file can't be read, is a pickle, or ends within its header.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise InputError("this file is a pickle by its name and is not read", file=str(path), hint=NEVER_LOADED)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(9)
            length = int.from_bytes(start[:8], "little")
            _check_start(start, length, size, path, limit)
            return start[8:] + file.read(length - 1), size
    except OSError as error:
        raise InputError(f"can't read this file: {error.strerror or error}", file=str(path)) from None


def _check_start(start: bytes, length: int, size: int, path: Path, limit: int) -> None:
    """Refuse what can't be a header before a byte of it is read; a length of 0x0280 looks like a pickle, so ``{``
    decides."""
    if length <= limit and start[8:] == b"{":
        if length > size - 8:
            raise InputError(
                "this file is cut short within its header",
                file=str(path),
                got=f"{size} bytes",
                allowed=f"at least {length + 8} bytes",
                hint="copy or download it again",
            )
        return
    for magic, what in _PICKLES.items():
        if start.startswith(magic):
            raise InputError(
                f"this is no safetensors file but {what}; it is not loaded", file=str(path), hint=NEVER_LOADED
            )
    if len(start) < 9:
        raise InputError("too short for a safetensors file", file=str(path), got=f"{size} bytes")
    if limit < length <= HEADER_LIMIT and start[8:] == b"{":
        raise InputError(
            "this header is too long for an adapter's",
            file=str(path),
            got=f"{length} bytes",
            allowed=f"up to {limit} bytes",
        )
    if length > HEADER_LIMIT:
        raise InputError(
            "the header's length can't be true",
            file=str(path),
            got=f"{length} bytes",
            allowed=f"up to {HEADER_LIMIT} bytes, and no more than the file's {size}",
            hint="this is no safetensors file",
        )
    raise InputError("no safetensors file: its header doesn't start with {", file=str(path), got=repr(start[8:]))


def _tensor(name: str, facts: Any, begin: int, path: Path) -> Tensor:
    """Return a tensor; called half a thousand times a file, so what is right passes without a detour."""
    if not isinstance(facts, dict) or facts.keys() != _FIELDS:
        raise _wrong(path, name, "not a tensor", facts, "dtype, shape and data_offsets")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    bits = _BITS.get(dtype) if type(dtype) is str else None
    if bits is None:
        raise _wrong(path, name, "unknown number format", dtype, ", ".join(_BITS))
    if type(shape) is not list or len(shape) > _DIMENSIONS_LIMIT or not _counts(shape):
        raise _wrong(path, name, "not a shape", shape, f"up to {_DIMENSIONS_LIMIT} whole numbers from 0")
    if type(offsets) is not list or len(offsets) != 2 or not _counts(offsets) or offsets[0] > offsets[1]:
        raise _wrong(path, name, "not a range of bytes", offsets, "[first byte, one beyond the last]")
    start, end = offsets
    if prod(shape) * bits != (end - start) * 8:
        allowed = f"{prod(shape) * bits / 8:g} bytes"
        raise _wrong(path, name, f"shape {shape} of {dtype} doesn't fill its bytes", offsets, allowed)
    return Tensor(name, dtype, tuple(shape), begin + start, begin + end)


def _wrong(path: Path, name: str, problem: str, got: object, allowed: str) -> InputError:
    brief = reprlib.repr(got) if isinstance(got, list | dict) else str(got)  # a list may have millions of values
    return InputError(problem, file=str(path), key=printable(name), got=printable(brief), allowed=allowed)


def _counts(values: Sequence[Any]) -> bool:
    for value in values:  # noqa: SIM110  # a generator costs three times as much
        if type(value) is not int or not 0 <= value < 1 << 63:
            return False
    return True


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands there twice")
    return table
