"""``loraplan compare`` of two plans: what changes in what they recommend, and with which changes of the scenario."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from test_plan import SLOTS, write

from sim.api import compare
from sim.results.run_directory.store import read_run
from sim.spec.scenario_file import load_scenario
from sim.studies.plan.study import make_plan

PRICED = f"{SLOTS}\nfleet: {{engine: continuous, price: 2 USD/h}}"
REPLICAS = "slo: {ttft_p99: 5 s}\nplan: {minimize: fleet.replicas, range: [1, 2]}"
POOLS = (
    "slo: {ttft_p99: 5 s}\nplan: {minimize: fleet.pools.small.replicas, range: [1, 2]}\n"
    "fleet: {engine: continuous, pools: [{name: big, gpu: h100-80gb, replicas: 1}, {name: small, gpu: l40s}]}"
)
FLEETS = (
    "slo: {ttft_p99: 5 s}\nplan: {minimize: price, range: [1, 2], fleets: "
    "[{name: dear, price: 3.0, set: {}}, {name: cheap, price: 1.0, set: {fleet.max_num_seqs: 32}}]}"
)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plans")
    scenarios: dict[str, tuple[str, list[str]]] = {
        "today": (PRICED, []),
        "next": (PRICED, ["fleet.replicas=2", "adapters.count=120", "adapters.rank=32", "cache.eviction=fifo"]),
        "impossible": (PRICED, ["slo.miss_ratio=1%", "plan.range=[4, 8]"]),
        "replicas": (REPLICAS, []),
        "pools": (POOLS, []),
        "more": (POOLS, ["fleet.pools.big.replicas=2", "plan={minimize: cache.gpu.slots, values: [24], range: null}"]),
        "fleets": (FLEETS, []),
    }
    for name, (rest, settings) in scenarios.items():
        loaded = load_scenario(write(root, rest, requests=200, name=f"{name}.yaml"), settings)
        make_plan(loaded, root / name, headroom=name == "today")
    return root


def compared(loraplan: CommandLine, plans: Path, one: str, other: str, *options: str) -> tuple[dict[str, Any], str]:
    """Return the JSON and the lines of a terminal."""
    folders = str(plans / one), str(plans / other)
    ended = loraplan.succeeds("compare", *folders, "--json", *options)
    return json.loads(ended.out), loraplan("compare", *folders).out


def test_numbers_are_those_of_the_plans(loraplan: CommandLine, plans: Path, tmp_path: Path) -> None:
    data, out = compared(loraplan, plans, "today", "next")
    found = data["plans"]
    for side, name in (("one", "today"), ("other", "next")):
        run = read_run(plans / name)
        point = dict(zip(run.manifest["point_keys"], run.points, strict=True))[run.plan.answer_key or ""]
        assert found[side]["answer"] == run.plan.answer
        assert found[side]["usd_per_month"] == point.metrics["usd_per_month"].value
        assert found[side]["deciding"]["value"] == point.metrics[found[side]["deciding"]["term"]].value
        assert found[side]["headroom"] == (None if run.headroom is None else run.headroom.summary())
    assert found["usd_per_month_change"] == 2 * 730.0, "two GPUs instead of one, at 2 USD an hour"
    assert f"  First limit  A: {found['one']['first_limit'].capitalize()}, at " in out
    assert found["other"]["first_limit"] is None, "its headroom was not searched"
    slots = [found[side]["answer"]["cache.gpu.slots"] for side in ("one", "other")]
    assert found["recommended"] == [{"key": "cache.gpu.slots", "one": str(slots[0]), "other": str(slots[1])}]
    changed = ["adapters.count", "adapters.rank", "fleet.replicas", "cache.eviction"]
    assert sorted(row["key"] for row in found["scenario"]) == sorted(changed)
    assert f"{slots[0]} → {slots[1]} GPU slots with 4 changes of the scenario: +$1,460 a month.\n" in out
    assert "  Scenario     100 → 120 adapters, adapter rank 16 → 32, 1 → 2 replicas, " in out
    bill = "$1,460 → $2,920 a month (+$1,460)."
    assert f"  Bill         {bill} Memory of each replica: adapters " in out
    assert data["headline"] == out.splitlines()[0] == compare(plans / "today", plans / "next").answer
    page = (tmp_path / "runs/compare-today-next/report.html").read_text(encoding="utf-8")
    assert all(text in page for text in (f">{data['headline']}<", f"<dt>Bill</dt><dd>{bill} Memory"))


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("today", "today", ["Still ", ": the same cost, first limit still ", "  Scenario     the same.\n"]),
        (
            "today",
            "replicas",
            ["  Not planned  replicas in A (1, the default), GPU slots in B (24, from its scenario)"],
        ),
        ("today", "impossible", ["B: No value of GPU slots from 4 to 8 meets the SLO", "with the nearest design of B"]),
        ("impossible", "impossible", ["A: No value of GPU slots from 4", " B: No value of GPU slots from 4"]),
        (
            "pools",
            "more",
            ["2 → 1 replica of small with 1 → 2 replicas of big", "replicas of small in B (1, the default)"],
        ),
        ("replicas", "fleets", ["  Not planned  ", "batch slots (max_num_seqs) in A (256, the default)"]),
        ("pools", "replicas", ["replicas of small → 1 replica"]),
    ],
)
def test_any_two_plans_can_be_compared(
    loraplan: CommandLine, plans: Path, one: str, other: str, said: list[str]
) -> None:
    data, out = compared(loraplan, plans, one, other)
    assert [text for text in said if text not in out] == []
    feasible = [data["plans"][side]["feasible"] for side in ("one", "other")]
    assert feasible == [name != "impossible" for name in (one, other)]


def test_what_is_no_pair_of_plans_is_compared_by_what_they_recommend_or_refused(
    loraplan: CommandLine, plans: Path
) -> None:
    today, unfinished = str(plans / "today"), plans / "unfinished"
    ended = loraplan("compare", today, today, today)
    assert (ended.code, ended.out) == (2, "")
    assert "too many run directories (got 3, allowed: two: A and B); compare each with A" in ended.err
    manifest = json.loads((plans / "today/manifest.json").read_text())
    del manifest["plan"]["answer"]
    (unfinished / "points").mkdir(parents=True)
    (unfinished / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    assert f"{unfinished}: this plan is not finished; plan again" in loraplan("compare", today, str(unfinished)).err
    loraplan.succeeds("run", f"{plans}/today/recommended.yaml", "--jobs", "1", "--out", "single")
    data = loraplan.data("compare", "single", today)
    assert "plans" not in data
    recommended = read_run(plans / "today").recommended
    assert recommended is not None
    (pair,) = data["points"]
    assert pair["metrics"]["ttft_p99_s"]["other"] == recommended.metrics["ttft_p99_s"].value
    assert loraplan("compare", today, str(plans / "impossible"), "--check", "--json").code == 1
