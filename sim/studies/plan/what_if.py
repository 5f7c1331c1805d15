"""The effect of one change at a time on a chosen design, under the same traffic."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Any, Literal

from sim.errors import InputError
from sim.policies.replica_memory import ASSUMED_SLOWDOWN
from sim.results.pairs import BETTER, difference_of
from sim.results.point import Point
from sim.results.run_directory.result_files import point_key
from sim.results.run_directory.store import RunStore
from sim.results.run_directory.study_records import PAIR, WhatIfRow
from sim.results.slo_terms import all_terms
from sim.results.verdict import MET, strain, verdict
from sim.spec.engines import ENGINES
from sim.spec.policies import EVICTIONS, ROUTERS
from sim.spec.profile_choice import prices_of
from sim.spec.scenario import Adapters, Scenario
from sim.spec.scenario_file import LoadedScenario
from sim.spec.sections.traffic_laws import ClosedArrivals, GammaArrivals, PoissonArrivals, WeibullArrivals
from sim.spec.sections.workload import AdapterKind
from sim.spec.units import format_rate, human_bytes
from sim.studies.design import Design, build, make_design, serves_in_order
from sim.studies.evaluate import EvaluationOptions, evaluate
from sim.studies.execution import Execution
from sim.studies.study_identity import code_version, input_digests
from sim.studies.sweep import to_worker
from sim.world.memory.gpu_memory import host_copies
from sim.world.world import Pool, World

# The changes that a what-if tries, one at a time: more traffic, larger adapters, other policies.

_BASE_FORMATS: dict[Literal["bf16", "int8", "nf4"], str] = {
    "bf16": "as in the profile",
    "int8": "in 8 bits",
    "nf4": "in 4 bits",
}
_ATTENTION = ("q", "k", "v", "o")
_RANKS = (4, 16, 32)


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a scenario.

    :ivar group: ``traffic``, ``adapters``, ``base model``, ``slots``, ``loading``, ``host copies``, ``prefix cache``,
        ``kv offload``, ``eviction``, ``router``, ``steps``, ``scheduling``, ``pair`` of two, or ``remedy``.
    :ivar label: what it does, in words.
    :ivar set: values by dotted key; ``{}``: nothing changes.
    :ivar note: what to know of it.
    :ivar refused: why the scenario can't be changed so; empty where it can.
    """

    group: str
    label: str
    set: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    refused: str = ""


def changes(world: World) -> list[Change]:
    """Return the changes that make sense for a design, those of the traffic first."""
    scenario = world.scenario
    if world.scenario.fleet.pools:  # keys of the fleet and its caches may be others in each pool
        return [*_traffic(scenario), *_routers(scenario)]
    (pool,) = world.own_pools
    found = [*_traffic(scenario), *_adapters(scenario), *_base_model(pool), *_gpu_memory(pool), *_loading(pool)]
    found += [*_prefixes(pool), *_steps(scenario), *_priorities(scenario)]
    if scenario.eviction_policy.is_exchangeable:
        found += [
            Change("eviction", f"eviction {entry.name}", {"cache.eviction": entry.name})
            for entry in EVICTIONS.all(scenario.given.evictions)
            if entry.in_what_if and entry.name != scenario.cache.eviction
        ]
    return found + _routers(scenario)


def free_changes(world: World, groups: Container[str], planned: Collection[str]) -> list[Change]:
    """Return the changes of some groups, but for those of keys that a plan varies."""
    return [each for each in changes(world) if each.group in groups and each.set.keys().isdisjoint(planned)]


def _routers(scenario: Scenario) -> list[Change]:
    if scenario.fleet.total == 1:
        return []
    router, now = scenario.router, scenario.router_policy
    bounded = [Change("router", f"router {now.name} with bound {_BOUND:g}", {"router.bound": _BOUND})]
    return (bounded if "bound" in now.keys and router.bound is None and now.bound is None else []) + [
        Change("router", f"router {entry.name}", {"router.policy": entry.name, **router.without_own_keys})
        for entry in ROUTERS.all(scenario.given.routers)
        if entry.in_what_if and entry.name != router.policy
    ]


def _traffic(scenario: Scenario) -> Iterator[Change]:
    workload = scenario.workload
    if workload.trace is not None:
        faster = {"workload.trace.time_scale": 2 * workload.trace.time_scale}
        yield Change("traffic", "twice the traffic", faster, "the trace is played twice as fast")
        return
    if (client := workload.client) is not None:
        more = client.more(2)
        values = {f"workload.client.{key}": value for key, value in more.items()}
        yield Change("traffic", "twice the traffic", values, f"twice the client's {' and '.join(more)}")
        return
    arrivals = workload.arrivals
    assert arrivals is not None, "checked by the model"
    if isinstance(arrivals, ClosedArrivals):
        clients = arrivals.concurrency
        yield Change("traffic", "twice the clients", {"workload.arrivals.concurrency": 2 * clients})
        if clients > 1:
            yield Change("traffic", "half the clients", {"workload.arrivals.concurrency": clients // 2})
        return
    for factor, words in ((2, "twice the traffic"), (0.5, "half the traffic")):
        rates = {
            f"tenants.{i}.rate": tenant.rate for i, tenant in enumerate(scenario.tenants) if tenant.rate is not None
        }
        rates["workload.arrivals.rate"] = arrivals.rate
        yield Change("traffic", words, {key: format_rate(factor * rate) for key, rate in rates.items()})
    if isinstance(arrivals, PoissonArrivals):
        at, rate = "workload.arrivals", format_rate(arrivals.rate)
        gamma = {f"{at}.process": "gamma", f"{at}.rate": rate, f"{at}.cv": 3.0}
        yield Change("traffic", "bursty traffic (cv 1 → 3)", gamma, "gamma gaps at the same rate")
    elif isinstance(arrivals, GammaArrivals | WeibullArrivals) and arrivals.cv is not None:
        words = f"burstier traffic (cv {arrivals.cv:g} → {2 * arrivals.cv:g})"
        yield Change("traffic", words, {"workload.arrivals.cv": 2 * arrivals.cv})


def _adapters(scenario: Scenario) -> Iterator[Change]:
    adapters = scenario.adapters
    counted = scenario.workload.trace is None and not scenario.workload.popularity.fixes_count
    if adapters.count is not None and counted:
        yield Change("adapters", "twice the adapters", {"adapters.count": 2 * adapters.count})
    if adapters.size is not None:
        yield Change("adapters", "adapters twice as large", {"adapters.size": f"{2 * adapters.size} B"})
        return
    others = [kind for kind in adapters.mix if kind.kind != "lora"]
    if any(kind.size is not None for kind in adapters.mix if kind.kind == "lora"):
        return
    now = None if adapters.mix else (adapters.rank, _target_words(adapters.targets))
    for targets, words in (("all-linear", "all linear layers"), (list(_ATTENTION), "attention only")):
        for rank in _RANKS:
            if (rank, words) != now:
                yield Change("adapters", f"rank {rank}, {words}", _all_of(rank, targets, adapters, others))
    if adapters.dtype != "fp8":
        note = "half the bytes to load and keep; step costs as before"
        yield Change("adapters", "adapters in 8 bits", {"adapters.dtype": "fp8"}, note)


def _all_of(rank: int, targets: Any, adapters: Adapters, others: list[AdapterKind]) -> dict[str, Any]:
    """Return the values that give every adapter this shape and leave full models and the base model alone."""
    if not others:
        drop = {"adapters.mix": None} if adapters.mix else {}
        return {**drop, "adapters.rank": rank, "adapters.targets": targets}
    kept = [kind.model_dump(mode="json", exclude_unset=True) for kind in others]
    for kind in kept:
        kind |= {"size": f"{kind['size']} B"} if kind.get("size") is not None else {}
    share = 1 - sum(kind.share for kind in others)
    return {"adapters.mix": [{"share": share, "rank": rank, "targets": targets}, *kept]}


def _target_words(targets: Any) -> str:
    if targets == "all-linear":
        return "all linear layers"
    return "attention only" if set(targets) == set(_ATTENTION) else "other modules"


def _base_model(pool: Pool) -> Iterator[Change]:
    """Yield other formats of the base weights; where the KV cache is given in tokens, they would change no memory."""
    scenario = pool.scenario
    if pool.profile is None or pool.kv_tokens is None or scenario.fleet.kv_tokens is not None:
        return
    now = scenario.adapters.base_quantization
    drop = {
        f"adapters.{key}": None
        for key in ("base_slowdown", "base_double_quantization")
        if key in scenario.adapters.model_fields_set
    }
    for name, words in _BASE_FORMATS.items():
        if name == now:
            continue
        measured = name == "bf16" or (name in pool.profile.quantized and pool.profile.quantized[name].step is not None)
        note = ""
        if not measured:
            slowdown = f"the base model's part of a step takes {ASSUMED_SLOWDOWN[name]:g} times as long"
            note = f"the KV cache gets the memory; assumed: {slowdown}"
        yield Change("base model", f"base weights {words}", {**drop, "adapters.base_quantization": name}, note)


def _prefixes(pool: Pool) -> Iterator[Change]:
    """Yield prefix caching turned off, or on; where no two requests share text, it would change nothing."""
    fleet = pool.scenario.fleet
    if not pool.traffic.shares_text or fleet.engine == "fixed":
        return
    if fleet.prefix_caching:
        by_text = pool.scenario.router_policy.reads_text and fleet.replicas > 1
        note = "the router still goes by shared text" if by_text else ""
        yield Change("prefix cache", "no prefix caching", {"fleet.prefix_caching": False}, note)
    else:
        lacking = ENGINES[fleet.engine].no_prefix_cache if fleet.engine in ENGINES else ""
        yield Change("prefix cache", "prefix caching", {"fleet.prefix_caching": True}, refused=lacking)
    new_vllm = pool.scenario.cache.eviction == "vllm-lru" and fleet.uncached_blocks == "first"
    if fleet.prefix_caching and fleet.kv_offload is None and new_vllm:
        own_bytes = 0 if pool.profile is None else (pool.kv_tokens or 0) * pool.profile.memory.kv_bytes_per_token
        gigabytes = max(100, 10 * ceil(2 * own_bytes / 1e10))  # less than the GPU's own would be of no use
        label = f"KV offload to {gigabytes} GB of host memory"
        yield Change("kv offload", label, {"fleet.kv_offload.size": f"{gigabytes}GB"})


def _steps(scenario: Scenario) -> Iterator[Change]:
    """Yield smaller steps: gaps between tokens are as long as the step that others' prompts share."""
    fleet = scenario.fleet
    now = fleet.max_num_batched_tokens
    for tokens in _STEP_TOKENS if fleet.chunked_prefill and now is not None else ():
        if tokens < now:
            fewer = {"fleet.max_num_seqs": tokens} if fleet.max_num_seqs > tokens else {}
            yield Change("steps", f"steps of {tokens:,} tokens", {"fleet.max_num_batched_tokens": tokens, **fewer})


def _priorities(scenario: Scenario) -> Iterator[Change]:
    if serves_in_order(scenario):
        ranks = {f"tenants.{i}.priority": int(not tenant.slo.terms()) for i, tenant in enumerate(scenario.tenants)}
        yield Change("scheduling", "tenants with an SLO first", {"fleet.scheduling": "priority", **ranks})


def _gpu_memory(pool: Pool) -> Iterator[Change]:
    """Yield more GPU memory for adapters, which the KV cache loses."""
    cache, sizes = pool.scenario.cache, pool.traffic.population.adapter_bytes
    if cache.gpu.size is not None:
        for more in _more(cache.gpu.size, int(sizes.sum())):
            given = f"{ceil(more / 1e6)}MB"
            yield Change("slots", f"{human_bytes(more)} of GPU memory for adapters", {"cache.gpu.size": given})
    elif cache.gpu.slots is not None and not cache.gpu.unified:
        for more in _more(cache.gpu.slots, len(sizes) + cache.gpu.base_model_slot):
            short = cache.host is not None and cache.host.slots is not None and cache.host.slots < more
            copies = {"cache.host.slots": more} if short else {}
            yield Change("slots", f"{more} GPU slots", {"cache.gpu.slots": more, **copies})


def _more(now: int, most: int) -> list[int]:
    """Return two and four times ``now``, up to ``most``; more is of no use."""
    return sorted({min(factor * now, most) for factor in (2, 4)} - {now}) if now < most else []


def _loading(pool: Pool) -> Iterator[Change]:
    scenario = pool.scenario
    cache, storage, host = scenario.cache, scenario.storage, scenario.cache.host
    sizes = pool.traffic.population.adapter_bytes
    in_host = f"all adapters in host memory ({human_bytes(int(sizes.sum()))} a replica)"
    if cache.eviction == "vllm-lru":
        if host is None or (host.slots or 0) < len(sizes):
            yield Change("host copies", in_host, {"cache.host.slots": len(sizes)})
    elif host is not None and host.size is not None and host.fill == "load":
        if host.size < sizes.sum():
            yield Change("host copies", in_host, {"cache.host.size": f"{ceil(sizes.sum() / 1e6)}MB"})
    elif scenario.fleet.engine != "fixed" and (host is None or host.fill != "start"):
        drop = {f"cache.host.{key}": None for key in ("slots", "size") if host is not None}
        yield Change("loading", in_host, {**drop, "cache.host.fill": "start"})
    if storage.mode == "overlap":
        more = 2 * storage.loaders
        note = "concurrent loads do not share bandwidth in this version, so this result is too optimistic"
        yield Change("loading", f"{more} loaders", {"storage.loaders": more}, note)
        if scenario.fleet.engine == "continuous":
            set_ = {"storage.mode": "blocking", "storage.loaders": 1, "fleet.load_at": None, "cache.prefetch": "none"}
            yield Change("loading", "loads that block the step", set_)


_BOUND = 1.25
"""For routers that have none unless it is given: that of consistent hashing."""
_STEP_TOKENS = (512, 2048)
_FEW_RUNS = 2
"""Replications in which levers that cost nothing are tried."""
ALWAYS = ("ttft_p99_s", "e2e_p99_s", "miss_ratio", "loads_per_request")
"""Metrics that every what-if reports, in addition to those of the SLO."""
COSTS = ("usd_per_m_tokens",)
"""Those that it reports where there is a price."""


@dataclass(frozen=True, slots=True)
class ChangedDesign:
    """A change, and the design it leads to.

    :ivar design: None where the change is impossible; ``refused`` says why.
    :ivar memory: what fits into it (``memory_of``); ``key``: the name under which its ``point`` is kept.
    """

    change: Change
    design: LoadedScenario | None
    memory: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    key: str = ""
    point: Point | None = None


def what_if(
    loaded: LoadedScenario,
    store: RunStore,
    execution: Execution,
    groups: Container[str] = (),
    planned: Collection[str] = (),
) -> tuple[list[WhatIfRow], int]:
    """Return one row for each change (see ``rows_of``), and how many requests were simulated.

    :param loaded: the design that every change starts from.
    :param store: keeps points, so that an interrupted what-if resumes.
    :param groups: try only these changes, in few runs; (): all.
    :param planned: keys that a plan varies; with ``groups``, they stay.
    """
    world = build(loaded.scenario)
    found = free_changes(world, groups, planned) if groups else changes(world)
    if not found:
        return [], 0
    if groups:
        replications = min(loaded.scenario.run.replications, _FEW_RUNS)
        loaded = loaded.with_values({"run.replications": replications})
    evaluated = try_changes(loaded, found, store, execution)
    if groups and (both := _best_two(loaded, evaluated)) is not None:
        evaluated += try_changes(loaded, [both], store, execution)[1:]
    requests = sum(int(each.point.cost["requests"]) for each in evaluated if each.point is not None)
    return rows_of(loaded, evaluated), requests


def _best_two(loaded: LoadedScenario, evaluated: Sequence[ChangedDesign]) -> Change | None:
    """Return the two changes of different groups that help most, as one, where none alone meets the SLO."""
    base, terms = evaluated[0].point, all_terms(loaded.scenario)
    assert base is not None, "it was simulated"
    name = max(terms, key=lambda each: strain(base, each, terms[each]))
    rows = rows_of(loaded, evaluated)
    known = [(found, row) for row in rows if (found := row.metrics.get(name)) is not None and found.word == BETTER]
    helps = [row for _, row in sorted(known, key=lambda pair: inf if pair[0].other is None else pair[0].other)]
    one = next(iter(helps), None)
    other = next((row for row in helps if one is not None and row.group != one.group), None)
    if one is None or other is None or any(row.verdict == MET for row in rows):
        return None
    shared = {key: (one.set[key], other.set[key]) for key in one.set.keys() & other.set.keys()}
    if not all(isinstance(value, int) for pair in shared.values() for value in pair):
        return None
    larger = {key: max(pair) for key, pair in shared.items()}  # such as copies that go with slots
    return Change(PAIR, f"both {one.label} and {other.label}", {**one.set, **other.set, **larger})


def try_changes(
    loaded: LoadedScenario, wanted: Sequence[Change], store: RunStore, execution: Execution
) -> list[ChangedDesign]:
    """Simulate a design and each change of it under the same traffic; the unchanged design comes first."""
    evaluated = [_changed(loaded, change) for change in (Change("", "as it is"), *wanted)]
    assert evaluated[0].design is not None, "the chosen design can be built"
    designs = {each.key: each.design for each in evaluated if each.design is not None}  # equal designs only once
    found = {
        key: point
        for key, design in designs.items()
        if (point := store.load_priced(key, *prices_of(design.scenario))) is not None
    }
    execution.on_progress(len(found), len(designs))
    todo = [(key, design) for key, design in designs.items() if key not in found]
    arguments = ((place, to_worker(design.scenario, execution.pool)) for place, (_, design) in enumerate(todo))
    for place, point in execution.pool.unordered(_simulate, arguments):
        key = todo[place][0]
        store.save_point(key, point)
        found[key] = point
        execution.on_progress(len(found), len(designs))
    return [replace(each, point=found.get(each.key)) for each in evaluated]


def rows_of(loaded: LoadedScenario, evaluated: Sequence[ChangedDesign]) -> list[WhatIfRow]:
    """Return the effect of each change against the unchanged design, which is the first of those evaluated."""
    terms = all_terms(loaded.scenario)
    base = evaluated[0].point
    assert base is not None, "it was simulated"
    names = list(dict.fromkeys([*terms, *ALWAYS, *(name for name in COSTS if name in base.metrics)]))
    rows = []
    for each in evaluated[1:]:
        change, point = each.change, each.point
        row = WhatIfRow(change.group, change.label, change.set, change.note, each.refused or None)
        if point is not None:
            metrics = {name: found for name in names if (found := difference_of(base, point, name)) is not None}
            row = replace(row, verdict=verdict(point, terms), metrics=metrics)
        rows.append(row)
    return rows


def _changed(loaded: LoadedScenario, change: Change) -> ChangedDesign:
    if change.refused:
        return ChangedDesign(change, None, refused=change.refused)
    try:
        design = loaded.with_values(change.set) if change.set else loaded
        world = build(design.scenario)
    except InputError as error:
        return ChangedDesign(change, None, refused=error.problem)
    inputs = input_digests(design, world.profile_sha256)
    key = point_key(design.data, {"what_if": True}, code_version(), inputs)
    return ChangedDesign(change, design, memory_of(world), key=key)


def memory_of(world: World) -> dict[str, Any]:
    """Return what fits into one replica: GPU slots (of the mean size where bytes are counted), KV cache, copies.

    ``{"replicas", "slots", "kv_tokens", "host_bytes"}``, all but the first of one replica; None where nothing
    limits it, or there is no host memory.
    """
    first, population, (_, host_bytes) = world.pools[0], world.traffic.population, host_copies(world.pools[0])
    gpu = first.scenario.cache.gpu
    slots = gpu.slots
    if slots is None and not gpu.unified:
        slots = int(first.capacity / float(population.adapter_bytes.mean()))
    return {"replicas": world.replicas, "slots": slots, "kv_tokens": first.kv_tokens, "host_bytes": host_bytes or None}


def _simulate(place: int, what: Scenario | Design) -> tuple[int, Point]:
    """Simulate a design with the profile's own costs; draws take longer and cancel in the difference."""
    design = what if isinstance(what, Design) else make_design(what)
    # Naming the number of replications switches doubling off: every change meets the same traffic.
    options = EvaluationOptions(replications=design.replications, draws=False, counterfactual=False)
    return place, evaluate(design, options).point
