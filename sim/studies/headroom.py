"""How much more traffic fits: short simulations find the multiple of the scenario's traffic at which its SLO fails.

With tenants, that is the fleet's SLO or any of theirs.

All of them meet the same requests, only closer together (common random numbers). First one at a multiple far beyond
what the fleet can serve gives the highest throughput. Then few requests bracket the multiple at which the worst SLO
term crosses its target, and more requests locate it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from sim.errors import InputError
from sim.results.point import Point
from sim.results.point_summary import measure_alone, summarise
from sim.results.records import STATUS_WORDS, Recording
from sim.results.run_directory.headroom_record import (
    ALWAYS,
    BUCKETS,
    CLOSED_LOOP,
    EMPTY_CACHES,
    FOUND,
    NEVER,
    QUEUES,
    SCALING,
    TOO_LONG,
    TOO_SHORT,
    Headroom,
    Probe,
)
from sim.results.slices import tenant_results
from sim.results.slo_terms import all_terms, value_of
from sim.results.verdict import MET, PROBABLE, is_overloaded, met_probability, strain, unserved, verdict
from sim.spec.scenario import Scenario
from sim.studies.design import setup_of
from sim.studies.evaluate import facts_of
from sim.studies.short_runs import MOST, Traffic, steady
from sim.timing import timed
from sim.world.replication import Simulate, simulate
from sim.world.world import World

COARSE, FINE = 2_000, 5_000
"""Requests of a simulation that brackets the multiple, and of one that locates it; more where traffic is bursty."""
SECTIONS = 20
LEAST = 1 / 64
"""The smallest multiple that is tried."""
MOST_CLIENTS = 64
"""The largest multiple of the clients of a closed loop that is tried; other traffic ends at saturation."""
BRACKET, NARROW = 1.25, 1.08
"""Ratio of the ends of a bracket at which it is narrow enough for more requests, and for interpolation."""
Strains = Mapping[str, float]
"""Value over target by term, and how near the traffic is to saturation as ``queues``; above 1 a term fails."""
_FULL_BATCHES = 12
"""Requests of the overloaded simulation, over all batch slots of the fleet: the first and last batches aren't full."""
_FEWEST_BATCHES = 4
"""Requests of a trace, over those that run at a time when it is overloaded, from which on enough of its batches are
full: with half as many the throughput is off by a fifth."""
_OVERLOADED = 4_000
"""Requests of that simulation, at least."""
_OVERLOADS = (32.0, 512.0, 8192.0, 131072.0)
"""Multiples that are tried until one is far more than the fleet can serve."""
_COMPARABLE, _MOST_CORRECTED = 1.5, 1.25
"""Strain up to which today's point and a short simulation of it are alike, and the largest correction between them:
near saturation both depend on how long they are."""
_OVER, _KEEPS_UP = 1.25, 1.1
"""How many times what a fleet is known to serve a mild overload is, and up to what ratio nearly all is served."""
_STEEP = 3.0
"""Strain above which the least multiple that fails is beyond a steep edge."""
_FILLING = 0.05
"""Share of the time that loads from storage take from which an overload may only be that of empty caches."""
_CLEARLY = 1.25
"""Multiple that full caches serve within the SLO from which today's empty ones are why it is missed: short runs err."""


@timed("statistics")
def find_headroom(scenario: Scenario, today: Point | None = None, recording_of: Simulate | None = None) -> Headroom:
    """Return at what multiple of its traffic a scenario's SLO fails.

    Rollouts and faults happen at given times, so they are left out.

    :param today: the scenario's own point, where there is one: it is more exact than a short simulation, and whether
        the headroom is above 1 then agrees with it.
    :param recording_of: used in place of ``simulate``.
    :raises InputError: if the scenario can't be simulated.
    """
    without = tuple(name for name in ("rollouts", "faults") if getattr(scenario, name))
    without += (SCALING,) if scenario.fleet.autoscale else ()
    traffic = Traffic.of(steady(scenario))
    if today is None or not _may_be_cold(scenario, today):
        return replace(_Search(traffic, None if without else today, recording_of).find(), without=without)
    found, terms = _Search(traffic, None, recording_of).find(), all_terms(scenario)
    missed = bool(terms) and (is_overloaded(today) or met_probability(today, terms) <= 1 - PROBABLE)
    starts_full = "warm" not in scenario.cache.model_fields_set  # in the search
    if missed and starts_full and not without and (found.multiple or found.lo or 0.0) >= _CLEARLY:
        without = (EMPTY_CACHES,)
    elif is_overloaded(today) and not without:  # by a point that knows how much is served
        found = _Search(traffic, today, recording_of).find()
    return replace(found, without=without)


def _may_be_cold(scenario: Scenario, today: Point) -> bool:
    """Return whether today's point may miss its SLO for its empty caches at the start; those of the search are full."""
    starts_cold = not scenario.cache.warm and bool(today.value("miss_ratio"))
    filling = not is_overloaded(today) or (today.capacity.loader.storage or 0.0) >= _FILLING
    return starts_cold and filling and verdict(today, scenario.slo.terms()) != MET


class _Search:
    """One search.

    :param today: the point at a multiple of 1; None: it has to be simulated.
    :ivar probes: all simulations so far.
    :ivar _full: requests of a simulation in which all batches are full.
    :ivar _needed: about how many of a trace fill them, where it has fewer.
    :ivar _passing: by tenant, its share of the requests, and the multiple from which its token bucket holds or refuses
        some of them; ``_held``: the least of those at which a queue in front of a bucket grows that may fail.
    :ivar _most_today: the share of today's traffic that today's point serves; infinite where that is all of it.
    :ivar _least_today: what saturation is at least: just above 1 where today's point meets the SLO, and is no accident
        of a few requests.
    """

    def __init__(self, traffic: Traffic, today: Point | None = None, recording_of: Simulate | None = None) -> None:
        self._traffic = traffic
        self._recording_of = recording_of or simulate
        self._terms = all_terms(traffic.scenario)
        known = today is not None and all(value_of(today, name) is not None for name in self._terms)
        self._today = today if known else None
        # Batches as full as ``_find_saturation`` makes them serve more than today's queue lets a fleet serve.
        load = None if today is None or traffic.changes_over_s else today.capacity.compute.offered_load
        self._most_today = 1 / load if load is not None and load >= 1 else math.inf
        self._least_today = NARROW if self._today is not None and self._holds(self._today) else 0.0
        self._corrections: dict[str, float] | None = None
        self._saturation: float | None = None
        self._full = FINE
        self._needed: int | None = None
        self._passing: list[tuple[float, float]] = [(1.0, math.inf)]
        self._held = math.inf
        self.probes: list[Probe] = []
        self._failing: tuple[float, World, Recording] | None = None

    def find(self) -> Headroom:
        """Return the headroom."""
        if self._traffic.closed and not self._terms:
            return Headroom(CLOSED_LOOP)
        if not self._traffic.closed:
            self._saturation = self._find_saturation()
        if self._needed is not None:
            return Headroom(TOO_SHORT, trace_requests=self._traffic.requests, needed_requests=self._needed)
        if not self._traffic.fits:
            slow = self._traffic.changes_over_s
            return Headroom(TOO_LONG, saturation=self._saturation, period_s=slow, probes=tuple(self.probes))
        try:
            edge = self._find_edge()
        except InputError:  # such as more sessions at a time than can be simulated
            held = [probe.multiple for probe in self.probes if probe.strain <= 1]
            if not held:
                raise
            edge = Headroom(ALWAYS, lo=max(held))
        at_longest = edge.outcome == ALWAYS and edge.lo == self._traffic.most
        return replace(
            edge,
            term=self._term_at(edge.hi),
            saturation=self._saturation,
            period_s=self._traffic.changes_over_s if at_longest else None,
            failing=self._failing_point(edge),
            probes=tuple(self.probes),
        )

    def _find_edge(self) -> Headroom:
        most = self._where_queues_grow()
        longest = self._traffic.most
        if most is None or most > longest:
            return find_edge(self._strains, LEAST, min(MOST_CLIENTS, longest), top_fails=False)
        if not self._terms:
            below = most / NARROW
            if max(self._strains(below, fine=True).values()) <= 1:
                return Headroom(FOUND, most, below, most)
        return find_edge(self._strains, LEAST, most, top_fails=True)

    def _term_at(self, multiple: float | None) -> str:
        """Return the worst term of the last probe there; what grows without limit where that needed none."""
        grows = BUCKETS if multiple is not None and multiple >= self._held else QUEUES
        return next((probe.term for probe in reversed(self.probes) if probe.multiple == multiple), grows)

    def _find_saturation(self) -> float | None:
        """Return the multiple that is the highest throughput; None where nothing is too much."""
        scenario = self._traffic.scenario
        fleets = [each.fleet for each in scenario.pools or (scenario,)]
        slots = sum(fleet.replicas * (1 if fleet.engine == "fixed" else fleet.max_num_seqs) for fleet in fleets)
        self._full = requests = min(max(_OVERLOADED, _FULL_BATCHES * slots), MOST)
        for multiple in _OVERLOADS:
            try:
                world = self._traffic.world(multiple, requests, overloaded=True)
            except InputError:  # such as more sessions at a time than can be simulated
                return None
            recording = self._recording_of(world, 0, SECTIONS)
            self._needed = self._missing(recording, slots)
            assert world.traffic.rate is not None, "only a closed loop has no rate"
            found = _served(recording) / (world.traffic.rate / multiple)
            if not found:  # all at one time have no rate
                return None
            if found < multiple / 4:
                self._read_buckets(world, recording, world.traffic.rate / multiple)
                self.probes.append(Probe(multiple, len(recording.section_of), multiple / found, QUEUES))
                if any(pool.prefix_cache for pool in world.pools):
                    found = self._with_prefixes(found, multiple)
                return max(min(found, self._most_today), self._least_today)
        return None

    def _with_prefixes(self, found: float, most: float) -> float:
        """Return the highest throughput of mild overloads: among all that waits in a large one, the blocks that
        sessions come back for are evicted before they do.

        :param found: the throughput of the large one, at the multiple ``most``.
        """
        multiple = found * _OVER
        while multiple < most:
            world = self._traffic.world(multiple, self._full, overloaded=True)
            recording = self._recording_of(world, 0, SECTIONS)
            assert world.traffic.rate is not None, "only a closed loop has no rate"
            served = _served(recording) / (world.traffic.rate / multiple)
            self.probes.append(Probe(multiple, len(recording.section_of), multiple / served, QUEUES))
            found = max(found, served)
            if served < multiple / _KEEPS_UP:
                break
            multiple *= _OVER
        return found

    def _missing(self, recording: Recording, slots: int) -> int | None:
        """Return about how many requests a trace needs to fill the batches, if it has fewer: as memory lets run, or if
        it has too few to tell, as there are batch slots."""
        has = self._traffic.requests
        if not self._traffic.scenario.workload.recorded:
            return None
        most = _most_at_a_time(recording)
        if has >= min(_FEWEST_BATCHES * most, MOST):
            return None
        return _FEWEST_BATCHES * (slots if 2 * most > has else most)

    def _read_buckets(self, world: World, recording: Recording, rate: float) -> None:
        """Note from which multiples on the token buckets of tenants let no more pass.

        :param rate: today's.
        """
        if world.traffic.tenant_of is None or all(each.bucket is None for each in self._traffic.scenario.tenants):
            return
        requests, self._passing = recording.requests, []
        tenant = world.traffic.tenant_of[requests["adapter"].astype(np.int64)]
        tokens = requests["prompt_tokens"].astype(np.float64) + requests["output_tokens"].astype(np.float64)
        for place, spec in enumerate(self._traffic.scenario.tenants):
            own = tenant == place
            counts_tokens = spec.bucket is None or spec.bucket.counts == "tokens"
            asked = rate * float(tokens[own].sum() if counts_tokens else np.count_nonzero(own)) / len(tokens)
            most = spec.bucket.rate / asked if spec.bucket is not None and asked else math.inf
            self._passing.append((float(own.mean()), most))
            judged = spec.slo.terms() or self._traffic.scenario.slo.terms() or not self._terms
            if spec.bucket is not None and spec.bucket.full == "queue" and judged:
                self._held = min(self._held, most)

    def _load(self, multiple: float) -> float:
        """Return how near what reaches the replicas is to saturation."""
        passing = sum(share * min(multiple, most) for share, most in self._passing)
        return 0.0 if self._saturation is None else passing / self._saturation

    def _where_queues_grow(self) -> float | None:
        """Return the multiple from which on queues grow without limit; None: up to the largest, they don't."""
        if self._passing == [(1.0, math.inf)]:
            return self._saturation
        if self._load(MOST_CLIENTS) < 1:
            return self._held if self._held < MOST_CLIENTS else None
        from scipy.optimize import brentq

        return min(self._held, float(brentq(lambda multiple: self._load(multiple) - 1, 0.0, MOST_CLIENTS)))

    def _strains(self, multiple: float, *, fine: bool) -> Strains:
        """Simulate a multiple of the traffic, unless it is today's and known."""
        if multiple == 1 and self._today is not None:
            return self._judge(multiple, self._today)
        if fine and self._today is not None and self._corrections is None:
            self._corrections = self._compare(self._today)
        point, world, recording = self._measure(multiple, FINE if fine else COARSE)
        strains = self._judge(multiple, point)
        if max(strains.values()) > 1 and (self._failing is None or fine or multiple <= self._failing[0]):
            self._failing = (multiple, world, recording)
        return strains

    def _compare(self, today: Point) -> dict[str, float]:
        """Return by term how far a simulation of today's traffic is from today's point, which has more requests.

        Multiples of the traffic have the same requests, and so nearly the same error: of a p99 of times, which
        depends on a few long answers, most of it. A term that grows steeply crosses its target at nearly the same
        multiple whatever its error.
        """
        steep = min((probe.strain for probe in self.probes if probe.strain > 1), default=1.0) > _STEEP
        if not self._terms or steep or unserved(today)[1] < FINE:
            return {}
        point, _, _ = self._measure(1.0, FINE)
        found = {}
        for name, target in self._terms.items():
            own, exact = (strain(each, name, target) for each in (point, today))
            if 0 < exact <= _COMPARABLE and 0 < own <= _COMPARABLE:
                found[name] = min(max(exact / own, 1 / _MOST_CORRECTED), _MOST_CORRECTED)
        return found

    def _measure(self, multiple: float, requests: int) -> tuple[Point, World, Recording]:
        world = self._traffic.world(multiple, requests)
        recording = self._recording_of(world, 0, SECTIONS)
        if self._terms:
            facts = facts_of(world)
            metrics, late, _ = measure_alone(recording, facts, {*self._terms, *STATUS_WORDS})
            point = Point({}, metrics, late=late, tenants=tenant_results([recording], facts, alone=True))
        else:
            point = summarise([recording], facts_of(world), {}, [])
        return point, world, recording

    def _judge(self, multiple: float, point: Point) -> Strains:
        """Return the strains of a point; without an SLO the loaders' load counts too, which misses may take first."""
        corrections = {} if point is self._today else self._corrections or {}
        strains = {name: own * corrections.get(name, 1.0) for name, own in self._strains_of(point).items()}
        loads = [self._load(multiple)]
        if not self._terms:
            loads.append(point.capacity.loader.offered_load or 0.0)
        strains |= {QUEUES: max(loads), BUCKETS: multiple / self._held}
        term = max(strains, key=lambda name: strains[name])
        _, requests = unserved(point)
        self.probes.append(Probe(multiple, round(requests), strains[term], term))
        return strains

    def _holds(self, today: Point) -> bool:
        """Return whether today's point meets the SLO, and has enough requests to tell."""
        enough = not (self._traffic.changes_over_s or is_overloaded(today)) and unserved(today)[1] >= FINE
        return enough and max(self._strains_of(today).values(), default=math.inf) <= 1

    def _strains_of(self, point: Point) -> Strains:
        """Return the strain of each SLO term."""
        return {name: strain(point, name, target) for name, target in self._terms.items()}

    def _failing_point(self, edge: Headroom) -> Point | None:
        """Return what says what limits the traffic where it fails, without what only charts need."""
        if edge.hi is None:
            return None
        if edge.hi == 1 and self._today is not None:
            point = self._today
        else:
            if self._failing is None or self._failing[0] != edge.hi:  # where only the throughput said that it fails
                _, world, recording = self._measure(edge.hi, max(FINE, self._full))
            else:
                _, world, recording = self._failing
            point = replace(summarise([recording], facts_of(world), {}, []), setup=setup_of(world))
        return Point(
            {},
            point.metrics,
            breakdown=point.breakdown,
            capacity=point.capacity,
            impact=point.impact,
            unserved=point.unserved,
            tenants=point.tenants,
            pools=point.pools,
            setup=point.setup,
        )


def _served(recording: Recording) -> float:
    """Return the requests per second that the fleet serves while its batches are full.

    It is taken between the first and the last 30 % of the answers. The replica that is busiest for its share of the
    requests decides: the others can't help it.
    """
    ends = np.asarray(recording.requests["finished_s"], dtype=np.float64)
    finished, replica = ends[ends >= 0], recording.requests["replica"][ends >= 0]
    rates = []
    for each in np.unique(replica):
        times = np.sort(finished[replica == each])
        first, last = int(0.3 * len(times)), int(0.7 * len(times))
        if last > first and times[last] > times[first]:
            rates.append((last - first) / float(times[last] - times[first]) * len(finished) / len(times))
    return min(rates, default=math.inf)


def _most_at_a_time(recording: Recording) -> int:
    """Return how many requests ran at a time, at most."""
    ran = np.asarray(recording.requests["finished_s"], dtype=np.float64) >= 0
    begins, ends = (np.sort(recording.requests[name][ran]) for name in ("admitted_s", "finished_s"))
    running = np.arange(1, len(begins) + 1) - np.searchsorted(ends, begins, side="right")
    return int(running.max(initial=0))


class Strained(Protocol):
    """Returns the strains at a multiple of the traffic; finer ones cost more."""

    def __call__(self, multiple: float, *, fine: bool) -> Strains: ...


def find_edge(strains: Strained, least: float, most: float, *, top_fails: bool) -> Headroom:
    """Return where the worst strain crosses 1, starting from a multiple of 1, and the nearest multiples on both sides.

    :param top_fails: whether ``most`` certainly is too much, so that it needs no simulation.
    """

    def fails(multiple: float) -> bool:
        return (top_fails and multiple >= most) or max(strains(multiple, fine=False).values()) > 1

    at = min(1.0, most)
    if fails(at):
        lo, hi = at / 2, at
        while fails(lo):
            if lo <= least:
                return Headroom(NEVER, hi=lo)
            lo, hi = lo / 2, lo
    else:
        lo, hi = at, min(2 * at, most)
        while not fails(hi):
            if hi >= most:
                return Headroom(ALWAYS, lo=hi)
            lo, hi = hi, min(2 * hi, most)
    while hi / lo > BRACKET:
        middle = math.sqrt(lo * hi)
        lo, hi = (lo, middle) if fails(middle) else (middle, hi)
    return _locate(strains, math.sqrt(lo * hi), least, most)


def _locate(strains: Strained, start: float, least: float, most: float) -> Headroom:
    """Return the edge near a multiple by the finer strains: steps until it is passed, then between two of them."""
    found = {at: strains(at, fine=True) for at in (start, 1.0) if max(at / start, start / at) < BRACKET}
    steps = 0
    while True:
        below = max((at for at, each in found.items() if max(each.values()) <= 1), default=None)
        above = min((at for at, each in found.items() if max(each.values()) > 1 and at > (below or 0)), default=None)
        if below is not None and above is not None and above / below < NARROW + 1e-9:
            return Headroom(FOUND, _crossing(below, above, found), below, above)
        if below is not None and above is not None:
            at = math.sqrt(below * above)
        else:
            step = NARROW ** max(1, steps)
            at = min(found) / step if below is None else min(max(found) * step, most)
            steps += 1
            if at < least or at in found:
                return Headroom(NEVER, hi=min(found)) if below is None else Headroom(FOUND, at, below, at)
        found[at] = strains(at, fine=True)


def _crossing(below: float, above: float, found: Mapping[float, Strains]) -> float:
    """Return where the term that is worst above crosses 1, on a line between the logarithms."""
    term = max(found[above], key=lambda name: found[above][name])
    low, high = (math.log(max(found[at][term], 1e-9)) for at in (below, above))
    share: float = -low / (high - low)
    return below * math.exp(share * math.log(above / below))
