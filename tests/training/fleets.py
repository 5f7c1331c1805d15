"""Folders of adapters for tests and for the benchmark: real headers, data that takes no disk."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrate.synthesize import FORMATS, tensor_shapes
from sim.spec.scenario import Targets
from sim.traffic.adapters import DTYPE_BYTES, SHAPES
from sim.training.adapter_folder import CONFIG, WEIGHTS


def header_of(model: str, rank: int, targets: Targets, dtype: str) -> tuple[bytes, int]:
    """Return length and header as safetensors has them, and the bytes of all tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensor_shapes(SHAPES[model], rank, targets).items():
        size = shape[0] * shape[1] * DTYPE_BYTES[dtype]
        header[name] = {"dtype": FORMATS[dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, at


def sparse(folder: Path, start: bytes, data_bytes: int, config: Mapping[str, Any], seed: int | None = 0) -> Path:
    """Write an adapter whose data is a hole but for its first bytes, which follow from ``seed``; None: all zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / WEIGHTS).open("wb") as file:
        file.write(start)
        if seed is not None:
            file.write(random.Random(seed).randbytes(min(64, data_bytes)))
        file.truncate(len(start) + data_bytes)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def config_of(base_model: str | None, rank: int, **fields: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "base_model_name_or_path": base_model, **fields}
