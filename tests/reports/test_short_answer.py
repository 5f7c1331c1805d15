"""The lines of the short answer: what to set, what breaks first, and what a design takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples

from reports.answers.limits import limits
from reports.tables.slice_tables import memory_table
from reports.text.headroom_text import first_limit
from reports.text.limit_text import limit_sentence
from reports.text.setup_text import bill, memory_change
from sim.results.model import BatchSlotUse, BucketUse, Capacity, GpuShare, LoaderUse, MemoryUse, Setup, SlotUse
from sim.results.point import Metric, Point, Usage
from sim.results.run_directory.headroom_record import ALWAYS, BUCKETS, FOUND, NEVER, Headroom
from sim.studies.run.findings import sweep_answer

USE = MemoryUse(
    replicas=3, weights=16 * 10**9, engine=2 * 10**9, slots=64, adapters=64 * 10**8, kv_tokens=1000, kv=30 * 10**9,
    copies=100, host=10 * 10**9,
)  # fmt: skip
SETUP = Setup("vllm", memory=USE)
HELD = (
    "GPU memory of each replica: weights 16 GB, 64 slots 6.4 GB, KV cache 30 GB; host memory 10 GB (copies of 100 "
    "adapters, 30 GB in all)."
)


def costing(price: float | None, **metrics: float) -> Point:
    point = replace(samples.make_point(), setup=SETUP, usage=Usage(6, dict.fromkeys(metrics, Metric(1.0)), price))
    point.metrics.update({name: Metric(value) for name, value in metrics.items()})
    return point


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (costing(None), "6 GPUs, no price given (fleet.price)."),
        (
            costing(2.5, usd_per_month=10950.0, usd_per_m_tokens=0.25),
            "6 GPUs, $10,950 a month, $0.250 per million tokens.",
        ),
        (
            replace(costing(None, mean_replicas=1.5), setup=replace(SETUP, share=GpuShare(2, 3))),
            "3 GPUs on average, up to 6, no price given (fleet.price).",
        ),
    ],
)
def test_the_bill_counts_gpus_money_and_memory(point: Point, said: str) -> None:
    assert bill(point) == f"{said} {HELD}"


def test_what_a_replica_keeps_is_compared_part_by_part() -> None:
    other = replace(USE, weights=8 * 10**9, adapters=24 * 10**9, kv=12 * 10**9, host_kv=5 * 10**9)
    larger = replace(SETUP, memory=other)
    said = "weights 16 GB → 8 GB, adapters 6.4 GB → 24 GB, KV cache 30 GB → 12 GB, host memory 10 GB → 15 GB."
    assert memory_change(SETUP, larger) == f"Memory of each replica: {said}"
    assert memory_change(SETUP, SETUP) == ""
    pools = [
        replace(SETUP, pools=(replace(each, pool="big"), replace(SETUP, pool="small"))) for each in (SETUP, larger)
    ]
    assert memory_change(*pools) == f"Memory of each replica of big: {said}"
    shared = replace(SETUP, memory=replace(USE, slots=None, adapters=0))
    assert memory_change(SETUP, shared) == "", "adapters are in the KV cache"
    assert memory_change(pools[0], SETUP) == memory_change(None, SETUP) == "", "there is nothing to set beside it"


def test_the_table_of_memory_adds_up_over_pools() -> None:
    small = replace(USE, replicas=2, weights=8 * 10**9, copies=0, host=0)
    pools = (replace(SETUP, pool="big"), Setup("vllm", pool="small", memory=small))
    table = memory_table(replace(SETUP, pools=pools))
    assert table.head == ["", "each replica of big", "each replica of small", "all 5"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["weights"] == ["16 GB", "8 GB", "64 GB"], "3 × 16 + 2 × 8"
    assert rows["host memory: copies"] == ["10 GB", "0 B", "30 GB"]
    alone = memory_table(replace(SETUP, memory=replace(USE, replicas=1)))
    assert alone.head == ["", "each replica"]
    assert [row[0] for row in alone.rows] == [
        *("weights", "64 adapter slots", "engine", "KV cache", "host memory: copies of 100 adapters")
    ]
    assert memory_table(Setup("fixed")) is None


def failing(**capacity: object) -> Point:
    found = Capacity(**{"seats": BatchSlotUse(0.0), **capacity})  # type: ignore[arg-type]
    return replace(samples.make_point(), capacity=found, breakdown={"decode_s": 1.0})


def refusing(requests: int) -> Point:
    """Return a point at which a token bucket refuses requests out of 20,000."""
    bucket = BucketUse("free", 10.0, 9.9, requests / 20_000, requests, refuses=True)
    point = failing(slots=SlotUse(0.3), buckets=(bucket,))
    point.metrics["completed"] = Metric(20_000 - requests, unit="requests")
    point.metrics["refused"] = Metric(requests, unit="requests")
    return point


SLOTS = Headroom(FOUND, 1.43, 1.4, 1.5, "ttft_p99_s", failing=failing(slots=SlotUse(0.3)))
BUSY = LoaderUse(0.95, 0.95, 1)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            SLOTS,
            "Adapter slots, at 1.4 times today's traffic; then add GPU slots (cache.gpu.slots) or replicas "
            "(fleet.replicas).",
        ),
        (replace(SLOTS, multiple=0.7), "Adapter slots: the SLO holds only up to 0.7 times today's traffic; then add "),
        (replace(SLOTS, term="miss_ratio"), "Adapter cache, at 1.4 times today's traffic; then add GPU slots"),
        (replace(SLOTS, failing=failing()), "Compute, at 1.4 times today's traffic; then add replicas (fleet.rep"),
        (replace(SLOTS, failing=failing(loader=BUSY)), "Loader, at 1.4 times today's traffic; then keep more copies"),
        (
            replace(SLOTS, failing=failing(loader=replace(BUSY, host_holds_all=True))),
            "Loader, at 1.4 times today's traffic; then add GPU slots",
        ),
        (
            replace(SLOTS, multiple=0.5, term=BUCKETS, failing=failing(buckets=(BucketUse("free", 10.0, 10.1, 0.02),))),
            "Token bucket, at 0.5 times today's traffic; then raise the bucket of free",
        ),
        (
            replace(SLOTS, failing=refusing(400)),
            "Token bucket, at 1.4 times today's traffic; then raise the bucket of free",
        ),
        (replace(SLOTS, failing=refusing(40)), "Adapter slots, at 1.4 times today's traffic"),
        (Headroom(ALWAYS, lo=64.0), "Nothing, up to 64 times today's traffic, the most that was tried."),
        (Headroom(NEVER, hi=0.01, term="e2e_p99_s"), "otherwise"),
        (None, "otherwise"),
    ],
)
def test_the_first_limit_names_its_multiple_and_the_remedy(found: Headroom | None, said: str) -> None:
    assert first_limit(found, "otherwise").startswith(said)


@pytest.mark.parametrize(("counts", "said"), [("tokens", True), ("requests", False)])
def test_a_bucket_whose_rate_was_meant_in_requests_is_told_that_it_counts_tokens(counts: str, said: bool) -> None:
    bucket = BucketUse("free", 0.17, 600.0, 0.99, 400, refuses=True, counts=counts)
    point = samples.make_point()
    point = replace(point, capacity=replace(point.capacity, buckets=(bucket,)))
    sentence = limit_sentence(limits(point)[0], point)
    assert sentence.startswith(f"The bucket of free admits 0.17 of 600 {counts}/s")
    assert ("counts tokens" in sentence) is said


def test_where_the_slo_is_missed_today_a_search_without_its_cause_says_nothing() -> None:
    """It leaves out rollouts and faults, so its multiple is that of another fleet."""
    assert first_limit(SLOTS, "otherwise", missed_today=True) == "otherwise"
    below = replace(SLOTS, multiple=0.7)
    assert first_limit(below, "otherwise", missed_today=True) == first_limit(below, "otherwise")


def test_keys_of_the_fleet_are_not_those_of_its_pools() -> None:
    point = SLOTS.failing
    assert point is not None
    pooled = replace(point, pools=[samples.make_point().groups[0]])
    assert "(fleet.replicas)" not in first_limit(replace(SLOTS, failing=pooled), "")


def test_a_sweep_sets_what_it_chose_and_names_the_term_that_the_others_miss() -> None:
    calm = {"capacity": {}, "breakdown": {"decode_s": 1.0}, "fixed": False}
    slots = {8: 2.0, 16: 0.5, 32: 0.4}
    points = [samples.make_point({"cache.gpu.slots": n}, p99=p99, **calm) for n, p99 in slots.items()]  # type: ignore[arg-type]
    said = sweep_answer(points, {"e2e_p99_s": 1.0})
    assert said.setting == "cache.gpu.slots: 16."
    assert said.first_limit == "8 GPU slots: p99 E2E is 2 s, above the 1 s target."
    assert sweep_answer(points, {"e2e_p99_s": 0.1}).setting == "cache.gpu.slots: 32, the nearest to the SLO."
    rates = [samples.make_point({"workload.arrivals.rate": f"{n}/s"}, p99=p99, **calm) for n, p99 in slots.items()]  # type: ignore[arg-type]
    assert sweep_answer(rates, {"e2e_p99_s": 5.0}).setting == "No change."
