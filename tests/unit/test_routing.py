from __future__ import annotations

import math
from typing import Any

import pytest

from sim.policies.routing import RouterContext, View, make_router
from sim.spec.sections import control_plane
from sim.world.clock import ARRIVAL, Call, Clock
from sim.world.routing.router_views import InFlightActivity, Residency, Sources, ViewRefresher


def context(view: View, **options: Any) -> RouterContext:
    values = {"replicas": len(view.loads), "key": 7, "adapters": 8} | options
    return RouterContext(view, **values)


def view_of(loads: list[int], up: list[int] | None = None) -> View:
    return View(loads=loads, up=list(range(len(loads))) if up is None else up)


def test_defaults_depend_on_the_policy() -> None:
    def defaults(policy: str) -> tuple[float, float | None]:
        router = control_plane.Router(policy=policy)
        return router.view_interval, router.load_bound

    assert defaults("round-robin") == (0.0, None)
    assert defaults("hash") == (0.0, 1.25)
    assert defaults("affinity-residency") == (0.0, None)
    assert defaults("affinity-activity") == (0.05, None)
    assert control_plane.Router.model_validate({"policy": "affinity-activity", "staleness": 0}).view_interval == 0.0
    assert control_plane.Router.model_validate({"policy": "hash", "bound": 2}).load_bound == 2.0


def test_residency_with_a_bound_leaves_a_full_holder_and_copies_the_adapter() -> None:
    view = view_of([4, 2])
    view.resident = [0b01]
    # With this request 7 are inside; a bound of 1.1 lets a replica hold ceil(1.1 * 7 / 2) = 4 of them.
    assert make_router("affinity-residency", context(view, bound=1.1)).choose(0, 0) == 1
    assert make_router("affinity-residency", context(view, bound=1.2)).choose(0, 0) == 0


def test_an_adapter_whose_replicas_are_down_moves_and_comes_back() -> None:
    view = view_of([0] * 3)
    router = make_router("service-per-adapter", context(view, adapters=6))
    assert [router.choose(adapter, 0) for adapter in range(6)] == [0, 1, 2, 0, 1, 2]
    view.up = [1, 2]
    # Both others have two adapters; the first moves to 1, the second then to 2.
    assert [router.choose(adapter, 0) for adapter in (0, 3, 0)] == [1, 2, 1]
    view.up = [2]
    assert router.choose(0, 0) == 2
    view.up = [0, 1, 2]
    assert [router.choose(adapter, 0) for adapter in (0, 3)] == [0, 0]


def test_nothing_is_left_of_a_stay_elsewhere() -> None:
    view = view_of([0] * 3, up=[1, 2])
    router = make_router("service-per-adapter", context(view, adapters=6))
    assert router.choose(0, 0) == 1
    view.up = [0, 1, 2]
    assert router.choose(0, 0) == 0
    view.up = [1, 2]
    assert router.choose(3, 0) == 1  # 1 and 2 have two adapters again


@pytest.mark.parametrize(
    ("placement", "start", "later", "moved"),
    [
        ("least-adapters", [0, 1, 2, 0], [1, 2, 0], [1, 2]),
        ("bin-pack", [0, 0, 1, 1], [2, 2, 0], [1, 2]),  # the first with a free slot, of two each; else with the fewest
        ("aibrix-bin-pack", [0] * 4, [0] * 3, [1, 1]),  # the fullest with less than ten
    ],
)
def test_later_adapters_and_those_that_must_move_are_placed_as_those_at_the_start(
    placement: str, start: list[int], later: list[int], moved: list[int]
) -> None:
    view = view_of([0] * 3)
    view.slots = 2
    router = make_router("service-per-adapter", context(view, adapters=4, placement=placement))
    assert [router.choose(adapter, 0) for adapter in range(4)] == start
    assert [router.choose(adapter, 0) for adapter in (4, 5, 6)] == later
    view.up = [1, 2]
    homeless = [adapter for adapter in range(4) if start[adapter] == 0][:2]
    assert [router.choose(adapter, 0) for adapter in homeless] == moved
    view.up = [0, 1, 2]
    assert [router.choose(adapter, 0) for adapter in range(7)] == start + later


def test_a_current_view_shares_the_live_lists() -> None:
    clock, view, batches = Clock(), View(), [{0: 1}, {}]
    inside = [{0: 1}, {1: 2}]
    sources = Sources([1, 2], Residency(3, 2), InFlightActivity(10, batches), lambda: inside)
    reads = frozenset({"loads", "resident", "running", "inside"})
    ViewRefresher(clock, view, sources, reads, 0.0, lambda: math.inf)
    assert view.loads is sources.loads
    assert view.resident is sources.residency.masks
    batches[1][2] = 1
    assert [view.running[adapter] for adapter in (0, 1, 2)] == [0b01, 0, 0b10]
    assert view.inside is inside
    clock.run()
    assert clock.now == 0


def loads_seen(times: list[float], clock: Clock, loads: list[int]) -> list[int]:
    """Return what arrivals see in a view that is read every 0.1 s, if each of them adds one to the load."""
    view, seen = View(), list[int]()

    def arrive(event: Call) -> None:
        seen.append(view.loads[0])
        loads[0] += 1

    for time in times:
        clock.call_at(time, ARRIVAL, arrive)
    ViewRefresher(
        clock, view, Sources(loads), frozenset({"loads"}), 0.1, lambda: next(iter(times[len(seen) :]), math.inf)
    )
    clock.run()
    return seen


def test_a_stale_view_is_read_at_multiples_of_the_interval_before_anything_else_happens_then() -> None:
    clock = Clock()
    # The third reading is at 3 * 0.1, which lies just above 0.3.
    times = [0.05, 0.1, 0.1, 0.15, 0.3, 0.30000000000000004, 0.35]
    assert loads_seen(times, clock, [0]) == [0, 1, 1, 1, 4, 5, 5]
    assert clock.now == pytest.approx(0.4)  # one more reading, which finds that no request is to come
    just_before = 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1
    assert just_before < 1.0 == 10 * 0.1
    assert loads_seen([just_before, 1.0], Clock(), [0]) == [0, 1]


def test_a_reading_that_no_arrival_would_see_is_left_out() -> None:
    clock, readings = Clock(), list[float]()

    class Noted(list[int]):
        def copy(self) -> list[int]:
            readings.append(clock.now)
            return list(self)

    loads_seen([0.05, 7.77, 7.79], clock, Noted([0]))
    assert readings == pytest.approx([0.0, 0.1, 7.7, 7.8])


def test_a_router_that_reads_nothing_has_no_readings() -> None:
    clock = Clock()
    ViewRefresher(clock, View(), Sources([0]), frozenset(), 0.1, lambda: 1.0)
    clock.run()
    assert clock.now == 0


def test_a_look_between_arrivals_makes_up_for_a_reading_that_was_left_out_and_reads_no_more() -> None:
    clock, view, loads = Clock(), View(), [0]
    views = ViewRefresher(clock, view, Sources(loads), frozenset({"loads"}), 1.0, lambda: 10.5)  # the next arrival
    seen = []

    def check(event: Call) -> None:
        loads[0] += 1
        views.refresh()
        seen.append((clock.now, *view.loads))

    for time in (0.5, 1.25, 1.75, 2.5, 2.75, 9.5, 10.25):
        clock.call_at(time, ARRIVAL, check)
    clock.run(until=10.4)
    # The reading at 1 was on the clock, with a load of 1; those of 2 to 9 were left out; that of 10 was on the clock.
    assert seen[:3] == [(0.5, 0), (1.25, 1), (1.75, 1)]
    assert seen[3:] == [(2.5, 4), (2.75, 4), (9.5, 6), (10.25, 6)]


def test_a_crash_makes_a_replica_lose_all_its_adapters() -> None:
    residency = Residency(4, 3)
    for adapter, replica in ((0, 0), (0, 2), (1, 2), (3, 1)):
        residency.placed(adapter, replica)
    copy: list[int] = []
    residency.copy_to(copy)
    residency.forget(2)
    assert residency.masks == [0b001, 0, 0, 0b010, 0]
    assert copy == [0b101, 0b100, 0, 0b010, 0]
    residency.check_integrity([[1, 0, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0]])
    with pytest.raises(AssertionError, match="adapter 3"):
        residency.check_integrity([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
