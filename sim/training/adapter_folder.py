"""Adapter folders from strangers, as PEFT writes them: what the weights' header and the configuration say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.training.safetensors_header import DTYPES, NEVER_LOADED, PICKLE_SUFFIXES, Header, printable, read_header

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_CONFIG_LIMIT = 1 << 20
_SIDES = {"A": 0, "embedding_A": 0, "B": 1, "embedding_B": 1}


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
        got=printable(", ".join(f"{dtype}: {examples[dtype]}" for dtype in adapter.dtypes), 300),
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
            raise InputError("not a LoRA matrix", file=path, key=printable(tensor.name), got=tensor.shape)
        both = pairs.setdefault(module, [None, None])
        if both[side] is not None:
            raise InputError("two matrices for one side", file=path, key=printable(tensor.name))
        both[side] = tensor.shape
    ranks = set()
    for module, (a, b) in pairs.items():
        if a is None or b is None:
            missing = "lora_A" if a is None else "lora_B"
            raise InputError(f"a LoRA pair lacks its {missing}", file=path, key=printable(module))
        if a[0] != b[1]:
            raise InputError(
                "the ranks of a LoRA pair differ", file=path, key=printable(module), got=f"A {a}, B {b}",
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
        raise InputError("this configuration is not JSON", file=str(path), got=printable(str(error))) from None
    if not isinstance(config, dict):
        raise InputError("this configuration is not a JSON object", file=str(path))
    for key, kinds in (("base_model_name_or_path", (str,)), ("lora_alpha", (int, float)), ("r", (int,))):
        value = config.get(key)
        if value is not None and type(value) not in kinds:
            raise InputError("not of the right type", file=str(path), key=key, got=printable(str(value)))
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
    for suffix in PICKLE_SUFFIXES:
        path = folder / f"adapter_model{suffix}"
        if path.exists():
            raise InputError(f"{path.name} is a pickle and is never loaded", file=str(path), hint=NEVER_LOADED)
