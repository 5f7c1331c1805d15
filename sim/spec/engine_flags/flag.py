"""An option of an engine, how a command line writes it, and what the tables of options share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.spec.needs import value_of
from sim.spec.profile import Profile
from sim.spec.profile_choice import profile_of
from sim.spec.registry import Entry, Registry

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario

EVERY_SCENARIO = "every scenario serves adapters"
ONE_GPU = "parallelism over several GPUs is not supported for this engine yet"
NOT_SPLIT = "pipeline and expert parallelism are not supported yet"
BY_PROFILE = "GPUs of one replica, for which there must be a profile, see loraplan profiles list"
NO_SPECULATION = "speculative decoding is not simulated"
NO_SPLIT = "every replica does both prefill and decode"
IN_ORDER = "requests are served first come, first served"
OF_PROFILE = "costs and memory are those of a profile, of one model on one device"
KV_FORMAT = "the KV cache has the format of the profile"
COUNTED = "a scenario counts adapters; it does not list them"
EACH_ITS_OWN = "each replica has its own adapters and queue; router.policy distributes the requests"
TOKENS = "in tokens"
QUANTIZED = "int8 and nf4 only"
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
FROM_WEIGHTS = "a share of what weights leave free, while cache.gpu.size is in bytes"


@dataclass(frozen=True)
class Replica:
    """What a command line starts: one replica of a scenario, as it was simulated.

    :ivar kv_tokens: tokens for which it has a KV cache; None: unknown, so no option that needs it is written.
    """

    scenario: Scenario
    kv_tokens: int | None = None


Written = Callable[[Replica], object]
"""The value of an option for a replica; True: an option without a value; False: its opposite; None: it is left out."""


Given = Mapping[str, Sequence[str]]
"""The options of a command line, by ``bare`` name, each with the words behind it."""
Reads = Callable[[Sequence[str], Given], Mapping[str, object]]
"""What an option means: values by key, from the words behind it and the other options; empty: nothing of ours."""


@dataclass(frozen=True, kw_only=True)
class Flag(Entry):
    """An option of an engine, and what a scenario has for it.

    ``about`` says how the two differ; of an option that a scenario has no key for, why.

    :ivar sets: the keys, each with a value where the option means that value: ``fleet.batching: mixed``.
    :ivar also: other names. Dashes, underscores and capital letters make no difference.
    :ivar written: its value in a command line; None: command lines leave it to the user.
    :ivar reads: what it means where a command line has it; None: its one value is that of its key.
    :ivar unset: what the engine takes without it, where a scenario's own default is another.
    """

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
    """

    flags: Registry[Flag]
    command: str = ""


def bare(name: str) -> str:
    """Return a name as all its spellings have it: ``--max-loras``, ``max_loras``, ``maxLoras`` and ``MAX_LORAS``."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    return re.sub(r"[-_\s]+", "-", apart).strip("-")


def whole_number(words: Sequence[str]) -> int | None:
    """Return the whole number that an option has; None: none. vLLM also writes 8k and 8K: 8,000 and 8,192."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)([kKmM]?)", words[0]) if words else None
    if found is None:
        return None
    return int(float(found[1]) * {"": 1, "k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}[found[2]])


def means_nothing(words: Sequence[str], given: Given) -> Mapping[str, object]:
    """Read an option whose value no key can hold; ``about`` says why."""
    return {}


def counted(words: Sequence[str], given: Given) -> Mapping[str, object]:
    """Read a list of adapters."""
    return {"adapters.count": len(words)} if words else {}


def modules(words: Sequence[str], given: Given) -> Mapping[str, object]:
    """Read names of modules: ``q_proj`` is q."""
    names = [word.removesuffix("_proj") for part in words for word in part.split(",")]
    if names in (["all"], ["all-linear"]):
        return {"adapters.targets": "all-linear"}
    return {"adapters.targets": names} if names and set(names) <= set(PROJECTIONS) else {}


def chosen(key: str, **values: str) -> Reads:
    """Return a reader of an option with a few values, each of which has a value of a key."""
    return lambda words, given: {key: values[words[0]]} if words and words[0] in values else {}


def same(name: str, key: str, **facts: Any) -> Flag:
    """Return an option that has the value of a key."""
    return Flag(name, sets=(key,), written=lambda replica: value_of(replica.scenario, key), **facts)


def unless(key: str, default: object) -> Written:
    """Return an option that has the value of a key, unless that is the engine's default."""
    return lambda replica: None if value_of(replica.scenario, key) == default else value_of(replica.scenario, key)


def where(key: str, value: object) -> Written:
    """Return an option without a value, for scenarios in which a key has this value."""
    return lambda replica: True if value_of(replica.scenario, key) == value else None


def always(replica: Replica) -> bool:
    """Return that an option without a value is written."""
    return True


def largest_rank(replica: Replica) -> int:
    """Return the largest rank of all adapters."""
    adapters = replica.scenario.adapters
    return max([kind.rank for kind in adapters.mix if kind.kind == "lora"] or [adapters.rank])


def profile(replica: Replica) -> Profile:
    """Return the profile of a replica."""
    found, _ = profile_of(replica.scenario)
    assert found is not None, "only the engine fixed does without, and it has no command line"
    return found


def tensor_parallel(replica: Replica) -> int | None:
    """Return over how many GPUs the profile spreads a replica; None: it runs on one, which is the default."""
    gpus = profile(replica).tensor_parallel
    return gpus if gpus > 1 else None
