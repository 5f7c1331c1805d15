"""Runs a scenario in this process and hands its rows to the second count: requests, loads, single steps, single gaps.

Of production it uses what simulates and records, and nothing that computes metrics. Steps and gaps are taken as the
world writes them, before the recorder sums them up by section: a row stands for a leap, which is cut into its steps
here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
from librt.strings import BytesWriter
from naive_parts import Broken, Facts, Gap, Load, Replication, Request, Span, Step

from sim.results.point import Point
from sim.results.point_summary import summarise
from sim.results.recording.recorder import LEAP_ROW, PAUSE_ROW, Recorder
from sim.results.records import STATUS_WORDS, Recording, request_table
from sim.spec.scenario import Scenario
from sim.spec.sections.traffic_laws import PiecewiseArrivals
from sim.studies.design import Design
from sim.studies.evaluate import REPLICATION, Part, facts_of, simulate_part
from sim.world.build import build_world
from sim.world.world import World

TIER_WORDS = ("gpu", "host", "storage")
WAITING_WORDS = ("", "seats", "kv", "slots")
"""What ``blocked`` of a row of steps says."""


@dataclass
class Rows:
    """What the world wrote in one replication, as it wrote it."""

    steps: list[dict[str, float]]
    pauses: list[dict[str, float]]
    single_gaps: list[tuple[float, list[float]]]
    short_of_room: list[Span]


class KeepingRecorder(Recorder):
    """A recorder that keeps its rows of steps and gaps."""

    kept: ClassVar[list[Rows]] = []

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rows = Rows([], [], [], [])
        self.kept.append(self.rows)

    def _flush_steps(self) -> None:
        names = LEAP_ROW.names or ()
        self.rows.steps += [dict(zip(names, row, strict=True)) for row in rows_of(self.leap_rows, LEAP_ROW)]
        self.rows.pauses += [
            {"start": start, "seconds": seconds, "count": count}
            for start, seconds, count in rows_of(self.pause_rows, PAUSE_ROW)
        ]
        super()._flush_steps()

    def gaps(self, seconds: list[float], step_start_s: float) -> None:
        self.rows.single_gaps.append((step_start_s, list(seconds)))
        super().gaps(seconds, step_start_s)

    def short_of_room(self, start: float, end: float) -> None:
        self.rows.short_of_room.append(Span(start, end))
        super().short_of_room(start, end)


def rows_of(packed: BytesWriter, kind: np.dtype[Any]) -> list[Any]:
    return list(np.frombuffer(packed.getvalue(), dtype=kind).tolist())


def single_steps(row: dict[str, float]) -> Iterator[Step]:
    """Cut a leap into its steps: the first also waits for loads; each takes ``growth`` longer than the one before."""
    ends_s, replica, waiting_for = row["start"], int(row["replica"]), WAITING_WORDS[int(row["blocked"])]
    for place in range(int(row["steps"])):
        starts_s = ends_s
        done = place + 1
        ends_s = row["start"] + (row["load_s"] + done * row["first"] + row["growth"] * (done * (done - 1) / 2))
        yield Step(starts_s, ends_s, replica, waiting_for)


def steps_and_gaps(rows: Rows) -> tuple[list[Step], list[Gap]]:
    steps, gaps = [], []
    for row in rows.steps:
        for place, step in enumerate(single_steps(row)):
            steps.append(step)
            seconds = row["first"] + row["growth"] * place + (row["load_s"] if place == 0 else 0.0)
            gaps += [Gap(step.start_s, seconds)] * int(row["decoding"])
    for pause in rows.pauses:
        gaps += [Gap(pause["start"], pause["seconds"])] * int(pause["count"])
    for step_start_s, several in rows.single_gaps:
        gaps += [Gap(step_start_s, seconds) for seconds in several]
    for pause in rows.pauses:
        if pause["count"] < 0:  # the token of one of these is lost
            lost = min(gaps, key=lambda gap: abs(gap.step_start_s - pause["start"]) + abs(gap.gap_s - pause["seconds"]))
            gaps.remove(lost)
    return steps, gaps


def request_rows(recording: Recording, world: World) -> list[Request]:
    """The rows of ``requests.parquet``."""
    sizes = world.traffic.population.size_bytes.tolist()
    found = []
    for row in request_table(recording, world.traffic.names).to_pylist():
        assert row["status"] in STATUS_WORDS
        found.append(
            Request(
                index=row["index"],
                arrival_s=row["arrival_s"],
                adapter=row["adapter"],
                adapter_bytes=0.0 if row["adapter"] is None else float(sizes[row["adapter"]]),
                output_tokens=row["output_tokens"],
                outcome=row["outcome"],
                tier=row["tier"],
                replica=row["replica"],
                preemptions=row["preemptions"],
                load_queue_s=row["load_queue_s"],
                load_wait_s=row["load_wait_s"],
                admitted_s=row["admitted_s"],
                first_token_s=row["first_token_s"],
                finished_s=row["finished_s"],
                status=row["status"],
                session=row.get("session"),
                marks=tuple(row["marks"].split()),
                version=row["version"],
                last_version=row["last_version"],
            )
        )
    return found


def load_rows(recording: Recording, world: World) -> list[Load]:
    columns = [recording.loads[name].tolist() for name in ("started_s", "ended_s", "tier", "replica")]
    base_replicas = world.scenario.fleet.replicas
    return [
        Load(started_s, ended_s, TIER_WORDS[int(tier)], replica >= base_replicas, int(replica))
        for started_s, ended_s, tier, replica in zip(*columns, strict=True)
    ]


def replication_of(recording: Recording, rows: Rows, world: World) -> Replication:
    steps, gaps = steps_and_gaps(rows)
    took_s = recording.facts.get("rollout_duration_s")
    return Replication(
        requests=request_rows(recording, world),
        loads=load_rows(recording, world),
        short_of_room=rows.short_of_room,
        pauses=[Span(row[0], row[1]) for row in recording.backoffs.tolist()],
        retries=int(sum(row[2] for row in recording.backoffs.tolist())),
        steps=steps,
        gaps=gaps,
        evictions=recording.evictions,
        rollout_standstill_s=recording.facts.get("rollout_standstill_s", 0.0),
        extra_resident_bytes_peak=recording.facts.get("extra_resident_bytes_peak", 0.0),
        rollout_duration_s=None if took_s is None or np.isnan(took_s) else took_s,
    )


def facts_from(scenario: Scenario, world: World) -> Facts:
    slo = scenario.slo
    given = {term: getattr(slo, term) for term in type(slo).model_fields if getattr(slo, term) is not None}
    targets = {}
    for term in (
        "tpot_mean",
        *(f"{stage}_{tail}" for tail in ("p90", "p95", "p99") for stage in ("ttft", "e2e", "queue", "tpot")),
    ):
        if term in given:  # the last one of a stage counts
            targets[term.partition("_")[0]] = given[term]
    return Facts(
        warmup=scenario.run.warmup,
        duration_s=scenario.workload.duration,
        loaders=scenario.storage.loaders,
        base_replicas=scenario.fleet.replicas,
        all_replicas=world.replicas,
        fixed_engine=scenario.fleet.engine == "fixed",
        targets=targets,
        terms={term: target for term, target in given.items() if term != "miss_ratio"},
        rollout_begins=[rollout.at for rollout in scenario.rollouts],
        rollout_ends=[None if one.observe is None else one.at + one.observe for one in scenario.rollouts],
        fault_begins=[getattr(fault, "at", 0.0) for fault in scenario.faults],
        faults=tuple(fault.kind for fault in scenario.faults),
        broken=tuple(broken_times(scenario)),
        sessions=scenario.workload.sessions is not None,
        blocking=scenario.storage.mode == "blocking",
        cycles=measured_cycles(scenario),
        fetched_at_arrival=scenario.cache.host is not None and scenario.cache.host.fill == "arrival",
    )


def measured_cycles(scenario: Scenario) -> float:
    """How often a replication's rate goes through its steps while it is measured; 0 where it repeats none."""
    arrivals, workload = scenario.workload.arrivals, scenario.workload
    if not isinstance(arrivals, PiecewiseArrivals) or len({step.level for step in arrivals.steps}) == 1:
        return 0.0
    length_s = workload.duration or (workload.requests or 0) / arrivals.rate
    return (1 - scenario.run.warmup) * length_s / sum(step.time for step in arrivals.steps)


def broken_times(scenario: Scenario) -> Iterator[Broken]:
    one_replica = 1 / scenario.fleet.replicas
    for fault in scenario.faults:
        if fault.kind == "crash":
            yield Broken("crash", fault.at, math.inf if fault.down is None else fault.at + fault.down, one_replica)
        elif fault.kind in ("slow-storage", "storage-stall", "failing-loads", "network-delay"):
            end_s = math.inf if fault.lasts is None else fault.at + fault.lasts
            yield Broken(fault.kind, fault.at, end_s, 1.0 if fault.replica is None else one_replica)


@dataclass
class Run:
    """A simulated point beside the rows behind it."""

    world: World
    point: Point
    replications: list[Replication]
    facts: Facts


def run(scenario: Scenario) -> Run:
    world = build_world(scenario)
    KeepingRecorder.kept = kept = []
    with patch("sim.world.closed_loop.Recorder", KeepingRecorder):
        design = Design(world.scenario, world)
        recordings = [simulate_part(design, Part(REPLICATION, index)) for index in range(design.replications)]
    assert len(kept) == len(recordings)
    point = summarise(recordings, facts_of(world), {}, [])
    replications = [replication_of(*pair, world) for pair in zip(recordings, kept, strict=True)]
    return Run(world, point, replications, facts_from(scenario, world))
