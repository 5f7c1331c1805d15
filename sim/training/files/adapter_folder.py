"""Untrusted adapter folders as PEFT writes them: reads the weights' header and the configuration."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from sim.cells import printable
from sim.errors import InputError
from sim.reading import brackets_fit, inside, read_regular
from sim.spec.sections.workload import EXPERTS, SHARED_OUTER
from sim.training.files.engine_rules import EXTRAS, Extra
from sim.training.files.safetensors_header import (
    DTYPES,
    NEVER_LOADED,
    PICKLE_SUFFIXES,
    Header,
    parse_header,
    read_header,
    read_raw_header,
)

# Files from strangers: their JSON, and paths that may lead elsewhere.


def resolved_inside(path: Path, root: Path) -> Path:
    """Return a path with links resolved.

    :raises InputError: if it leads out of ``root``, or can't be followed.
    """
    try:
        real, home = path.resolve(), root.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        raise InputError("this path can't be followed", file=str(path), got=str(error)) from None
    if not inside(real, home):
        raise InputError(
            "this path leads out of the folder",
            file=str(path),
            got=str(real),
            allowed=f"files below {home}",
            hint="copy the adapter instead of linking to it",
        )
    return real


def read_json(path: Path, limit: int, what: str, *, constants: bool = True) -> dict[str, Any]:
    """Return a stranger's JSON object.

    :param limit: bytes of the file, at most; ``what``: its name in errors.
    :param constants: whether NaN and infinities are numbers, as in a training's log; else they are errors.
    :raises InputError: if it can't be read, is too long or no JSON object.
    """
    try:
        if not path.is_file():
            raise InputError(f"no such {what}", file=str(path))
        raw = read_regular(path, limit)
    except OSError as error:
        raise InputError(f"can't read this {what}: {error.strerror or error}", file=str(path)) from None
    try:
        if not brackets_fit(raw):
            raise ValueError("too many brackets for its length")
        data = json.loads(raw, parse_constant=None if constants else _no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"this {what} is not JSON: {printable(str(error))}", file=str(path)) from None
    if not isinstance(data, dict):
        raise InputError(f"this {what} is not a JSON object", file=str(path))
    return data


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


# Facts from the header of an adapter's weights: ranks, modules, sizes, and extras beyond plain LoRA.
#
# The adapters of a fleet have few different headers, so ``KnownHeaders`` keeps facts by a header's digest: 10,000 equal
# headers are checked once.

_SIDES = {"A": 0, "embedding_A": 0, "B": 1, "embedding_B": 1}
_LAYER = re.compile(r"\.(?:layers|layer|h|blocks|block)\.(\d{1,9})\.")
_OF_EXPERTS = re.compile(r"\.experts(?:\.|$)")
_STACKED = re.compile(r"\.experts(?:\.base_layer)?$")
"""PEFT's matrices of a parameter that holds all experts: their ranks are one under the other."""
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out", "embeddings")
LIMIT = 32_000_000
"""Bytes of an adapter's header, at most: twice those for 58 layers of 256 experts."""

_KEPT_HEADERS, _KEPT_BYTES = 64, 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """The content of an adapter's weights file.

    :ivar ranks: all ranks of its modules, rising; most adapters have one.
    :ivar targets: last parts of the module names, such as ``q_proj``, sorted.
    :ivar experts: what a scenario calls its modules in experts; empty: it has none.
    :ivar dtypes: number formats by our names, sorted.
    :ivar tensors: in the file; ``parameters``: numbers in them; ``lora_parameters``: those of pairs of A and B.
    :ivar bytes: of all tensors, without the header; ``file_bytes``: of the file.
    :ivar layers: layers that have one of its modules, by the numbers in their names.
    :ivar extras: what it has besides plain LoRA.
    :ivar digest: equal for files with equal headers; of an adapter folder, its configuration counts too.
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
    digest: str
    experts: str = ""

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
        experts=_experts(pairs),
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
        digest=digest,
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


def _experts(pairs: Pairs) -> str:
    """Return what a scenario calls modules in experts: those that share one A have a tensor for all, (1, r, d_in)."""
    found = [a for name, (a, _) in pairs.items() if _OF_EXPERTS.search(name)]
    shared = any(a is not None and len(a) == 3 and a[0] == 1 for a in found)
    return SHARED_OUTER if shared else EXPERTS[0] if found else ""


def _ranks(pairs: Pairs, path: str) -> tuple[int, ...]:
    """Return all ranks but those of stacked experts; each A (r, d_in) must have its B (d_out, r)."""
    ranks = set()
    for module, (a, b) in pairs.items():
        if a is None or b is None:
            missing = "lora_A" if a is None else "lora_B"
            raise InputError(f"a LoRA pair lacks its {missing}", file=path, key=printable(module))
        side = len(a) == len(b) == 3 and bool(_OF_EXPERTS.search(module))  # the first is the experts
        if a[side] != b[1 + side]:
            raise InputError(
                "the ranks of a LoRA pair differ",
                file=path,
                key=printable(module),
                got=f"A {a}, B {b}",
                allowed="A (rank, d_in) and B (d_out, rank)",
            )
        if not _STACKED.search(module):
            ranks.add(a[side])
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
    missing = InputError(f"no {WEIGHTS} here", file=str(folder), hint="a PEFT adapter folder has one")
    if not path.exists():
        for pickle in (folder / f"adapter_model{suffix}" for suffix in PICKLE_SUFFIXES):
            if pickle.exists():
                raise InputError(f"{pickle.name} is a pickle and is never loaded", file=str(pickle), hint=NEVER_LOADED)
        if not (folder / CONFIG).exists():
            raise missing
    config = _read_config(resolved_inside(folder / CONFIG, root))
    _refuse_other_kinds(config, folder / CONFIG)
    if not path.exists():
        raise missing
    facts = (known or KnownHeaders()).read(path)
    ranks = facts.ranks or _only_rank(config, folder / CONFIG)
    _agree(config, ranks, folder / CONFIG)
    return AdapterFile(
        folder=folder,
        path=path,
        base_model=config.get("base_model_name_or_path"),
        alpha=config.get("lora_alpha"),
        others=facts.others,
        **{
            **facts.as_fields(),
            "ranks": ranks,
            "extras": _all_extras(facts, config),
            "digest": facts.digest + _settings_digest(config),
        },
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


_MOST = 1e15
"""Numbers of a configuration are below this, and thus finite."""


def _read_config(path: Path) -> dict[str, Any]:
    """Return ``adapter_config.json``, with the types of the used fields checked."""
    if not path.is_file():
        raise InputError(f"no {CONFIG} here", file=str(path.parent), hint="a PEFT adapter folder has one")
    config = read_json(path, _CONFIG_LIMIT, "configuration", constants=False)
    for key, kinds in (("base_model_name_or_path", (str,)), ("lora_alpha", (int, float)), ("r", (int,))):
        value = config.get(key)
        if value is not None and (type(value) not in kinds or (kinds != (str,) and not abs(value) < _MOST)):
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


_TRAINING = {
    *("auto_mapping", "corda_config", "eva_config", "inference_mode", "init_lora_weights", "loftq_config"),
    *("lora_dropout", "megatron_config", "megatron_core", "peft_version", "runtime_config", "task_type"),
}
"""Fields of the configuration that don't change what a trained adapter computes."""


def _settings_digest(config: Mapping[str, Any]) -> str:
    """Return what is equal for configurations that compute the same: lists are sets, and null is a missing field."""
    settings = {
        key: sorted(value, key=repr) if isinstance(value, list) else value
        for key, value in config.items()
        if key not in _TRAINING and value not in (None, False, [], {}, "none")
    }
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def _only_rank(config: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """Return the rank of an adapter with nothing but stacked experts, whose shapes don't tell it."""
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise InputError("an adapter with stacked experts needs a rank here", file=str(path), key="r", got=rank)
    return (rank,)


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
