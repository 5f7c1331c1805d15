"""From a design to a point: how runs, sweeps, plans, what-ifs and remedies get their numbers.

All of them call ``evaluate``. They differ in their options, and in whether the parts
of an evaluation run in this process or on a pool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, pairwise
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.results.baseline_impact import UsualImpact, WithheldVersions, avoided, usual_impact, with_impact
from sim.results.calibration import ReplicationValues, values_of_replication, with_calibration
from sim.results.fleet_costs import priced
from sim.results.metric_state import Cause
from sim.results.point import Metric, Point
from sim.results.point_summary import summarise
from sim.results.records import request_table
from sim.results.sample_data import FaultWindow, PoolFacts, ScenarioFacts, Span, TenantFacts
from sim.results.statistics import is_whole, sections_of_cycles
from sim.spec.profile_choice import prices_of
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import Crash, FailingLoads, NetworkDelay, SlowStorage, StorageStall, ends_s
from sim.spec.sections.tenants import Tenant
from sim.spec.sections.times_of_day import parse_time_of_day
from sim.spec.sections.traffic_laws import DiurnalArrivals, PiecewiseArrivals
from sim.spec.units import human_seconds
from sim.studies.design import Design, make_design, setup_of
from sim.studies.vetting_gate import held_back_record
from sim.timing import timed
from sim.world.replication import Simulate, simulate
from sim.world.world import Pool as ReplicaPool
from sim.world.world import World

if TYPE_CHECKING:
    import pyarrow

    from sim.results.records import Recording
    from sim.studies.backends.pool import Pool

_MOST_SPANS, _DAY_S, _ALIKE_S = 24, 86400.0, 1e-6
"""Parts of a cycle, at most; the cycle whose parts are times of day; times that only rounding tells apart."""
REPLICATION, DRAW, COUNTERFACTUAL, BASELINE = "replication", "draw", "counterfactual", "baseline"


class Part(NamedTuple):
    """One simulation of an evaluation: which kind, and its number among those of its kind."""

    kind: str
    place: int


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What an evaluation includes.

    :ivar set: swept keys and values that made the design.
    :ivar replications: None: as many as the scenario says.
    :ivar draws: simulate draws of the profile, for calibration intervals.
    :ivar counterfactual: simulate the same traffic without the rollouts and faults, for their impact, and with the
        rollouts that are held back, for what that avoided.
    :ivar requests: keep the request table of the first replication.
    """

    set: dict[str, Any] = field(default_factory=dict)
    replications: int | None = None
    draws: bool = True
    counterfactual: bool = True
    requests: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """An evaluated design.

    :ivar requests: of the first replication, where the options ask for them.
    :ivar longer: the scenario with twice the requests, where ``run.half_width`` asks for a longer run; else None.
    """

    point: Point
    requests: pyarrow.Table | None
    longer: Scenario | None = None


Runner = Callable[[Design, Sequence[Part]], Iterable[tuple[Part, Any]]]
"""Simulates parts of a design and yields each with its result, in any order."""


def _cycles(world: World) -> float:
    """Return how many cycles of the traffic a replication measures; 0: its rate repeats none."""
    spans = _spans(world.scenario)
    return world.traffic.expected_s() * (1 - world.scenario.run.warmup) / spans[0].cycle_s if spans else 0.0


def parts_of(design: Design, options: EvaluationOptions) -> list[Part]:
    """Return the simulations that an evaluation takes, replications first."""
    count = design.replications if options.replications is None else options.replications
    parts = [Part(REPLICATION, place) for place in range(count)]
    if options.draws:
        parts += [Part(DRAW, place) for place in range(len(design.draws))]
    if options.counterfactual:
        for kind, world in ((COUNTERFACTUAL, design.counterfactual), (BASELINE, design.baseline)):
            parts += [Part(kind, place) for place in range(count if world is not None else 0)]
    return parts


@timed("statistics")
def simulate_part(
    design: Design, part: Part, recording_of: Simulate | None = None
) -> Recording | ReplicationValues | UsualImpact:
    """Simulate one part.

    A draw meets the traffic of a replication that is also simulated with the profile's own costs. All parts are cut
    into as many sections as intervals over the scenario's own number of replications need.

    :param recording_of: used in place of ``simulate``.
    """
    recording_of = recording_of or simulate
    world, place = design.world, part.place
    sections = sections_of_cycles(design.replications, _cycles(world))
    if part.kind == DRAW:
        drawn = world.with_draw(design.draws[place])
        return values_of_replication(recording_of(drawn, place % design.replications, sections), facts_of(world))
    if part.kind == COUNTERFACTUAL:
        assert design.counterfactual is not None, "a rollout is held back"
        return recording_of(design.counterfactual, place, sections)
    if part.kind == BASELINE:
        assert design.baseline is not None, "something changes"
        return usual_impact(recording_of(design.baseline, place, sections), facts_of(world))
    return recording_of(world, place, sections)


def in_this_process(design: Design, parts: Sequence[Part]) -> Iterator[tuple[Part, Any]]:
    """Simulate parts one after the other."""
    for part in parts:
        yield part, simulate_part(design, part)


def on_pool(pool: Pool, progress: Callable[[int, int], None] = lambda done, total: None) -> Runner:
    """Return a runner that simulates parts on a pool."""

    def run(design: Design, parts: Sequence[Part]) -> Iterator[tuple[Part, Any]]:
        progress(0, len(parts))
        for done, result in enumerate(pool.unordered(_part_task, [(design, part) for part in parts]), 1):
            yield result
            progress(done, len(parts))

    return run


@timed("statistics")
def evaluate(
    design: Design, options: EvaluationOptions, run: Runner = in_this_process, known: dict[Part, Any] | None = None
) -> Outcome:
    """Simulate a design and evaluate its recordings.

    :param known: results of parts that were simulated before; new results are added.
    """
    started = time.perf_counter()
    results: dict[Part, Any] = {} if known is None else known
    parts = parts_of(design, options)
    replications = [part for part in parts if part.kind == REPLICATION]
    doubles = design.scenario.run.half_width is not None and options.replications is None
    first = replications if doubles else parts
    results.update(run(design, [part for part in first if part not in results]))
    recordings: list[Recording] = [results[part] for part in replications]
    facts = facts_of(design.world)
    point = summarise(recordings, facts, options.set, list(design.world.notes))
    table = request_table(recordings[0], design.world.traffic.names, facts) if options.requests else None
    too_short = doubles and is_too_short(design.scenario, point)
    longer = doubled(design.scenario) if too_short else None
    if longer is None:
        results.update(run(design, [part for part in parts if part not in results]))
        if too_short:
            point = replace(point, warnings=[*point.warnings, _too_short_warning(design.scenario, point)])
        drawn = [results[part] for part in parts if part.kind == DRAW]
        if drawn:
            # Draws met the traffic of the scenario's own replications, even if more were simulated.
            met = recordings[: design.replications][: len(drawn)]
            own = [values_of_replication(recording, facts) for recording in met]
            point = with_calibration(point, own, drawn, design.world.draws)
        usual = [results[part] for part in parts if part.kind == BASELINE]
        if usual:
            point = with_impact(point, recordings, facts, usual)
        without = [results[part] for part in parts if part.kind == COUNTERFACTUAL]
        if without:
            point = _with_held_back(point, design, recordings, without)
    cost = {
        "simulated_s": float(sum(recording.stopped_s for recording in recordings)),
        "requests": float(sum(len(recording.section_of) for recording in recordings)),
        "wall_s": time.perf_counter() - started,
    }
    point = priced(replace(point, cost=cost, setup=setup_of(design.world)), *prices_of(design.scenario))
    return Outcome(point, table, longer)


def values_of_draws(design: Design, run: Runner) -> tuple[ReplicationValues, ...]:
    """Return what each draw of the profile says, on the traffic of the design's replications in turn."""
    parts = [Part(DRAW, place) for place in range(len(design.draws))]
    drawn = dict(run(design, parts))
    return tuple(drawn[part] for part in parts)


def evaluate_scenario(
    scenario: Scenario, options: EvaluationOptions | None = None, known: dict[Part, Any] | None = None
) -> Outcome:
    """Evaluate a scenario in this process, doubling the run while ``run.half_width`` asks for it.

    :param known: results of parts of this scenario that were simulated before.
    """
    outcome = evaluate(make_design(scenario), options or EvaluationOptions(), known=known)
    while outcome.longer is not None:
        outcome = evaluate(make_design(outcome.longer), options or EvaluationOptions())
    return outcome


def _part_task(design: Design, part: Part) -> tuple[Part, Any]:
    return part, simulate_part(design, part)


def _with_held_back(point: Point, design: Design, happened: Sequence[Recording], without: Sequence[Recording]) -> Point:
    """Return the point with the rollouts held back and the impact avoided; events get the scenario's rollout numbers.

    :param without: recordings of the same replications in which those rollouts go out.
    """
    world = design.counterfactual
    assert world is not None, "a rollout is held back"
    waves = {wave.number: wave for wave in world.rollout_plan.rollouts}
    back = []
    for each in design.held_back:
        wave, rollout = waves[each.number], each.rollout
        back.append(WithheldVersions(wave.names, wave.versions, rollout.at, rollout.at + (rollout.observe or inf)))
    record = avoided(list(happened), list(without), facts_of(world), back, held_back_record(design.held_back))
    numbers = {each.number for each in design.held_back}
    kept = [number for number in range(len(design.scenario.rollouts)) if number not in numbers]
    return replace(point, held_back=record, events=[_renumbered(event, kept) for event in point.events])


def _renumbered(event: dict[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    """Return an event that names its rollout by the number in the scenario.

    :param numbers: those of the rollouts that go out, in order.
    """
    if "rollout" not in event:
        return event
    old, new = event["rollout"], numbers[event["rollout"]]
    return {**event, "text": f"rollouts.{new}{event['text'].removeprefix(f'rollouts.{old}')}", "rollout": new}


def doubled(scenario: Scenario) -> Scenario | None:
    """Return the scenario of a run that is too short with twice the requests, if ``run.max_requests`` allows it."""
    workload = scenario.workload
    assert workload.requests is not None, "no other run is too short"
    if workload.requests * 2 > scenario.run.max_requests:
        return None
    longer = workload.model_copy(update={"requests": workload.requests * 2})
    return scenario.model_copy(update={"workload": longer})


def is_too_short(scenario: Scenario, point: Point) -> bool:
    """Return whether p99 E2E has a wider interval than ``run.half_width`` allows, or too small a sample for it.

    Stopping at the first narrow interval would favour chance.
    """
    run, workload = scenario.run, scenario.workload
    if run.half_width is None or workload.requests is None or workload.recorded:
        return False
    metric = point.metrics["e2e_p99_s"]
    return _is_too_wide(metric, run.half_width) or metric.state.cause is Cause.FEW_EFFECTIVE


def _is_too_wide(metric: Metric, half_width: float) -> bool:
    return metric.value is None or metric.hi is None or metric.hi - metric.value > half_width * metric.value


def _too_short_warning(scenario: Scenario, point: Point) -> str:
    assert scenario.run.half_width is not None, "without it, no run is too short"
    wide = _is_too_wide(point.metrics["e2e_p99_s"], scenario.run.half_width)
    return (
        f"the interval of e2e_p99 is {'wider than run.half_width' if wide else 'perhaps narrow by chance'} at "
        f"{scenario.workload.requests:,} requests, and twice as many are more than run.max_requests"
    )


def facts_of(world: World) -> ScenarioFacts:
    """Return the facts about a world that metrics need."""
    scenario, pools, traffic, first = world.scenario, world.own_pools, world.traffic, world.pools[0].scenario
    fixed, host = first.fleet.engine == "fixed", first.cache.host
    return ScenarioFacts(
        slo=scenario.slo.terms(),
        fixed=fixed,
        blocking=first.storage.mode == "blocking",
        replicas=world.replicas,
        loaders=_loaders(first),
        size_bytes=traffic.population.size_bytes,
        kind=traffic.population.kind,
        kind_names=traffic.population.kind_names,
        slots=_shared(pool.scenario.cache.gpu.slots for pool in pools),
        kv_tokens=max(pool.kv_tokens or 0 for pool in pools) or None,
        max_num_seqs=None if fixed else _shared(pool.scenario.fleet.max_num_seqs for pool in pools),
        refusals=_refusals(world.pools[0]),
        strategies=tuple(rollout.strategy for rollout in scenario.rollouts),
        faults=frozenset(fault.kind for fault in scenario.faults),
        seed=None if traffic.replayed else scenario.run.seed,
        faults_from_s=min((at for fault in scenario.faults if (at := getattr(fault, "at", 0.0)) > 0), default=inf),
        broken=tuple(_broken(scenario, world.replicas)),
        full_replicas=world.replicas - world.own_replicas,
        max_model_len=first.fleet.max_model_len,
        closed_loop=traffic.closed_loop,
        requests=None if traffic.replayed else scenario.workload.requests,
        steady=_is_steady(scenario),
        gpus=world.gpus,
        pools=tuple(map(_pool_facts, pools)) if scenario.fleet.pools else (),
        storage_blocks=first.storage.mode == "blocking" and (host is None or host.fill != "arrival"),
        host_holds_all=all(_host_holds_all(pool) for pool in pools),
        tenants=tuple(map(_tenant_facts, scenario.tenants)),
        tenant_of=traffic.tenant_of,
        spans=_spans(scenario),
        cyclic=is_whole(_cycles(world)),
        front_end_s=world.front_ends_s,
    )


def _spans(scenario: Scenario) -> tuple[Span, ...]:
    """Return the parts of the cycle that rates repeat: their steps; of a sine, or of very many steps, equal parts."""
    workload = scenario.workload
    arrivals, cycles = workload.arrivals, [tenant.steps for tenant in scenario.tenants]
    if isinstance(arrivals, PiecewiseArrivals):
        cycles.append(arrivals.steps)
    cycles = [steps for steps in cycles if len({step.level for step in steps}) > 1]
    ends = [list(accumulate(step.time for step in steps)) for steps in cycles]
    if isinstance(arrivals, DiurnalArrivals):
        ends.append([arrivals.period * part / _MOST_SPANS for part in range(1, _MOST_SPANS + 1)])
    ends = [[round(end / _ALIKE_S) * _ALIKE_S for end in each] for each in ends]
    if len({each[-1] for each in ends}) != 1:
        return ()
    cycle_s, at = ends[0][-1], sorted({0.0, *chain(*ends)})
    if len(at) > _MOST_SPANS + 1:
        at = [cycle_s * part / _MOST_SPANS for part in range(_MOST_SPANS + 1)]
    day_s = parse_time_of_day(workload.start) if abs(cycle_s - _DAY_S) < _ALIKE_S else None
    words = [_time_words(seconds, day_s) for seconds in at]
    rows = zip(pairwise(words), pairwise(at), strict=True)
    return tuple(Span(f"{began} to {ended}", first, last, cycle_s) for (began, ended), (first, last) in rows)


def _time_words(seconds: float, day_s: int | None) -> str:
    """Return a time of a cycle; of a day as the time of day, where the run says when it starts."""
    from reports.charts.axis_ticks import clock_words

    return human_seconds(seconds) if day_s is None else clock_words((day_s + seconds) % _DAY_S, 0)


def _host_holds_all(pool: ReplicaPool) -> bool:
    """Return whether the host memory of a replica has slots for all adapters."""
    host = pool.scenario.cache.host
    return host is not None and host.slots is not None and host.slots >= len(pool.traffic.population)


def _shared(values: Iterable[int | None]) -> int | None:
    """Return the value that all pools have; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _loaders(scenario: Scenario) -> int:
    return 1 if scenario.storage.mode == "blocking" else scenario.storage.loaders


def _tenant_facts(tenant: Tenant) -> TenantFacts:
    bucket = tenant.bucket
    if bucket is None:
        return TenantFacts(tenant.name, tenant.slo.terms())
    return TenantFacts(tenant.name, tenant.slo.terms(), bucket.rate, bucket.counts, bucket.full == "refuse")


def _pool_facts(pool: ReplicaPool) -> PoolFacts:
    return PoolFacts(
        name=pool.name,
        first=pool.first,
        replicas=pool.replicas,
        gpus=pool.replicas * pool.gpus,
        device="" if pool.profile is None else pool.profile.device,
        loaders=_loaders(pool.scenario),
        blocking=pool.scenario.storage.mode == "blocking",
        role="" if pool.role == "both" else pool.role,
    )


def _is_steady(scenario: Scenario) -> bool:
    """Return whether traffic and fleet stay the same throughout, so that only the start of a run differs."""
    arrivals = scenario.workload.arrivals
    changing = arrivals is None or isinstance(arrivals, (DiurnalArrivals, PiecewiseArrivals))
    changing = changing or any(tenant.steps for tenant in scenario.tenants)
    return not (changing or scenario.rollouts or scenario.faults or scenario.fleet.autoscale)


def _broken(scenario: Scenario, replicas: int) -> Iterator[FaultWindow]:
    for fault in scenario.faults:
        if isinstance(fault, Crash):
            yield FaultWindow(fault.kind, fault.at, fault.at + (fault.down or inf), 1 / replicas)
        elif isinstance(fault, (SlowStorage, StorageStall, FailingLoads, NetworkDelay)):
            share = 1.0 if fault.replica is None else 1 / replicas
            yield FaultWindow(fault.kind, fault.at, ends_s(fault), share)


def _refusals(pool: ReplicaPool) -> str:
    fleet, host = pool.scenario.fleet, pool.scenario.cache.host
    reasons = ["prompt and output don't fit into the KV cache of one replica"]
    if fleet.max_model_len is not None:
        reasons.append(f"are longer than fleet.max_model_len ({fleet.max_model_len})")
    if not fleet.chunked_prefill:
        reasons.append(f"the prompt is longer than a step's budget ({pool.batched_tokens})")
    if host is not None and host.full == "reject":
        reasons.append("host memory was full of adapters in use (cache.host.full: reject)")
    if any(tenant.bucket is not None and tenant.bucket.full == "refuse" for tenant in pool.scenario.tenants):
        reasons.append("the token bucket of their tenant lacked tokens (bucket.full: refuse)")
    if fleet.front_end != "none":
        reasons.append("the client had too many requests open")
    return ", or ".join(reasons)
