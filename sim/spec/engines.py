"""Engines by name. A preset is nothing but values of scenario fields: it fills in those that the scenario leaves out.

The differences between engines, and between versions of one, are the fields in ``engines.toml`` and not branches in the
code.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.spec.engine_versions import release_of, suggest_engine, versions_of
from sim.spec.gpus import DEFAULT_GPU, gpu_named
from sim.spec.registry import Entry, Registry

Preset = Mapping[str, Mapping[str, Any]]
"""Values by section and key, such as ``{"fleet": {"admission": "skip"}}``."""
_SECTIONS = ("fleet", "cache", "storage")
_PRIORITY_FROM = (0, 9, 2)
"""The first V1 engine with vLLM's ``--scheduling-policy``: v1/core/sched/request_queue.py."""


@dataclass(frozen=True, kw_only=True)
class Engine(Entry):
    """An engine, or rather the values of scenario fields that follow it; its target is what it makes of adapters.

    :ivar no_prefix_cache: why ``fleet.prefix_caching`` is not possible; empty: it is.
    :ivar flags: the engines whose command lines can say what such a scenario says (``sim/spec/engine_flags``).
    :ivar schedulings: values of ``fleet.scheduling`` whose rules are known for it.
    """

    preset: Preset = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    no_prefix_cache: str = ""
    schedulings: tuple[str, ...] = ("fcfs",)


class Engines(Registry[Engine]):
    """The presets by name; a version of an engine finds the preset that has its rules (``engine_versions.py``)."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __getitem__(self, name: str) -> Engine:
        """Return the preset that a name stands for: its own, or the one with the rules of this version."""
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def all_names(self, given: Mapping[str, Engine] | None = None) -> tuple[str, ...]:
        """Return every name, that of the newest version of an engine first."""
        return tuple(dict.fromkeys((DEFAULT_ENGINE, *super().all_names(given))))

    def get(self, name: str, given: Mapping[str, Engine] | None = None) -> Engine | None:
        """Return the preset that a name stands for, or None."""
        found = super().get(name, given)
        versions = versions_of(name) if found is None else None
        return found if versions is None else super().get(versions.preset)


def _read() -> tuple[Engine, ...]:
    """Return the engines of ``engines.toml``."""
    found: dict[str, Engine] = {}
    for name, row in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items():
        like = found[row["like"]] if "like" in row else Engine(name)
        found[name] = Engine(
            name,
            row["about"],
            f"sim.training.files.engine_rules:{row['adapters']}" if "adapters" in row else like.target,
            flags=tuple(row.get("flags", like.flags)),
            schedulings=tuple(row.get("schedulings", like.schedulings)),
            no_prefix_cache=row.get("no_prefix_cache", ""),
            preset=_changed(like.preset, {section: row[section] for section in _SECTIONS if section in row}),
        )
    return tuple(found.values())


def _changed(preset: Preset, sections: Preset) -> Preset:
    """Return a preset with some fields changed."""
    return {name: {**preset.get(name, {}), **sections.get(name, {})} for name in {**preset, **sections}}


ENGINES = Engines("engine", _read(), suggest=suggest_engine)
DEFAULT_ENGINE = "vllm"
"""What a scenario that names no engine plans for: the newest version of vLLM whose rules are known."""
_VLLM_BATCHES = {"h100-80gb": (1024, 8192), "h200": (1024, 8192), "b200": (1024, 16384)}
"""``max_num_seqs`` and ``max_num_batched_tokens`` of ``vllm serve`` on GPUs of 70 GiB and more other than A100s, and of
160 GiB and more; vLLM 0.28 and 0.32, engine/arg_utils.py, get_batch_defaults."""
_CAPACITY = ("slots", "size")
_WITHOUT = {"budget_kv_share": "max_num_batched_tokens"}
"""Keys that a preset fills in only where the scenario leaves out another one as well."""


def batch_limits(gpu: str) -> dict[str, int]:
    """Return what ``vllm serve`` takes for ``max_num_seqs`` and ``max_num_batched_tokens`` on a GPU."""
    known = gpu_named(gpu)
    keys = ("max_num_seqs", "max_num_batched_tokens")
    defaults = tuple(preset_value("vllm-0.8", key) for key in ("fleet.max_num_seqs", "fleet.max_num_batched_tokens"))
    return dict(zip(keys, _VLLM_BATCHES.get(known.name, defaults) if known else defaults, strict=True))


def _of_its_gpu(preset: Preset, fleet: Mapping[str, Any]) -> Preset:
    """Return vLLM's preset with the limits of a batch on the GPU of a fleet; a profile's file may be of any GPU."""
    gpu, profile = fleet.get("gpu"), fleet.get("profile")
    if gpu is None:
        gpu = DEFAULT_GPU if profile is None else str(profile).partition("/")[0]
    limits = batch_limits(str(gpu))
    budget = fleet.get("max_num_batched_tokens")
    if isinstance(budget, int) and budget > 0:  # every running sequence needs one token of it
        limits["max_num_seqs"] = min(limits["max_num_seqs"], budget)
    return _changed(preset, {"fleet": limits})


def fill(data: Any) -> Any:
    """Return a scenario's plain data with what its engine's preset says of fields that it leaves out.

    Data that is no valid scenario comes back as it is: checking it is another's work.
    """
    if not isinstance(data, dict):
        return data
    fleet = data.get("fleet", {})
    engine = fleet.get("engine", DEFAULT_ENGINE) if isinstance(fleet, dict) else None
    preset = ENGINES[engine].preset if isinstance(engine, str) and engine in ENGINES else {}
    own = preset.get("fleet", {})
    if "max_num_seqs" in own:
        preset = _of_its_gpu(preset, fleet)
    filled = dict(data)
    for section, values in preset.items():
        given = data.get(section, {})
        if isinstance(given, dict):
            meant = {key: value for key, value in values.items() if given.get(_WITHOUT.get(key, "")) is None}
            filled[section] = {**given, **{key: _filled(value, given.get(key)) for key, value in meant.items()}}
    if own.get("kv_check") == "ratio" and all(isinstance(filled[section], dict) for section in preset):
        _leave_out_what_does_not_fit(filled, data)
    elif "max_num_seqs" in own and isinstance(filled["cache"], dict):
        _leave_out_of_vllm(filled["fleet"], filled["cache"], fleet)
    return filled


def _leave_out_of_vllm(filled: dict[str, Any], cache: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Leave out what vLLM's preset says of steps and adapters where a scenario chooses other rules for them."""
    ahead = filled.get("batching", "mixed") == "mixed" and filled["kv_check"] in ("whole-prompt", "first-chunk")
    if not ahead and given.get("async_scheduling") is None:
        filled.pop("async_scheduling", None)
    if cache.get("eviction") != "vllm-lru" and given.get("adapter_limit") is None:
        filled.pop("adapter_limit", None)


def _leave_out_what_does_not_fit(filled: dict[str, Any], data: Mapping[str, Any]) -> None:
    """Leave out what the preset says of SGLang's slots and scheduler where a scenario chooses rules beside them."""
    cache, fleet = filled["cache"], filled["fleet"]
    if not _has_batch_slots(cache, fleet, filled["storage"]) and data.get("cache", {}).get("protects") is None:
        del cache["protects"]
    given = data.get("fleet", {})
    alone = cache.get("protects") == "batch" and fleet.get("admission_interval", 1) == 1
    if not alone and given.get("kv_check") is None:
        del fleet["kv_check"]
    if fleet.get("kv_check") != "ratio" and given.get("overlap_schedule") is None:
        del fleet["overlap_schedule"]


def _has_batch_slots(cache: Mapping[str, Any], fleet: Mapping[str, Any], storage: Mapping[str, Any]) -> bool:
    """Return whether a scenario keeps to SGLang's slots; with other rules for adapters, those in use are protected."""
    gpu = cache.get("gpu")
    return (
        cache.get("eviction") in ("lru", "fifo")
        and isinstance(gpu, dict)
        and gpu.get("base_model_slot") is True
        and gpu.get("size") is None
        and (storage.get("mode") == "blocking" or fleet.get("load_at") == "admission")
        and storage.get("loaders", 1) == 1
        and cache.get("prefetch", "none") == "none"
        and fleet.get("admission") == "skip"
    )


def _filled(value: Any, given: Any) -> Any:
    """Return what a field gets of a preset's value and the scenario's, either of which may be a mapping."""
    if given is None or not isinstance(value, dict):
        return value if given is None else given
    if not isinstance(given, dict) or "fill" in given:  # a host tier that fills in another way is another one
        return given
    if any(given.get(key) is not None for key in _CAPACITY):  # a cache of another size than the preset's
        value = {key: item for key, item in value.items() if key not in _CAPACITY}
        if value.get("fill") == "start":
            value["fill"] = "arrival"
    return {**value, **given}


def schedulings_of(engine: str) -> tuple[str, ...]:
    """Return the values of ``fleet.scheduling`` that an engine, or this version of it, has."""
    known = ENGINES[engine].schedulings
    release = release_of(engine)
    numbers = () if release is None else tuple(int(part) for part in release.split(".")[:3])
    if "vLLM" in ENGINES[engine].flags and numbers and numbers < _PRIORITY_FROM:
        return ("fcfs",)
    return known


def engine_words(name: str) -> str:
    """Return an engine's name as a scenario has it, with whose rules it stands for if it is not a preset's.

    The idealised engine says so wherever its name appears.
    """
    if name == "continuous":
        return f"{name} (idealised engine)"
    versions = versions_of(name)
    return name if versions is None or name in ENGINES.names else f"{name} (rules of {versions.words})"


def preset_value(engine: str, key: str) -> Any:
    """Return what an engine's preset says of a dotted key, or None."""
    value: Any = ENGINES[engine].preset
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
