"""The page of a trace: every part may be missing, its words follow from the numbers, and it stands alone."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from one_script import without_script
from test_report import Page

from reports.render.html import page, tied
from sim.studies.trace.facts import (
    BurstFacts,
    Candidate,
    CheckedValue,
    FitCheck,
    LawRow,
    MissCurve,
    SessionFacts,
    TraceFacts,
)
from sim.studies.trace.findings import _off_words, closed_gap, headline, laws_sentences, lengths_sentences, sentences
from sim.studies.trace.report import laws_table, trace_report

TOKENS = {"mean": 600.0, "p50": 400.0, "p90": 1500.0, "p99": 5400.0, "max": 9000.0}
CURVE = MissCurve(
    [1, 2, 4, 8, 11, 16, 32, 64],
    [0.98, 0.94, 0.84, 0.64, 0.50, 0.30, 0.20, 0.10],
    [0.99, 0.98, 0.96, 0.93, 0.91, 0.90, 0.70, 0.40],
    [0.99, 0.98, 0.96, 0.93, 0.91, 0.89, 0.69, 0.38],
)
FIT = FitCheck(
    0.5,
    4000,
    3900,
    "sessions",
    [
        Candidate("independent", "every request draws its adapter independently", 0.25),
        Candidate("sessions", "sessions as the trace names them", 0.0062),
    ],
    [4, 8, 16, 32, 64],
    real=[0.80, 0.60, 0.30, 0.20, 0.10],
    synthetic=[0.81, 0.58, 0.30, 0.24, 0.10],
    independent=[0.96, 0.90, 0.85, 0.70, 0.11],
    values=[
        CheckedValue("requests/s", 2.0, 2.1, "1/s"),
        CheckedValue("dispersion in 60 s", 16.0, 2.0),
        CheckedValue("prompt mean", 600.0, 630.0, "tokens"),
    ],
)
FACTS = TraceFacts(
    file="traces/day.csv",
    requests=8000,
    adapters=100,
    span_s=4000.0,
    rate_rps=2.0,
    gap_cv=1.3,
    dispersion_1s=1.5,
    dispersion_60s=5.8,
    longest_gap_s=9.0,
    silences=0,
    silent_s=0.0,
    prompt=TOKENS,
    output=TOKENS,
    length_correlation=-0.123,
    length_by_adapter=0.79,
    concentration={"top_1pct": 0.1, "top_10pct": 0.45, "top_20pct": 0.617, "effective_adapters": 42.3},
    laws=[
        LawRow("zipf", {"exponent": 0.9}, 1000.0, 0.03, 0.4),
        LawRow("uniform", {}, 1200.0, 0.4, 0.01),
        LawRow("hot-cold", {"hot": 0.125, "requests": 0.7}, 900.0, 0.1, None, "sessions"),
    ],
    sessions=SessionFacts(True, None, 1800, 14.7, 4.5, 120.0, 1290.0),
    curve=CURVE,
    timeline={"t_s": [500.0, 1500.0, 2500.0, 3500.0], "rate_rps": [1.0, 3.0, 2.5, 1.5]},
    fit=FIT,
)
NAMELESS = replace(FACTS, adapters=0, concentration=None, laws=[], sessions=None, curve=None, length_by_adapter=None)
UNCHECKED = replace(FIT, slots=[], real=[], synthetic=[], independent=[], values=[])
CHECKED_BUT_NAMELESS = replace(UNCHECKED, candidates=[], values=FIT.values, chosen="independent")


def test_a_hole_in_a_log_is_told_with_the_rate_of_the_rest() -> None:
    said = headline(replace(FACTS, longest_gap_s=2000.0, silences=1, silent_s=2000.0))
    assert said.startswith(
        "There are no requests for 33.3 min; the rate in the rest of the time is 4/s. If the log lacks"
    )
    said = headline(replace(FACTS, longest_gap_s=1000.0, silences=3, silent_s=3000.0))
    assert said.startswith("There are no requests in 3 gaps of 50 min in all; the rate in the rest of the time is 8/s.")
    assert "no requests" not in headline(FACTS)
    assert "no requests" not in headline(replace(FACTS, silences=1, silent_s=300.0)), "it hardly changes the rate"


def test_the_order_hurts_in_every_sentence_on_it() -> None:
    cyclic = replace(
        FACTS,
        sessions=replace(FACTS.sessions, named=False),
        curve=MissCurve([4, 8], [1.0, 1.0], [0.9, 0.8], [0.9, 0.8]),
    )
    assert "the order hurts" in headline(cyclic)
    assert "No sessions of users can be seen. Fewer requests would miss in a random order." in sentences(cyclic)


def instant(facts: TraceFacts) -> TraceFacts:
    """The same trace with all requests at one time."""
    return replace(
        facts,
        span_s=0.0,
        rate_rps=0.0,
        gap_cv=None,
        dispersion_1s=None,
        dispersion_60s=None,
        longest_gap_s=0.0,
        timeline={"t_s": [], "rate_rps": []},
        fit=None,
    )


def lonely(facts: TraceFacts) -> TraceFacts:
    """The same trace with one adapter."""
    one = MissCurve([1], [1 / 8000], [1 / 8000], [0.0])
    shares = {"top_1pct": 1.0, "top_10pct": 1.0, "top_20pct": 1.0, "effective_adapters": 1.0}
    return replace(facts, adapters=1, curve=one, concentration=shares, laws=[LawRow("uniform", {}, 0.0, 0.0, 1.0)])


def variants() -> dict[str, TraceFacts]:
    """Every combination of what a trace may lack."""
    found: dict[str, TraceFacts] = {}
    who = {"named": FACTS, "nameless": NAMELESS, "one-adapter": lonely(FACTS)}
    fits: dict[str, FitCheck | None] = {"checked": FIT, "unchecked": UNCHECKED, "unfitted": None}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"prompt": None, "output": None, "length_correlation": None, "length_by_adapter": None},
    )
    for (adapters, facts), (fit, check), (lengths, change) in itertools.product(
        who.items(), fits.items(), zip(("lengths", "no-lengths"), changes, strict=True)
    ):
        if adapters == "nameless" and check is FIT:
            check = CHECKED_BUT_NAMELESS
        for time, made in (("time", facts), ("instant", instant(facts))):
            fitted = check if time == "time" else None
            found[f"{adapters}-{fit}-{lengths}-{time}"] = replace(made, fit=fitted, **change)
    found["skipped"] = replace(FACTS, skipped={"output_tokens: not a number": 20}, notes=["columns ignored: region"])
    found["one-request"] = replace(instant(lonely(FACTS)), requests=1, sessions=None, laws=[])
    found["nothing"] = replace(instant(NAMELESS), requests=0, prompt=None, output=None, length_correlation=None)
    return found


def page_of(facts: TraceFacts, **changes: Any) -> str:
    given = {"scenario": "schema_version: 1\n", "provenance": [("Seed", "1")], **changes}
    return page(
        trace_report(facts, given.pop("name", "day.csv"), given.pop("command", "loraplan trace day.csv"), **given)
    )


@pytest.mark.parametrize("name", variants())
def test_renders_whatever_is_missing(name: str) -> None:
    facts = variants()[name]
    text = page_of(facts)
    read = Page(text)
    assert len(read.ids) == len(set(read.ids))
    targets = [attrs["href"] or "" for attrs in read.of("a")]
    assert all(target.lstrip("#") in read.ids for target in targets)
    assert ("p", tied(headline(facts))) in read.text
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"<style.*?</style>", "", text, flags=re.S))
    assert ("popularity" in read.ids) == bool(facts.laws)
    assert ("lengths" in read.ids) == (facts.prompt is not None)
    assert ("slots" in read.ids) == (facts.curve is not None)
    assert ("fitted" in read.ids) == (facts.fit is not None and bool(facts.fit.candidates or facts.fit.values))
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_markup_in_names_stays_text() -> None:
    evil = "<script>alert(1)</script>"
    facts = replace(
        FACTS,
        file=evil,
        notes=[evil],
        skipped={evil: 3},
        laws=[LawRow(evil, {evil: 1.0}, 1.0, 0.1, 0.5)],
        fit=replace(FIT, chosen=evil, candidates=[Candidate(evil, evil, 0.1)], values=[CheckedValue(evil, 1.0, 2.0)]),
    )
    text = without_script(page_of(facts, name=evil, command=evil, scenario=evil, provenance=[(evil, evil)]))
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 14


def test_the_headline_takes_the_power_of_two_where_order_matters_most() -> None:
    # |0.30 - 0.90| at 16 is the largest gap; 11 slots are not a power of two.
    assert headline(FACTS) == (
        "At 16 slots LRU misses 30 % of requests, but 90 % of the same ones shuffled: locality decides."
    )
    mild = replace(CURVE, shuffled=[ratio + 0.04 for ratio in CURVE.real])
    assert headline(replace(FACTS, curve=mild)).endswith(": locality helps.")


def test_the_headline_says_when_order_does_not_matter_or_hurts() -> None:
    same = replace(CURVE, shuffled=CURVE.real)
    assert headline(replace(FACTS, curve=same)) == (
        "At 32 slots LRU misses 20 % of requests, and 20 % when shuffled: their order hardly matters."
    )
    chance = replace(
        FACTS, requests=40, curve=replace(CURVE, shuffled=[min(ratio + 0.04, 0.96) for ratio in CURVE.real])
    )
    for alike in (replace(FACTS, curve=same), chance):
        assert headline(alike).endswith("their order hardly matters.")
        assert "active at a time. Shuffling the requests changes the miss ratio little" in sentences(alike)[2]
    scan = replace(CURVE, real=CURVE.shuffled, shuffled=CURVE.real)
    assert "LRU misses 90 % of requests, but 30 % of the same ones shuffled: the order hurts" in (
        headline(replace(FACTS, curve=scan))
    )


def test_the_first_sentence_is_the_burst() -> None:
    burst = BurstFacts(1800.0, 2100.0, 24.0, 5.0)
    dated = replace(FACTS, bursts=[burst], begins_at="2025-03-04T09:00:00+00:00")
    start = "From 09:30:00 to 09:35:00 UTC, requests come at 24/s, 5 times the rate outside of bursts."
    assert headline(dated) == f"{start} {headline(FACTS)}"
    assert sentences(dated)[-1] == "Fitted traffic lacks the burst: size with replay.yaml, not with traffic.yaml."
    two = replace(dated, bursts=[burst, replace(burst, times=3.0)], begins_at="", fit_has_bursts=True)
    assert headline(two).startswith(
        "From 30 min to 35 min after the first request, requests come at 24/s, 5 times the rate outside of bursts, the "
        "highest of 2 bursts."
    )
    assert sentences(two)[-1] == "Fitted traffic has the bursts of the whole trace, at the same times."
    long = replace(dated, begins_at="2025-03-04T23:40:00", span_s=1e5)
    assert headline(long).startswith("From 00:10:00 to 00:15:00 on 2025-03-05, requests")


@pytest.mark.parametrize(
    ("requests", "said"), [(1, "The trace has a single request"), (8, "One adapter gets all of the 8 requests")]
)
def test_the_headline_of_a_trace_with_one_adapter(requests: int, said: str) -> None:
    assert headline(replace(FACTS, adapters=1, requests=requests)) == f"{said}: a cache has nothing to decide."


def test_the_headline_of_a_trace_without_adapters_is_its_rate() -> None:
    # (5.8 - 1) * 2 requests/s * 60 s = (60 s * deviation)²: the deviation is 0.4/s, a fifth of the rate.
    # In a second: (1.5 - 1) * 2 * 1 = 1, half of the rate.
    assert headline(NAMELESS) == (
        "2 requests/s over 66.7 min: beyond chance, the rate moves by 50 % from second to second and 20 % from minute "
        "to minute."
    )
    calm = replace(NAMELESS, dispersion_1s=1.0, dispersion_60s=1.1, gap_cv=1.0)
    assert headline(calm) == "2 requests/s over 66.7 min, with gaps about as uneven as those of Poisson arrivals."
    seconds = replace(NAMELESS, dispersion_60s=None, dispersion_1s=1.5)
    assert "moves by 50 % from second to second" in headline(seconds)
    assert headline(instant(NAMELESS)) == "8,000 requests, all at the same time, so there is no rate."


def test_dispersion_within_its_own_error_is_chance() -> None:
    # 4,000 s hold 66 minutes: two standard errors are 2 * sqrt(2 / 66.7) = 0.35.
    steady = replace(FACTS, dispersion_1s=1.0)
    assert "no more than by chance" in sentences(replace(steady, dispersion_60s=1.34))[0]
    assert "from minute to minute" in sentences(replace(steady, dispersion_60s=1.36))[0]


def test_sentences_say_rate_popularity_sessions_and_fit() -> None:
    rate, popularity, slots, fit, off = sentences(FACTS)
    assert rate == (
        "2 requests/s over 66.7 min. Gaps are somewhat burstier than those of Poisson arrivals (cv 1.3; Poisson: 1). "
        "Beyond chance, the rate moves by 50 % from second to second and 20 % from minute to minute."
    )
    assert popularity == (
        "The hottest 1 % of 100 adapters get 10 % of requests, 10 % get 45 %, 20 % 62 %: about as spread out as 42.3 "
        "equally popular adapters."
    )
    # Shuffled / real is 1.45 at 8, 3 at 16, 3.5 at 32 and 4 at 64.
    assert slots == (
        "14.7 sessions of 4.5 requests are active at a time. Below 16 slots LRU gains less from sessions (at 8 "
        "slots 64 % miss, 93 % shuffled); from there on independent draws overstate misses up to 4.0 times (64 slots)."
    )
    # Gaps of 0.02 and more: 4 to 32 slots. Left: 0.01 + 0.02 + 0 + 0.04 of 0.16 + 0.30 + 0.55 + 0.50.
    assert closed_gap(FIT) == pytest.approx(1 - 0.07 / 1.51)
    assert fit == (
        "Traffic fitted to the first half (sessions as the trace names them) matches the LRU curve of the rest to "
        "within 4 points, worst at 32 slots, and closes 95 % of the gap between independent draws and the trace: its "
        "miss ratios are reliable."
    )
    assert off == "Fitted traffic is off in dispersion in 60 s (2, trace 16). It is calmer, so its queues are shorter."
    slow, fast = (CheckedValue("requests/s", 10.0, rate, "1/s") for rate in (1.0, 90.0))
    bursty = CheckedValue("dispersion in 60 s", 2.0, 16.0)
    off = _off_words(replace(FACTS, fit=replace(FIT, values=[slow, bursty])))
    assert off.endswith(
        "It has fewer requests a second, so its queues are shorter: size with replay.yaml, not with traffic.yaml."
    )
    off = _off_words(replace(FACTS, fit=replace(FIT, values=[fast])))
    assert off.endswith("It has more requests a second, so its queues are longer.")
    chance = replace(FIT, values=[CheckedValue("dispersion in 60 s", 1.0, 1.5)])
    ten_minutes = replace(chance, requests_checked=round(600 * FACTS.rate_rps))
    assert _off_words(replace(FACTS, fit=ten_minutes)) == ""
    longer = replace(chance, requests_checked=round(60_000 * FACTS.rate_rps))
    assert "burstier" in _off_words(replace(FACTS, fit=longer))


def test_sessions_found_by_pauses_are_told_so() -> None:
    assert FACTS.sessions is not None
    found = replace(FACTS, sessions=replace(FACTS.sessions, named=False, pause_s=30.0, at_a_time=0.4))
    assert sentences(found)[2].startswith("0.4 sessions of 4.5 requests with pauses up to 30 s are active at a time.")
    alone = replace(found, sessions=replace(found.sessions, requests_mean=1.4))
    assert sentences(alone)[2].startswith("0.4 sessions of 1.4 requests"), "they save misses"
    busy = replace(found.sessions, at_a_time=9.8)
    same = replace(found, sessions=busy, curve=replace(CURVE, shuffled=CURVE.real))
    assert sentences(same)[2].startswith("No sessions of users can be seen. ")
    assert "pauses for longer than given above" in page_of(found)
    assert "pauses for longer than given above" not in page_of(FACTS)


def test_says_where_sessions_help_only_where_they_do() -> None:
    mild = replace(CURVE, shuffled=[1.3 * ratio for ratio in CURVE.real])
    assert "Independent draws overstate misses up to 1.3 times" in sentences(replace(FACTS, curve=mild))[2]
    assert "Below" not in sentences(replace(FACTS, curve=mild))[2]
    same = replace(CURVE, shuffled=CURVE.real)
    assert "Shuffling the requests changes the miss ratio little" in sentences(replace(FACTS, curve=same))[2]


@pytest.mark.parametrize(
    ("synthetic", "verdict"),
    [(0.25, "are reliable"), (0.251, "are rough"), (0.30, "are rough"), (0.31, "replay the trace instead")],
)
def test_trust_follows_from_the_largest_difference(synthetic: float, verdict: str) -> None:
    fit = replace(FIT, slots=[32], real=[0.25 - 0.05], synthetic=[synthetic], independent=[0.7])
    assert verdict in sentences(replace(FACTS, fit=fit))[3]


def test_a_fit_no_better_than_independent_draws_is_told_so() -> None:
    fit = replace(FIT, slots=[8], real=[0.2], synthetic=[0.5], independent=[0.4])
    assert closed_gap(fit) == pytest.approx(-0.5)
    assert "is no closer to it than independent draws" in sentences(replace(FACTS, fit=fit))[3]
    close = replace(FIT, slots=[8], real=[0.2], synthetic=[0.21], independent=[0.21])
    assert closed_gap(close) is None
    assert "independent draws" not in sentences(replace(FACTS, fit=close))[3]


def test_says_when_nothing_is_checked_or_fitted_or_left_out() -> None:
    assert "no data is left to check it" in sentences(replace(FACTS, fit=UNCHECKED))[3]
    assert "fitted to the whole trace" in sentences(replace(FACTS, fit=replace(UNCHECKED, share=1.0)))[3]
    assert sentences(replace(NAMELESS, fit=CHECKED_BUT_NAMELESS))[1:] == [
        "Traffic fitted to the first half, compared with the rest: requests/s +5 %, dispersion in 60 s −88 %.",
        "Fitted traffic is calmer, so its queues are shorter.",
    ]
    few = replace(FACTS, fit=None, notes=["no traffic is fitted: 12 requests in the fitted part are too few"])
    assert sentences(few)[3] == "No traffic was fitted to this trace; the notes say why."
    left_out = replace(FACTS, requests=980, skipped={"a": 15, "b": 5})
    assert sentences(left_out)[-1] == "20 rows could not be used and are left out."
    assert "Rows left out: 15 (a)." in page_of(left_out)


def test_a_law_is_ruled_out_only_where_it_was_judged() -> None:
    by_requests, by_sessions = laws_sentences(FACTS)
    assert by_requests == (
        "By requests: likeliest is zipf (exponent 0.9), off by up to 3 % of requests. This ranking may come from zipf."
    )
    assert by_sessions == (
        "By sessions: likeliest is hot-cold (hot 12.5 %, requests 70 %), off by up to 10 % of sessions."
    )
    table = laws_table(FACTS)
    assert [row[-1] for row in table.rows] == ["possible", "ruled out", "not judged"]
    none = replace(FACTS, laws=[LawRow("uniform", {}, 1200.0, 0.4, 0.01)])
    assert "No law fits this ranking" in laws_sentences(none)[0]


def test_lengths_in_words() -> None:
    together, between = lengths_sentences(FACTS)
    assert "move in opposite directions" in together
    assert together.endswith("−0.12).")
    assert between == "Lengths depend on the adapter: 79 % of their variance lies between adapters."


def test_the_band_of_the_rate_is_that_of_poisson_arrivals() -> None:
    # Spans of 1,000 s at 2/s: 1.96 * sqrt(2 / 1000) = 0.088 around 2; rates of 1, 3, 2.5 and 1.5 all lie outside.
    assert "where 95 % of the spans of Poisson arrivals would lie; 0 % do." in page_of(FACTS)
    near = replace(FACTS, timeline={"t_s": FACTS.timeline["t_s"], "rate_rps": [1.92, 2.08, 2.0, 2.09]})
    assert "would lie; 75 % do." in page_of(near)
