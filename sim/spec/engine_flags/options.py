"""An option of an engine, how a command line writes and reads it, and what is said of one that stands in a scenario.

The options are those of ``options.toml``; the rules that it names are here.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.spec.engines import AHEAD_SINCE, TARGETS_SINCE, drafts_ahead, is_vllm_since, to_mem_fraction_static
from sim.spec.needs import value_of, words_of
from sim.spec.profile import Profile
from sim.spec.profile_choice import is_mixture, profile_of
from sim.spec.registry import Entry, Registry
from sim.spec.sections.workload import EXPERTS, SHARED_OUTER

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario


@dataclass(frozen=True)
class Replica:
    """What a command line starts: one replica of a scenario, as it was simulated.

    :ivar kv_tokens: tokens for which it has a KV cache; None: unknown, so no option that needs it is written.
    """

    scenario: Scenario
    kv_tokens: int | None = None


_GIB = 2**30
Written = Callable[[Replica], object]
"""The value of an option for a replica; True: an option without a value; False: its opposite; None: it is left out."""
Given = Mapping[str, Sequence[str]]
"""The options of a command line, by ``bare`` name, each with the words behind it."""
Reads = Callable[[Sequence[str], Given], Mapping[str, object]]
"""What an option means: values by key, from the words behind it and the other options; empty: nothing of ours."""


@dataclass(frozen=True, kw_only=True)
class Flag(Entry):
    """An option of an engine, and what a scenario has for it; ``options.toml`` says what the fields are."""

    sets: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    written: Written | None = None
    reads: Reads | None = None
    unset: object = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys without values."""
        return tuple(setting.partition(": ")[0] for setting in self.sets)

    @property
    def is_switch(self) -> bool:
        """Whether it stands without a value."""
        first = self.name.lower().lstrip("-").partition("-")[0]
        opposite = any(name.startswith("--no-") for name in self.also)
        return opposite or first in ("enable", "disable", "fully") or any(": " in setting for setting in self.sets)

    def text(self, replica: Replica) -> str | None:
        """Return the option as the command line of a replica has it; None: it has none."""
        value = None if self.written is None else self.written(replica)
        if isinstance(value, bool):
            return self.name if value else f"--no-{self.name.removeprefix('--')}"
        return None if value is None else f"{self.name} {value}"


@dataclass(frozen=True, kw_only=True)
class EngineFlags(Entry):
    """The options of one engine, in the order in which command lines have them.

    :ivar command: how its command line begins; empty: none is written.
    :ivar of_server: beginnings of options that are about neither speed nor memory.
    """

    flags: Registry[Flag]
    of_server: tuple[str, ...]
    command: str = ""


def bare(name: str) -> str:
    """Return a name as all its spellings have it: ``--max-loras``, ``max_loras``, ``maxLoras`` and ``MAX_LORAS``."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return re.sub(r"[-_\s]+", "-", apart).strip("-")


# Values in a command line.

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Allowed values of vLLM's ``--max-lora-rank`` (``vllm/config.py``, ``LoRAConfig``): slots are padded to one of
these."""
_PROMPT_CHECK_FROM = (0, 19)
_INTERVAL_FROM = (0, 33)
_SGLANG_EVICTIONS = ("lru", "fifo")
"""What SGLang takes for ``--lora-eviction-policy``."""
_PACKED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
_PROJECTIONS = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def vllm_rank(rank: int) -> int:
    """Return the rank to which vLLM pads slots for this largest rank; above vLLM's limit, the rank itself."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)


def _profile(replica: Replica) -> Profile:
    found, _ = profile_of(replica.scenario)
    assert found is not None, "only the engine fixed does without, and it has no command line"
    return found


def _memory_share(replica: Replica) -> str | None:
    """Return the share that the KV cache follows from; None where the scenario gives its size."""
    fleet = replica.scenario.fleet
    if fleet.kv_tokens is not None:
        return None
    share = fleet.gpu_memory_utilization
    return f"{_profile(replica).memory.utilization if share is None else share:g}"


def _static_share(replica: Replica) -> str | None:
    """Return SGLang's share, which covers weights, adapters and KV cache alone, where the scenario gives one for
    everything. ``--max-total-tokens`` keeps the KV cache as small as it was simulated."""
    share, profile = replica.scenario.fleet.gpu_memory_utilization, _profile(replica)
    if share is None or replica.scenario.fleet.kv_tokens is not None:
        return None
    return f"{to_mem_fraction_static(profile.memory, share, profile.tensor_parallel):.3f}"


def _host_kv(replica: Replica) -> str | None:
    """Return the GiB of host memory for KV; where they are what adapters leave, the user has to say."""
    size = value_of(replica.scenario, "fleet.kv_offload.size")
    return None if size is None else f"{size / _GIB:.6g}"


def _prompt_check(replica: Replica) -> bool | None:
    """Return False where a version with the option checks the first chunk only; else it is the default, or there is
    none."""
    return False if replica.scenario.fleet.kv_check == "first-chunk" and _from(replica, _PROMPT_CHECK_FROM) else None


def _scheduled_ahead(replica: Replica) -> bool | None:
    """Return whether steps are scheduled ahead where this is not the default of the version, with its drafts."""
    fleet = replica.scenario.fleet
    default, drafts = _from(replica, AHEAD_SINCE), fleet.speculation
    if drafts is not None and drafts.tokens:
        default &= drafts_ahead(fleet.engine, drafts.method)
    return None if fleet.async_scheduling == default else fleet.async_scheduling


def _prefill_interval(replica: Replica) -> int | None:
    """Return after how many steps prompts may follow, where that is not every step and the version has it."""
    steps = replica.scenario.fleet.prefill_schedule_interval
    return steps if steps > 1 and _from(replica, _INTERVAL_FROM) else None


def _drafts(replica: Replica) -> str | None:
    """Return what vLLM has to know of drafts; ``DRAFT`` stands for the model that makes them."""
    spec = replica.scenario.fleet.speculation
    if spec is None or not spec.tokens:
        return None
    model = {} if spec.method == "ngram" else {"model": "DRAFT"}
    config = {"method": spec.method, **model, "num_speculative_tokens": spec.tokens}
    return shlex.quote(json.dumps(config, separators=(",", ":")))


def _from(replica: Replica, first: tuple[int, int]) -> bool:
    """Return whether a replica's version of vLLM is this one or a newer one."""
    return is_vllm_since(replica.scenario.fleet.engine, first)


def _target_modules(replica: Replica) -> str:
    adapters = replica.scenario.adapters
    kinds = [kind.targets for kind in adapters.mix if kind.kind == "lora"] or [adapters.targets]
    targets = {name for each in kinds for name in (_PROJECTIONS if isinstance(each, str) else each)}
    return " ".join(name for short, name in _PROJECTIONS.items() if short in targets)


def _held_modules(replica: Replica) -> str | None:
    """Return the modules of a mixture's slots: without them, vLLM's slots hold the experts of every model that has
    some, whatever adapters change. None: slots hold all linear modules."""
    experts = replica.scenario.adapters.experts
    if not is_mixture(_profile(replica)) or not _from(replica, TARGETS_SINCE):
        return None
    return f"qkv_proj o_proj {EXPERTS[0]}" if experts else "qkv_proj o_proj"


_WRITTEN: Mapping[str, Written] = {
    "always": lambda replica: True,
    "drafts": _drafts,
    "eviction": lambda replica: own if (own := replica.scenario.cache.eviction) in _SGLANG_EVICTIONS else None,
    "host-kv": _host_kv,
    # Unset, vLLM keeps as many adapters in host memory as on the GPU.
    "host-slots": lambda replica: value_of(replica.scenario, "cache.host.slots") or replica.scenario.cache.gpu.slots,
    "kv-blocks": lambda replica: (fleet := replica.scenario.fleet).kv_tokens and fleet.kv_tokens // fleet.block_size,
    # Also where it follows from memory: SGLang's share of that means something else.
    "kv-tokens": lambda replica: replica.scenario.fleet.kv_tokens or replica.kv_tokens,
    "held-modules": _held_modules,
    "largest-rank": lambda replica: replica.scenario.slot_rank,
    "lpm": lambda replica: "lpm" if replica.scenario.fleet.scheduling == "lpm" else None,
    "memory-share": _memory_share,
    "modules": _target_modules,
    "padded-rank": lambda replica: min(vllm_rank(replica.scenario.slot_rank), VLLM_RANKS[-1]),
    "prefill-interval": _prefill_interval,
    "prompt-check": _prompt_check,
    "scheduled-ahead": _scheduled_ahead,
    "static-share": _static_share,
    "shared-outer": lambda replica: replica.scenario.adapters.experts == SHARED_OUTER or None,
    "tensor-parallel": lambda replica: gpus if (gpus := _profile(replica).tensor_parallel) > 1 else None,
    "without-overlap": lambda replica: (
        ((fleet := replica.scenario.fleet).kv_check == "ratio" and not fleet.overlap_schedule) or None
    ),
}


def _writer(rule: str | Mapping[str, object] | None, key: str, value: str) -> Written | None:
    """Return what writes an option: ``value``, that of its key; ``unless``, only where that is no default of the
    engine's; ``where-set``, the bare option where the key has the value that it means; or a rule of its own.

    :param value: what the option means for its key; empty: true.
    """
    if rule == "value":
        return lambda replica: value_of(replica.scenario, key)
    if rule == "where-set":
        return lambda replica: words_of(value_of(replica.scenario, key)) == (value or "true") or None
    if isinstance(rule, Mapping):
        default = rule["unless"]
        return lambda replica: None if value_of(replica.scenario, key) == default else value_of(replica.scenario, key)
    return None if rule is None else _WRITTEN[rule]


# What a command line means.


def whole_number(words: Sequence[str]) -> int | None:
    """Return the whole number that an option has; None: none. vLLM also writes 8k and 8K: 8,000 and 8,192."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)([kKmM]?)", words[0]) if words else None
    if found is None:
        return None
    return int(float(found[1]) * {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}[found[2]])


def _modules(words: Sequence[str], given: Given) -> Mapping[str, object]:
    """Read names of modules: ``q_proj`` is q."""
    given_names = [word.removesuffix("_proj") for part in words for word in part.split(",")]
    names = [name for word in given_names for name in _PACKED.get(word, (word,))]
    if names in (["all"], ["all-linear"]):
        return {"adapters.targets": "all-linear"}
    if "enable-moe-shared-loras" in given:
        names = [SHARED_OUTER if name == EXPERTS[0] else name for name in names]
    return {"adapters.targets": names} if names and set(names) <= {*_PROJECTIONS, *EXPERTS} else {}


def _tokens_of_blocks(words: Sequence[str], given: Given) -> Mapping[str, object]:
    blocks, size = whole_number(words), whole_number(given.get("block-size", ()))
    return {"fleet.kv_tokens": blocks * (size or 16)} if blocks else {}


def _chunk(words: Sequence[str], given: Given) -> Mapping[str, object]:
    size = whole_number(words)
    return {"fleet.chunked_prefill": False} if size is not None and size < 0 else _prefill_tokens(words, given)


def _prefill_tokens(words: Sequence[str], given: Given) -> Mapping[str, object]:
    limits = (whole_number(given.get(name, ())) for name in ("chunked-prefill-size", "max-prefill-tokens"))
    positive = [limit for limit in limits if limit is not None and limit > 0]
    return {"fleet.max_num_batched_tokens": min(positive)} if positive else {}


_READS: Mapping[str, Reads] = {
    "nothing": lambda words, given: {},
    "chunk": _chunk,
    "count": lambda words, given: {"adapters.count": len(words)} if words else {},
    "gibibytes": lambda words, given: {"fleet.kv_offload.size": f"{words[0]} GiB"} if words else {},
    "modules": _modules,
    "prefill-tokens": _prefill_tokens,
    "prompt-check": lambda words, given: {
        "fleet.kv_check": "first-chunk" if "no-scheduler-reserve-full-isl" in given else "whole-prompt"
    },
    "seconds": lambda words, given: {"fleet.drain_wait": f"{words[0]} s"} if words else {},
    "tokens-of-blocks": _tokens_of_blocks,
}


def _reader(rule: str | Mapping[str, str] | None, key: str) -> Reads | None:
    if isinstance(rule, Mapping):
        return lambda words, given: {key: rule[words[0]]} if words and words[0] in rule else {}
    return None if rule is None else _READS[rule]


# The tables.


def _flag(name: str, row: Mapping[str, Any], sentences: Mapping[str, str]) -> Flag:
    sets = row.get("sets", ())
    sets = (sets,) if isinstance(sets, str) else tuple(sets)
    key, _, value = (sets or ("",))[0].partition(": ")
    return Flag(
        name,
        sentences[row["why"]] if "why" in row else row.get("about", ""),
        sets=sets,
        also=tuple(row.get("also", ())),
        written=_writer(row.get("written"), key, value),
        reads=_reader(row.get("reads"), key),
        unset=row.get("unset"),
    )


@cache
def flag_tables() -> Registry[EngineFlags]:
    """Return the options of all engines; read on first use, as most commands have no need of them."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    sentences, of_server = table.pop("sentences"), tuple(table.pop("of_server")["begin"].split())
    engines = []
    for engine, facts in table.items():
        flags = tuple(_flag(name, row, sentences) for name, row in facts["options"].items())
        registry = Registry(f"option of {engine}", flags)
        engines.append(EngineFlags(engine, flags=registry, of_server=of_server, command=facts.get("command", "")))
    return Registry("engine with options", tuple(engines))


# What is said of an option in a scenario.

_MOST_HINTS = 3


def flag_hint(key: str, value: object = None) -> str | None:
    """Return what a scenario has for an option of an engine that stands where a key should; None: it is no option.

    :param key: the dotted key whose last part, or last two, may name an option.
    :param value: what stands there. Configurations of engines have sections, so keys of a mapping are tried too.
    """
    before, _, word = key.rpartition(".")
    hints = [_hint(f"{before.rpartition('.')[2]}.{word}") or _hint(word)]
    if isinstance(value, Mapping):
        hints += [_hint(f"{word}.{inner}") or _hint(str(inner)) for inner in value]
    found = list(dict.fromkeys(hint for hint in hints if hint))
    return "; ".join(found[:_MOST_HINTS]) or None


def _hint(name: str) -> str | None:
    groups: dict[tuple[str, ...], list[tuple[str, Flag]]] = {}
    for engine, flag in _by_name().get(bare(name), ()):
        groups.setdefault(flag.sets or (flag.about,), []).append((engine, flag))
    return "; ".join(_sentence(group, bare(name)) for group in groups.values()) or None


def _sentence(group: list[tuple[str, Flag]], name: str) -> str:
    """Return what options of one meaning, which engines share under this name, are in a scenario."""
    engines = [engine for engine, _ in group]
    flag = group[0][1]
    whose = f"{engines[0]}'s {flag.name}"
    if len(engines) > 1:
        shared = next(each for each in (flag.name, *flag.also) if bare(each) == name)
        whose = f"{shared} of {', '.join(engines[:-1])} and {engines[-1]}"
    if not flag.sets:
        return f"{whose} has no equivalent here: {flag.about}"
    about = f" ({flag.about})" if flag.about and all(other.about == flag.about for _, other in group) else ""
    return f"{whose} is {' and '.join(flag.sets)} here{about}"


@cache
def _by_name() -> dict[str, list[tuple[str, Flag]]]:
    found: dict[str, list[tuple[str, Flag]]] = {}
    for engine in flag_tables():
        for flag in engine.flags:
            for name in dict.fromkeys(map(bare, (flag.name, *flag.also))):
                found.setdefault(name, []).append((engine.name, flag))
    return found
