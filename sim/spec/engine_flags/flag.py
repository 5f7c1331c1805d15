"""An option of an engine, how a command line writes it, and what the tables of options share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True, kw_only=True)
class Flag(Entry):
    """An option of an engine, and what a scenario has for it.

    ``about`` says how the two differ; of an option that a scenario has no key for, why.

    :ivar sets: the keys, each with a value where the option means that value: ``fleet.batching: mixed``.
    :ivar also: other names. Dashes, underscores and capital letters make no difference.
    :ivar written: its value in a command line; None: command lines leave it to the user.
    """

    sets: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    written: Written | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys without values."""
        return tuple(setting.partition(": ")[0] for setting in self.sets)

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


def value_at(key: str) -> Written:
    """Return an option that has the value of a key."""
    return lambda replica: value_of(replica.scenario, key)


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
