"""Token buckets of tenants: what may pass in any time, what waits or is refused, and that nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import build

from reports.answers.limits import limits
from reports.text.limit_text import limit_sentence
from sim.policies.front_end import TokenBucket
from sim.results import verdict
from sim.results.model import Capacity, from_plain
from sim.results.records import COMPLETED, LIMITED, REFUSED, REROUTED, UNFINISHED, Recording
from sim.spec.scenario import Scenario
from sim.studies.design import make_design
from sim.studies.evaluate import EvaluationOptions, evaluate
from sim.world.build import build_world
from sim.world.replication import simulate

RATE, BURST = 2000.0, 1500


def scenario(full: str = "queue", **sections: Any) -> Scenario:
    """Return a scenario in which one tenant sends far more tokens than its bucket lets pass."""
    workload = {
        "requests": 800,
        "arrivals": {"process": "poisson", "rate": "40/s"},
        "tokens": {
            "prompt": {"law": "uniform", "low": 10, "high": 300},
            "output": {"law": "uniform", "low": 1, "high": 60},
        },
    }
    bucket = {"rate": f"{RATE:.0f}/s", "burst": BURST, "full": full}
    return build(
        workload=workload | sections.pop("workload", {}),
        adapters={"count": 8},
        cache={"gpu": {"slots": 8}, "warm": 8},
        fleet={"replicas": 2, "max_num_seqs": 64} | sections.pop("fleet", {}),
        tenants=[
            {"name": "limited", "adapters": 4, "share": "50%", "bucket": bucket},
            {"name": "free", "adapters": 4, "share": "50%"},
        ],
        **sections,
    )


def run(found: Scenario) -> tuple[Recording, np.ndarray]:
    """Return a recording and the tenant of each of its requests."""
    world = build_world(found)
    recording = simulate(world, 0, 3)
    return recording, world.traffic.tenant_of[recording.requests["adapter"]]


def passed(times: np.ndarray, tokens: np.ndarray, rate: float, burst: float) -> bool:
    """Return whether no window from one passage to another one has more tokens than a bucket lets pass."""
    before = np.concatenate([[0.0], np.cumsum(tokens)])
    # tokens in [t_i, t_j] <= burst + rate (t_j - t_i): the level that a full bucket would have is never below zero
    over = before[1:] - rate * times
    lowest = np.minimum.accumulate(before[:-1] - rate * times)
    return bool((over - lowest <= burst * (1 + 1e-9)).all())


@examples(200)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 100)), min_size=1, max_size=60),
    st.floats(0.5, 500),
    st.integers(100, 400),
)
def test_no_window_has_more_tokens_than_burst_and_rate_allow(
    requests: list[tuple[float, int]], rate: float, burst: int
) -> None:
    bucket, now, times, tokens = TokenBucket(rate, burst), 0.0, [], []
    for gap, count in requests:
        now += gap
        if not bucket.take(count, now):
            now = bucket.ready_s(count, now)
            bucket.take_due(count, now)
        times.append(now)
        tokens.append(count)
    assert passed(np.array(times), np.array(tokens, dtype=float), rate, burst)


def test_a_bucket_delays_no_more_than_it_must() -> None:
    bucket = TokenBucket(10.0, 100)
    assert bucket.take(100, 0.0)
    assert not bucket.take(1, 0.0)
    assert bucket.ready_s(50, 0.0) == 5.0
    assert bucket.take(50, 5.0)
    assert bucket.ready_s(100, 1000.0) == 1000.0, "it holds no more than its burst, however long nothing comes"
    assert bucket.take(100, 1000.0)
    assert not bucket.take(1, 1000.0)


@pytest.mark.parametrize("full", ["queue", "refuse"])
def test_the_bucket_holds_for_what_reaches_the_fleet(full: str) -> None:
    recording, tenant = run(scenario(full))
    requests = recording.requests
    own, served = tenant == 0, requests["status"] == COMPLETED
    tokens = (requests["prompt_tokens"] + requests["output_tokens"]).astype(float)
    if full == "refuse":
        refused = requests["status"] == REFUSED
        assert ((requests["marks"] & LIMITED) > 0)[refused].all()
        assert not refused[~own].any(), "another tenant's bucket concerns nobody else"
        assert refused[own].mean() > 0.2
        assert (served | refused).all(), "nothing is lost"
        sent = requests["arrival_s"][own & served]
    else:
        assert served.all(), "nothing is lost"
        # With free seats and warm adapters, requests join within a step of reaching their replica.
        sent = requests["admitted_s"][own & served]
        assert (np.diff(sent) > -0.2).all(), "a tenant's requests wait in order"
    slack = RATE * 0.2 if full == "queue" else 0.0
    order = np.argsort(sent, kind="stable")
    assert passed(sent[order], tokens[own & served][order], RATE, BURST + slack)
    waits = (requests["admitted_s"] - requests["arrival_s"])[own & served]
    assert (waits.max() > 5) == (full == "queue")


def with_bucket(found: Scenario, **changes: Any) -> Scenario:
    """Return a scenario whose first tenant has another bucket, or, without changes, none."""
    first, *others = found.tenants
    bucket = first.bucket.model_copy(update=changes) if changes else None
    return found.model_copy(update={"tenants": (first.model_copy(update={"bucket": bucket}), *others)})


def test_only_the_tenant_with_the_bucket_waits() -> None:
    """The others see the fleet with less traffic: their waits are shorter than without the bucket."""
    busy = scenario(fleet={"max_num_seqs": 4})
    (limited, tenant), (free, _) = run(busy), run(with_bucket(busy))
    for name in ("arrival_s", "adapter", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(limited.requests[name], free.requests[name])
    waits = [(r.requests["admitted_s"] - r.requests["arrival_s"])[tenant == 1].mean() for r in (limited, free)]
    assert waits[0] < 0.8 * waits[1]


def test_a_wide_bucket_changes_nothing() -> None:
    (plain, _), (wide, _) = run(with_bucket(scenario("refuse"))), run(with_bucket(scenario("refuse"), burst=10**9))
    for name, column in plain.requests.items():
        np.testing.assert_array_equal(column, wide.requests[name])


def test_a_request_that_is_sent_again_after_a_crash_takes_no_more_tokens() -> None:
    crash = [{"kind": "crash", "replica": 0, "at": "5 s", "down": "9 s", "detected": "3 s"}]
    recording, tenant = run(scenario(faults=crash))
    served = recording.requests["status"] == COMPLETED
    assert served.all(), "nothing is lost"
    assert ((recording.requests["marks"] & REROUTED) > 0)[tenant == 0].sum() > 5, "the bucket would notice"
    tokens = (recording.requests["prompt_tokens"] + recording.requests["output_tokens"])[tenant == 0].sum()
    began_s = recording.requests["arrival_s"][tenant == 0].min()
    last = began_s + (tokens - BURST) / RATE
    assert recording.held[-1, 1] == pytest.approx(last), "each token has been paid for once, and none flowed over"


def test_what_waits_for_its_tokens_is_recorded() -> None:
    """Requests pass at the rate of the bucket to the token, and those that never pass are there too."""
    recording, tenant = run(scenario(workload={"requests": None, "duration": "10 s"}))
    requests, own = recording.requests, tenant == 0
    sent = requests["arrival_s"].copy()
    sent[recording.held[:, 0].astype(int)] = recording.held[:, 1]
    tokens = (requests["prompt_tokens"] + requests["output_tokens"]).astype(float)
    went = own & np.isfinite(sent)
    assert passed(sent[went], tokens[went], RATE, BURST)
    unfinished = requests["status"] == UNFINISHED
    held = unfinished & (requests["replica"] < 0)
    assert held.any()
    assert (np.isinf(sent) == held).all()
    assert (sent[~own] == requests["arrival_s"][~own]).all()
    sojourns = np.where(unfinished, recording.stopped_s, requests["finished_s"]) - requests["arrival_s"]
    assert recording.inside_area == pytest.approx(sojourns.sum()), "Little's law, with those who wait in front"


@pytest.mark.parametrize("full", ["queue", "refuse"])
def test_a_bucket_is_a_limit_of_its_own(full: str) -> None:
    """The replicas are idle half of the time, whatever waits or is refused in front of them."""
    found = scenario(full, workload={"requests": 2000})
    point = evaluate(make_design(found), EvaluationOptions(draws=False)).point
    (use,) = point.capacity.buckets
    asked = 20 * (155.0 + 30.5)
    assert use.asked == pytest.approx(asked, rel=0.05)
    assert point.capacity.compute.offered_load is None
    limit = limits(point)[0]
    assert (limit.name, limit.bucket) == ("token bucket", use)
    said = limit_sentence(limit, point)
    assert said.startswith(f"The bucket of limited admits 2,000 of {float(f'{use.asked:.3g}'):,.0f} tokens/s")
    if full == "queue":
        assert use.offered_load == use.asked / RATE
        assert verdict.is_overloaded(point), "percentiles depend on how long the run is"
        assert not any(each.name == "compute" for each in limits(point)), "the wait is in front of the replicas"
        assert use.wait_s == pytest.approx(point.breakdown["queue_s"], abs=0.1)
    else:
        assert use.refused == point.metrics["refused"].value
        assert 0.2 < use.limited < 1 - RATE / asked, "short requests pass where long ones don't"
        assert not verdict.is_overloaded(point)
        assert any("the token bucket of their tenant lacked tokens" in warning for warning in point.warnings)
        assert (point.unserved["refused"] > 0, point.unserved["too_long"]) == (True, 0)
    assert from_plain(Capacity, point.capacity.to_json()) == point.capacity


def test_a_bucket_of_requests_counts_each_as_one() -> None:
    """Ten a second of twenty, whatever their lengths; a burst below the tokens of a request is allowed."""
    found = with_bucket(scenario(workload={"requests": 2000}), counts="requests", rate=10.0, burst=5)
    recording, tenant = run(found)
    sent = recording.requests["arrival_s"].copy()
    sent[recording.held[:, 0].astype(int)] = recording.held[:, 1]
    went = (tenant == 0) & np.isfinite(sent)
    assert passed(sent[went], np.ones(went.sum()), 10.0, 5)
    assert recording.held[-1, 1] - recording.held[0, 1] == pytest.approx((len(recording.held) - 1) / 10)
    point = evaluate(make_design(found), EvaluationOptions(draws=False)).point
    (use,) = point.capacity.buckets
    assert use.asked == pytest.approx(20, rel=0.1)
    assert limit_sentence(limits(point)[0], point).startswith("The bucket of limited admits 10 of ")
    assert any("times the requests that its bucket admits" in warning for warning in point.warnings)


def test_an_idle_bucket_limits_nothing() -> None:
    wide = with_bucket(scenario(), burst=10**9)
    point = evaluate(make_design(wide), EvaluationOptions(draws=False)).point
    assert point.capacity.buckets[0].limited == 0
    assert not any(limit.bucket for limit in limits(point))


def test_clients_of_a_closed_loop_go_on_after_a_refusal() -> None:
    found = scenario("refuse")
    closed = {**found.model_dump(mode="json", by_alias=True, exclude_unset=True)}
    closed["workload"]["arrivals"] = {"process": "closed", "concurrency": 16}
    recording, _ = run(Scenario.model_validate(closed))
    assert set(recording.requests["status"].tolist()) == {COMPLETED, REFUSED}
