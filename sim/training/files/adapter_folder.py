"""Untrusted adapter folders as PEFT writes them: reads the weights' header and the configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from sim.cells import printable
from sim.errors import InputError
from sim.training.files.engine_rules import EXTRAS, Extra
from sim.training.files.header_facts import AdapterFacts, HeaderFacts, KnownHeaders
from sim.training.files.safetensors_header import DTYPES, NEVER_LOADED, PICKLE_SUFFIXES, read_header
from sim.training.files.untrusted_files import read_json, resolved_inside

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

_CONFIG_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile(AdapterFacts):
    """The content of an adapter folder, from the weights' header and the configuration.

    :ivar folder: as given; ``path``: its weights, links resolved.
    :ivar base_model: as the configuration names it; ``alpha``: its scaling; None where it doesn't say.
    :ivar others: tensors that belong to no pair of A and B.
    """

    folder: Path
    path: Path
    base_model: str | None
    alpha: float | None
    others: tuple[str, ...]


class NotLoraError(InputError):
    """An adapter of another kind, such as IA3 or prompt tuning; it may be fine, but it is not LoRA."""


def read_adapter(folder: Path, root: Path | None = None, known: KnownHeaders | None = None) -> AdapterFile:
    """Return the facts of an adapter folder as PEFT writes it.

    :param root: the folder that no link may leave; by default the adapter's own.
    :param known: headers read before, for reading many folders.
    :raises NotLoraError: if its configuration describes another kind of adapter.
    :raises InputError: naming the file and what is wrong with it.
    """
    root = folder if root is None else root
    path = resolved_inside(folder / WEIGHTS, root)
    if not path.exists():
        _refuse_pickles(folder)
        if not (folder / CONFIG).exists():
            raise InputError(f"no {WEIGHTS} here", file=str(folder), hint="a PEFT adapter folder has one")
    config = _read_config(resolved_inside(folder / CONFIG, root))
    _refuse_other_kinds(config, folder / CONFIG)
    if not path.exists():
        raise InputError(f"no {WEIGHTS} here", file=str(folder), hint="a PEFT adapter folder has one")
    facts = (known or KnownHeaders()).read(path)
    _agree(config, facts.ranks, folder / CONFIG)
    return AdapterFile(
        folder=folder,
        path=path,
        base_model=config.get("base_model_name_or_path"),
        alpha=config.get("lora_alpha"),
        others=facts.others,
        **{**facts.as_fields(), "extras": _all_extras(facts, config)},
    )


def only_dtype(adapter: AdapterFile) -> str:
    """Return the number format of all tensors.

    :raises InputError: if they have several, because a time per byte would mean nothing; names a tensor of each.
    """
    if len(adapter.dtypes) == 1:
        return adapter.dtypes[0]
    examples = {DTYPES.get(t.dtype, t.dtype): t.name for t in reversed(read_header(adapter.path).tensors)}
    raise InputError(
        "this adapter mixes number formats, so its load can't be timed",
        file=str(adapter.path),
        got=printable(", ".join(f"{dtype}: {examples[dtype]}" for dtype in adapter.dtypes), 300),
        allowed="one for all tensors",
        hint="re-save it in one format",
    )


def find_adapters(root: Path, unreadable: list[OSError] | None = None) -> Iterator[Path]:
    """Yield the folders below ``root`` that look like adapters, sorted; links to folders aren't followed.

    :param unreadable: collects the errors of folders that can't be listed; they are skipped.
    :raises InputError: if ``root`` is no folder.
    """
    if not root.is_dir():
        problem = "this is a file, not a folder" if root.exists() else "no such folder"
        raise InputError(problem, file=printable(str(root), 300))
    for place, folders, files in os.walk(root, onerror=None if unreadable is None else unreadable.append):
        folders.sort()
        if CONFIG in files or WEIGHTS in files:
            yield Path(place)


def _read_config(path: Path) -> dict[str, Any]:
    """Return ``adapter_config.json``, with the types of the used fields checked."""
    if not path.is_file():
        raise InputError(f"no {CONFIG} here", file=str(path.parent), hint="a PEFT adapter folder has one")
    config = read_json(path, _CONFIG_LIMIT, "configuration", constants=False)
    for key, kinds in (("base_model_name_or_path", (str,)), ("lora_alpha", (int, float)), ("r", (int,))):
        value = config.get(key)
        if value is not None and (type(value) not in kinds or (type(value) is float and not isfinite(value))):
            raise InputError("not of the right type", file=str(path), key=key, got=printable(str(value)))
    return config


def _refuse_other_kinds(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind is not None and kind != "LORA":
        raise NotLoraError(
            "this adapter is not LoRA",
            file=str(path),
            key="peft_type",
            got=printable(str(kind)),
            allowed="LORA",
            hint="engines with multi-LoRA don't serve it",
        )


_FLAGS: Mapping[str, Extra] = {
    "use_dora": "DoRA",
    "use_rslora": "rsLoRA",
    "modules_to_save": "saved modules",
    "rank_pattern": "rank pattern",
    "alpha_pattern": "alpha pattern",
    "lora_bias": "bias",
    "trainable_token_indices": "trained tokens",
    "layers_to_transform": "part of the layers",
}
"""The extra that a field of the configuration means if it is neither null, false nor empty."""


def _all_extras(facts: HeaderFacts, config: Mapping[str, Any]) -> tuple[Extra, ...]:
    found = {*facts.extras, *(extra for key, extra in _FLAGS.items() if config.get(key) not in (None, False, [], {}))}
    if config.get("modules_to_save"):  # explains whole embeddings in the file
        found.discard("saved embeddings")
    if config.get("bias") not in (None, "none"):
        found.add("bias")
    if not facts.even:
        found.add("part of the layers")
    return tuple(extra for extra in EXTRAS if extra in found)


def _agree(config: Mapping[str, Any], ranks: tuple[int, ...], path: Path) -> None:
    """Refuse a configuration whose rank differs from the weights, unless ``rank_pattern`` gives modules other ranks."""
    rank = config.get("r")
    if rank is not None and not config.get("rank_pattern") and ranks != (rank,):
        raise InputError(
            "the configuration's rank differs from that of the weights",
            file=str(path),
            key="r",
            got=rank,
            allowed=", ".join(map(str, ranks)),
        )


def _refuse_pickles(folder: Path) -> None:
    for suffix in PICKLE_SUFFIXES:
        path = folder / f"adapter_model{suffix}"
        if path.exists():
            raise InputError(f"{path.name} is a pickle and is never loaded", file=str(path), hint=NEVER_LOADED)
