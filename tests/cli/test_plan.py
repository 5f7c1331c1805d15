"""``loraplan plan``: what it finds, what it says, and where it can find nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from command_line import CommandLine, Ended
from profiles_with_draws import write_profile

from loraplan import plan
from sim.results.metric_state import Cause, State
from sim.results.model import Difference
from sim.results.pairs import BETTER
from sim.results.point import Metric, Point
from sim.results.run_directory.store import read_run
from sim.results.run_directory.study_records import FleetRecord, GradeRecord, WhatIfRow
from sim.results.verdict import MET, grade, verdict
from sim.spec.scenario_file import load_scenario
from sim.studies import evaluate
from sim.studies.backends.pool import Local
from sim.studies.design import Design
from sim.studies.execution import Execution
from sim.studies.plan import findings, levers
from sim.studies.plan.findings import FOR_ADAPTERS, PlanReading, plan_answer
from sim.studies.plan.report import plan_report
from sim.studies.plan.study import in_steady_state, likely_design, make_plan
from sim.studies.plan.what_if import changes, free_changes
from sim.world.build import build_world

SMALL = """\
schema_version: 1
name: small
workload:
  requests: {requests}
  arrivals: {{process: poisson, rate: 20/s}}
  popularity: {{law: zipf, exponent: 0.9}}
  tokens: {{prompt: {{law: fixed, value: 100}}, output: {{law: fixed, value: 20}}}}
adapters: {{count: 100, rank: 16}}
cache: {{gpu: {{slots: 24}}}}
run: {{seed: 1, replications: 3}}
{rest}
"""


def write(folder: Path, rest: str, requests: int = 800, name: str = "small.yaml") -> str:
    path = folder / name
    idealised = "" if "\nfleet:" in f"\n{rest}" else "\nfleet: {engine: continuous}\n"
    text = SMALL.format(requests=requests, rest=rest + idealised)
    if "profile: " not in text:  # round numbers, without the draws of a derived profile
        text = text.replace("\nfleet: {", "\nfleet: {profile: h100-64gb/llama-3.1-8b/assumed, ")
    path.write_text(text, encoding="utf-8")
    return str(path)


def answered(ended: Ended) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ended.out)
    assert list(found)[:6] == ["feasible", "answer", "binding", "confidence", "metrics", "simulated_requests"]
    return found


SLOTS = "slo: {miss_ratio: 38%, ttft_p99: 5 s}\nplan: {minimize: cache.gpu.slots, range: [4, 64], step: 4}"


def test_the_smallest_cache_is_found_and_can_be_run(loraplan: CommandLine, tmp_path: Path) -> None:
    ended = loraplan.succeeds("plan", write(tmp_path, SLOTS), "--json", "--out", "found")
    found = answered(ended)
    slots = found["answer"]["cache.gpu.slots"]
    assert found["feasible"]
    assert found["certain"]
    assert found["metrics"]["miss_ratio"]["hi"] <= 0.38
    # The recommended scenario gives the numbers that the plan decided on.
    again = json.loads(loraplan("run", "found/recommended.yaml", "--json", "--check").out)
    for end in ("value", "lo", "hi"):
        assert again["points"][0]["metrics"]["miss_ratio"][end] == found["metrics"]["miss_ratio"][end]
    assert load_scenario("found/recommended.yaml").scenario.cache.warm == "steady"
    fewer = f"cache.gpu.slots={slots - 4}"
    assert loraplan("run", "found/recommended.yaml", "--check", "--set", fewer).code == 1
    assert found["setup"]["profile"] == "h100-64gb/llama-3.1-8b/assumed"
    page = (tmp_path / "found/report.html").read_text()
    loraplan.succeeds("report", "found")
    assert (tmp_path / "found/report.html").read_text() == page


VLLM = "vllm serve MODEL --enable-lora --max-loras 24 --max-lora-rank 16 --max-cpu-loras 24 "


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        (["fleet.engine=continuous"], None),
        (["fleet.engine=vllm-0.32"], VLLM),
        (["fleet.engine=vllm-0.8"], VLLM),
        (["fleet.engine=vllm-0.32", "fleet.batching=prefill-first"], None),
        (["fleet.engine=sglang"], "python -m sglang.launch_server --model-path MODEL --enable-lora "),
        (["fleet.engine=s-lora", "cache.gpu={unified: true, slots: 24}", "fleet.max_num_batched_tokens=3072"], None),
    ],
)
def test_only_the_simulated_engine_has_a_command_line(
    loraplan: CommandLine, tmp_path: Path, settings: list[str], command: str | None
) -> None:
    question = "slo: {miss_ratio: 99%}\nplan: {minimize: cache.gpu.slots, values: [24]}"
    options = [word for setting in (*settings, "workload.arrivals.rate=2/s") for word in ("--set", setting)]
    ended = loraplan.succeeds("plan", write(tmp_path, question, requests=400), *options, "--all")
    engine = settings[0].partition("=")[2]
    second = next(line for line in ended.out.splitlines() if " · profile " in line)
    assert second.startswith("  NVIDIA H100 64GB · llama-3.1-8b · ")
    assert second.endswith(" · profile h100-64gb/llama-3.1-8b/assumed (assumed)")
    assert f" {engine}{' (idealised engine)' if engine == 'continuous' else ''} " in second
    page = (tmp_path / "runs/small-plan/report.html").read_text()
    assert f'<p class="setup">{second.strip()}</p>' in page
    given = [text for text in ("vllm serve ", "sglang.launch_server ") if text in ended.out or text in page]
    if command is None:
        assert given == []
        assert "\nflags     No command line is given: " in ended.out
        assert "No command line is given: " in page
    else:
        assert len(given) == 1
        assert f" {command}" in ended.out
        assert command in page
        assert "No command line" not in ended.out + page
    if engine == "sglang":
        tokens = build_world(load_scenario("runs/small-plan/recommended.yaml").scenario).pools[0].kv_tokens
        assert f" --max-total-tokens {tokens} " in ended.out


def test_a_plan_prints_the_notes_that_a_run_of_its_answer_prints(loraplan: CommandLine, tmp_path: Path) -> None:
    def notes(ended: Ended) -> list[str]:
        return [line for line in ended.err.splitlines() if line.startswith("note: ")]

    question = "slo: {miss_ratio: 99%}\nplan: {minimize: cache.gpu.slots, values: [24]}"
    changes = ("--set", "adapters.rank=64", "--set", "workload.arrivals.rate=2/s")
    plan = ("plan", write(tmp_path, question, requests=400), *changes, "--out", "found")
    planned = loraplan.succeeds(*plan)
    assert any("rank 64" in note for note in notes(planned))
    assert notes(planned) == notes(loraplan("run", "found/recommended.yaml"))
    assert notes(loraplan(*plan, "--quiet")) == []


def test_an_slo_that_nothing_meets_names_the_best_and_exits_with_1(loraplan: CommandLine, tmp_path: Path) -> None:
    rest = "slo: {ttft_p99: 1 ms}\nplan: {minimize: cache.gpu.slots, range: [4, 64], step: 4}"
    ended = loraplan("plan", write(tmp_path, rest), "--json")
    assert (ended.code, (tmp_path / "runs/small-plan/recommended.yaml").exists()) == (1, False)
    found = answered(ended)
    assert (found["feasible"], found["answer"]) == (False, {})
    assert found["metrics"]["ttft_p99_s"]["value"] > 0.001
    assert found["best"]["cache.gpu.slots"] in range(4, 65, 4)


def test_an_slo_that_everything_meets_says_that_the_range_ends_there(loraplan: CommandLine, tmp_path: Path) -> None:
    rest = "slo: {ttft_p99: 1 h}\nplan: {minimize: cache.gpu.slots, range: [32, 64], step: 4}"
    ended = loraplan.succeeds("plan", write(tmp_path, rest), "--all")
    assert "Use 32 GPU slots (the smallest value tried): " in ended.out
    rest = "slo: {ttft_p99: 1 h}\nplan: {maximize: workload.arrivals.rate, range: [1/s, 2/s], step: 1/s}"
    ended = loraplan.succeeds("plan", write(tmp_path, rest), "--out", "most")
    assert "Arrival rate 2/s (the largest value tried) meets the SLO: " in ended.out


def test_an_optimum_inside_the_range_is_found_where_slots_take_memory_from_the_kv_cache(tmp_path: Path) -> None:
    """Few slots miss, many leave no room for KV: both ends of the range fail."""
    rest = "slo: {e2e_p99: 11 s, miss_ratio: 90%}\nplan: {minimize: cache.gpu.slots, range: [2, 70], step: 4}"
    path = write(tmp_path, rest, requests=1500)
    overrides = [
        "fleet.gpu_memory_utilization=0.5",
        "adapters.rank=32",
        "workload.tokens.prompt={law: fixed, value: 600}",
        "workload.tokens.output={law: fixed, value: 150}",
        "workload.arrivals.rate=9/s",
    ]
    loaded = load_scenario(path, overrides)
    planned = make_plan(loaded, tmp_path / "run", Execution(Local(1)))
    words = {look.set["cache.gpu.slots"]: look.word for look in planned.record.looks}
    assert planned.record.feasible
    slots = planned.record.answer["cache.gpu.slots"]
    assert any(count < slots and word == "not met" for count, word in words.items())
    few, many = (
        make_plan(
            load_scenario(path, [*overrides, f"plan.values=[{count}]"]), tmp_path / f"run-{count}", Execution(Local(1))
        )
        for count in (2, 70)
    )
    assert not few.record.feasible
    assert not many.record.feasible


def test_a_close_call_is_marked(loraplan: CommandLine, tmp_path: Path) -> None:
    rest = "slo: {miss_ratio: 42%}\nplan: {minimize: cache.gpu.slots, range: [24, 32]}"
    name = write(tmp_path, rest, requests=600)
    ended = loraplan.succeeds("plan", name, "--all")
    assert "Not certain either way: " in ended.out
    assert re.search(
        r"The recommendation is sure; the chance that \d+ GPU slots would do is \d+ %: raise .* to decide it\.",
        ended.out,
    )
    found = answered(loraplan("plan", name, "--json"))
    assert not found["certain"]
    assert found["confidence"] == "low"
    assert found["unclear"]
    assert all(row["cache.gpu.slots"] < found["answer"]["cache.gpu.slots"] for row in found["unclear"])
    assert f"Use {found['answer']['cache.gpu.slots']} GPU slots: " in ended.out
    assert "It is the smallest" not in ended.out
    grades = {each["set"]["cache.gpu.slots"]: each for each in found["grades"]}
    assert list(grades) == sorted(grades), "the most wanted first"
    assert grades[found["answer"]["cache.gpu.slots"]]["verdict"] == "met"
    assert all(0.005 < grades[row["cache.gpu.slots"]]["probability"] < 0.995 for row in found["unclear"])
    likely = [slots for slots, each in grades.items() if each["probability"] >= 0.8]
    assert found["probable"]["set"]["cache.gpu.slots"] == likely[0]
    short = f"plan.range=[24, {likely[0]}]"
    ended = loraplan("plan", name, "--set", short, "--out", "probable")
    assert ended.code == 1
    assert f"cache.gpu.slots: {likely[0]}, which probably meets the SLO: raise " in ended.out
    assert ended.out.count("recommended.yaml") == 2, "among what to set, and among the files"
    assert [part.verdict for part in plan_report(read_run(tmp_path / "probable")).terminal[:1]] == ["unclear"]
    assert load_scenario("probable/recommended.yaml").scenario.cache.gpu.slots == likely[0]


def test_a_saturated_start_is_left_behind(loraplan: CommandLine, tmp_path: Path) -> None:
    rest = "slo: {ttft_p99: 2 s}\nplan: {minimize: fleet.replicas, range: [1, 32]}"
    ended = loraplan("plan", write(tmp_path, rest), "--set", "workload.arrivals.rate=200/s", "--json")
    found = answered(ended)
    assert found["feasible"]
    assert found["answer"]["fleet.replicas"] > 2
    looks = read_run(tmp_path / "runs/small-plan").manifest["plan"]["looks"]
    assert looks[0]["set"]["fleet.replicas"] > 1, "formulas rule out the hopeless ones"


def test_two_variables_are_made_small_one_after_the_other(loraplan: CommandLine, tmp_path: Path) -> None:
    plan = "{minimize: [fleet.replicas, cache.gpu.slots], range: [[1, 6], [8, 64]], step: [1, 8]}"
    name = write(tmp_path, f"slo: {{ttft_p99: 2 s, miss_ratio: 50%}}\nplan: {plan}")
    ended = loraplan("plan", name, "--set", "workload.arrivals.rate=60/s", "--set", "fleet.price=2.50 USD/h", "--json")
    found = answered(ended)
    assert set(found["answer"]) == {"fleet.replicas", "cache.gpu.slots"}
    assert found["metrics"]["miss_ratio"]["hi"] <= 0.5
    rows = [row["set"] for row in found["frontier"]]
    assert found["answer"] in rows
    further = rows[rows.index(found["answer"]) :]
    replicas, slots = ([row[key] for row in further] for key in ("fleet.replicas", "cache.gpu.slots"))
    assert len(further) > 1
    assert replicas == sorted(set(replicas))
    assert slots == sorted(slots, reverse=True), "more replicas never need more slots"
    assert [row["price"] for row in found["frontier"]] == [
        2.5 * row["set"]["fleet.replicas"] for row in found["frontier"]
    ]
    page = (tmp_path / "runs/small-plan/report.html").read_text()
    assert "What is enough" in page
    assert "price per hour" in page


def test_the_cheapest_of_several_fleets_is_found(loraplan: CommandLine, tmp_path: Path) -> None:
    rest = (
        "slo: {ttft_p99: 2 s}\nplan:\n  minimize: price\n  range: [1, 8]\n  fleets:\n"
        "  - {name: large, price: 4, set: {cache.gpu.slots: 64}}\n"
        "  - {name: small, price: 1, set: {cache.gpu.slots: 16}}\n"
        "  - {name: dear, price: 100}\n"
    )
    found = answered(loraplan("plan", write(tmp_path, rest), "--json"))
    assert found["answer"] == {
        "fleet": "small",
        "fleet.replicas": found["answer"]["fleet.replicas"],
        "price": found["answer"]["fleet.replicas"],
    }
    rows = read_run(tmp_path / "runs/small-plan").manifest["plan"]["fleets"]
    assert [row["fleet"] for row in rows] == ["large", "small", "dear"]
    assert rows[2]["word"] == "dearer with its first replica"


def test_levers_that_cost_no_gpu_are_tried_where_replicas_wait_for_adapters(
    loraplan: CommandLine, tmp_path: Path
) -> None:
    slow = (
        "storage: {loaders: 1, load: {law: fixed, value: 60 ms}}\ncache: {gpu: {slots: 12}}\nrouter: {policy: random}\n"
    )
    rest = slow + "slo: {miss_ratio: 99%, ttft_p99: 10 s}\nplan: {minimize: fleet.replicas, values: [4]}"
    text = Path(write(tmp_path, rest)).read_text().replace("cache: {gpu: {slots: 24}}\n", "")
    (tmp_path / "small.yaml").write_text(text)
    ended = loraplan.succeeds("plan", "small.yaml")
    data = read_run(tmp_path / "runs/small-plan")
    assert {row.group for row in data.what_if} == {"router", "eviction", "slots"}, "nothing that costs a GPU"
    term = PlanReading(data).decides()
    better = {row.label: row.metrics[term].other for row in data.what_if if row.metrics[term].word == "clearly better"}
    best = min(better, key=lambda label: better[label] or 0.0)
    assert f"Free to try: {best} takes " in ended.out
    assert load_scenario("runs/small-plan/recommended.yaml").scenario.router.policy == "random", "none is recommended"
    (tmp_path / "quick.yaml").write_text(text.replace("60 ms", "1 ms"))
    loraplan.succeeds("plan", "quick.yaml", "--out", "quick")
    assert read_run(tmp_path / "quick").what_if == []


def test_levers_are_tried_on_the_design_that_would_save_a_replica(loraplan: CommandLine, tmp_path: Path) -> None:
    slow = "storage: {loaders: 1, load: {law: fixed, value: 80 ms}}\nrouter: {policy: random}\n"
    rest = slow + "slo: {ttft_p99: 800 ms}\nplan: {minimize: fleet.replicas, range: [2, 8]}"
    text = Path(write(tmp_path, rest)).read_text().replace("slots: 24", "slots: 12").replace("20/s", "60/s")
    (tmp_path / "small.yaml").write_text(text)
    ended = loraplan("plan", "small.yaml", "--no-headroom")
    assert "Use 4 replicas" in ended.out
    found = re.search(
        r"With (\d+) GPU slots, 3 replicas would do, perhaps fewer: .* add (--set cache.gpu.slots=\1)\.",
        ended.out,
    )
    assert found, ended.out
    data = read_run(tmp_path / "runs/small-plan")
    assert data.what_if == [], "nothing is tried at the answer"
    assert {row.group for row in data.levers} == {"router", "eviction", "slots"}
    again = loraplan("plan", "small.yaml", "--no-headroom", *found[2].split(), "--json")
    assert answered(again)["answer"] == {"fleet.replicas": 2}
    none = loraplan("plan", "small.yaml", "--no-headroom", "--set", "slo.miss_ratio=1%")
    assert re.search(r"Tried with 2 replicas, without success: .* and both 48 GPU slots and router hash\.", none.out)
    two = loraplan("plan", "small.yaml", "--no-headroom", "--set", "slo.ttft_p99=200ms", "--set", "plan.range=[2, 3]")
    both = r"With both 48 GPU slots and router affinity-residency, 3 replicas would do.*: p99 TTFT (\d+)"
    found = re.search(both, two.out)
    assert found, two.out
    singles = [row.metrics["ttft_p99_s"].other for row in read_run(tmp_path / "runs/small-plan").levers[:-1]]
    assert all(alone > 0.2 for alone in singles if alone), "none alone is enough"
    assert int(found[1]) < 100


@pytest.mark.slow
def test_smaller_steps_are_tried_where_gaps_between_tokens_are_too_long() -> None:
    values = {
        "workload.tokens.prompt": {"law": "lognormal", "mean": 1500, "p99": 5000, "max": 8192},
        "workload.requests": 1500,
        "run.replications": 2,
        "slo": {"itl_p99": "30 ms"},
        "fleet.profile": "h100-64gb/llama-3.1-8b/assumed",
    }
    found = plan("quickstart", values, minimize={"fleet.replicas": (5, 6)})
    assert [(row.label, row.verdict) for row in found.data.levers] == [("steps of 512 tokens", "met")]
    said = "With steps of 512 tokens, 6 replicas would do, perhaps fewer: p99 ITL "
    assert said in found.answer.setting
    again = {**values, "fleet.max_num_batched_tokens": 512}
    assert plan("quickstart", again, minimize={"fleet.replicas": (5, 6)}).data.plan.feasible
    few = plan("quickstart", {**again, "fleet.max_num_batched_tokens": 256}, minimize={"fleet.replicas": (1, 2)})
    assert few.data.levers == [], "steps are as small as that"


@pytest.mark.slow
def test_priorities_are_tried_where_a_tenant_misses_its_slo() -> None:
    values = {"workload.requests": 3000, "run.replications": 2, "sweep": None}
    found = plan("noisy-neighbour", values, minimize={"fleet.replicas": (1, 2)})
    assert [(row.label, row.verdict) for row in found.data.levers] == [("tenants with an SLO first", "met")]
    assert "With tenants with an SLO first, 1 replica would do: p99 TTFT of chat " in found.answer.setting


def test_more_replications_decide_where_these_differ() -> None:
    for differing, more in (("ttft_p99_s", "run.replications"), ("itl_p99_s", "workload.requests")):
        states = {name: State(Cause.WIDE, once=name == differing) for name in ("ttft_p99_s", "itl_p99_s")}
        point = Point({}, {name: Metric(9.0, state=state) for name, state in states.items()})
        read: Any = SimpleNamespace(points=[point], record=SimpleNamespace(probable=None, confidence=0.95))
        read.terms, read.workload, read.open_designs = {"ttft_p99_s": 1.0}, {}, lambda: [({}, None)]
        assert findings._how_to_decide(read) == f"raise {more} to decide it", "the SLO is about TTFT"


def test_routers_are_tried_where_one_replica_gets_more_than_others() -> None:
    scenario = load_scenario("quickstart", ["fleet.replicas=2", "router.policy=affinity-residency"]).scenario

    def tried(skew: float) -> tuple[str, ...]:
        point = Point({}, {"ttft_p99_s": Metric(9.0), "replica_load_skew": Metric(skew)})
        return levers._levers(cast("Any", SimpleNamespace(point=point, world=build_world(scenario))), ())

    assert (tried(1.1), tried(1.6)) == ((), ("router",))
    routers = [change.label for change in changes(build_world(scenario)) if change.group == "router"]
    assert routers[:2] == ["router affinity-residency with bound 1.25", "router round-robin"]


def test_more_memory_for_adapters_is_tried_in_the_keys_of_the_engine() -> None:
    def tried(*values: str, name: str = "quickstart") -> dict[str, dict[str, Any]]:
        count = ["adapters.count=100"] if name == "quickstart" else []
        world = build_world(load_scenario(name, ["sweep=null", *count, *values]).scenario)
        return {each.label: each.set for each in free_changes(world, FOR_ADAPTERS, ())}

    quick = build_world(load_scenario("quickstart", ["sweep=null"]).scenario)
    assert "slots" in {each.group for each in free_changes(quick, FOR_ADAPTERS, ("fleet.replicas",))}
    assert "slots" not in {each.group for each in free_changes(quick, FOR_ADAPTERS, ("cache.gpu.slots",))}
    full = tried("cache.gpu.slots=30", name="full-models-beside-adapters")
    assert full["97 GPU slots"] == {"cache.gpu.slots": 97}, "three of a hundred are full models"
    trace = tried("cache.gpu.slots=8", "cache.host.slots=8", name="tenants-trace")
    assert trace["all adapters in host memory (3.27 GB a replica)"] == {"cache.host.slots": 39}, "those that it names"
    sglang = tried("fleet.engine=sglang", "cache.gpu.slots=60")
    assert sglang["101 GPU slots"]["cache.gpu.slots"] == 101, "one for the base model"
    found = tried("fleet.engine=vllm", "cache.gpu.slots=30", "cache.host.slots=50")
    assert found["60 GPU slots"] == {"cache.gpu.slots": 60, "cache.host.slots": 60}, "as many copies, at least"
    assert found["100 GPU slots"] == {"cache.gpu.slots": 100, "cache.host.slots": 100}, "there are no more adapters"
    assert found["all adapters in host memory (8.39 GB a replica)"] == {"cache.host.slots": 100}
    assert "200 GPU slots" not in tried("cache.gpu.slots=100")
    by_size = tried("fleet.engine=tensorrt-llm", "cache.gpu.slots=null", "cache.gpu.size=800MB", "cache.host.size=1GB")
    assert by_size["1.6 GB of GPU memory for adapters"] == {"cache.gpu.size": "1600MB"}
    assert by_size["all adapters in host memory (8.39 GB a replica)"] == {"cache.host.size": "8389MB"}


def test_kv_offload_is_tried_where_text_is_shared_and_first_tokens_are_late() -> None:
    def tried(missed: str, *values: str) -> tuple[str, ...]:
        limit, name = ("5%", missed) if missed == "miss_ratio" else ("1 s", f"{missed}_s")
        settings = ["sweep=null", "fleet.kv_offload=null", f"slo={{{missed}: {limit}}}", *values]
        world = build_world(load_scenario("kv-offload", settings).scenario)
        point = Point({}, {name: Metric(9.0)})
        return levers._levers(cast("Any", SimpleNamespace(point=point, world=world)), ("fleet.replicas",))

    assert tried("ttft_p99") == ("kv offload",)
    assert tried("itl_p99") == ("steps",)
    assert tried("ttft_p99", "fleet.prefix_caching=false") == ()
    assert tried("ttft_p99", "fleet.engine=vllm-0.8") == ()
    assert tried("ttft_p99", "fleet.engine=vLLM 0.33") == ("kv offload",)
    assert "kv offload" not in tried("miss_ratio"), "it saves no load"
    assert tried("ttft_p99", "fleet.kv_offload={size: 50 GB}") == ()


def test_levers_are_tried_on_the_first_design_that_probably_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a hopeless one, nor on one that may do as it is."""
    chances = {"hopeless": 0.0, "short": 0.14, "open": 0.61, "answer": 0.99}
    designs: dict[str, Any] = {name: SimpleNamespace(name=name) for name in chances}
    evaluator: Any = SimpleNamespace(grade=lambda design: SimpleNamespace(probability=chances[design.name]))
    found: Any = SimpleNamespace(
        answer=designs["answer"],
        best=designs["answer"],
        doubtful=[designs["short"], designs["open"]],
        other_edge=designs["hopeless"],
        edge=None,
    )
    tried: list[str] = []

    def groups_of(design: Any, _: object) -> tuple[str, ...]:
        tried.append(design.name)
        return ("steps",) if design.name == "short" else ()

    prices = {"hopeless": None, "short": 5.0, "open": 5.0, "answer": 5.0}
    monkeypatch.setattr(levers, "_levers", groups_of)
    monkeypatch.setattr(levers, "price_of", lambda design: prices[design.name])
    assert levers.falls_short(found, [], evaluator, ()) == (designs["short"], ("steps",))
    chances |= {"short": 0.49, "open": 0.5}
    assert levers.falls_short(found, [], evaluator, ()) == (designs["short"], ("steps",))
    prices["short"] = 5.1
    assert levers.falls_short(found, [], evaluator, ()) == (None, ()), "it costs more than the answer"
    found.doubtful = [designs["open"]]
    assert levers.falls_short(found, [], evaluator, ()) == (None, ())
    assert tried == ["short", "short", "hopeless", "hopeless"]
    monkeypatch.setattr(levers, "_levers", lambda design, _: ("steps",) if design.name == "hopeless" else ())
    found.doubtful, prices["short"] = [designs["short"]], 5.0
    assert levers.falls_short(found, [], evaluator, ()) == (None, ()), "what does not help there does not help here"


@pytest.mark.parametrize(
    ("grades", "likely"),
    [
        ({1: 0.1, 2: 0.85, 3: 0.9, 4: 0.9}, 2),
        ({1: 0.81, 2: 0.61, 3: 0.41, 4: 0.97}, 4),
        ({1: 0.9, 2: 0.3}, None),
        ({1: 0.3, 2: 0.85, 3: 0.95, 4: 0.7}, 2),
        ({1: 0.3, 2: 0.95, 3: 0.85, 4: 0.7}, 2),
        ({1: 0.97, 2: 0.3, 3: 0.95, 4: 0.95}, 3),
    ],
)
def test_one_good_design_among_bad_ones_is_not_called_likely(grades: dict[int, float], likely: int | None) -> None:
    designs = [SimpleNamespace(set={"fleet.replicas": count}) for count in grades]
    evaluator: Any = SimpleNamespace(
        designs=lambda: designs, grade=lambda d: SimpleNamespace(probability=grades[d.set["fleet.replicas"]])
    )
    axes: Any = [SimpleNamespace(key="fleet.replicas", values=(1, 2, 3, 4))]
    found = likely_design(evaluator, axes, cast(Any, SimpleNamespace(fleets=())))
    assert (None if found is None else found.set["fleet.replicas"]) == likely


def test_a_lever_is_named_only_if_it_was_measured_and_may_meet_the_slo(loraplan: CommandLine, tmp_path: Path) -> None:
    loraplan.succeeds("plan", write(tmp_path, SLOTS), "--no-headroom")
    data = read_run(tmp_path / "runs/small-plan")
    short = data.manifest["levers_key"] = data.plan.edge_key

    def said(p: float | None, misses: float | None = 0.2) -> str:
        metrics = {name: {"one": 9.0, "other": misses} for name in ("ttft_p99_s", "miss_ratio")}
        row = {"group": "router", "label": "router hash", "set": {"router.policy": "hash"}, "verdict": "unclear"}
        graded = {"set": {}, "verdict": grade(0.5 if p is None else p), "probability": p}
        planned = {} if p is None else {"grade": graded, "graded": {"ttft_p99_s": 0.1, "miss_ratio": 0.3}}
        data.manifest["levers"] = [{**row, "metrics": metrics, **planned}]
        return plan_answer(data).setting

    assert short
    assert "router hash, 28 GPU slots would do: miss ratio 30 % in place of " in said(0.99)
    assert "router hash, 28 GPU slots would probably do (p = 0.87): " in said(0.87)
    assert "router hash, 28 GPU slots may do (p = 0.44): " in said(0.44)
    assert "without success: router hash." in said(0.19)
    assert "without success: router hash." in said(None), "short runs alone say nothing"
    assert "short as these don't show" in said(None, misses=None)
    assert "To plan with it, add --set router.policy=hash." in said(0.99)
    read = PlanReading(data)
    assert read.short is not None
    read.record = replace(read.record, fleets=[FleetRecord("cheap", 1.0)])
    instead = findings._makes_enough(read, read.short, data.levers)
    assert instead.endswith("To plan with it, put router.policy: hash into the set of that fleet (plan.fleets).")


def test_the_change_that_helps_most_is_evaluated_and_the_next_one_if_it_does_not_do() -> None:
    def row(label: str, verdict: str, ttft_s: float | None, misses: float = 0.3) -> WhatIfRow:
        values = {"ttft_p99_s": ttft_s, "miss_ratio": misses}
        metrics = {name: Difference(name, "s", 9.0, value) for name, value in values.items()}
        return WhatIfRow("router", label, {"router.policy": label}, verdict=verdict, metrics=metrics)

    chances, evaluated = {"best": 0.4, "next": 0.7, "last": 0.9}, list[str]()

    def changed(_: object, values: dict[str, str]) -> Any:
        evaluated.append(values["router.policy"])
        judgement = SimpleNamespace(probability=chances[values["router.policy"]])
        return SimpleNamespace(point=Point({}, {"ttft_p99_s": Metric(0.7, unit="s")}), judgement=judgement)

    evaluator: Any = SimpleNamespace(
        terms={"ttft_p99_s": 0.8, "miss_ratio": 0.35},
        changed=changed,
        grade=lambda design: GradeRecord({}, "unclear", design.judgement.probability),
    )
    short: Any = SimpleNamespace(point=Point({}, {"ttft_p99_s": Metric(9.0, unit="s"), "miss_ratio": Metric(0.4)}))
    rows = [
        row("refuses", "not met", 0.1),
        row("misses", "unclear", 0.1, misses=0.36),
        row("unknown", "unclear", None),
        row("last", "unclear", 0.5),
        row("next", "met", 0.4),
        row("best", "met", 0.2),
    ]
    found = levers.with_grades(rows, short, evaluator)
    assert evaluated == ["best", "next"]
    assert [None if each.grade is None else each.grade.probability for each in found] == [*[None] * 4, 0.7, 0.4]
    assert found[4].graded == {"ttft_p99_s": 0.7, "miss_ratio": None}
    assert [each.metrics for each in found] == [each.metrics for each in rows], "those of short runs"


def test_what_a_plan_makes_small_is_not_free(loraplan: CommandLine, tmp_path: Path) -> None:
    loraplan.succeeds("plan", write(tmp_path, SLOTS), "--no-headroom")
    data = read_run(tmp_path / "runs/small-plan")
    data.manifest.pop("levers_key", None)
    name = PlanReading(data).decides()
    better = {name: {"one": 0.9, "other": 0.5, "lo": -0.5, "hi": -0.3, "word": BETTER}}
    for key, value, free in (("router.policy", "hash", True), ("cache.gpu.slots", 64, False)):
        row = {"group": "router", "label": "this", "set": {key: value}, "verdict": "met", "metrics": better}
        data.manifest["what_if"] = [row]
        assert ("Free to try: this takes " in plan_answer(data).setting) == free


def test_a_plan_that_was_answered_is_not_simulated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_scenario(write(tmp_path, SLOTS))
    first = make_plan(loaded, tmp_path / "run", Execution(Local(1)))
    simulated: list[int] = []

    def counted(design: Design, part: evaluate.Part) -> Any:
        simulated.append(part.place)
        return original(design, part)

    original = evaluate.simulate_part
    monkeypatch.setattr(evaluate, "simulate_part", counted)
    second = make_plan(loaded, tmp_path / "run", Execution(Local(1)))
    assert simulated == [0], "the requests of the answer are written anew, nothing else"
    assert second.record == first.record


@pytest.mark.parametrize("replications", [1, 3])
def test_draws_are_held_against_the_traffic_that_they_met(tmp_path: Path, replications: int) -> None:
    """Draws that are the profile's own costs leave nothing open, however many replications a look has."""
    profile = write_profile(tmp_path / "profile.json", [(1.0, 1.0)] * 5)
    rest = (
        "slo: {miss_ratio: 42%}\nplan: {minimize: cache.gpu.slots, range: [26, 32]}\n"
        f"fleet: {{engine: continuous, profile: {profile}}}"
    )
    loaded = load_scenario(write(tmp_path, rest, requests=600), [f"run.replications={replications}"])
    planned = make_plan(loaded, tmp_path / "run", Execution(Local(1)))
    assert max(look.requests or 0 for look in planned.record.looks) > 600, "some call is close"
    sure = [point for point in planned.points if point.calibration]
    assert len(sure) > 1
    for point in sure:
        assert point.calibration["draws"] == 5
        metric = point.metrics["miss_ratio"]
        assert metric.calibration_lo == metric.calibration_hi == metric.value


def test_draws_may_rescue_a_design_far_over_its_target(tmp_path: Path) -> None:
    """Near saturation p99 TTFT is twice its target with the profile's own costs; with steps 15 % shorter it is met."""
    profile = write_profile(tmp_path / "profile.json", [(step, 1.0) for step in (0.85, 0.92, 1.0, 1.08, 1.15)])
    rest = (
        "slo: {ttft_p99: 400 ms}\nplan: {minimize: fleet.replicas, range: [1, 4]}\n"
        f"fleet: {{engine: continuous, profile: {profile}}}"
    )
    busy = [
        "workload.arrivals.rate=36/s",
        "workload.tokens.prompt.value=800",
        "adapters.count=20",
        "cache.gpu.slots=100",
    ]
    loaded = load_scenario(write(tmp_path, rest, requests=600), [*busy, "run.replications=2"])
    planned = make_plan(loaded, tmp_path / "run", Execution(Local(1)))
    assert planned.record.answer == {"fleet.replicas": 3}
    short = [look for look in planned.record.looks if look.set == {"fleet.replicas": 2}][-1]
    assert short.word == "unclear"
    assert short.score is not None
    assert short.score > 2
    faster = write_profile(tmp_path / "faster.json", step=0.85)
    alone = load_scenario(write(tmp_path, rest.replace(profile, faster), requests=20_000), [*busy, "fleet.replicas=2"])
    assert verdict(evaluate.evaluate_scenario(alone.scenario).point, {"ttft_p99_s": 0.4}) == MET


def test_a_plan_starts_full_unless_the_scenario_says_otherwise(tmp_path: Path) -> None:
    """Half the requests of so short a run would be the first for their adapter."""
    rest = "slo: {miss_ratio: 60%}\nplan: {minimize: cache.gpu.slots, values: [40]}\n"
    misses = []
    for overrides in ([], ["cache.warm=0"]):
        loaded = load_scenario(write(tmp_path, rest, requests=100), ["run.warmup=0%", *overrides])
        planned = make_plan(loaded, tmp_path / f"run-{len(overrides)}", Execution(Local(1)))
        misses.append(planned.point.metrics["miss_ratio"].value or 0.0)
    assert misses[0] < misses[1]


def test_a_plan_of_autoscaler_bounds_starts_at_each_minimum(tmp_path: Path) -> None:
    """Minimums above ``fleet.replicas`` are no scenarios, and would be left out."""
    fleet = "fleet: {replicas: 2, engine: continuous, autoscale: {min: 2, max: 6, target: 8}}\n"
    rest = fleet + "slo: {ttft_p99: 1 s}\nplan: {minimize: fleet.autoscale.min, range: [1, 4]}\n"
    loaded = in_steady_state(load_scenario(write(tmp_path, rest)))
    assert [loaded.with_values({"fleet.autoscale.min": n}).scenario.fleet.replicas for n in (1, 4)] == [1, 4]


def test_a_seed_repeats_a_plan_whatever_the_number_of_workers(tmp_path: Path) -> None:
    loaded = load_scenario(write(tmp_path, SLOTS))
    records = [make_plan(loaded, tmp_path / f"run-{jobs}", Execution(Local(jobs))).record for jobs in (1, 2)]
    assert records[0] == records[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "workload.requests=30"), "slo: can't decide whether p99 TTFT meets its target: not enough data: "),
        (
            ("--set", "workload={requests: null, duration: 1 ms, arrivals: {process: poisson, rate: 1/h}}"),
            "no request arrives in this duration",
        ),
    ],
)
def test_what_is_too_short_to_be_planned_is_refused(
    loraplan: CommandLine, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    rest = "slo: {ttft_p99: 2 s}\nplan: {minimize: cache.gpu.slots, range: [16, 32], step: 8}"
    assert message in loraplan.refused("plan", write(tmp_path, rest), *arguments)


def test_a_folder_with_another_run_is_refused(loraplan: CommandLine, tmp_path: Path) -> None:
    name = write(tmp_path, SLOTS)
    loraplan.succeeds("run", name, "--out", "kept", "--quiet")
    assert "kept: this folder holds a run (got small); give another --out" in loraplan.refused(
        "plan", name, "--out", "kept"
    )


VLLM_SLOTS = "fleet: {engine: vllm}\nslo: {miss_ratio: 99%}\ncache: {gpu: {slots: 24}, host: {slots: 64}}\n"


def small_vllm(folder: Path, plan: str) -> str:
    path = write(folder, VLLM_SLOTS + f"plan: {plan}", requests=600)
    text = Path(path).read_text().replace("cache: {gpu: {slots: 24}}\n", "").replace("rate: 20/s", "rate: 2/s")
    Path(path).write_text(text)
    return path


def test_points_that_are_not_possible_are_left_out_and_named(loraplan: CommandLine, tmp_path: Path) -> None:
    """vLLM keeps a copy of every slot in host memory, so a corner of this grid is no scenario."""
    plan = "{minimize: [cache.host.slots, cache.gpu.slots], range: [[8, 64], [16, 48]], step: [8, 8]}"
    ended = loraplan.succeeds("plan", small_vllm(tmp_path, plan), "--all")
    assert ended.out.startswith("small: Use 16 host slots and 16 GPU slots: ")
    assert "Left out, because they are not possible: 8 host slots, 16 GPU slots" in ended.out
    assert "cache.host.slots: every adapter in a slot has a copy in host memory (got 8, allowed: at least" in ended.out
    assert "end of the range" not in ended.out


def test_an_answer_next_to_an_impossible_value_says_what_it_lacks(loraplan: CommandLine, tmp_path: Path) -> None:
    name = small_vllm(tmp_path, "{minimize: cache.host.slots, range: [8, 64], step: 8}")
    ended = loraplan.succeeds("plan", name, "--all")
    assert "small: Use 24 host slots: " in ended.out
    assert "The next value, 16 host slots, can't be built: every adapter in a slot has a copy" in ended.out
    assert answered(loraplan("plan", name, "--json"))["binding"] == "host memory"


def test_a_few_possible_values_among_many_are_found(loraplan: CommandLine, tmp_path: Path) -> None:
    plan = "{minimize: cache.gpu.slots, values: [70, 80, 90, 100, 110, 120, 130, 40, 140, 150, 160, 170, 180, 190]}"
    ended = loraplan.succeeds("plan", small_vllm(tmp_path, plan))
    assert ended.out.startswith("small: Use 40 GPU slots, the first of 14 that meets the SLO: ")
