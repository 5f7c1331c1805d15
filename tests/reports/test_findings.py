"""The words of the answer: every limit, every verdict, and nothing claimed that isn't known."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import samples

from reports.answers.limits import Evidence, Limit, limits
from reports.axes import make_axes
from reports.charts.heat_maps import Facet, heat_chart
from reports.charts.sweep_charts import varies
from reports.tables.metric_tables import metrics_table
from reports.tables.slice_tables import base_model_table
from reports.text.limit_text import remedy_words
from reports.text.metric_text import capital
from reports.text.verdict_text import find_trust
from sim.results.metric_state import Cause, State
from sim.results.model import Capacity, ComputeUse, LoaderUse, MemoryUse, Setup, SlotUse
from sim.results.point import Metric, Point
from sim.results.run_directory.headroom_record import EMPTY_CACHES, FOUND, Headroom
from sim.results.verdict import MET, NOT_MET, metric_probability, verdict, verdict_word
from sim.studies.run.answer import COLD_FIRST, answer
from sim.studies.run.findings import find_cliff, sweep_answer, sweep_focus

FREE: dict[str, dict[str, float | None]] = {
    "loader": {"utilization": 0.2, "offered_load": 0.2, "loaders": 1},
    "slots": {"blocked_share": 0.0, "in_use_peak": 12, "slots": 64},
    "kv": {"blocked_share": 0.0, "peak_share": 0.4, "tokens": 1000},
    "seats": {"blocked_share": 0.0, "limit": 256},
    "compute": {"utilization": 0.5},
}
STAGES = {"loader_queue_s": 0.01, "load_s": 0.02, "queue_s": 0.05, "prefill_s": 0.1, "decode_s": 2.0}


def point(part: str = "loader", stages: dict[str, float] | None = None, **changes: float | None) -> Point:
    capacity = {name: dict(values) for name, values in FREE.items()}
    capacity[part].update(changes)
    return samples.make_point(capacity=capacity, breakdown=stages or STAGES, fixed=False)


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (point(), "none"),
        (point("loader", utilization=0.91, offered_load=0.91), "loader"),
        (point("loader", stages={**STAGES, "loader_queue_s": 9.0}), "loader"),
        (point("loader", utilization=1.0, offered_load=1.3), "loader"),
        (point("slots", blocked_share=0.12), "slots"),
        (point("kv", blocked_share=0.3), "KV memory"),
        (point("seats", blocked_share=0.05), "batch slots (max_num_seqs)"),
        (point("compute", stages={**STAGES, "queue_s": 3.0}, utilization=0.99), "compute"),
        (point("compute", utilization=0.99), "none"),
    ],
)
def test_names_what_limits(made: Point, name: str) -> None:
    assert limits(made)[0].name == name
    said = answer(made, {})
    assert said.binding == {"none": "none: few requests wait long", "slots": "adapter slots"}.get(name, name)
    assert said.first_limit.startswith("None today" if name == "none" else capital(said.binding))
    assert said.binding_sentence.endswith(".")


def test_a_busy_loader_comes_before_the_slots_it_holds() -> None:
    made = point("slots", blocked_share=0.4)
    made = replace(made, capacity=replace(made.capacity, loader=replace(made.capacity.loader, utilization=0.95)))
    assert [limit.name for limit in limits(made)] == ["loader", "slots"]


def test_shares_of_requests_say_so_where_others_ask_for_the_base_model() -> None:
    made = samples.make_point(miss=0.5)
    assert any(" of requests miss and start a load" in said for said in answer(made, {}).details)
    mixed = replace(made, traffic={**made.traffic, "base_share": 0.4})
    assert any("50 % of requests for adapters miss and start a load" in said for said in answer(mixed, {}).details)


def test_misses_are_left_out_where_no_request_is_for_an_adapter() -> None:
    made = samples.make_point()
    assert "miss ratio" in [row[0] for row in metrics_table(made).rows]
    alone = replace(made, traffic={**made.traffic, "base_share": 1.0})
    assert not {"miss ratio", "hit ratio", "loads per request"} & {row[0] for row in metrics_table(alone).rows}
    assert base_model_table(alone) is None


def blocking(**changes: float | None) -> Point:
    made = point("loader", **changes)
    return replace(made, capacity=replace(made.capacity, loader=replace(made.capacity.loader, blocks_steps=True)))


def test_loads_that_block_steps_limit_before_their_loader_is_busy() -> None:
    made = blocking(utilization=0.3, offered_load=0.3)
    short = replace(made, capacity=replace(made.capacity, slots=replace(made.capacity.slots, blocked_share=0.4)))
    assert [limit.name for limit in limits(short)] == ["loader", "slots"]
    assert answer(short, {}).binding_sentence == (
        "Loads from storage take 30 % of the time, and no step runs meanwhile. Sweep cache.host.slots (vLLM's "
        "max_cpu_loras) to see what more copies in host memory would give."
    )
    assert limits(blocking(utilization=0.2, offered_load=0.2))[0].name == "none"
    loader = replace(made.capacity.loader, host_holds_all=True)
    assert answer(replace(made, capacity=replace(made.capacity, loader=loader)), {}).binding_sentence == (
        "Loads from storage take 30 % of the time, and no step runs meanwhile. Host memory already has room for every "
        "adapter."
    )


@pytest.mark.parametrize(("blocked", "names"), [(0.4, ["slots"]), (0.0, ["compute"])])
def test_a_queue_for_slots_is_none_for_compute(blocked: float, names: list[str]) -> None:
    """A batching engine is busy whenever anything runs: a queue shows a limit, but here it is one for slots."""
    made = samples.make_point(fixed=False)
    capacity = Capacity(compute=ComputeUse(1.0, None), slots=SlotUse(blocked))
    made = replace(made, capacity=capacity, breakdown={"queue_s": 1.0, "prefill_s": 0.5, "decode_s": 3.0})
    assert [limit.name for limit in limits(made)] == names
    full = replace(capacity, compute=ComputeUse(1.0, 1.2))
    assert limits(replace(made, capacity=full))[-1].name == "compute", "more arrives than is served"


def test_fixed_engine_is_limited_by_its_server() -> None:
    busy: dict[str, dict[str, float | None]] = {"loader": {"utilization": 0.1}, "compute": {"utilization": 0.9}}
    made = samples.make_point(capacity=busy)
    made.breakdown["loader_queue_s"] = 0.0
    assert limits(made)[0].name == "compute"


@pytest.mark.parametrize(
    ("metric", "verdict"),
    [
        (Metric(0.30, 0.29, 0.31, "s"), "met"),
        (Metric(1.20, 1.10, 1.30, "s"), "not met"),
        (Metric(0.98, 0.90, 1.06, "s"), "unclear"),
        (Metric(1.00, 0.90, 1.00, "s"), "met"),
        (Metric(None, state=State(Cause.FEW_REQUESTS, 40, 1000)), "unclear"),
        (None, "unclear"),
        (Metric(0.90, 0.88, 0.92, "s", state=State(Cause.WIDE)), "unclear"),
        (Metric(0.30, 0.20, 0.40, "s", state=State(Cause.WIDE)), "met"),
        (Metric(1.10, 1.04, 1.16, "s", state=State(Cause.WIDE)), "not met"),
        (Metric(22.2, 11.9, 32.5, "s", state=State(Cause.WIDE)), "not met"),
        (Metric(1.10, 0.90, 1.30, "s", state=State(Cause.WIDE)), "unclear"),
        (Metric(0.45, 0.10, 0.80, "s", state=State(Cause.WIDE)), "unclear"),
        # Of a profile with draws, both errors count.
        (Metric(0.90, 0.88, 0.92, "s", calibration_lo=0.85, calibration_hi=0.95), "met"),
        (Metric(0.90, 0.88, 0.92, "s", calibration_lo=0.70, calibration_hi=1.15), "unclear"),
        (Metric(0.90, 0.82, 0.98, "s", calibration_lo=0.82, calibration_hi=0.98), "unclear"),  # 0.08 · √2 above 0.9
        (Metric(1.20, 1.10, 1.30, "s", calibration_lo=1.05, calibration_hi=1.40), "not met"),
        (Metric(1.20, 1.10, 1.30, "s", calibration_lo=0.90, calibration_hi=1.60), "unclear"),
        (Metric(0.30, 0.20, 0.40, "s", state=State(Cause.WIDE), calibration_lo=0.25, calibration_hi=0.35), "met"),
    ],
)
def test_verdict_by_interval(metric: Metric | None, verdict: str) -> None:
    assert verdict_word(metric_probability(metric, 1.0)) == verdict


def test_one_term_that_fails_decides() -> None:
    made = samples.make_point(p99=0.3, miss=0.8)
    assert answer(made, {"e2e_p99_s": 1.0}).verdict == "met"
    said = answer(made, {"e2e_p99_s": 1.0, "miss_ratio": 0.2})
    assert said.verdict == "not met"
    assert said.headline == "The SLO is not met: miss ratio is 80 %, above the 20 % target."
    assert answer(made, {}).verdict == "no SLO"


def test_an_interval_stands_in_the_headline_where_it_leaves_the_verdict_open() -> None:
    made = samples.make_point()
    made.metrics["e2e_p99_s"] = Metric(0.3, 0.295, 0.305, "s")
    assert "p99 E2E is 300 ms, within the 1 s target" in answer(made, {"e2e_p99_s": 1.0}).headline
    assert "300 ms (295 to 305)" in answer(made, {"e2e_p99_s": 0.3}).headline


def test_overload_is_never_met_and_never_sure() -> None:
    made = samples.make_point(p99=0.3, offered=1.1)
    said = answer(made, {"e2e_p99_s": 1.0})
    assert said.verdict == "unclear"
    assert said.trust.sentence.startswith("More requests arrived than were served")
    assert said.headline.startswith("Overloaded: the queue grew from start to end")


def test_an_open_headline_is_about_the_term_that_is_least_likely_met() -> None:
    """Else it could say that the SLO is probably missed, and give a value that is probably within its target."""
    made = samples.make_point(settled=False, p99=0.85)
    made.metrics["ttft_p99_s"] = Metric(1.1, 0.95, 1.25, "s")
    said = answer(made, {"e2e_p99_s": 1.0, "ttft_p99_s": 1.0})
    assert said.verdict == "unclear"
    assert "SLO is probably not met: p99 TTFT is 1.1 s" in said.headline
    assert "probably above the 1 s target" in said.headline


def test_unsettled_and_missing_values_are_called_so() -> None:
    made = samples.make_point(settled=False, p99=0.85)
    said = answer(made, {"e2e_p99_s": 1.0})
    assert "probably met" in said.headline
    assert said.trust.sentence.startswith("p99 E2E is unsettled: ")
    assert said.setting == "Nothing yet; simulate more requests first."
    made.metrics["e2e_p99_s"] = Metric(None, unit="s", state=State(Cause.FEW_REQUESTS, 40, 1000))
    said = answer(made, {"e2e_p99_s": 1.0})
    assert said.verdict == "unclear"
    assert "not enough data: 40 requests were measured, 1,000 are needed" in said.headline


def test_assumed_costs_are_called_so() -> None:
    made = samples.make_point(half=0.01)
    assert answer(made, {"e2e_p99_s": 1.0}).trust.sentence == "The verdict is sure."
    assumed = answer(made, {"e2e_p99_s": 1.0}, assumed=True).trust
    assert assumed.sentence.startswith("The verdict is sure. The costs are assumed, not measured; ")


def test_sweep_says_the_last_rate_and_the_cliff() -> None:
    said = sweep_answer(samples.rates().points, {"e2e_p99_s": 1.0})
    assert said.headline == "The SLO is met up to arrival rate 33/s; at 34/s it isn't."
    assert "between arrival rate 26/s and 33/s" in " ".join(said.details)
    assert "2.9 times" in " ".join(said.details)
    assert said.binding == "loader"
    assert sweep_focus(samples.rates().points, {"e2e_p99_s": 1.0}).set == {"workload.arrivals.rate": "33/s"}


def test_a_policy_that_is_chosen_by_chance_or_by_one_target_is_called_so() -> None:
    policies = {"sieve": 0.97, "lru": 0.99, "fifo": 1.4}
    points = [samples.make_point({"cache.eviction": name}, p99=p99) for name, p99 in policies.items()]
    said = sweep_answer(points, {"e2e_p99_s": 1.0})
    assert said.headline == "The SLO is met with eviction policy sieve, probably with lru, not with fifo."
    assert said.setting == "cache.eviction: sieve; it is hardly different from lru."
    assert sweep_answer(points[::2], {"e2e_p99_s": 1.0}).setting == "cache.eviction: sieve."
    assert sweep_answer(points, {"e2e_p99_s": 2.0}).setting == "cache.eviction: sieve; it is hardly different from lru."
    assert sweep_answer(points[::2], {"e2e_p99_s": 2.0}).setting == (
        "cache.eviction: sieve; 2 of 2 meet the SLO, and which takes the most traffic was not simulated."
    )
    never = [samples.make_point({"cache.eviction": name}, miss=0.0) for name in policies]
    assert sweep_answer(never, {"miss_ratio": 0.1}).setting.endswith("it is hardly different from lru or fifo.")


def test_sweep_does_not_depend_on_the_order_of_points() -> None:
    points = samples.rates().points
    assert sweep_answer(points[::-1], {"e2e_p99_s": 1.0}) == sweep_answer(points, {"e2e_p99_s": 1.0})


def slots_sweep(p99s: dict[int, float]) -> list[Point]:
    return [samples.make_point({"cache.gpu.slots": slots}, p99=p99) for slots, p99 in p99s.items()]


@pytest.mark.parametrize(
    ("p99s", "headline"),
    [
        ({16: 9.0, 32: 3.0, 64: 0.5, 128: 0.4}, "The SLO is met from 64 GPU slots on; at 32 it isn't."),
        ({16: 0.5, 32: 0.4}, "The SLO is met with 16 or 32 GPU slots."),
        ({16: 0.5, 32: 0.4, 64: 0.3}, "The SLO is met at every value tried, 16 to 64 GPU slots."),
        ({16: 5.0, 32: 4.0, 64: 3.0}, "The SLO is not met at any value tried, 16 to 64 GPU slots."),
        (
            {16: 5.0, 32: 1.0, 64: 1.0},
            "The SLO is not certainly met at any value tried, 16 to 64 GPU slots: not with 16, unclear with 32 and 64.",
        ),
        ({16: 1.0, 32: 1.0}, "It is unclear whether the SLO is met with 16 or 32 GPU slots."),
        ({16: 0.99, 32: 0.99}, "The SLO is probably met with 16 or 32 GPU slots."),
        ({16: 1.01, 32: 1.01}, "The SLO is probably not met with 16 or 32 GPU slots."),
        ({16: 1.01, 32: 0.99, 64: 0.4}, "The SLO is met from 64 GPU slots on; at 32 it probably is."),
        ({16: 5.0, 32: 1.01, 64: 0.4}, "The SLO is met from 64 GPU slots on; at 32 it probably isn't."),
        ({16: 0.4, 32: 5.0, 64: 0.4}, "The SLO is met with 16 and 64 GPU slots, not with 32."),
        ({16: 0.4, 32: 1.0, 64: 0.4}, "The SLO is met with 16 and 64 GPU slots, unclear with 32."),
        (
            {16: 0.4, 32: 1.0, 64: 0.4, 96: 5.0, 128: 0.4},
            "The SLO is met with 16, 64 and 128 GPU slots, unclear with 32, not with 96.",
        ),
    ],
)
def test_sweep_boundary(p99s: dict[int, float], headline: str) -> None:
    assert sweep_answer(slots_sweep(p99s), {"e2e_p99_s": 1.0}).headline == headline


def test_the_key_numbers_are_of_the_point_to_choose() -> None:
    """Of several keys the least that serves the most demand; of policies the fastest; else the edge of the SLO."""
    p99s = {(16, "4/s"): 0.4, (32, "4/s"): 0.3, (16, "6/s"): 5.0, (32, "6/s"): 0.5, (64, "6/s"): 0.4, (64, "8/s"): 5.0}
    points = [
        samples.make_point({"cache.gpu.slots": slots, "workload.arrivals.rate": rate}, p99=p99)
        for (slots, rate), p99 in p99s.items()
    ]
    assert sweep_focus(points, {"e2e_p99_s": 1.0}).set == {"cache.gpu.slots": 32, "workload.arrivals.rate": "6/s"}
    policies = [samples.make_point({"cache.eviction": name}, p99=p99) for name, p99 in (("lru", 0.9), ("sieve", 0.4))]
    assert sweep_focus(policies, {"e2e_p99_s": 1.0}).set == {"cache.eviction": "sieve"}
    free = [
        samples.make_point({"workload.arrivals.rate": rate, "fleet.speculation.tokens": tokens}, p99=p99)
        for rate, tokens, p99 in (("1/s", 0, 0.3), ("1/s", 3, 0.6), ("4/s", 0, 5.0), ("4/s", 3, 4.0))
    ]
    assert sweep_focus(free, {"e2e_p99_s": 1.0}) is free[0], "of what costs nothing, the fastest"
    routers = [
        replace(point, set={"cache.gpu.slots": slots, **point.set})
        for slots in (16, 64)
        for point in samples.routers().points
    ]
    said = sweep_answer(routers, {"ttft_p99_s": 0.5})
    assert said.setting == "cache.gpu.slots: 16, router.policy: affinity-residency.", "of which none needs more slots"
    assert any(line.startswith("At 16 GPU slots, use affinity-residency or hash: ") for line in said.details)
    lengths = [
        samples.make_point({"cache.gpu.slots": slots, "workload.tokens.output.mean": mean}, p99=p99)
        for slots, mean, p99 in ((12, 60, 0.5), (12, 120, 5.0), (32, 60, 0.3), (32, 120, 0.6))
    ]
    assert sweep_focus(lengths, {"e2e_p99_s": 1.0}) is lengths[3], "lengths are not for free"
    slots = slots_sweep({16: 5.0, 32: 0.4, 64: 0.3})
    assert sweep_focus(slots, {"e2e_p99_s": 1.0}).set == {"cache.gpu.slots": 32}


def test_an_engine_that_nobody_can_deploy_is_not_recommended() -> None:
    """The idealised engine is the fastest, and alone in meeting the tighter SLO."""
    p99s = {"continuous": 0.3, "sglang": 0.9, "vllm-0.32": 0.5}
    points = [samples.make_point({"fleet.engine": name}, p99=p99) for name, p99 in p99s.items()]
    assert sweep_answer(points, {"e2e_p99_s": 1.0}).setting == (
        "fleet.engine: vllm-0.32; 2 of 2 meet the SLO, and which takes the most traffic was not simulated."
    )
    tight = sweep_answer(points, {"e2e_p99_s": 0.4})
    assert tight.setting == "fleet.engine: vllm-0.32, the nearest to the SLO."
    assert "met with engine continuous (idealised engine)" in tight.headline
    assert sweep_focus(points[:1], {"e2e_p99_s": 1.0}) is points[0], "there is no other"


@pytest.mark.parametrize("key", ["cache.gpu.slots", "router.policy"])
def test_where_nothing_meets_the_slo_the_key_numbers_are_of_the_nearest_point(key: str) -> None:
    """Each misses one of two targets: the first its latency twice over, the others their misses three times over."""
    found = {8: (2.0, 0.1), 16: (0.9, 0.6), 32: (4.0, 0.2), 64: (0.8, 0.6)}
    points = []
    for slots, (p99, miss) in found.items():
        point = samples.make_point({key: slots if key == "cache.gpu.slots" else f"policy-{slots}"}, p99=p99)
        metrics = {**point.metrics, "miss_ratio": replace(point.metrics["miss_ratio"], value=miss, lo=miss, hi=miss)}
        points.append(replace(point, metrics=metrics))
    slo = {"e2e_p99_s": 1.0, "miss_ratio": 0.2}
    assert sweep_answer(points, slo).verdict == NOT_MET
    assert sweep_focus(points, slo) is points[0]
    unknown = {**points[0].metrics, "miss_ratio": Metric(None, unit="1")}
    assert sweep_focus([replace(points[0], metrics=unknown), *points[1:]], slo) is points[1]


def test_a_metric_varies_if_the_difference_is_certain_and_can_be_seen() -> None:
    assert varies(slots_sweep({16: 1.0, 32: 2.0}), "e2e_p99_s")
    assert not varies(slots_sweep({16: 1.0, 32: 1.0}), "e2e_p99_s")
    assert not varies(slots_sweep({16: 1.0, 32: 1.08}), "e2e_p99_s")


def test_both_of_two_settings_meet_the_slo() -> None:
    points = [samples.make_point({"cache.eviction": name}, p99=0.4) for name in ("lru", "sieve")]
    assert sweep_answer(points, {"e2e_p99_s": 1.0}).headline == "The SLO is met with eviction policy lru or sieve."


def test_the_one_combination_that_misses_is_named() -> None:
    points = [
        samples.make_point({"cache.eviction": name, "fleet.admission": admission}, p99=p99)
        for name, admission, p99 in (("lru", "skip", 0.4), ("lru", "wait", 0.4), ("sieve", "skip", 2.0))
    ]
    assert sweep_answer(points, {"e2e_p99_s": 1.0}).headline == (
        "Only eviction policy sieve with admission policy skip misses the SLO."
    )


def test_a_plans_heat_map_hatches_what_the_plan_is_not_sure_of() -> None:
    run = samples.grid()
    axes, terms = make_axes(run.points), {"e2e_p99_s": 0.25, "miss_ratio": 0.4}
    met = [point.set for point in run.points if verdict(point, terms) == MET]
    assert len(met) == 10

    def cells(certain: list[dict[str, Any]] | None) -> str:
        facet = Facet(run.points, run.points[0], certain=certain)
        chart = heat_chart(run.points, axes[0], axes[1], "e2e_p99_s", terms, facet)
        assert chart is not None
        return chart.desc

    assert cells(None) == cells(met)
    assert cells(met[1:]).endswith("9 of 30 cells meet the SLO.")


def test_trust_is_about_the_number_of_the_headline() -> None:
    narrow, wide = (Metric(0.5, 0.49, 0.51, "s", calibration_lo=0.5 - d, calibration_hi=0.5 + d) for d in (0.02, 0.2))
    point = samples.make_point()
    metrics = {**point.metrics, "ttft_p99_s": narrow, "e2e_p99_s": wide}
    point = replace(point, metrics=metrics, calibration={"draws": 8, "overloaded": 0})
    terms = {"ttft_p99_s": 1.0, "e2e_p99_s": 1.0}
    assert find_trust(point, terms, about="ttft_p99_s").number.startswith("p99 TTFT is known to ±4 %")
    assert find_trust(point, terms).number.startswith("p99 E2E is known to ±40 %"), "the worst"
    unsettled = replace(point, metrics={**metrics, "ttft_p99_s": replace(narrow, state=State(Cause.WIDE))})
    assert "is known to" not in find_trust(unsettled, terms, about="ttft_p99_s").number, "its interval says more"
    skewed = replace(wide, calibration_lo=0.1, calibration_hi=3.0)  # as intervals of ratios are
    point = replace(point, metrics={**metrics, "e2e_p99_s": skewed})
    assert find_trust(point, terms).number.startswith("p99 E2E is known to within a factor of 6"), "3 over 0.5"


def test_slots_are_given_back_only_where_they_hold_much_of_the_memory() -> None:
    few, many = (MemoryUse(1, 16, 5, 8, adapters, 1000, 40, 8, 1) for adapters in (3, 20))
    kv = Limit("KV memory", Evidence.BLOCKED, 0.5)
    for memory, said in ((few, False), (many, True)):
        point = replace(samples.make_point(), setup=Setup("vllm", memory=memory))
        assert ("fewer GPU slots" in remedy_words(kv, point)) is said


def test_copies_in_host_memory_help_where_slots_are_short_because_loads_come_from_storage() -> None:
    slots = Limit("slots", Evidence.BLOCKED, 0.5)
    for loader, said in (
        (LoaderUse(0.3, storage=0.3), "keep more copies in host memory (cache.host.slots), or add GPU slots"),
        (LoaderUse(0.3, storage=0.01), "add GPU slots"),
        (LoaderUse(0.3, storage=0.3, host_holds_all=True), "add GPU slots"),
    ):
        point = samples.make_point()
        point = replace(point, capacity=replace(point.capacity, loader=loader))
        assert remedy_words(slots, point).startswith(said)


def test_no_cliff_where_intervals_overlap_or_nothing_is_steep() -> None:
    points = slots_sweep({16: 1.0, 32: 1.2, 64: 1.4})
    assert find_cliff(points, make_axes(points)[0], "e2e_p99_s") is None


def test_a_cliff_in_wide_intervals_is_where_the_metric_doubles_and_no_longer() -> None:
    points = slots_sweep({16: 2.74, 32: 2.69, 64: 2.41, 128: 0.976})
    for point in points:
        point.metrics["e2e_p99_s"] = replace(point.metrics["e2e_p99_s"], lo=0.1, hi=9.0)
    cliff = find_cliff(points, make_axes(points)[0], "e2e_p99_s")
    assert cliff is not None
    assert (cliff.before, cliff.after) == (points[3], points[2])


def test_two_keys_answer_how_much_is_enough() -> None:
    said = sweep_answer(samples.grid().points, {"e2e_p99_s": 0.25, "miss_ratio": 0.4})
    assert said.headline == "10 of 30 combinations meet the SLO."
    assert said.details[0] == "With 100 adapters, the SLO is met from 64 GPU slots on; at 32 it isn't."


@pytest.mark.parametrize("name", [name for name in samples.ALL if name != "nothing_yet"])
def test_every_sample_gets_a_whole_answer(name: str) -> None:
    said = sweep_answer(samples.ALL[name]().points, {"e2e_p99_s": 1.0})
    texts: list[Any] = [said.headline, said.binding, said.binding_sentence, said.trust.sentence, *said.details]
    assert all(texts)
    assert "nan" not in " ".join(texts).split()


def test_words_need_no_heavy_import() -> None:
    code = (
        "import sys, sim.studies.run.findings; "
        "print([m for m in ('matplotlib', 'jinja2', 'pandas', 'scipy', 'numpy', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_slo_missed_from_a_cold_start_says_how_to_start_warm() -> None:
    late, terms = samples.make_point(p99=3.0), {"e2e_p99_s": 1.0}
    assert answer(late, terms, cold=True).setting.startswith(COLD_FIRST)
    assert COLD_FIRST not in answer(late, terms).setting, "the caches started full"
    assert COLD_FIRST not in answer(samples.make_point(), terms, cold=True).setting, "the SLO is met"
    assert COLD_FIRST not in answer(samples.make_point(p99=3.0, miss=0.0), terms, cold=True).setting
    assert COLD_FIRST not in answer(samples.rollout().points[0], {"e2e_p99_s": 0.01}, cold=True).setting
    full = samples.make_point(p99=3.0, capacity={"slots": {"blocked_share": 0.6}})
    assert COLD_FIRST not in answer(full, terms, cold=True).setting, "running requests fill the slots"
    first_loads = {"loader": {"storage": 0.4, "host_holds_all": True}, "slots": {"blocked_share": 0.6}}
    assert COLD_FIRST in answer(samples.make_point(p99=3.0, capacity=first_loads), terms, cold=True).setting
    for multiple, helps in ((1.5, True), (0.8, False)):  # headroom is found with full caches
        more = Headroom(FOUND, multiple, multiple - 0.1, multiple + 0.1, "e2e_p99_s", failing=late)
        assert (COLD_FIRST in answer(late, terms, cold=True, headroom=more).setting) is helps
    more = replace(more, multiple=1.5)
    said = answer(late, terms, cold=True, headroom=replace(more, without=(EMPTY_CACHES,)))
    assert said.setting == "Nothing in the fleet; start with full caches (cache.warm: steady)."
    assert said.first_limit.startswith("Empty caches at the start: without them, the SLO would be met up to about 1.5")
    sweep = slots_sweep({16: 3.0, 32: 2.0})
    assert sweep_answer(sweep, terms, cold=True).setting.startswith(COLD_FIRST)
    assert COLD_FIRST not in sweep_answer(sweep, {"e2e_p99_s": 4.0}, cold=True).setting


def test_every_missed_term_is_named_and_whether_costs_alone_leave_it_open() -> None:
    said = answer(samples.make_point(p99=3.0, miss=0.8), {"e2e_p99_s": 1.0, "miss_ratio": 0.4})
    assert said.headline.endswith("p99 E2E is 3 s, above the 1 s target; miss ratio is 80 %, above the 40 % target.")
    assert said.setting.startswith(
        "For fewer misses, add GPU slots (cache.gpu.slots) or route by adapter (router.policy). "
    )
    wide = Metric(1.0, 0.99, 1.01, "s", calibration_lo=0.8, calibration_hi=1.2)
    point = samples.make_point()
    unclear = replace(point, metrics={**point.metrics, "e2e_p99_s": wide}, calibration={"draws": 8, "overloaded": 0})
    assert "only a better profile can decide" in answer(unclear, {"e2e_p99_s": 1.0}).setting
    unclear.metrics["e2e_p99_s"] = replace(wide, hi=1.4, state=State(Cause.WIDE))
    said = answer(unclear, {"e2e_p99_s": 1.0})
    assert said.setting == (
        "Nothing yet; deciding takes a better profile (loraplan profiles adjust --anchor) and more requests."
    )


def test_a_sweep_without_a_value_that_meets_the_slo_is_about_one_that_may() -> None:
    terms = {"e2e_p99_s": 1.0, "miss_ratio": 0.9}
    wide = Metric(1.5, 0.5, 2.5, "s", state=State(Cause.WIDE))
    points = slots_sweep({8: 9.0, 16: 1.2, 32: 1.5})
    quiet = replace(points[2], capacity=Capacity(), breakdown={"decode_s": 1.0})
    points[2] = replace(quiet, metrics={**quiet.metrics, "e2e_p99_s": wide})
    assert sweep_focus(points, terms) is points[2], "though it is farther from its target than one that fails"
    assert "at 16 GPU slots" in sweep_answer(points, terms).first_limit, "nothing shows at 32"
    points[2] = replace(points[2], capacity=Capacity(slots=SlotUse(blocked_share=0.4)))
    assert sweep_answer(points, terms).first_limit.startswith("Adapter slots, at 32 GPU slots: ")
    points[2].metrics["itl_p99_s"] = Metric(0.2, 0.2, 0.2, "s")
    both = [replace(points[2], set={"cache.gpu.slots": slots}) for slots in (16, 32)]
    said = sweep_answer(both, {"itl_p99_s": 0.1}).first_limit
    assert said.startswith("16 GPU slots: p99 ITL is 200 ms"), "no queue for slots makes gaps longer"


def test_a_sweep_is_about_what_its_slo_asks() -> None:
    """Traffic is nothing to set, the limit is that of the nearest value that fails, and routers are held to the SLO."""
    sweep = slots_sweep({8: 9.0, 16: 3.0, 32: 0.5})
    assert "at 16 GPU slots" in sweep_answer(sweep, {"e2e_p99_s": 1.0}).first_limit
    demand = [samples.make_point({"workload.arrivals.cv": cv}, p99=p99) for cv, p99 in ((1.0, 0.5), (4.0, 3.0))]
    assert sweep_answer(demand, {"e2e_p99_s": 1.0}).setting == ""
    for key in ("slo.ttft_p99", "fleet.price", "tenants.0.slo.e2e_p99"):
        given = [samples.make_point({key: value}, p99=p99) for value, p99 in ((1.0, 0.5), (4.0, 3.0))]
        assert sweep_answer(given, {"e2e_p99_s": 1.0}).setting == "", "it is given"
    run = samples.routers()
    miss = [
        replace(point.metrics["miss_ratio"], value=v, lo=v, hi=v)
        for point, v in zip(run.points, (0.9, 0.2, 0.9), strict=True)
    ]
    points = [replace(p, metrics={**p.metrics, "miss_ratio": m}) for p, m in zip(run.points, miss, strict=True)]
    said = sweep_answer(points, {"ttft_p99_s": 1.0, "miss_ratio": 0.5})
    assert said.headline == "Use hash: no other router meets the SLO."
    assert said.setting == "router.policy: hash."
