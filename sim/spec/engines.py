"""Engines by name, and whose rules each of their versions has."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import did_you_mean
from sim.spec.files.tree import value_at
from sim.spec.gpus import DEFAULT_GPU, gpu_named
from sim.spec.registry import Entry, Registry

if TYPE_CHECKING:
    from sim.spec.profile import Memory

# Versions of engines: whose rules each has, and what is said of a name that stands for none.


@dataclass(frozen=True)
class Versions:
    """Versions of an engine whose scheduling rules are the same.

    :ivar first: the first of them; they reach up to the next row of their table.
    :ivar words: the same, for tables and messages.
    :ivar preset: the name of the preset that has their rules, or of the nearest.
    :ivar about: these rules, or why there is no preset; goes on after the engine's name and ``words``.
    :ivar simulated: whether the preset has their rules, so that a scenario may name these versions.
    """

    first: tuple[int, ...]
    words: str
    preset: str
    about: str
    simulated: bool = True


_KEEP = "keeps the order of requests over the adapter limit"
_AHEAD = "schedules steps ahead on GPUs, as all newer ones do"
_APART = "tries requests over the adapter limit before all others, also before preempted ones"
_CHUNK, _WHOLE = "needs KV blocks for the first chunk", "needs KV blocks for the whole prompt"
VERSIONS: Mapping[str, tuple[Versions, ...]] = {
    # v1/core/sched/scheduler.py and v1/core/block_pool.py of 0.8.5, 0.9.1, 0.9.2, 0.10.2, 0.11.2, 0.12 to 0.14, 0.16 to
    # 0.20, 0.22 to 0.24, 0.28 and 0.30 to 0.33 were read, and steps of 0.11.2, 0.16.0, 0.19.0, 0.28.0, 0.32.0 and
    # 0.33.0 replayed (tests/property/test_records.py).
    "vLLM": (
        Versions((0,), "up to 0.7", "vllm-0.8", "runs the V0 engine, whose rules are different", simulated=False),
        Versions(
            (0, 8),
            "0.8.0 to 0.8.2",
            "vllm-0.8",
            "differs in one rule: a request over the adapter limit holds up all behind it",
            simulated=False,
        ),
        Versions((0, 8, 3), "0.8.3 to 0.9.1", "vllm-0.8", f"{_KEEP}; {_CHUNK}"),
        Versions(
            (0, 9, 2),
            "0.9.2 to 0.13",
            "vllm-0.9.2",
            f"reverses the order of requests over the adapter limit with every step; {_CHUNK}",
        ),
        Versions((0, 14), "0.14 to 0.17", "vllm-0.14", f"{_AHEAD}; {_KEEP}; {_CHUNK}"),
        Versions((0, 18), "0.18", "vllm-0.18", f"{_APART}; {_CHUNK}"),
        Versions((0, 19), "0.19 to 0.22", "vllm-0.19", f"{_APART}; {_WHOLE}"),
        Versions(
            (0, 23), "0.23 to 0.30", "vllm-0.23", "does the same, and reuses blocks that are not cached before others"
        ),
        Versions((0, 31), "0.31 and 0.32", "vllm-0.32", f"{_KEEP}; {_WHOLE}; reuses blocks that are not cached first"),
        Versions(
            (0, 33),
            "0.33",
            "vllm-0.33",
            "does the same, and counts the adapters of all running requests for the adapter limit",
        ),
        Versions((0, 34), "from 0.34 on", "vllm-0.33", "was not read; this is the newest preset", simulated=False),
    ),
    "SGLang": (
        Versions(
            (0,),
            "up to 0.5.6",
            "sglang",
            "has another rule of admission (set fleet.admission: stop) and, up to 0.5.3, of eviction",
            simulated=False,
        ),
        # 0.5.7 to 0.5.12 were read for differences, and 0.5.23 whole.
        Versions(
            (0, 5, 7), "0.5.7 to 0.5.23", "sglang", "passes a request over the adapter limit; evicts by LRU, or FIFO"
        ),
        Versions((0, 5, 24), "from 0.5.24 on", "sglang", "was not read; this is the newest preset", simulated=False),
    ),
}
"""By engine, oldest first. In a table a version without its third number is that version's first release."""

_NUMBERS = r"[0-9]{1,6}(?:\.[0-9]{1,6})*"
_WRITTEN = re.compile(rf"([a-z]+)(?:[ =_-]*v?({_NUMBERS})(?:\.?(?:post|rc|dev|a|b)[0-9]*)?(?:\+[a-z0-9.]+)?)?")
"""A name as people write it: ``vllm``, ``vllm-0.12``, ``vLLM v0.12.0``, ``vllm==0.8.5.post1``."""
NAMES_SCHEMA = {
    "type": "string",
    "pattern": r"^([vV][lL]{2}[mM]|[sS][gG][lL][aA][nN][gG])([ =_-]*v?0\.[0-9].*)?$",
    "examples": ["vllm-0.12", "sglang-0.5.10"],
}
"""Names of versions, in the terms of JSON Schema; the checks of a scenario say more."""
_LOOSE = re.compile(rf"([a-z]+?)(?:v?({_NUMBERS}).*)?", re.DOTALL)


def versions_of(name: str) -> Versions | None:
    """Return the versions whose rules a name stands for; None: for none, or for an engine without versions.

    A name without a version stands for the newest whose rules are known.
    """
    found = _WRITTEN.fullmatch(name.lower())
    rows = _rows(found[1]) if found else ()
    if not found or not rows:
        return None
    known = [row for row in rows if row.simulated]
    if found[2] is None:
        return known[-1] if known else None
    named = [row for row in known if found[2] == row.preset.rpartition("-")[2]]
    row = named[0] if named else _row(rows, found[2])
    return row if row.simulated else None


AHEAD_SINCE = (0, 14)
"""The first version of vLLM that schedules steps ahead on GPUs by default."""
_DRAFT_MODEL_AHEAD_SINCE = (0, 28)
"""The same with a small model that drafts (vllm#48341)."""


def schedules_ahead(name: str) -> bool:
    """Return whether a name is of a version of vLLM that schedules steps ahead on GPUs by default."""
    row = versions_of(name)
    return row is not None and row in VERSIONS["vLLM"] and row.first >= AHEAD_SINCE


def drafts_ahead(name: str, method: str) -> bool:
    """Return whether a version of vLLM that schedules ahead by default does so with drafts of a method as well.

    Source: ``config/vllm.py``, ``VllmConfig.__post_init__``.
    """
    return method != "ngram" and (method != "draft_model" or is_vllm_since(name, _DRAFT_MODEL_AHEAD_SINCE))


def has_version(name: str) -> bool:
    """Return whether a name that stands for versions names one, or just the engine."""
    found = _WRITTEN.fullmatch(name.lower())
    return found is not None and found[2] is not None


def release_of(name: str) -> str | None:
    """Return the release to install for the rules of an engine's name: ``0.32.0`` for ``vllm``.

    Of a name without a version it is the newest with these rules.

    :return: three numbers; None: the engine has no versions here.
    """
    written, row = _WRITTEN.fullmatch(name.lower()), versions_of(name)
    if written is None or row is None:
        return None
    number = written[2] or re.findall(_NUMBERS, row.words)[-1]
    return ".".join([*number.split("."), "0", "0"][: max(3, number.count(".") + 1)])


def nearest_version(name: str) -> Versions:
    """Return the row of a version of an engine, also of one without a preset; vLLM's newest for what is none."""
    found = _LOOSE.fullmatch(_bare(name))
    rows = _rows(found[1]) if found else ()
    return versions_of(name) or _row(rows or VERSIONS["vLLM"], (found and found[2]) or "999")


def is_same_engine(name: str, other: str) -> bool:
    """Return whether two names are of the same engine and, as far as both say it, of the same minor version.

    :param other: may go on after the version, such as ``vLLM 0.8.5, V1``.
    """
    one, two = (_LOOSE.fullmatch(_bare(each)) for each in (name, other))
    if one is None or two is None or one[1] != two[1]:
        return _bare(other).startswith(_bare(name))
    version = _version(name)
    return version is None or two[2] is None or version.split(".")[:2] == two[2].split(".")[:2]


def version_distance(name: str, other: str) -> float:
    """Return how many minor versions lie between two names of one engine; a name without a version is its newest.

    :return: infinite where a version is not known.
    """
    numbers = []
    for each in (name, other):
        version = _version(each)
        if version is None:
            return math.inf
        major, minor = (*map(int, version.split(".")), 0)[:2]
        numbers.append(1000 * major + minor)
    return float(abs(numbers[0] - numbers[1]))


def suggest_engine(name: str, known: Iterable[str]) -> str | None:
    """Return what to say of a name that stands for no engine: the nearest preset, and why it has none."""
    if number := re.fullmatch(rf"v?({_NUMBERS})", _bare(name)):
        return f"name the engine too, such as vllm-{number[1]}"
    spelled = {_bare(each): each for each in known}
    found = _LOOSE.fullmatch(_bare(name))
    if _bare(name) in spelled or found is None:
        return did_you_mean(spelled.get(_bare(name), name), spelled.values())
    engine, version = found.groups()
    family = next((each for each in VERSIONS if each.lower() == engine), None)
    if family is None or version is None:
        return did_you_mean(spelled.get(engine, name), spelled.values())
    row = _row(VERSIONS[family], version)
    if row.simulated:
        return f"write {family.lower()}-{version}"
    return f"the nearest preset is {row.preset}: {family} {row.words} {row.about}"


def _version(name: str) -> str | None:
    """Return the version in a name, or the one whose preset it stands for; None: neither is known."""
    found, row = _LOOSE.fullmatch(_bare(name)), versions_of(name)
    return (found and found[2]) or (row.preset.rpartition("-")[2] if row and "-" in row.preset else None)


def _rows(engine: str) -> tuple[Versions, ...]:
    return next((rows for family, rows in VERSIONS.items() if family.lower() == engine), ())


def _row(rows: Iterable[Versions], version: str) -> Versions:
    numbers = tuple(map(int, version.split(".")))
    return [row for row in rows if row.first <= numbers][-1]


def _bare(name: str) -> str:
    """Return a name without what people write between its parts: ``TensorRT-LLM``, ``s_lora``, ``vllm==0.12``."""
    return re.sub(r"[^a-z0-9.]", "", name.lower())


# Engines by name. A preset is nothing but values of scenario fields: it fills in those that the scenario leaves out.
#
# The differences between engines, and between versions of one, are the fields in ``engines.toml`` and not branches in
# the code.

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
    """The presets by name; a version of an engine finds the preset that has its rules."""

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
_SGLANG_CHUNKS = {
    **dict.fromkeys(("a10", "a100-40gb", "a10g", "a40", "l4", "l40s", "rtx-4090"), 4096),
    **dict.fromkeys(("b200", "mi300x"), 16384),
}
"""``chunked_prefill_size`` of SGLang on GPUs of less than 60 GiB, and of 160 GiB and more; SGLang 0.5.23,
arg_groups/memory_hook.py, handle_gpu_memory_settings."""
_CAPACITY = ("slots", "size")
_WITHOUT = {"budget_kv_share": "max_num_batched_tokens"}
"""Keys that a preset fills in only where the scenario leaves out another one as well."""


def batch_limits(gpu: str) -> dict[str, int]:
    """Return what ``vllm serve`` takes for ``max_num_seqs`` and ``max_num_batched_tokens`` on a GPU."""
    known = gpu_named(gpu)
    keys = ("max_num_seqs", "max_num_batched_tokens")
    defaults = tuple(preset_value("vllm-0.8", key) for key in ("fleet.max_num_seqs", "fleet.max_num_batched_tokens"))
    return dict(zip(keys, _VLLM_BATCHES.get(known.name, defaults) if known else defaults, strict=True))


def prefill_chunk(gpu: str) -> int:
    """Return what SGLang takes for ``chunked_prefill_size`` on a GPU."""
    known, default = gpu_named(gpu), int(preset_value("sglang", "fleet.max_num_batched_tokens"))
    return _SGLANG_CHUNKS.get(known.name, default) if known else default


_MIB = 2**20
_OF_DRIVER, _OF_CONTEXT = 438 * _MIB, 551 * _MIB
"""Bytes of a card that a profile's memory lacks, and those of a CUDA context, which SGLang's share doesn't count."""
_SGLANG_GRAPHS = ((20, 8, 8), (35, 48, 160), (60, 32, 160), (160, 256, 512), (math.inf, 512, 512))
"""GiB below which a card is of this row, and its largest batch with a CUDA graph: on up to three GPUs, and on more."""


def sglang_share(memory: Memory, chunk: int, sequences: int, gpus: int) -> float:
    """Return the share of its memory that SGLang uses where ``--mem-fraction-static`` is left to it.

    It is in a profile's terms, whose share also covers what else the engine allocates. Source: SGLang 0.5.23,
    arg_groups/memory_hook.py, handle_gpu_memory_settings; sglang#29092 has 0.828 on an H100 (0.83 here).

    :param chunk: ``chunked_prefill_size``; ``sequences``: most in a batch; ``gpus``: of a replica.
    """
    card = (memory.total_bytes / gpus + _OF_DRIVER) / _MIB
    _, few, many = next(row for row in _SGLANG_GRAPHS if card < row[0] * 1024)
    graphs = min(many if gpus > 3 else few, sequences)
    reserved = 512 + 1.5 * max(chunk, 2048) + 128 * gpus + 2 * graphs + 8 * (42 + chunk / 512)
    if card > 60 * 1024:
        reserved = max(reserved, 10 * 1024)
    static = (1 - reserved / card) * (memory.total_bytes - gpus * _OF_CONTEXT)
    return max(0.0, static + memory.overhead_bytes) / memory.total_bytes


def to_mem_fraction_static(memory: Memory, share: float, gpus: int) -> float:
    """Return the ``--mem-fraction-static`` that leaves as much for weights, adapters and KV cache as this share of a
    profile's memory."""
    return (share * memory.total_bytes - memory.overhead_bytes) / (memory.total_bytes - gpus * _OF_CONTEXT)


def from_mem_fraction_static(memory: Memory, static: float, gpus: int) -> float:
    """Return the share of a profile's memory that leaves as much as a ``--mem-fraction-static``; at most 1."""
    return min(1.0, (static * (memory.total_bytes - gpus * _OF_CONTEXT) + memory.overhead_bytes) / memory.total_bytes)


def _of_its_gpu(preset: Preset, whose: str, fleet: Mapping[str, Any]) -> Preset:
    """Return the preset of vLLM or SGLang with the limits of a step on the GPU of a fleet; a profile's file may be of
    any GPU."""
    gpu, profile = fleet.get("gpu"), fleet.get("profile")
    if gpu is None:
        gpu = DEFAULT_GPU if profile is None else str(profile).partition("/")[0]
    if whose == "SGLang":
        return _changed(preset, {"fleet": {"max_num_batched_tokens": prefill_chunk(str(gpu))}})
    return _changed(preset, {"fleet": batch_limits(str(gpu))})


def fill(data: Any) -> Any:
    """Return a scenario's plain data with what its engine's preset says of fields that it leaves out.

    Data that is no valid scenario comes back as it is: checking it is another's work.
    """
    if not isinstance(data, dict):
        return data
    fleet = data.get("fleet", {})
    engine = fleet.get("engine", DEFAULT_ENGINE) if isinstance(fleet, dict) else None
    known = ENGINES.get(engine) if isinstance(engine, str) else None
    if known is None or not known.preset:
        return dict(data)
    preset, whose = known.preset, next(iter(known.flags), "")
    if whose:
        preset = _of_its_gpu(preset, whose, fleet)
    filled = dict(data)
    for section, values in preset.items():
        given = data.get(section, {})
        if isinstance(given, dict):
            left_out = [key for key, other in _WITHOUT.items() if given.get(other) is not None]
            meant = {key: value for key, value in values.items() if key not in left_out}
            filled[section] = {**given, **{key: _filled(value, given.get(key)) for key, value in meant.items()}}
    if not all(isinstance(filled[section], dict) for section in preset):
        return filled
    most, budget = filled["fleet"].get("max_num_seqs"), fleet.get("max_num_batched_tokens")
    if most is not None and fleet.get("max_num_seqs") is None and isinstance(budget, int) and budget > 0:
        filled["fleet"]["max_num_seqs"] = min(most, budget)  # every running sequence needs one token of it
    if whose == "SGLang":
        _leave_out_what_does_not_fit(filled, data)
    elif whose == "vLLM":
        _leave_out_of_vllm(filled["fleet"], filled["cache"], fleet)
    return filled


def _leave_out_of_vllm(filled: dict[str, Any], cache: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Leave out what vLLM's preset says of steps and adapters where a scenario chooses other rules for them."""
    ahead = filled.get("batching", "mixed") == "mixed" and filled["kv_check"] in ("whole-prompt", "first-chunk")
    drafts = given.get("speculation")
    if isinstance(drafts, dict) and drafts.get("tokens"):
        ahead &= drafts_ahead(filled.get("engine", DEFAULT_ENGINE), drafts.get("method", "eagle3"))
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


EXPERTS_SINCE = (0, 12)
"""A version of vLLM that keeps experts in its slots; 0.11.0 refused such adapters (vllm#21229)."""
TARGETS_SINCE = (0, 17)
"""The first version with ``--lora-target-modules`` (vllm#34984), which took vLLM's own names of packed modules."""


def is_vllm_since(name: str, first: tuple[int, ...]) -> bool:
    """Return whether the name of an engine stands for this version of vLLM or a newer one."""
    release = release_of(name) if "vLLM" in ENGINES[name].flags else None
    return release is not None and tuple(map(int, release.split(".")[:3])) >= first


def keeps_experts(name: str) -> bool:
    """Return whether the slots of an engine for adapters on experts are known: vLLM's, and of engines that are none."""
    return not ENGINES[name].preset or is_vllm_since(name, EXPERTS_SINCE)


def schedulings_of(engine: str) -> tuple[str, ...]:
    """Return the values of ``fleet.scheduling`` that an engine, or this version of it, has."""
    versioned = "vLLM" in ENGINES[engine].flags and release_of(engine) is not None
    return ("fcfs",) if versioned and not is_vllm_since(engine, _PRIORITY_FROM) else ENGINES[engine].schedulings


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
    return value_at(ENGINES[engine].preset, key)
