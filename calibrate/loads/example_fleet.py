"""A small fleet of adapter folders to try a census on: real headers and sizes, and hardly any bytes on the disk.

The tensors of these adapters are holes in sparse files, zeros but for a few bytes that differ from adapter to adapter:
enough to read headers and sizes and to find copies, and useless for serving.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrate.loads.synthetic_adapters import FORMATS, adapter_config, tensor_shapes
from sim.cells import printable
from sim.errors import InputError, OutputError
from sim.spec.scenario import Targets
from sim.traffic.adapters import DTYPE_BYTES, SHAPES
from sim.training.files.adapter_folder import CONFIG, WEIGHTS

BASE = "meta-llama/Llama-3.1-8B-Instruct"
MODEL = "llama-3.1-8b"
_MARK = 64


def header_of(
    model: str, rank: int, targets: Targets, dtype: str, more: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[bytes, int]:
    """Return an adapter's header as in the file, length first, and the bytes of all tensors.

    :param more: names and shapes of further tensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    shapes: dict[str, tuple[int, ...]] = {**tensor_shapes(SHAPES[model], rank, targets), **(more or {})}
    for name, shape in shapes.items():
        size = DTYPE_BYTES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": FORMATS[dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, at


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
