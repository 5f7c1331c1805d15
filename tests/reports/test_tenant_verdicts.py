"""An answer judges the SLOs of tenants with that of the fleet, as ``--check`` does, and names the one that decides."""

from __future__ import annotations

from dataclasses import replace

import pytest
import samples

from reports.tables.metric_tables import make_tiles
from sim.results.model import BucketUse, Setup
from sim.results.point import LateShare, Metric, Point, TenantResult
from sim.results.verdict import MET, NO_SLO, NOT_MET, verdict
from sim.studies.run.answer import answer
from sim.studies.run.findings import sweep_answer
from sim.studies.run.report import slo_words, verdict_badge

TERMS = {"e2e_p99_s": 1.0}


def tenant(name: str, target: float | None, p99: float = 0.4) -> TenantResult:
    own = samples.make_point(p99=p99)
    return TenantResult(name, {} if target is None else {"e2e_p99_s": target}, own.metrics)


def shared(*tenants: TenantResult, swept: dict[str, int] | None = None, p99: float = 0.3) -> Point:
    return replace(samples.make_point(swept, p99=p99), tenants=list(tenants))


CHAT, BATCH, FREE = tenant("chat", 0.02), tenant("batch", 0.8), tenant("free", None)


@pytest.mark.parametrize(
    ("point", "terms", "found", "start"),
    [
        (
            shared(CHAT, BATCH),
            TERMS,
            NOT_MET,
            "The SLO of chat is not met: its p99 E2E is 400 ms, above the 20 ms target.",
        ),
        (shared(CHAT, BATCH), {}, NOT_MET, "The SLO of chat is not met: its p99 E2E is 400 ms"),
        (
            shared(CHAT, BATCH, tenant("mail", 0.1)),
            {},
            NOT_MET,
            "The SLO of chat is not met: its p99 E2E is 400 ms, above the 20 ms target. Nor is that of mail.",
        ),
        (shared(BATCH, FREE), TERMS, MET, "The SLOs of the fleet and batch are met: p99 E2E is 300 ms"),
        (shared(BATCH, FREE), {}, MET, "The SLO of batch is met: its p99 E2E is 400 ms"),
        (
            shared(tenant("a", 9.0), tenant("b", 0.5), tenant("c", 9.0), tenant("d", 9.0)),
            {},
            MET,
            "The SLOs of 4 tenants are met: p99 E2E of b is 400 ms",
        ),
        (shared(BATCH, p99=2.0), TERMS, NOT_MET, "The SLO is not met: p99 E2E is 2 s"),
        (shared(FREE), TERMS, MET, "The SLO is met: p99 E2E is 300 ms"),
        (shared(FREE), {}, NO_SLO, "p99 E2E is 300 ms"),
    ],
)
def test_the_headline_names_whose_slo_decides(point: Point, terms: dict[str, float], found: str, start: str) -> None:
    said = answer(point, terms)
    assert said.headline.startswith(start)
    assert said.verdict == verdict(point, terms) == found


@pytest.mark.parametrize(("limited", "advice"), [("chat", "Raise the bucket of chat"), ("free", "Keep more copies")])
def test_a_bucket_is_raised_only_where_its_own_tenant_misses(limited: str, advice: str) -> None:
    point = shared(CHAT, FREE)
    bucket = BucketUse(limited, 3000.0, 2000.0, 0.9)
    point = replace(point, capacity=replace(point.capacity, buckets=(bucket,)))
    said = answer(point, {})
    assert said.setting.startswith(advice)
    assert said.headline.endswith(f" target. The bucket of {limited} holds 90 % of its requests.")
    told = f"The bucket of {limited} admits 3,000 tokens/s and holds 90 % of its requests."
    assert any(told in sentence for sentence in (said.binding_sentence, *said.details))


def test_the_headline_says_which_buckets_refuse_or_hold_requests() -> None:
    point = shared(BATCH, FREE)
    buckets = (BucketUse("batch", 9.0, 9.0, 0.04), BucketUse("free", 9.0, 9.0, 0.52, refuses=True))
    point = replace(point, capacity=replace(point.capacity, buckets=buckets))
    said = answer(point, {})
    assert said.headline.startswith("The SLO of batch is met: ")
    assert said.headline.endswith(". The bucket of free refuses 52 % of its requests.")
    held = (replace(buckets[0], limited=0.3), buckets[1])
    said = answer(replace(point, capacity=replace(point.capacity, buckets=held)), {})
    assert said.headline.endswith(" The bucket of free refuses 52 % of its requests and that of batch holds 30 %.")


def test_other_tenants_that_miss_theirs_are_details() -> None:
    late = [tenant(name, 0.1, 0.4) for name in "abcd"]
    said = answer(shared(CHAT, *late), TERMS)
    assert "p99 E2E of a is 400 ms (394 to 406), above the 100 ms target." in said.details
    assert "1 more target is missed or unclear: see the table of tenants." in said.details
    assert not any("of chat" in sentence for sentence in said.details), "the headline has it"
    assert not any("tenants" in sentence for sentence in answer(shared(BATCH), TERMS).details)


def test_a_change_does_not_hide_the_tenant_that_decides() -> None:
    changed = replace(samples.changed_point(usual=57), tenants=[CHAT])
    headline = answer(changed, {"ttft_p99_s": 1.0}).headline
    assert headline.startswith(
        "The SLO of chat is not met: its p99 E2E is 400 ms, above the 20 ms target; the rollout "
    )


def test_refused_requests_are_those_of_the_tenant() -> None:
    metrics = {**CHAT.metrics, "completed": Metric(900, unit="requests"), "refused": Metric(100, unit="requests")}
    late = {"e2e_p99_s": LateShare(0.8, Metric(0.1, 0.09, 0.11))}
    refused = replace(BATCH, metrics=metrics, late=late)
    assert answer(shared(refused), TERMS).headline.startswith(
        "The SLO of batch is not met: 10 % of its requests were refused, more than the 1 % that a target for p99 E2E "
        "allows; p99 E2E of the completed ones is 400 ms"
    )
    other = answer(shared(CHAT, refused), TERMS)
    assert "10 % of the requests of batch were refused, more than" in " ".join([other.headline, *other.details])


def replicas(*tenants: TenantResult) -> list[Point]:
    fleet = {1: 2.0, 2: 0.4, 3: 0.3}
    return [shared(*tenants, swept={"fleet.replicas": count}, p99=p99) for count, p99 in fleet.items()]


def test_no_point_of_a_sweep_meets_the_slo_where_a_tenant_misses_its_own() -> None:
    said = sweep_answer(replicas(CHAT, BATCH), TERMS)
    assert said.headline == "The SLO is not met at any value tried, 1 to 3 replicas."
    assert said.details[0] == (
        "The SLO of the fleet is not met at 1 of 3 points; that of chat is not met at 3 of 3 points."
    )
    assert said.verdict == NOT_MET
    assert sweep_answer(replicas(BATCH), TERMS).headline.startswith("The SLO is met from 2 replicas on")


def test_a_sweep_has_a_verdict_where_only_tenants_have_an_slo() -> None:
    said = sweep_answer(replicas(CHAT, BATCH), {})
    assert said.headline == "The SLO is not met at any value tried, 1 to 3 replicas."
    assert said.details[0] == "The SLO of chat is not met at 3 of 3 points."
    assert sweep_answer(replicas(BATCH), {}).headline == "The SLO is met at every value tried, 1 to 3 replicas."
    assert sweep_answer(replicas(FREE), {}).verdict == NO_SLO


def test_a_badge_judges_tenants_with_the_fleet() -> None:
    point = shared(CHAT)
    assert verdict_badge([point], TERMS, answer(point, TERMS).verdict) == ("✕", "SLO of chat not met", "not-met")
    assert [words for words in slo_words(TERMS, [point]) if " of chat " in words], "beside the badge"
    met = shared(BATCH)
    assert verdict_badge([met], TERMS, answer(met, TERMS).verdict) == ("✓", "SLO met", "met")
    assert verdict_badge([replace(point, tenants=[]), point], TERMS, MET)[1] == "SLO met at 1 of 2 points"


def test_tenants_that_miss_their_slo_are_served_first_where_the_engine_can() -> None:
    first = "Serve chat first (fleet.scheduling: priority, and tenants.N.priority: 1 for those without an SLO)"
    able = replace(shared(CHAT, FREE), setup=Setup("vllm", in_order=True))
    assert answer(able, {}).setting.startswith(f"{first}, or ")
    assert first not in answer(shared(CHAT, FREE), {}).setting
    gaps = replace(BATCH, name="gaps", slo={"itl_p99_s": 0.001}, metrics={"itl_p99_s": Metric(0.02, unit="s")})
    both = replace(shared(CHAT, FREE, gaps), setup=Setup("vllm", in_order=True))
    assert answer(both, {}).setting.startswith(f"{first}, and "), "it mends no gap between tokens"
    held = replace(able, capacity=replace(able.capacity, buckets=(BucketUse("chat", 3000.0, 2000.0, 0.9),)))
    assert answer(held, {}).setting.startswith("Raise the bucket of chat"), "it waits in front of the fleet"
    alone = replace(shared(BATCH, FREE, p99=2.0), setup=Setup("vllm", in_order=True))
    assert "Serve" not in answer(alone, TERMS).setting, "the fleet's SLO is missed"


def test_key_numbers_have_the_targets_of_the_tenants_that_are_nearest_to_a_miss() -> None:
    tiles = make_tiles(shared(tenant("mail", 9.0), BATCH, FREE, CHAT), TERMS)
    assert [(tile.words, tile.target, tile.mark) for tile in tiles[:3]] == [
        ("p99 E2E", "SLO 1 s", MET),
        ("p99 E2E of chat", "SLO 20 ms", NOT_MET),
        ("p99 E2E of batch", "SLO 800 ms", MET),
    ]
    assert all(not tile.target for tile in tiles[3:])
