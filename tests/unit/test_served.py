"""An SLO is about every measured request: those without an answer are infinitely late (docs/metrics.md)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_recordings import recording_of, scenario_facts

from sim.results.calibration import ReplicationValues, with_calibration
from sim.results.metric_state import Cause, State
from sim.results.point import Metric, Point
from sim.results.point_summary import summarise
from sim.results.records import COMPLETED, FAILED, GATED, REFUSED, UNFINISHED, Recording
from sim.results.sample_data import ScenarioFacts
from sim.results.verdict import (
    MET,
    NOT_MET,
    UNCLEAR,
    lacks_answers,
    late_share,
    late_verdict,
    term_verdict,
    unserved,
    verdict,
)

SECTIONS = 20
TTFT = {"ttft_p99_s": 2.0}
QUICK_S, SLOW_S = 1.0, 3.0


def facts(slo: dict[str, float], **changes: Any) -> ScenarioFacts:
    return scenario_facts(slo, kv_tokens=100, **changes)


def recording(status: np.ndarray, ttft_s: np.ndarray, **columns: np.ndarray) -> Recording:
    """One request a second, none of them in the warm-up; each has its last token half a second after its first."""
    count = len(status)
    arrival = np.arange(count, dtype=np.float64)
    first = arrival + ttft_s
    first = np.where(np.isin(status, (REFUSED, FAILED)) | ((status == UNFINISHED) & (first > count)), -1.0, first)
    requests = {
        "arrival_s": arrival,
        "prompt_tokens": np.full(count, 10),
        "output_tokens": np.full(count, 3),
        "admitted_s": first,
        "first_token_s": first,
        "finished_s": np.where(status == COMPLETED, first + 0.5, -1.0),
        "status": status,
    }
    section_of = (arrival * SECTIONS // count).astype(np.int32)
    return recording_of(requests | columns, np.linspace(0, count, SECTIONS + 1), float(count), section_of=section_of)


def made(slo: dict[str, float], count: int = 20_000, **shares: float) -> Point:
    """A point with these shares of refused, failed and slow requests, evenly spread; the others are quick."""
    rng = np.random.default_rng(1)
    luck = rng.permutation((np.arange(count) + 0.5) / count)
    status, ttft = np.full(count, COMPLETED), rng.uniform(0.1, QUICK_S, count)
    edge = 0.0
    for name, share in shares.items():
        chosen = (luck >= edge) & (luck < edge + share)
        edge += share
        status[chosen] = {"refused": REFUSED, "failed": FAILED, "slow": COMPLETED}[name]
        ttft[chosen] = SLOW_S if name == "slow" else 0.0
    return summarise([recording(status, ttft)], facts(slo), {}, [])


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ({"refused": 0.49}, NOT_MET),
        ({"failed": 0.35}, NOT_MET),
        ({"refused": 0.009, "slow": 0.005}, NOT_MET),  # 1.4 % are late, though neither share alone is above 1 %
        ({"refused": 0.003, "failed": 0.003, "slow": 0.008}, NOT_MET),
        ({"refused": 0.004, "slow": 0.003}, MET),  # 0.7 %
        ({"refused": 0.007}, MET),
        ({"failed": 0.007}, MET),
        ({"refused": 0.0095}, UNCLEAR),
        ({"slow": 0.02}, NOT_MET),
        ({}, MET),
    ],
)
def test_p99_is_of_all_measured_requests(shares: dict[str, float], word: str) -> None:
    assert verdict(made(TTFT, **shares), TTFT) == word


def test_values_stay_those_of_completed_requests() -> None:
    with_, without = made(TTFT, refused=0.49), made(TTFT)
    value = with_.metrics["ttft_p99_s"].value
    assert value == pytest.approx(without.metrics["ttft_p99_s"].value or 0.0, rel=0.01)
    assert value < QUICK_S
    assert without.late == without.unserved == {}  # a point of a run that serves everybody has nothing new
    assert not {"late", "unserved"} & set(without.to_json())
    assert with_.unserved["refused"] == with_.metrics["refused"].value == 9800
    assert Point.from_json(with_.to_json()) == with_


@pytest.mark.parametrize("name", ["ttft_mean_s", "e2e_mean_s", "queue_mean_s", "tpot_mean_s"])
def test_means_allow_one_percent_without_an_answer(name: str) -> None:
    slo = {name: 5.0}
    assert verdict(made(slo, refused=0.02), slo) == NOT_MET
    assert verdict(made(slo, failed=0.02), slo) == NOT_MET
    assert verdict(made(slo, refused=0.007), slo) == MET
    assert verdict(made(slo), slo) == MET


@pytest.mark.parametrize("name", ["itl_mean_s", "itl_p99_s"])
def test_gaps_allow_one_percent_without_an_answer(name: str) -> None:
    lacking, serving = made({name: 5.0}, refused=0.02), made({name: 5.0}, refused=0.007)
    for point in (lacking, serving):
        point.metrics[name] = Metric(0.02, 0.019, 0.021, "s")  # the recordings here have no gaps
    assert verdict(lacking, {name: 5.0}) == NOT_MET
    assert verdict(serving, {name: 5.0}) == MET


def test_half_may_be_late_for_a_median() -> None:
    slo = {"ttft_p50_s": 2.0}
    assert verdict(made(slo, refused=0.4), slo) == MET
    assert verdict(made(slo, refused=0.4, slow=0.15), slo) == NOT_MET  # the completed half is in time all the same
    assert verdict(made(slo, refused=0.6), slo) == NOT_MET


def test_misses_are_judged_by_admitted_requests() -> None:
    slo = {"miss_ratio": 0.5}
    point = made(slo, refused=0.49)
    assert (verdict(point, slo), point.late) == (MET, {})
    assert verdict(made(slo | TTFT, refused=0.49), slo | TTFT) == NOT_MET


def test_too_few_completed_for_a_p99_are_not_too_few_to_judge() -> None:
    point = made(TTFT, refused=0.99)
    assert point.metrics["ttft_p99_s"].value is None
    assert verdict(point, TTFT) == NOT_MET


def test_waiting_in_vain_counts_without_rollouts_or_faults() -> None:
    count = 4000
    status, ttft = np.full(count, COMPLETED), np.full(count, QUICK_S)
    status[-60:], ttft[-60:] = UNFINISHED, 1e6
    point = summarise([recording(status, ttft)], facts(TTFT), {}, [])
    assert point.impact is None
    assert point.late["ttft_p99_s"].share.value == pytest.approx(58 / 3998)  # the last two came within 2 s of the end
    assert verdict(point, TTFT) == UNCLEAR  # 1.5 %, all of them in one section
    # A fault is one event, not a stream: what differs from section to section says nothing of another run.
    crash = summarise([recording(status, ttft)], facts(TTFT, faults=frozenset({"crash"})), {}, [])
    assert verdict(crash, TTFT) == NOT_MET
    patient = {"ttft_p99_s": 50.0}  # 10 of 3,950
    crash = summarise([recording(status, ttft)], facts(patient, faults=frozenset({"crash"})), {}, [])
    assert verdict(crash, patient) == MET


def test_an_unsettled_latency_leaves_its_late_ones_unsettled() -> None:
    point = made(TTFT, refused=0.0085)
    assert term_verdict(point, "ttft_p99_s", 2.0) == MET
    point.metrics["ttft_p99_s"] = replace(point.metrics["ttft_p99_s"], state=State(Cause.WIDE))
    assert term_verdict(point, "ttft_p99_s", 2.0) == UNCLEAR  # a quarter more than 0.85 % is more than 1 %
    many = made(TTFT, refused=0.49)
    overloaded = replace(many.capacity, compute=replace(many.capacity.compute, offered_load=1.2))
    assert term_verdict(replace(many, capacity=overloaded), "ttft_p99_s", 2.0) == NOT_MET


def test_what_costs_leave_open_widens_the_share_of_late_requests() -> None:
    point = made(TTFT, refused=0.007)
    own = ReplicationValues(dict.fromkeys(point.metrics, None), False, {"ttft_p99_s": 0.007})
    drawn = [replace(own, late={"ttft_p99_s": late}) for late in (0.006, 0.009, 0.012)]
    assert verdict(point, TTFT) == MET
    point = with_calibration(point, [own], drawn, 3)
    share = point.late["ttft_p99_s"].share
    assert share.calibration_lo == 0.0
    assert share.calibration_hi == pytest.approx(0.007 + 3.18245 * math.sqrt((0.001**2 + 0.002**2 + 0.005**2) / 3))
    assert verdict(point, TTFT) == UNCLEAR
    assert Point.from_json(point.to_json()).late == point.late


@pytest.mark.parametrize(
    ("shares", "word"),
    [
        ({"refused": 0.49}, NOT_MET),
        ({"failed": 0.02}, NOT_MET),
        ({"refused": 0.009, "slow": 0.008}, NOT_MET),
        ({"refused": 0.002}, MET),
        ({}, MET),
    ],
)
def test_points_without_a_share_for_a_target_are_judged_by_their_counts(shares: dict[str, float], word: str) -> None:
    point = replace(made(TTFT, **shares), late={}, unserved={})
    assert verdict(point, TTFT) == word
    assert lacks_answers(point, "ttft_p99_s", 2.0) == (word == NOT_MET and "slow" not in shares)


def test_another_target_is_judged_by_counts_and_the_distribution() -> None:
    point = made(TTFT, refused=0.004, slow=0.009)
    assert late_verdict(point, "ttft_p99_s", 2.0) == NOT_MET
    assert late_verdict(point, "ttft_p99_s", 3.5) == MET
    assert late_verdict(point, "e2e_p99_s", 3.6) == MET
    assert late_verdict(point, "e2e_p99_s", 0.6) == NOT_MET


def test_causes_are_counted_where_requests_are_turned_away() -> None:
    count = 2000
    status, replica, tokens = np.full(count, COMPLETED), np.zeros(count, dtype=int), np.full(count, 10)
    status[:50], replica[:40], tokens[:40] = REFUSED, -1, 200
    tokens[7] = 900
    marks = np.zeros(count, dtype=int)
    marks[40:45] = GATED
    status[60:70] = FAILED
    one = recording(status, np.full(count, QUICK_S), replica=replica, prompt_tokens=tokens, marks=marks)
    expected = {"requests": 2000, "refused": 50, "failed": 10, "too_long": 40, "longest_tokens": 903}
    assert summarise([one], facts(TTFT), {}, []).unserved == expected | {"limit_tokens": 100}
    shorter = summarise([one], facts(TTFT, max_model_len=64), {}, [])
    assert shorter.unserved["limit_tokens"] == 64


def naive_late(one: Recording, target: float, stamp: str) -> tuple[int, int]:
    """Return how many requests are late and of how many, request by request."""
    late = decided = 0
    columns = {name: values.tolist() for name, values in one.requests.items()}
    for status, arrival, at in zip(columns["status"], columns["arrival_s"], columns[stamp], strict=True):
        took = (at if at >= 0 else one.stopped_s) - arrival
        is_late = status in (REFUSED, FAILED) or took > target
        late += is_late
        decided += is_late or status != UNFINISHED
    return late, decided


@pytest.mark.parametrize("seed", range(60))
def test_what_is_met_serves_99_of_100_requests_in_time(seed: int) -> None:
    """The law: whatever happens to requests, a p99 target that is met has 99 % of all of them within it."""
    rng = np.random.default_rng(seed)
    count, around = int(rng.integers(1200, 6000)), 10 ** rng.uniform(-3.3, -1)
    chances = np.concatenate([[0.0], rng.dirichlet(np.ones(4)) * around])
    kinds = rng.choice(5, size=count, p=[1 - chances.sum(), *chances[1:]])
    status = np.array([COMPLETED, REFUSED, FAILED, UNFINISHED, COMPLETED])[kinds]
    ttft = np.where(kinds == 4, SLOW_S, rng.uniform(0.1, 1.9, count))
    ttft = np.where(kinds == 3, rng.choice([0.5, 5.0, 1e9], size=count), ttft)
    slo = {"ttft_p99_s": 2.0, "e2e_p99_s": 3.0, "ttft_p50_s": 1.0, "ttft_mean_s": 1.5}
    one = recording(status, ttft)
    point = summarise([one], facts(slo), {}, [])
    for name, stamp in (("ttft_p99_s", "first_token_s"), ("e2e_p99_s", "finished_s"), ("ttft_p50_s", "first_token_s")):
        late, decided = naive_late(one, slo[name], stamp)
        share = late_share(point, name, slo[name])
        if share is None:
            assert late == int((np.asarray(one.requests[stamp] - one.requests["arrival_s"]) > slo[name]).sum())
        else:
            assert share.value == pytest.approx(late / decided, abs=1e-12)
            assert share.lo <= late / decided <= share.hi
        most = 0.5 if name == "ttft_p50_s" else 0.01
        if term_verdict(point, name, slo[name]) == MET:
            assert late / decided <= most + 1 / decided, f"seed {seed}: {name}"
        if late / decided > most + 5 * math.sqrt(most / decided) + 5 / decided:
            assert term_verdict(point, name, slo[name]) != MET, f"seed {seed}: {name}"
    lost, total = unserved(point)
    assert (lost, total) == (int(np.isin(status, (REFUSED, FAILED)).sum()), count)
    if verdict(point, {"ttft_mean_s": 1.5}) == MET:
        assert lost <= 0.01 * total
    alone = summarise([one], facts(TTFT), {}, [])
    if alone.late:
        assert alone.late["ttft_p99_s"].share.value == pytest.approx(1 - (alone.metrics["slo_attainment"].value or 0.0))


def test_the_law_meets_both_verdicts() -> None:
    """The random cases above are no use where all of them are met, or none is."""
    words = set()
    for around in (0.002, 0.05):
        words.add(verdict(made(TTFT, refused=around / 2, slow=around / 2), TTFT))
    assert words == {MET, NOT_MET}
