"""Laws of placement policies: slots are never exceeded, demand finds a place, and nothing moves without a reason."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.placement import (
    NOWHERE,
    Demand,
    Placement,
    Placer,
    PlacerContext,
    loads_of,
    make_placer,
    still_there,
    wanted_copies,
)
from sim.spec.policies import PLACERS

POLICIES = [entry.name for entry in PLACERS if entry.foresees]  # dynamo may place beyond slots: test_deployed_routers
RANKS = (8, 16, 64)


@st.composite
def cases(draw: st.DrawFn, most_replicas: int = 6) -> tuple[PlacerContext, Demand, Placement]:
    """A context, a demand, and what an earlier decision for other demand and other replicas may have left."""
    luck = Random(draw(st.integers(0, 10**6)))
    replicas, adapters = draw(st.integers(1, most_replicas)), draw(st.integers(1, 14))
    slots = draw(st.integers(1, 6))
    context = PlacerContext(
        slots,
        draw(st.integers(1, replicas)),
        [luck.choice((1.0, 1.5, 4.0)) for _ in range(adapters)],
        [luck.choice(RANKS) for _ in range(adapters)],
        key=luck.getrandbits(64),
    )
    some = sorted(luck.sample(range(replicas), luck.randint(1, replicas)))
    requests = {a: float(round(luck.paretovariate(0.8))) for a in range(adapters) if luck.random() < 0.8}
    current: dict[int, set[int]] = {}
    for replica in range(replicas):
        for adapter in luck.sample(range(adapters), min(adapters, luck.randint(0, slots))):
            current.setdefault(adapter, set()).add(replica)
    placed = {adapter: tuple(sorted(current[adapter])) for adapter in sorted(current)}
    return context, Demand(requests, tuple(some)), placed if draw(st.booleans()) else {}


def on_each(placement: Placement) -> Counter[int]:
    return Counter(replica for homes in placement.values() for replica in homes)


def moves(after: Placement, before: Placement) -> int:
    """Adapters that come to a replica; each costs a load."""
    return sum(len(set(homes) - set(before.get(adapter, ()))) for adapter, homes in after.items())


@pytest.mark.parametrize("policy", POLICIES)
@given(case=cases())
def test_slots_are_never_exceeded_and_only_serving_replicas_are_used(
    policy: str, case: tuple[PlacerContext, Demand, Placement]
) -> None:
    context, demand, current = case
    found = make_placer(policy, context).place(demand, current)
    counts = on_each(found)
    assert set(counts) <= set(demand.replicas)
    assert all(count <= context.slots for count in counts.values())
    for homes in found.values():
        assert list(homes) == sorted(set(homes))
        assert homes


@pytest.mark.parametrize("policy", POLICIES)
@given(case=cases())
def test_every_adapter_with_demand_is_placed_as_far_as_there_are_slots(
    policy: str, case: tuple[PlacerContext, Demand, Placement]
) -> None:
    context, demand, current = case
    found = make_placer(policy, context).place(demand, current)
    asked = {adapter for adapter, count in demand.requests.items() if count > 0}
    assert len(asked & found.keys()) == min(len(asked), context.slots * len(demand.replicas))


@pytest.mark.parametrize("policy", POLICIES)
@given(case=cases())
def test_adapters_get_the_copies_that_demand_asks_for(
    policy: str, case: tuple[PlacerContext, Demand, Placement]
) -> None:
    context, demand, current = case
    found = make_placer(policy, context).place(demand, current)
    loads = loads_of(demand, context)
    wanted = wanted_copies(loads, len(demand.replicas), context, still_there(current, demand.replicas)) if loads else {}
    assert all(len(found[adapter]) == copies for adapter, copies in wanted.items())


@pytest.mark.parametrize("policy", POLICIES)
@given(case=cases())
def test_the_same_demand_again_moves_nothing_more(policy: str, case: tuple[PlacerContext, Demand, Placement]) -> None:
    """Balancing may take several decisions, but comes to rest."""
    context, demand, current = case
    placer = make_placer(policy, context)
    for _ in range(12):
        before, current = current, placer.place(demand, current)
    assert moves(current, before) == 0


@pytest.mark.parametrize("policy", POLICIES)
@given(case=cases())
def test_two_controllers_decide_the_same(policy: str, case: tuple[PlacerContext, Demand, Placement]) -> None:
    context, demand, current = case
    shuffled = dict(sorted(demand.requests.items(), reverse=True))
    found = make_placer(policy, context).place(demand, current)
    assert found == make_placer(policy, context).place(Demand(shuffled, demand.replicas), current)


def cost(after: Placement, before: Placement, wanted: dict[int, int]) -> float:
    """What the flow minimises: loads of wanted adapters, and copies that find no place."""
    placed = {adapter: after.get(adapter, ()) for adapter in wanted}
    return moves(placed, before) + NOWHERE * sum(copies - len(placed[a]) for a, copies in wanted.items())


@given(case=cases())
def test_min_cost_flow_needs_no_more_loads_than_the_greedy_policy(
    case: tuple[PlacerContext, Demand, Placement],
) -> None:
    context, demand, current = case
    before, loads = still_there(current, demand.replicas), loads_of(demand, context)
    if not before or not loads:
        return
    wanted = wanted_copies(loads, len(demand.replicas), context, before)
    flow, greedy = (make_placer(policy, context).place(demand, current) for policy in ("min-cost-flow", "popularity"))
    assert cost(flow, before, wanted) <= cost(greedy, before, wanted)


@given(seed=st.integers(0, 10**6))
def test_min_cost_flow_finds_what_a_search_of_all_placements_finds(seed: int) -> None:
    luck = Random(seed)
    replicas, adapters, slots = luck.randint(1, 3), luck.randint(1, 4), luck.randint(1, 3)
    context = PlacerContext(slots, luck.randint(1, replicas), [1.0] * adapters, [8] * adapters, luck.getrandbits(64))
    demand = Demand({a: float(luck.randint(1, 9)) for a in range(adapters)}, tuple(range(replicas)))
    before: Placement = {}
    for replica in range(replicas):
        for adapter in luck.sample(range(adapters), min(adapters, slots, luck.randint(0, 3))):
            before[adapter] = (*before.get(adapter, ()), replica)
    if not before:
        return
    wanted = wanted_copies(loads_of(demand, context), replicas, context, before)
    subsets = [[c for n in range(copies + 1) for c in combinations(range(replicas), n)] for copies in wanted.values()]
    every = [dict(zip(wanted, homes, strict=True)) for homes in product(*subsets)]
    fitting = [each for each in every if all(count <= slots for count in on_each(each).values())]
    found = make_placer("min-cost-flow", context).place(demand, before)
    assert cost(found, before, wanted) == min(cost(each, before, wanted) for each in fitting)


def noisy_decisions(placer: Placer, slots: int, decisions: int = 30) -> list[int]:
    """Moves of each decision after the first, under constant popularity of 60 adapters and random counts."""
    luck = Random(5)
    weights = [1 / (place + 1) for place in range(60)]
    replicas = tuple(range(4))
    current = placer.place(Demand(dict(enumerate(weights)), replicas), {})
    found, past = [], [Counter(luck.choices(range(60), weights, k=600)) for _ in range(4)]
    for _ in range(decisions):
        past = [*past[-4:], Counter(luck.choices(range(60), weights, k=600))]
        counts = sum(past, Counter[int]())
        before, current = current, placer.place(Demand({a: float(n) for a, n in counts.items()}, replicas), current)
        found.append(moves(current, before))
        assert max(on_each(current).values()) <= slots
    return found


@pytest.mark.parametrize("tolerance", [0.1, 0.2])
@pytest.mark.parametrize("policy", ["popularity", "min-cost-flow"])
def test_noise_alone_moves_next_to_nothing_where_all_have_a_place(policy: str, tolerance: float) -> None:
    """Constant popularity, counts of 3,000 requests: fewer than one move in three decisions."""
    placer = make_placer(policy, PlacerContext(16, 1, [1.0] * 60, [16] * 60, 9, tolerance))
    assert sum(noisy_decisions(placer, 16)) < 10


@pytest.mark.parametrize(
    ("policy", "tolerance", "most"), [("popularity", 0.1, 3), ("popularity", 0.2, 1), ("min-cost-flow", 0.1, 1)]
)
def test_noise_alone_moves_little_where_places_are_short(policy: str, tolerance: float, most: int) -> None:
    """40 places for 60 adapters: an exchange for balance takes two moves."""
    placer = make_placer(policy, PlacerContext(10, 1, [1.0] * 60, [16] * 60, 9, tolerance))
    assert sum(noisy_decisions(placer, 10)) < 30 * most


def test_a_hot_adapter_gets_a_copy_for_each_fair_share_of_the_load() -> None:
    context = PlacerContext(8, 1, [1.0] * 5, [8] * 5)
    demand = Demand({0: 60.0, 1: 10.0, 2: 10.0, 3: 10.0, 4: 10.0}, (0, 1, 2, 3))
    assert len(make_placer("popularity", context).place(demand, {})[0]) == 3  # 60 of 100 on four replicas


@pytest.mark.parametrize(("share", "copies"), [(26.0, 2), (24.0, 2), (20.5, 2), (19.5, 1)])
def test_a_copy_goes_only_below_four_fifths_of_the_load_that_asks_for_it(share: float, copies: int) -> None:
    """More than a fair share of a quarter asks for a second copy, which goes below a fifth."""
    context = PlacerContext(8, 1, [1.0] * 5, [8] * 5)
    demand = Demand({0: share} | dict.fromkeys(range(1, 5), (100 - share) / 4), (0, 1, 2, 3))
    placer = make_placer("popularity", context)
    assert len(placer.place(demand, {0: (0, 1)})[0]) == copies
    assert len(placer.place(demand, {})[0]) == (2 if share > 25 else 1)


def test_popularity_moves_adapters_only_while_the_load_is_uneven() -> None:
    context = PlacerContext(8, 1, [1.0] * 6, [8] * 6)
    uneven: Placement = dict.fromkeys(range(6), (0,))
    demand = Demand(dict.fromkeys(range(6), 10.0), (0, 1))
    found = make_placer("popularity", context).place(demand, uneven)
    assert on_each(found) == {0: 3, 1: 3}
    assert make_placer("popularity", context).place(demand, found) == found


def test_min_cost_flow_moves_nothing_for_balance() -> None:
    context = PlacerContext(8, 1, [1.0] * 6, [8] * 6)
    uneven: Placement = dict.fromkeys(range(5), (0,)) | {5: (1,)}
    demand = Demand(dict.fromkeys(range(6), 10.0), (0, 1, 2))
    assert make_placer("min-cost-flow", context).place(demand, uneven) == uneven


def test_a_new_adapter_comes_to_the_replica_with_the_least_load() -> None:
    context = PlacerContext(8, 1, [1.0] * 4, [8] * 4)
    before: Placement = {0: (0,), 1: (1,), 2: (2,)}
    demand = Demand({0: 20.0, 1: 10.0, 2: 19.0, 3: 14.0}, (0, 1, 2))
    for policy in ("popularity", "min-cost-flow"):
        assert make_placer(policy, context).place(demand, before)[3] == (1,)


def test_rank_puts_like_ranks_together_and_divides_the_load_evenly() -> None:
    ranks = [8, 64] * 8
    costs = [1.0 if rank == 8 else 3.0 for rank in ranks]
    placer = make_placer("rank", PlacerContext(16, 1, costs, ranks, 1))
    found = placer.place(Demand(dict.fromkeys(range(16), 5.0), (0, 1, 2, 3)), {})
    kinds = [{ranks[a] for a, homes in found.items() if replica in homes} for replica in range(4)]
    assert sorted(map(len, kinds)) == [1, 1, 1, 1]  # a quarter of the load is of rank 8, three quarters of rank 64
    assert sum(kind == {8} for kind in kinds) == 1


def test_adapters_without_demand_stay_while_slots_are_free_and_make_room_for_others() -> None:
    context = PlacerContext(2, 1, [1.0] * 4, [8] * 4)
    before: Placement = {0: (0,), 1: (0,), 2: (1,)}
    for policy in ("popularity", "min-cost-flow"):
        stays = make_placer(policy, context).place(Demand({0: 5.0, 2: 5.0}, (0, 1)), before)
        assert stays == before
        goes = make_placer(policy, context).place(Demand({0: 5.0, 2: 5.0, 3: 5.0}, (0,)), before)
        assert set(goes) <= {0, 2, 3}
        assert len(goes) == 2
