"""Adapters of noise, as PEFT would write them: the files that loads are timed on."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sim.cells import printable
from sim.errors import InputError, OutputError
from sim.results.run_directory.result_files import write_atomically, write_json
from sim.spec.scenario import Targets
from sim.spec.units import human_bytes
from sim.traffic.adapters import DTYPE_BYTES, SHAPES, ModelShape, modules_of, parameters_per_rank
from sim.training.files.adapter_folder import CONFIG, WEIGHTS, read_adapter
from sim.training.files.safetensors_header import DTYPES, read_header

PATHS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Where Llama-like models keep their linear layers."""

FORMATS = {ours: theirs for theirs, ours in DTYPES.items()}
"""Number formats: the names of the file format by ours."""

_BITS: dict[str, tuple[np.dtype[Any], int, int]] = {  # type, bits of sign, mantissa and low exponent, bits that are set
    "fp16": (np.dtype("<u2"), 0x87FF, 0x2000),
    "bf16": (np.dtype("<u2"), 0x80FF, 0x3C00),
    "fp32": (np.dtype("<u4"), 0x80FFFFFF, 0x3C000000),
    "fp8": (np.dtype("u1"), 0x8F, 0x20),
}
"""Random bits of which every pattern is a number of size 2^-7 to 2^-5 (fp8: 2^-3 to 2^-1), of either sign: never 0."""


def tensor_shapes(shape: ModelShape, rank: int, targets: Targets) -> dict[str, tuple[int, int]]:
    """Return the tensors of an adapter by the names PEFT gives them, in the order of the file."""
    shapes = {}
    for layer in range(shape.layers):
        for module in modules_of(targets):
            d_in, d_out = shape.module(module)
            name = f"base_model.model.model.layers.{layer}.{PATHS[module]}"
            shapes[f"{name}.lora_A.weight"] = (rank, d_in)
            shapes[f"{name}.lora_B.weight"] = (d_out, rank)
    return dict(sorted(shapes.items()))


def adapter_bytes(shape: ModelShape, rank: int, targets: Targets, dtype: str) -> int:
    """Return the bytes of an adapter's tensors."""
    return rank * parameters_per_rank(shape, targets) * DTYPE_BYTES[dtype]


def group_name(rank: int, targets: Targets, dtype: str, seed: int) -> str:
    """Return what the folders of equal adapters start with."""
    return f"r{rank}-{targets if isinstance(targets, str) else '.'.join(targets)}-{dtype}-s{seed}"


@dataclass(frozen=True, slots=True)
class SyntheticAdapter:
    """What adapters of noise are equal in.

    :ivar dtype: a key of ``FORMATS``.
    """

    shape: ModelShape
    base_model: str
    rank: int
    targets: Targets
    dtype: str


def synthesize(folder: Path, adapter: SyntheticAdapter, count: int, seed: int) -> list[Path]:
    """Write ``count`` adapters; complete ones that are there already are kept.

    :returns: their folders, such as ``r16-q.v-bf16-s1-0003``.
    :raises InputError: for a rank below 1 or an unknown format.
    :raises OutputError: if the disk is full or can't be written; no half-written file stays.
    """
    rank, targets, dtype = adapter.rank, adapter.targets, adapter.dtype
    if rank < 1 or count < 0:
        raise InputError("no such adapter", key="rank" if rank < 1 else "count", got=min(rank, count))
    if dtype not in FORMATS:
        raise InputError("unknown number format", key="dtype", got=dtype, allowed=", ".join(FORMATS))
    shapes = tensor_shapes(adapter.shape, rank, targets)
    group = group_name(rank, targets, dtype, seed)
    places = [folder / f"{group}-{index:04d}" for index in range(count)]
    for index, place in enumerate(places):
        if place.is_symlink():
            raise OutputError("a symbolic link is in the place of an adapter", file=str(place), hint="remove it")
        if _is_complete(place, shapes, dtype, adapter.base_model):
            continue
        try:
            write_adapter(place, adapter, (seed, rank, index))
        except (OSError, OutputError) as error:
            why = error.problem if isinstance(error, OutputError) else f"can't make this folder: {error.strerror}"
            raise OutputError(
                why,
                file=str(place),
                got=f"adapter {index + 1} of {count}",
                hint=f"all need {human_bytes(count * adapter_bytes(adapter.shape, rank, targets, dtype))}; free some "
                "space and run the command again: complete adapters are kept",
            ) from None
    return places


def write_adapter(place: Path, adapter: SyntheticAdapter, seed: Sequence[int]) -> None:
    """Write one adapter into the folder ``place``.

    :raises OSError: if the folder can't be made.
    :raises OutputError: if the disk is full or can't be written; no half-written file stays.
    """
    place.mkdir(parents=True, exist_ok=True)
    shapes, noise = tensor_shapes(adapter.shape, adapter.rank, adapter.targets), np.random.default_rng(seed)
    write_atomically(place / WEIGHTS, lambda file: _fill(file, shapes, adapter.dtype, noise))
    write_json(place / CONFIG, adapter_config(adapter.base_model, adapter.rank, adapter.targets))


def _is_complete(place: Path, shapes: Mapping[str, tuple[int, int]], dtype: str, base_model: str) -> bool:
    try:
        adapter = read_adapter(place)
        found = {tensor.name: tensor.shape for tensor in read_header(adapter.path).tensors}
    except InputError:
        return False
    return found == shapes and adapter.dtypes == (dtype,) and adapter.base_model == base_model


def _fill(file: BinaryIO, shapes: Mapping[str, tuple[int, int]], dtype: str, noise: np.random.Generator) -> None:
    kind, random, fixed = _BITS[dtype]
    file.write(_header(shapes, dtype)[0])
    for rows, columns in shapes.values():
        bits = np.frombuffer(noise.bytes(rows * columns * kind.itemsize), kind)
        file.write((bits & kind.type(random) | kind.type(fixed)).tobytes())


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> tuple[bytes, int]:
    """Return a file's header, length first, and the bytes of all tensors; as ``safetensors.torch.save_file`` lays them
    out."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        start, at = at, at + prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": FORMATS[dtype], "shape": shape, "data_offsets": [start, at]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, at


def adapter_config(base_model: str, rank: int, targets: Targets) -> dict[str, object]:
    """Return ``adapter_config.json``: the fields that PEFT writes and engines read."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": [PATHS[name].partition(".")[2] for name in modules_of(targets)],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


# A small fleet of adapter folders to try a census on: real headers and sizes, and hardly any bytes on the disk.
#
# The tensors of these adapters are holes in sparse files, zeros but for a few bytes that differ from adapter to
# adapter: enough to read headers and sizes and to find copies, and useless for serving.

BASE = "meta-llama/Llama-3.1-8B-Instruct"
MODEL = "llama-3.1-8b"
_MARK = 64


def header_of(
    model: str, rank: int, targets: Targets, dtype: str, more: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[bytes, int]:
    """Return an adapter's header as in the file, length first, and the bytes of all tensors.

    :param more: names and shapes of further tensors.
    """
    return _header({**tensor_shapes(SHAPES[model], rank, targets), **(more or {})}, dtype)


def write_sparse(folder: Path, start: bytes, data_bytes: int, config: Mapping[str, Any], mark: int) -> Path:
    """Write an adapter whose tensors are a hole but for their first bytes, which follow from ``mark``.

    :raises OSError: if the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(start + random.Random(mark).randbytes(min(_MARK, data_bytes)))
        file.truncate(len(start) + data_bytes)
    (folder / CONFIG).write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    return folder


def write_example_fleet(root: Path) -> list[Path]:
    """Write 16 adapters of Llama-3.1-8B with what fleets have: some of rank 64, a copy, DoRA, fp32, another base.

    :raises InputError: if the folder exists already.
    :raises OutputError: if the folder can't be written.
    """
    name = printable(str(root), 300)
    if root.exists() or root.is_symlink():
        raise InputError("this folder exists already", key="--example", got=name, hint="give a new folder")
    magnitudes = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector": (4096,) for layer in range(32)
    }
    written = []

    def add(label: str, rank: int, targets: Targets, dtype: str, mark: int, **more: Any) -> None:
        start, size = header_of(MODEL, rank, targets, dtype, magnitudes if more.get("use_dora") else None)
        base = more.pop("base_model_name_or_path", BASE)
        written.append(write_sparse(root / label, start, size, adapter_config(base, rank, targets) | more, mark))

    try:
        for n in range(8):
            add(f"support-{n}", 8, ("q", "v"), "bf16", n)
        for n in range(3):
            add(f"extract-{n}", 16, "all-linear", "bf16", 10 + n)
        add("support-3-copy", 8, ("q", "v"), "bf16", 3)
        add("summarise", 16, ("q", "k", "v", "o"), "fp32", 20)
        add("legal", 64, "all-linear", "bf16", 30)
        add("tone", 8, ("q",), "bf16", 40, use_dora=True)
        add("old", 8, ("q", "v"), "bf16", 50, base_model_name_or_path="meta-llama/Meta-Llama-3-8B")
    except OSError as error:
        raise OutputError(f"can't write this folder: {error.strerror}", file=name) from None
    return written
