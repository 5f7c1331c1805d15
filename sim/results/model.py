"""The typed parts of a point: capacity, impact of changes, timeline, and rollouts that were held back.

All of them are frozen, as are plans and what-ifs (``sim.results.run_directory.study_records``). Fields have the names
of the files (docs/run-directory.md), so ``from_plain`` reads them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from functools import cache, partial
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


Reader = Callable[[Any], Any]


def from_plain(kind: type[T], data: Mapping[str, Any]) -> T:
    """Return what a file has of a dataclass: fields that are missing have their default, other keys are left out.

    :raises TypeError, LookupError, AttributeError: if a value is none of its field.
    """
    dataclass_: Any = kind
    readers = _field_readers(dataclass_)
    return kind(**{name: readers[name](value) for name, value in data.items() if name in readers})


@cache
def _field_readers(kind: Any) -> dict[str, Reader]:
    hints = get_type_hints(kind)
    return {each.name: _reader(hints[each.name]) for each in fields(kind)}


@cache
def _reader(kind: Any) -> Reader:
    """Return what makes a value of this type of a file's."""
    if is_dataclass(kind) and isinstance(kind, type):
        return partial(from_plain, kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind.__getitem__
    if kind in _PLAIN:
        return partial(_checked, _PLAIN[kind])
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (list, tuple):
        item = _reader(inner[0])
        return lambda values: origin(map(item, values))
    if origin in (dict, Mapping):
        item = _reader(inner[1])
        return lambda values: {name: item(value) for name, value in values.items()}
    if type(None) in inner:
        known = _reader(next(each for each in inner if each is not type(None)))
        return lambda value: None if value is None else known(value)
    return lambda value: value


def _checked(types: tuple[type, ...], value: Any) -> Any:
    if type(value) not in types:
        raise TypeError(f"a {type(value).__name__} where a {types[0].__name__} stands: {value!r}")
    return value


_PLAIN: dict[Any, tuple[type, ...]] = {
    bool: (bool,), str: (str,), int: (int, float),
    float: (float, int, type(None)),  # files have null for NaN
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuShare:
    """What each GPU of a replica over several GPUs holds.

    :ivar gpus: of one replica; ``replicas``: all, those of full models included.
    :ivar slots, slot_bytes: adapter slots, and what one takes on each GPU; None where adapters take their exact size.
    :ivar load_bytes: what a load of the largest adapter copies to each GPU; every GPU's process reads the whole file.
    """

    gpus: int
    replicas: int
    slots: int | None = None
    slot_bytes: int | None = None
    load_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What one replica keeps in memory, in bytes over all its GPUs.

    :ivar replicas: how many there are like it.
    :ivar engine: what the engine takes besides, such as activations and CUDA graphs.
    :ivar slots: how many adapters have a padded slot; None: ``adapters`` is the size of their cache, or 0 where they
        share memory with the KV cache.
    :ivar copies: adapters that have room in host memory; ``host``: their bytes at the mean size, once per GPU;
        ``host_kv``: host memory for KV.
    """

    replicas: int
    weights: int
    engine: int
    slots: int | None
    adapters: int
    kv_tokens: int
    kv: int
    copies: int
    host: int
    host_kv: int = 0


@dataclass(frozen=True, slots=True)
class Setup:
    """On what a point was simulated.

    :ivar device, model, profile: as the profile names them; empty where the scenario gives all times itself.
    :ivar engine: whose rules the replicas follow.
    :ivar status: of the profile: ``measured``, ``derived`` or ``assumed``; empty without one.
    :ivar chosen: how near the profile's engine is, where it was chosen; empty: the scenario names the profile.
    :ivar costs_of: whose step and load times it has, where not the engine's own: ``vLLM 0.8.5, not 0.33``.
    :ivar beyond: what of its adapters lies outside what the profile covers: ``rank 64``.
    :ivar anchored: whether the profile was corrected by runs of somebody's own server.
    :ivar assumed: what was assumed because the scenario doesn't name it: ``GPU``, ``base model``.
    :ivar share: what each GPU holds; None: a replica runs on one GPU.
    :ivar memory: what each replica keeps; None where no adapters and KV cache share a GPU.
    :ivar in_order: whether tenants with an SLO wait behind those without, though the engine has priorities.
    :ivar pool: the name of its pool; empty in a fleet without pools.
    :ivar pools: of a fleet of pools, on what each runs; the other fields are then those of the first. None: no pools.
    :ivar by_load: the router that would send faster pools more requests, where that of the scenario sends all as many.
    """

    engine: str
    device: str = ""
    model: str = ""
    profile: str = ""
    status: str = ""
    chosen: str = ""
    assumed: str = ""
    costs_of: str = ""
    beyond: str = ""
    anchored: bool = False
    share: GpuShare | None = None
    memory: MemoryUse | None = None
    in_order: bool = False
    pool: str = ""
    pools: tuple[Setup, ...] | None = None
    by_load: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        data = {name: value for name, value in asdict(self).items() if value is not None}
        return data if self.pools is None else {**data, "pools": [pool.to_json() for pool in self.pools]}


@dataclass(frozen=True, slots=True)
class LoaderUse:
    """The loaders of all replicas.

    :ivar offered_load: loader-seconds asked for, over those there are; at 1 or more their queue grows, and below 1 it
        doesn't, such as where one load serves many that wait.
    :ivar blocks_steps: whether a replica loads from storage within its steps, so that nothing is computed meanwhile.
    :ivar host_holds_all: whether host memory has slots for all adapters.
    :ivar storage: the part of ``utilization`` that is loads from storage, which more host memory would save.
    """

    utilization: float | None = None
    offered_load: float | None = None
    loaders: int | None = None
    blocks_steps: bool = False
    host_holds_all: bool = False
    storage: float | None = None


@dataclass(frozen=True, slots=True)
class SlotUse:
    """Adapter slots.

    :ivar blocked_share: of the measured time in which requests waited since every slot was in use.
    :ivar in_use_peak: adapters in use or waited for at once; ``slots``: None where bytes are counted.
    """

    blocked_share: float | None = None
    in_use_peak: int | None = None
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class ComputeUse:
    """The replicas themselves.

    :ivar offered_load: arrivals over completions where the queue grew over the whole measured time; 1 where few
        completions don't tell how much, None elsewhere.
    """

    utilization: float | None = None
    offered_load: float | None = None


@dataclass(frozen=True, slots=True)
class FullModelUse:
    """Replicas that serve full models.

    :ivar utilization: share of their time that they spend loading; ``loads``: a replication.
    """

    utilization: float | None = None
    loads: float | None = None
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class BatchSlotUse:
    """Places in the batch: ``max_num_seqs``."""

    blocked_share: float | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class KvUse:
    """KV cache of one replica."""

    blocked_share: float | None = None
    peak_share: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class BucketUse:
    """A tenant's token bucket, in front of the replicas.

    :ivar counts: ``tokens`` or ``requests``; ``rate``: how many of them a second it admits; ``asked``: those of the
        measured requests.
    :ivar limited: share of these requests that it held or refused; ``refused``: how many it refused.
    :ivar refuses: whether it refuses requests; else they wait.
    :ivar wait_s: the part of the fleet's mean latency that is waiting for it.
    :ivar offered_load: what is asked for over what it admits, where the queue in front of it grew over the whole
        measured time; None elsewhere.
    """

    tenant: str
    rate: float
    asked: float
    limited: float = 0.0
    refused: int = 0
    refuses: bool = False
    wait_s: float = 0.0
    offered_load: float | None = None
    counts: str = "tokens"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What could limit a point. A part that the engine or the scenario lacks is None.

    :ivar faults: by kind: the share of the measured time, times that of the replicas, that are down or have slow
        storage.
    :ivar seats: places in the batch (files call them so).
    :ivar buckets: of the tenants that have one, in the order of the scenario.
    :ivar link: share of the time in which the links that KV is copied over are busy.
    """

    loader: LoaderUse = LoaderUse()
    slots: SlotUse = SlotUse()
    compute: ComputeUse = ComputeUse()
    full_models: FullModelUse | None = None
    faults: Mapping[str, float] = field(default_factory=dict)
    seats: BatchSlotUse | None = None
    kv: KvUse | None = None
    buckets: tuple[BucketUse, ...] = ()
    link: float | None = None

    @property
    def offered_load(self) -> float | None:
        """The highest offered load, to the loader, the replicas or a token bucket; at 1 or more, queues grow without
        limit."""
        loads = (self.loader.offered_load, self.compute.offered_load, *(each.offered_load for each in self.buckets))
        return max((load for load in loads if load is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the parts that there are as plain data."""
        empty = Capacity()
        plain = asdict(replace(self, faults=dict(self.faults)))
        changed = (each.name for each in fields(self) if getattr(self, each.name) != getattr(empty, each.name))
        return {name: list(plain[name]) if name == "buckets" else plain[name] for name in changed}


WRONG_KINDS = ("mixed", "stale", "refused_by_rollout", "wrong_served", "old_prefix", "lost", "failed_loads", "failed")
"""Counts of ``Impact`` whose requests got a mixed, stale or wrong answer, or none."""


@dataclass(frozen=True, slots=True)
class Impact:
    """What rollouts and faults did to the measured requests of all replications. A request may be in several counts.

    :ivar stale: answered by an old version after the new one had taken over.
    :ivar wrong_served: answered by another adapter, unnoticed; ``wrong_detected``: noticed.
    :ivar lost: with their replica; ``failed_loads``: their adapter could not be loaded.
    :ivar slow: late by the targets for single requests; None without such targets, and so are the other two of these.
    :ivar unanswered: unfinished when the run ended; ``slow_unanswered``: those of them that are late by then.
    :ivar requests_before, slow_before: that came before the first rollout or fault that begins at some time;
        ``unanswered_after``: that came from it on. None where everything is there from the start.
    :ivar replications: over which the counts are summed; in each, the rollouts and faults happen once.
    :ivar faults: their kinds, in alphabetical order.
    :ivar beyond: by kind, how many more requests of a replication it affects than there are in the same traffic without
        rollouts and faults; ``slow`` counts those that are not affected in another way. None where that traffic was not
        simulated.
    """

    requests: int = 0
    mixed: int = 0
    stale: int = 0
    refused_by_rollout: int = 0
    wrong_served: int = 0
    wrong_detected: int = 0
    retried: int = 0
    lost: int = 0
    failed_loads: int = 0
    rerouted: int = 0
    old_prefix: int = 0
    failed: int = 0
    slow: int | None = None
    unanswered: int = 0
    slow_unanswered: int | None = None
    requests_before: int | None = None
    unanswered_after: int | None = None
    slow_before: int | None = None
    replications: int = 1
    faults: tuple[str, ...] = ()
    beyond: dict[str, float] | None = None

    def mean(self, kind: str) -> float:
        """Return how many requests of a kind there are in a replication; ``failed``: for other reasons."""
        others = self.lost + self.failed_loads if kind == "failed" else 0
        return max(0, (getattr(self, kind) or 0) - others) / self.replications

    def to_json(self) -> dict[str, Any]:
        """Return the counts; of those that may be absent only ``slow`` says so."""
        return {name: count for name, count in asdict(self).items() if count is not None or name == "slow"}


@dataclass(frozen=True, slots=True)
class Timeline:
    """Means over about 200 equal spans of the first replication.

    TTFT and E2E are those of the requests that arrive in a span; their p99 is that of two spans more on both sides, but
    not across the begin of a rollout or fault, and None where there are too few.

    :ivar t_s: middles of the spans.
    :ivar replicas: with an autoscaler, how many there are, from the start of the cold start to the end of the drain;
        ``serving_replicas``: how many take requests.
    """

    t_s: list[float] = field(default_factory=list)
    running: list[float | None] = field(default_factory=list)
    waiting: list[float | None] = field(default_factory=list)
    loads_in_flight: list[float | None] = field(default_factory=list)
    arrivals_per_s: list[float | None] = field(default_factory=list)
    loads_per_s: list[float | None] = field(default_factory=list)
    ttft_mean_s: list[float | None] = field(default_factory=list)
    ttft_p99_s: list[float | None] = field(default_factory=list)
    e2e_mean_s: list[float | None] = field(default_factory=list)
    e2e_p99_s: list[float | None] = field(default_factory=list)
    replicas: list[float | None] = field(default_factory=list)
    serving_replicas: list[float | None] = field(default_factory=list)

    def column(self, name: str) -> list[float | None]:
        """Return a column by its name; empty where the run has none."""
        found: list[float | None] = getattr(self, name)
        return found

    def columns(self) -> dict[str, list[float | None]]:
        """Return the columns that are there, by name."""
        return {each.name: column for each in fields(self) if (column := self.column(each.name))}

    def to_json(self) -> dict[str, Any]:
        """Return the columns that are there as plain data."""
        return {name: list(column) for name, column in self.columns().items()}


@dataclass(frozen=True, slots=True)
class Difference:
    """What changes in a metric from one point to another; files have it under the metric's name.

    :ivar one, other: the two values; None where there is none.
    :ivar change: ``other - one``; None where a value is missing.
    :ivar lo, hi: 95 % interval of the change; None where nothing is known of its spread.
    :ivar relative: change over the absolute value of one; None where that is 0 or missing.
    :ivar word: of ``sim.results.pairs.WORDS``; better and worse as seen from the first point.
    :ivar paired: whether parts that met the same traffic were compared.
    :ivar note: what to know of the interval, or why there is none.
    """

    name: str = ""
    unit: str = "1"
    one: float | None = None
    other: float | None = None
    change: float | None = None
    lo: float | None = None
    hi: float | None = None
    relative: float | None = None
    word: str = ""
    paired: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Count:
    """A number of requests, with its 95 % interval."""

    value: int = 0
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True, slots=True)
class HeldBackRollout:
    """A rollout that was held back.

    :ivar rollout: its place in the scenario; ``weights``: the folder of its version.
    :ivar vetted: what ``loraplan vet --json`` says of each adapter there, with its ``path``.
    """

    rollout: int
    strategy: str
    at_s: float
    weights: str | None
    vetted: list[dict[str, Any]] = field(default_factory=list)


KEPT_CHANGE = ("unit", "one", "other", "change", "lo", "hi", "word", "note")


@dataclass(frozen=True, slots=True)
class HeldBack:
    """What holding rollouts back avoided, by the same traffic with them going out.

    :ivar requests: measured; ``answered``: those that a version held back would have answered, and by rollout.
    :ivar metrics: how much the rollouts would have changed.
    """

    rollouts: list[HeldBackRollout]
    requests: int
    answered: Count
    by_rollout: list[Count]
    metrics: dict[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        data = asdict(self)
        data["metrics"] = {
            name: {key: getattr(change, key) for key in KEPT_CHANGE} for name, change in self.metrics.items()
        }
        return data
