"""One point: all replications of one scenario, longer ones where the interval is still too wide, and draws.

A profile's draws say how far errors of the calibration reach; each is one more replication.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from sim.results.avoided import HeldBack, avoided
from sim.results.calibration import MIN_DRAWS, Alone, add_calibration, alone
from sim.results.measured import Broken, Facts
from sim.results.point import Point
from sim.results.stats import lacks_swings, sections_per_replication
from sim.results.views import request_table, summarise
from sim.spec.faults import Crash, FailingLoads, NetworkDelay, SlowStorage, StorageStall
from sim.spec.scenario import Scenario
from sim.studies.vetting import build, held_record, release
from sim.world.build import build_world, simulate
from sim.world.world import World

if TYPE_CHECKING:
    import pyarrow

    from sim.results.records import Recording

_NUMBERED = re.compile(r"rollouts\.(\d+)")

MAX_DRAWS = 8
"""Draws of a profile that are simulated. With 8, Student's t is 18 % above the normal quantile it tends to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A simulated point, with the requests of its first replication where they were asked for."""

    point: Point
    requests: pyarrow.Table | None


def replications_of(world: World) -> int:
    """Return how often a scenario is simulated: a trace comes only once."""
    return 1 if world.traffic.replayed else world.scenario.run.replications


def simulate_replication(world: World, replication: int) -> Recording:
    """Simulate one replication, cut into as many sections as the point's intervals need."""
    return simulate(world, replication, sections_per_replication(replications_of(world)))


def draws_of(world: World) -> list[int]:
    """Return which draws of the profile are simulated, evenly over all; none where there are too few to compare."""
    total = 0 if world.profile is None else len(world.profile.draws)
    count = min(total, MAX_DRAWS)
    return [place * total // count for place in range(count)] if total >= MIN_DRAWS else []


def simulate_draw(world: World, place: int) -> Alone:
    """Simulate one draw, on the traffic of a replication that is simulated with the profile's own costs too.

    :param place: in ``draws_of``.
    """
    assert world.profile is not None, "draws belong to a profile"
    drawn = world.with_costs(world.profile.draws[draws_of(world)[place]])
    return alone(simulate_replication(drawn, place % replications_of(world)), facts_of(world))


def simulate_point(scenario: Scenario, set_: dict[str, Any], *, with_requests: bool) -> Outcome:
    """Simulate a point in this process, doubling the run while ``run.half_width`` asks for it.

    :param set_: the swept keys and values that made this scenario.
    """
    longer: Scenario | None = scenario
    while longer is not None:
        outcome, longer = simulate_round(longer, set_, with_requests=with_requests)
    return outcome


@dataclass(frozen=True, slots=True)
class Built:
    """A scenario with the worlds that are simulated for it: all that a process needs which may lack its files.

    :ivar otherwise: the world in which rollouts that are held went out; None where none is held.
    """

    scenario: Scenario
    world: World
    otherwise: World | None


def built(what: Scenario | Built) -> Built:
    """Return a scenario with its worlds; where they are there already, as they are."""
    return what if isinstance(what, Built) else Built(what, build(what), world_otherwise(what))


def simulate_round(
    what: Scenario | Built, set_: dict[str, Any], *, with_requests: bool
) -> tuple[Outcome, Scenario | None]:
    """Simulate a point once; return also the longer scenario to go on with, None where this was long enough."""
    started = time.perf_counter()
    ready = built(what)
    world, otherwise = ready.world, ready.otherwise
    recordings = [simulate_replication(world, index) for index in range(replications_of(world))]
    outcome = conclude(world, recordings, set_, with_requests=with_requests)
    longer = doubled(ready.scenario, outcome.point)
    if longer is None:
        calibrate(outcome.point, world, recordings, [simulate_draw(world, i) for i in range(len(draws_of(world)))])
        if otherwise is not None:
            gone = [simulate_replication(otherwise, index) for index in range(replications_of(otherwise))]
            add_held(outcome.point, ready.scenario, otherwise, recordings, gone)
        outcome.point.cost["wall_s"] = time.perf_counter() - started
    return outcome, longer


def conclude(world: World, recordings: list[Recording], set_: dict[str, Any], *, with_requests: bool) -> Outcome:
    """Turn recordings into a point, without calibration intervals and the time it took."""
    point = summarise(recordings, facts_of(world), set_, list(world.notes))
    point.cost = {
        "simulated_s": float(sum(recording.stopped_s for recording in recordings)),
        "requests": float(sum(len(recording.section_of) for recording in recordings)),
    }
    table = request_table(recordings[0], world.traffic.names) if with_requests else None
    return Outcome(point, table)


def calibrate(point: Point, world: World, recordings: list[Recording], drawn: list[Alone]) -> None:
    """Add calibration intervals; a point of a profile without draws stays as it is.

    :param recordings: of all replications; ``drawn``: what ``simulate_draw`` gave, in order.
    """
    if drawn:
        assert world.profile is not None, "draws belong to a profile"
        facts = facts_of(world)
        own = [alone(recording, facts) for recording in recordings[: len(drawn)]]
        add_calibration(point, own, drawn, len(world.profile.draws))


def world_otherwise(scenario: Scenario) -> World | None:
    """Return the world in which every rollout happens; None where none is held."""
    otherwise = release(scenario).otherwise
    return None if otherwise is None else build_world(otherwise)


def add_held(
    point: Point, scenario: Scenario, otherwise: World, happened: list[Recording], gone: list[Recording]
) -> None:
    """Add which rollouts were held and what that avoided; events get the numbers that the scenario gives rollouts.

    :param otherwise: the world in which they happen; ``gone``: its recordings, of the same replications.
    """
    held, lineage = release(scenario).held, otherwise.lineage
    assert lineage is not None, "a rollout is held"
    waves = {wave.number: wave for wave in lineage.waves}
    back = []
    for each in held:
        wave, rollout = waves[each.number], each.rollout
        back.append(HeldBack(wave.names, wave.versions, rollout.at, rollout.at + (rollout.observe or inf)))
    point.held = {"rollouts": held_record(held), **avoided(happened, gone, facts_of(otherwise), back)}
    kept = [i for i in range(len(scenario.rollouts)) if i not in {each.number for each in held}]
    for event in point.events:
        match = _NUMBERED.match(event["text"])
        if match is not None:
            event["text"] = f"rollouts.{kept[int(match[1])]}{event['text'][match.end() :]}"


def doubled(scenario: Scenario, point: Point) -> Scenario | None:
    """Return the scenario with twice the requests, if its interval is wider than ``run.half_width`` allows.

    Also where too few swings are behind it: to stop at the first narrow interval would be to stop where luck made it.
    """
    run, workload = scenario.run, scenario.workload
    metric = point.metrics["e2e_p99_s"]
    if run.half_width is None or workload.requests is None or workload.trace is not None:
        return None
    too_wide = metric.value is None or metric.hi is None or metric.hi - metric.value > run.half_width * metric.value
    if not too_wide and not lacks_swings(metric):
        return None
    if workload.requests * 2 > run.max_requests:
        point.warnings.append(
            f"the interval of e2e_p99 is {'wider than run.half_width' if too_wide else 'narrow by luck, maybe,'} at "
            f"{workload.requests:,} requests, and twice as many are more than run.max_requests"
        )
        return None
    longer = workload.model_copy(update={"requests": workload.requests * 2})
    return scenario.model_copy(update={"workload": longer})


def facts_of(world: World) -> Facts:
    """Return what metrics must know of a world."""
    scenario, population = world.scenario, world.traffic.population
    fixed = scenario.fleet.engine == "fixed"
    return Facts(
        slo=scenario.slo.terms(),
        fixed=fixed,
        blocking=scenario.storage.mode == "blocking",
        replicas=world.replicas,
        loaders=1 if scenario.storage.mode == "blocking" else scenario.storage.loaders,
        size_bytes=population.size_bytes,
        kind=population.kind,
        kind_names=population.kind_names,
        slots=scenario.cache.gpu.slots,
        kv_tokens=world.kv_tokens,
        max_num_seqs=None if fixed else scenario.fleet.max_num_seqs,
        refusals=_refusals(scenario),
        strategies=tuple(rollout.strategy for rollout in scenario.rollouts),
        faults=frozenset(fault.kind for fault in scenario.faults),
        seed=None if world.traffic.replayed else scenario.run.seed,
        faults_from_s=min((at for fault in scenario.faults if (at := getattr(fault, "at", 0.0)) > 0), default=inf),
        broken=tuple(_broken(scenario)),
        full_replicas=world.replicas - scenario.fleet.replicas,
        max_model_len=scenario.fleet.max_model_len,
    )


def _broken(scenario: Scenario) -> Iterator[Broken]:
    """Return when replicas are down and when storage is slow."""
    for fault in scenario.faults:
        if isinstance(fault, Crash):
            yield Broken(fault.kind, fault.at, fault.at + (fault.down or inf), 1 / scenario.fleet.replicas)
        elif isinstance(fault, (SlowStorage, StorageStall, FailingLoads, NetworkDelay)):
            to_s = inf if fault.lasts is None else fault.at + fault.lasts
            yield Broken(fault.kind, fault.at, to_s, 1.0 if fault.replica is None else 1 / scenario.fleet.replicas)


def _refusals(scenario: Scenario) -> str:
    """Return for what reasons requests of a scenario may be refused."""
    fleet, host = scenario.fleet, scenario.cache.host
    reasons = ["prompt and output don't fit into the KV cache of one replica"]
    if fleet.max_model_len is not None:
        reasons.append(f"are longer than fleet.max_model_len ({fleet.max_model_len})")
    if not fleet.chunked_prefill:
        reasons.append(f"the prompt is longer than a step's budget ({fleet.max_num_batched_tokens})")
    if host is not None and host.full == "reject":
        reasons.append("host memory was full of adapters in use (cache.host.full: reject)")
    if fleet.front_end != "none":
        reasons.append("the client had too many requests open")
    return ", or ".join(reasons)
