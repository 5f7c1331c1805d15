"""Facts about a training besides its curves: rank, targets, base, examples, and the source of each.

``training_args.bin`` has all of them, but it is a pickle and never loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.spec.scenario import Targets
from sim.traffic.adapters import DENSE, DTYPE_BYTES, MODULES, ModelShape, parameters_per_rank
from sim.training.files.adapter_folder import CONFIG, AdapterFile, read_json, resolved_inside
from sim.training.logs.training_log import TrainingLog

_LIMIT = 1 << 20
_ATTENTION = re.compile(
    r"[qkvo]|qkv|w?qkv(_proj)?|[qkvo]_(a_|b_)?proj|kv_[ab]_proj\w*|out_proj|c_attn|query|key|value|query_key_value|"
    r"(q|k|v|out)_lin|to_[qkv]|attention|self_attn",
    re.IGNORECASE,
)
"""Names of attention's layers in the models of transformers."""
_FOUR_BIT = re.compile(r"4[-_]?bit|int4|nf4|gptq|awq|w4a16", re.IGNORECASE)
_EIGHT_BIT = re.compile(r"8[-_]?bit|int8|w8a", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """Facts about a training; None where unknown.

    :ivar rank: the largest; ``modules``: last parts of target names; ``dropout``: of the adapter.
    :ivar base_bits: of the base's weights in training; ``examples``: of training data.
    :ivar examples_at_least: a lower bound where ``examples`` is unknown, because the log lacks accumulation.
    :ivar parameters: of the adapter; ``adapter_bytes``: its tensors.
    :ivar origin: the sources of base_bits and examples.
    """

    rank: int | None = None
    modules: tuple[str, ...] = ()
    all_linear: bool = False
    dropout: float | None = None
    base_model: str | None = None
    base_bits: int | None = None
    examples: int | None = None
    examples_at_least: int | None = None
    parameters: int | None = None
    adapter_bytes: int | None = None
    origin: Mapping[str, str] | None = None

    @property
    def attention_only(self) -> bool:
        """Whether only attention's layers are adapted."""
        return bool(self.modules) and all(_ATTENTION.fullmatch(name) for name in self.modules)

    @property
    def targets(self) -> Targets | None:
        """The modules by the names that scenarios use; None where one has no such name."""
        names = {name.removesuffix("_proj") for name in self.modules}
        if self.all_linear or names == set(MODULES):
            return "all-linear"
        known: tuple[Any, ...] = tuple(name for name in MODULES if name in names)
        return known if known and len(known) == len(names) else None

    @property
    def shape(self) -> ModelShape | None:
        """The base model's shape, if we know its name and the adapter's size agrees."""
        shape = DENSE.get(_model_name(self.base_model))
        if shape and self.parameters and self.rank and self.targets:
            agrees = parameters_per_rank(shape, self.targets) * self.rank == self.parameters
            return shape if agrees else None
        return shape

    def size_of(self, rank: int, targets: Targets | None) -> tuple[int | None, int | None]:
        """Return (parameters, bytes) that the adapter would have with another rank and other targets."""
        width = self.adapter_bytes / self.parameters if self.adapter_bytes and self.parameters else None
        parameters: int | None = None
        if self.shape is not None and targets is not None:
            parameters = parameters_per_rank(self.shape, targets) * rank
        elif targets == self.targets and self.parameters and self.rank:
            parameters = self.parameters // self.rank * rank
        return parameters, round(parameters * width) if parameters is not None and width else None


def gather(
    folder: Path | None,
    adapter: AdapterFile | None,
    log: TrainingLog | None,
    base_bits: int | None,
    examples: int | None,
) -> TrainingFacts:
    """Return the facts; values from the user take precedence over the files.

    :param folder: where configurations are looked for; None: a log alone.
    :raises InputError: if a configuration is no JSON object, or a link that leads out of the folder.
    """
    config = _read_config(folder, CONFIG)
    origin: dict[str, str] = {}
    base = config.get("base_model_name_or_path")
    base = base if isinstance(base, str) else None
    bits, origin["base_bits"] = (base_bits, "--base-bits") if base_bits else _bits(config, folder, base)
    known, least, origin["examples"] = _examples(log)
    if examples:
        known, least, origin["examples"] = examples, None, "--examples"
    named = config.get("target_modules")
    modules = tuple(sorted(name for name in named if isinstance(name, str))) if isinstance(named, list) else ()
    if adapter is not None:
        modules = adapter.targets
    rank = adapter.rank if adapter else _count(config.get("r"))
    width = DTYPE_BYTES.get(adapter.dtypes[0]) if adapter and len(adapter.dtypes) == 1 else None
    dropout = config.get("lora_dropout")
    facts = TrainingFacts(
        rank=rank,
        modules=tuple(name.rpartition(".")[2] for name in modules),
        all_linear=named == "all-linear",
        dropout=float(dropout) if isinstance(dropout, (int, float)) and not isinstance(dropout, bool) else None,
        base_model=base,
        base_bits=bits,
        examples=known,
        examples_at_least=least,
        parameters=adapter.bytes // width if adapter and width and not adapter.others else None,
        adapter_bytes=adapter.bytes if adapter and not adapter.others else None,
        origin=origin,
    )
    if adapter is None and facts.shape and facts.targets and rank:
        return replace(facts, parameters=parameters_per_rank(facts.shape, facts.targets) * rank)
    return facts


def _read_config(folder: Path | None, name: str) -> dict[str, Any]:
    """Return a configuration of the folder; an empty one where there is none."""
    if folder is None or not (path := resolved_inside(folder / name, folder)).is_file():
        return {}
    return read_json(path, _LIMIT, "configuration")


def _bits(config: Mapping[str, Any], folder: Path | None, base: str | None) -> tuple[int | None, str]:
    """Return the base's bits: from a quantisation section beside the adapter, or from the base model's name."""
    model = _read_config(folder, "config.json")
    for source, section in ((CONFIG, config), ("config.json", model)):
        for table in (section.get("quantization_config"), section):
            if not isinstance(table, Mapping):
                continue
            for key, bits in (("load_in_4bit", 4), ("load_in_8bit", 8), ("_load_in_4bit", 4), ("_load_in_8bit", 8)):
                if table.get(key) is True:
                    return bits, f"{key} in {source}"
            bits_given = _count(table.get("bits"))
            if table is not section and bits_given and bits_given <= 32:
                return bits_given, f"quantization_config.bits in {source}"
    name = (base or "")[-200:].rpartition("/")[2]
    if _FOUR_BIT.search(name):
        return 4, f"the base model's name, {name}"
    if _EIGHT_BIT.search(name):
        return 8, f"the base model's name, {name}"
    return None, ""


def _examples(log: TrainingLog | None) -> tuple[int | None, int | None, str]:
    """Return (examples, lower bound, how it was estimated).

    Steps per epoch times examples per step, which the closing entry of a finished run gives. Without it, only the batch
    of a forward pass is known, which accumulation and further devices multiply.
    """
    if log is None or not log.steps_per_epoch:
        return None, None, ""
    if log.batch:
        return round(log.steps_per_epoch * log.batch), None, "steps of an epoch × examples of a step"
    if log.train_batch_size:
        least = round(log.steps_per_epoch * log.train_batch_size)
        return None, least, "steps of an epoch × train_batch_size, accumulation unknown"
    return None, None, ""


def _model_name(base: str | None) -> str:
    """Return our name for a model's name on the hub, or an empty string."""
    name = (base or "")[-200:].rpartition("/")[2].lower().replace("meta-", "").replace("_", "-")
    real = (known for known in DENSE if known != "tiny" and known in name)
    return max((known for known in real if not name.partition(known)[2][:1].isdigit()), key=len, default="")


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 31 else None
