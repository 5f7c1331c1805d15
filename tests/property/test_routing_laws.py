"""Laws of routers: only replicas that are up, bounded loads, bounded movement, fairness, luck without bias."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from sim.policies.routing import Router, RouterContext, View, make_router
from sim.policies.routing.placed import ServicePerAdapter
from sim.policies.routing.plain import Hash
from sim.spec.policies import FILTERS, PLACEMENTS, ROUTERS, SCORERS
from sim.spec.sections.control_plane import Router as RouterSpec
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.routing.router_views import InFlightActivity, Residency, Sources, ViewRefresher

ADAPTERS = 40
BOUNDED = ("hash", "affinity-residency")


@st.composite
def contexts_of(draw: st.DrawFn, placement: str | None = None) -> RouterContext:
    """A context whose view is full of whatever."""
    replicas = draw(st.integers(1, 9))
    luck = Random(draw(st.integers(0, 10**6)))
    view = View(
        loads=[luck.choice((0, 0, 1, 2, 7, 30)) for _ in range(replicas)],
        up=draw(ups(replicas)),
        resident=[luck.getrandbits(replicas) & luck.getrandbits(replicas) for _ in range(ADAPTERS + 5)],
        slots=draw(st.integers(1, 8)),
    )
    view.inside = [dict.fromkeys(luck.sample(range(ADAPTERS), luck.randrange(10)), 1) for _ in range(replicas)]
    batches = [sorted(adapters)[: luck.randrange(9)] for adapters in view.inside]
    view.running = masks_of(batches, ADAPTERS + 5)
    view.listed, view.in_flight = view.inside, view.loads
    view.waiting = [luck.choice((0, 0, 1, 4, 9)) for _ in range(replicas)]
    view.batch = [max(0, load - waiting) for load, waiting in zip(view.loads, view.waiting, strict=True)]
    view.kv = [luck.choice((0.0, 0.1, 0.5, 0.8, 0.95)) for _ in range(replicas)]
    view.held = [sum(mask >> r & 1 for mask in view.resident) for r in range(replicas)]
    view.copies = [mask | luck.getrandbits(replicas) & luck.getrandbits(replicas) for mask in view.resident]
    weights = None if draw(st.booleans()) else [luck.paretovariate(0.7) for _ in range(ADAPTERS)]
    return RouterContext(
        view,
        replicas,
        draw(st.integers(0, 2**64 - 1)),
        ADAPTERS,
        weights,
        placement=placement or draw(st.sampled_from(PLACEMENTS.names)),
        copies=draw(st.integers(1, replicas)),
        spec=RouterSpec.model_validate(any_profile(luck)),
        lists_twice=draw(st.booleans()),
        index_blocks=[luck.randrange(1, 60) for _ in range(replicas)],
        base_model=ADAPTERS + 5,
    )


def any_profile(luck: Random) -> dict[str, Any]:
    """Scorers with weights, some filters, and a picker."""
    return {
        "policy": "scorers",
        "scorers": [
            {"name": name, "weight": luck.choice((0.5, 1, 1, 2, 3)), **any_parameters(luck, name)}
            for name in luck.sample(SCORERS.names, luck.randrange(1, 6))
        ],
        "filters": [{"name": name} for name in luck.sample(FILTERS.names, luck.choice((0, 0, 1, 2)))],
        "picker": luck.choice(("max-score", "max-score", "weighted-random", "random")),
    }


def any_parameters(luck: Random, scorer: str) -> dict[str, Any]:
    """Some of the parameters that a scorer has."""
    values = {
        "count": ("sum", "union"),
        "match_length_weight": (0, 0.3, 1),
        "idle_threshold": (0, 1, 4),
        "max_busy_score": (0.5, 1),
        "queue_threshold_tokens": (500, 4_000_000),
        "load_horizon": ("200 ms", "5 s"),
    }
    return {key: luck.choice(values[key]) for key in SCORERS[scorer].keys if luck.random() < 0.7}


def masks_of(batches: Sequence[Iterable[int]], adapters: int) -> list[int]:
    """Replicas by adapter, and none for what comes after them, the plain way."""
    return [sum(1 << r for r, batch in enumerate(batches) if a in batch) for a in range(adapters + 1)]


def ups(replicas: int) -> st.SearchStrategy[list[int]]:
    some = st.lists(st.integers(0, replicas - 1), min_size=1, unique=True).map(sorted)
    return st.one_of(st.just(list(range(replicas))), some)


def made(policy: str, context: RouterContext, bound: float) -> Router:
    return make_router(policy, replace(context, bound=bound) if policy in BOUNDED else context)


@pytest.mark.parametrize("policy", ROUTERS.names)
@given(context=contexts_of(), bound=st.sampled_from((1.001, 1.25, 3.0)), data=st.data())
def test_only_replicas_that_are_up_are_chosen(policy: str, context: RouterContext, bound: float, data: Any) -> None:
    router = made(policy, context, bound)
    for change in range(3):
        for number in range(30):
            adapter = (7 * number) % (ADAPTERS + 5)  # some came after the start
            assert router.choose(adapter, number) in context.view.up, f"{policy}, change {change}, request {number}"
        context.view.up = data.draw(ups(context.replicas))


@pytest.mark.parametrize("policy", ROUTERS.names)
@given(context=contexts_of(), number=st.integers(0, 10**9))
def test_a_request_is_as_lucky_whatever_came_before(policy: str, context: RouterContext, number: int) -> None:
    if policy == "service-per-adapter":  # where an adapter goes whose replicas are down depends on those before
        context.view.up = list(range(context.replicas))
    router, other = made(policy, context, 1.25), made(policy, context, 1.25)
    if policy != "round-robin":  # whose turn it is depends on those before
        for i in range(5):
            other.choose(i, i)
    assert router.choose(3, number) == other.choose(3, number)


@pytest.mark.parametrize("policy", BOUNDED)
@given(context=contexts_of(), bound=st.sampled_from((1.0001, 1.1, 1.25, 2.0)), seed=st.integers(0, 10**6))
def test_no_replica_gets_more_than_the_bound_times_the_mean(
    policy: str, context: RouterContext, bound: float, seed: int
) -> None:
    router, view, luck = made(policy, context, bound), context.view, Random(seed)
    for number in range(60):
        replica = router.choose(luck.randrange(3), number)  # three adapters want it all
        total = sum(view.loads[r] for r in view.up) + 1
        view.loads[replica] += 1
        assert view.loads[replica] <= math.ceil(bound * total / len(view.up))
        if luck.random() < 0.3:
            leaves = luck.choice(view.up)
            view.loads[leaves] = max(0, view.loads[leaves] - 1)


class NaiveRing:
    """Sort all points anew for each request and look at each replica in their order."""

    def __init__(self, router: Hash, replicas: int, bound: float) -> None:
        self._point = router._point
        self._replicas = replicas
        self._bound = bound

    def choose(self, adapter: int, view: View) -> int:
        start = self._point(f"adapter/{adapter}")
        points = [(self._point(f"replica/{r}/{i}"), r) for r in range(self._replicas) for i in range(128)]
        order = [r for _, r in sorted(points, key=lambda point: (point[0] < start, point))]
        most = math.ceil(self._bound * (sum(view.loads[r] for r in view.up) + 1) / len(view.up))
        return next(r for r in order if r in view.up and view.loads[r] + 1 <= most)


@given(context=contexts_of(), bound=st.sampled_from((1.0001, 1.25, 3.0)))
def test_hash_goes_clockwise_as_a_naive_ring_does(context: RouterContext, bound: float) -> None:
    router = Hash(replace(context, bound=bound))
    naive = NaiveRing(router, context.replicas, bound)
    for number in range(10):
        replica = router.choose(number, number)
        assert replica == naive.choose(number, context.view)
        context.view.loads[replica] += 1


@given(context=contexts_of(), data=st.data())
def test_when_a_replica_leaves_only_its_adapters_move_and_all_return_with_it(context: RouterContext, data: Any) -> None:
    router, view = Hash(context), context.view
    view.up = list(range(context.replicas))
    before = [router.choose(adapter, 0) for adapter in range(300)]
    if context.replicas > 1:
        gone = data.draw(st.integers(0, context.replicas - 1))
        view.up = [replica for replica in view.up if replica != gone]
        without = [router.choose(adapter, 0) for adapter in range(300)]
        assert all(now == then for now, then in zip(without, before, strict=True) if then != gone)
        view.up = list(range(context.replicas))
    assert [router.choose(adapter, 0) for adapter in range(300)] == before


def test_shares_of_the_ring_are_as_even_as_its_points_make_them() -> None:
    replicas, adapters = 16, 200_000
    router = Hash(RouterContext(View(loads=[0] * replicas, up=list(range(replicas))), replicas, 11, adapters))
    counts = Counter(router.choose(adapter, 0) for adapter in range(adapters))
    # A share is the sum of 128 of 2,048 exponential gaps, nearly: its relative deviation is 1 / sqrt(128); that of the
    # count of adapters, 1 / sqrt(12,500), adds little. Five deviations for 16 replicas.
    deviation = math.hypot(1 / math.sqrt(128), math.sqrt(replicas / adapters))
    assert all(abs(counts[r] * replicas / adapters - 1) < 5 * deviation for r in range(replicas))


def check_frequencies(counts: Counter[int], expected: dict[int, float]) -> None:
    """Chi-square against expected counts, at 1 in 1,000."""
    assert set(counts) == set(expected)
    statistic = sum((counts[key] - mean) ** 2 / mean for key, mean in expected.items())
    assert statistic < chi2.ppf(0.999, len(expected) - 1)


def chosen(policy: str, view: View, requests: int, adapter: int = 0) -> Counter[int]:
    router = make_router(policy, RouterContext(view, len(view.loads), 2024, 1))
    return Counter(router.choose(adapter, number) for number in range(requests))


@pytest.mark.parametrize("up", [range(8), (1, 4, 6)])
def test_random_is_uniform_over_those_that_are_up(up: range | tuple[int, ...]) -> None:
    view = View(loads=[0] * 8, up=list(up))
    check_frequencies(chosen("random", view, 40_000), dict.fromkeys(up, 40_000 / len(up)))


@pytest.mark.parametrize("up", [range(8), (1, 4, 6)])
def test_power_of_two_draws_every_pair_as_often(up: range | tuple[int, ...]) -> None:
    n, requests = len(up), 40_000
    view = View(loads=[3, 7, 1, 0, 6, 4, 2, 5], up=list(up))
    # Of the n (n - 1) ordered pairs the one of rank i wins 2 (n - 1 - i): those with one that is more loaded.
    ranked = sorted(up, key=lambda replica: view.loads[replica])
    wins = {replica: 2 * (n - 1 - rank) / (n * (n - 1)) for rank, replica in enumerate(ranked[:-1])}
    check_frequencies(chosen("power-of-two", view, requests), {r: requests * share for r, share in wins.items()})


def test_power_of_two_takes_the_first_drawn_of_equal_ones() -> None:
    context = RouterContext(View(loads=[3] * 8, up=list(range(8))), 8, 2024, 1)
    router, first = make_router("power-of-two", context), make_router("random", context)
    assert all(router.choose(0, number) == first.choose(0, number) for number in range(1000))


@pytest.mark.parametrize("up", [range(8), (0, 2, 3, 5)])
def test_an_adapter_that_nobody_has_goes_to_any_of_the_least_loaded(up: range | tuple[int, ...]) -> None:
    resident = 0 if len(up) == 8 else 0b01000000  # by nobody, or by one that is down
    view = View(loads=[2, 1, 2, 1, 1, 1, 1, 3], up=list(up), resident=[resident])
    least = [replica for replica in up if view.loads[replica] == 1]
    check_frequencies(chosen("affinity-residency", view, 40_000), dict.fromkeys(least, 40_000 / len(least)))


@given(context=contexts_of(), number=st.integers(0, 10**6))
def test_requests_go_to_their_adapters_own_replicas(context: RouterContext, number: int) -> None:
    router, view = ServicePerAdapter(context), context.view
    for adapter in range(ADAPTERS + 5):
        homes = set(router.homes(adapter))
        assert len(homes) >= min(context.copies, len(view.up))
        replica = router.choose(adapter, number)
        assert replica in homes or not homes & set(view.up)


def test_requests_spread_evenly_over_an_adapters_copies() -> None:
    view = View(loads=[0] * 5, up=list(range(5)))
    router = ServicePerAdapter(RouterContext(view, 5, 2024, 10, copies=3))
    for adapter in range(10):
        counts = Counter(router.choose(adapter, number) for number in range(10_000))
        check_frequencies(counts, dict.fromkeys(router.homes(adapter), 10_000 / 3))


@pytest.mark.parametrize("placement", PLACEMENTS.names)
@given(data=st.data())
def test_copies_of_an_adapter_are_on_different_replicas(placement: str, data: Any) -> None:
    context = data.draw(contexts_of(placement))
    for homes in PLACEMENTS[placement].load()(context):
        assert len(homes) >= context.copies
        assert all(one < other for one, other in pairwise(homes))
        assert 0 <= homes[0] <= homes[-1] < context.replicas


@given(context=contexts_of("least-adapters"))
def test_least_adapters_places_as_a_naive_scheduler_does(context: RouterContext) -> None:
    counts = [0] * context.replicas
    for homes in PLACEMENTS["least-adapters"].load()(context):
        fewest = sorted(range(context.replicas), key=lambda r: counts[r])[: context.copies]
        assert homes == tuple(sorted(fewest))
        for replica in homes:
            counts[replica] += 1
    assert max(counts) - min(counts) <= 1


@given(context=contexts_of("bin-pack"))
def test_bin_pack_opens_a_replica_only_when_those_before_are_full(context: RouterContext) -> None:
    counts, slots = [0] * context.replicas, context.view.slots
    for homes in PLACEMENTS["bin-pack"].load()(context):
        room = [replica for replica in range(context.replicas) if counts[replica] < slots]
        assert set(homes) >= set(room[: context.copies])
        rest = [counts[replica] for replica in homes if replica not in room]
        others = [counts[replica] for replica in range(context.replicas) if replica not in (*homes, *room)]
        assert not rest or not others or max(rest) <= min(others)
        for replica in homes:
            counts[replica] += 1


@given(context=contexts_of("popularity"))
def test_popularity_places_as_a_naive_greedy_does_and_splits_the_hot(context: RouterContext) -> None:
    weights = context.weights or [1.0] * ADAPTERS
    fair = math.fsum(weights) / context.replicas
    placed, loads = PLACEMENTS["popularity"].load()(context), [0.0] * context.replicas
    for adapter in sorted(range(ADAPTERS), key=lambda a: (-weights[a], a)):
        homes = placed[adapter]
        each = weights[adapter] / len(homes)
        assert each <= fair * (1 + 1e-8)
        assert len(homes) == context.copies or weights[adapter] / (len(homes) - 1) > fair * (1 - 1e-8)
        others = [loads[replica] for replica in range(context.replicas) if replica not in homes]
        assert not others or max(loads[replica] for replica in homes) <= min(others) + 1e-9 * fair
        for replica in homes:
            loads[replica] += each


@given(seed=st.integers(0, 10**6), interval=st.sampled_from((0.001, 0.1, 0.25)), replicas=st.integers(1, 70))
def test_a_stale_view_shows_what_was_so_at_the_last_reading(seed: int, interval: float, replicas: int) -> None:
    luck, clock, view = Random(seed), Clock(), View()
    residency, loads = Residency(12, replicas), [0] * replicas
    running: list[dict[int, int]] = [{} for _ in range(replicas)]
    inside: list[dict[int, int]] = [{} for _ in range(replicas)]
    view.slots = 3

    def seen() -> tuple[Any, ...]:
        full = [adapters.copy() if len(adapters) >= view.slots else {} for adapters in inside]
        return clock.now, residency.masks.copy(), loads.copy(), masks_of(running, 12), full

    history = [seen()]
    left = 40

    def change(event: Call) -> None:
        nonlocal left
        left -= 1
        readings = math.floor(clock.now / interval * (1 + 1e-12))
        # Readings come first, so what happened at the instant of the last one isn't in it.
        then = next(state for state in reversed(history) if state[0] < readings * interval or state[0] == 0)
        assert (view.resident, view.loads, view.running, view.inside) == then[1:]
        replica, adapter = luck.randrange(replicas), luck.randrange(12)
        loads[replica] += luck.choice((1, 2))  # no fewer requests inside than adapters
        running[replica][adapter] = running[replica].get(adapter, 0) + 1
        inside[replica][luck.randrange(12)] = 1
        luck.choice((residency.placed, residency.placed, residency.left))(adapter, replica)
        if luck.random() < 0.1:
            residency.forget(replica)
        history.append(seen())

    times = sorted(luck.randrange(1, 2000) / 1024 for _ in range(left))
    for time in times:
        clock.call_at(time, ARRIVAL, change)
    reads = frozenset({"loads", "resident", "running", "inside"})
    sources = Sources(loads, residency, InFlightActivity(12, running), lambda: inside)
    ViewRefresher(clock, view, sources, reads, interval, lambda: times[-left] if left else math.inf)
    clock.run()
    assert left == 0
