"""Requests to the base model: which traffic has them, what engines do with them, and what metrics say of them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from strategies import GRID, build, fixed_time, run, write_file, write_profile, write_trace

from calibrate.serve.client import plan_requests
from reports.tables.metric_tables import traffic_sentence, traffic_table
from reports.tables.slice_tables import base_model_table, groups_table
from reports.text.verdict_text import find_confidence
from sim.errors import ScenarioError, TraceError
from sim.policies.costs import StepCosts
from sim.policies.routing import RouterContext, View, make_router
from sim.results.point import Point
from sim.results.point_summary import summarise
from sim.results.records import COMPLETED, MISROUTED, Recording, request_table
from sim.spec.engine_flags.command_lines import engine_flags
from sim.spec.policies import ROUTERS
from sim.spec.profile import StepCost
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.spec.sections.trace_source import Trace
from sim.spec.sections.workload import AdapterKind
from sim.studies.evaluate import evaluate_scenario, facts_of
from sim.studies.plan.screen import screen
from sim.studies.plan.what_if import changes
from sim.studies.trace.report import facts_table
from sim.studies.trace.scenario import SCENARIO, scenario_files
from sim.studies.trace.study import TraceStudy, study_trace
from sim.studies.vet.remedies import mixed_in
from sim.traffic.request import BASE_MODEL, HIT, MISS
from sim.traffic.traces.data import TraceData
from sim.traffic.traces.export import write_plain
from sim.traffic.traces.read import read_adapter_sequence, read_trace
from sim.world.build import build_world
from sim.world.world import World

BASE = {"share": 0.3, "kind": "base"}
MIX = [BASE, {"share": 0.7, "rank": 16, "size": "1 MiB"}]
ADAPTERS = {"count": 20, "mix": MIX}
PLAIN = {"count": 20, "size": "1 MiB"}
TOKENS = {"prompt": {"law": "fixed", "value": 20}, "output": {"law": "uniform", "low": 1, "high": 30}}
ARRIVALS = {"process": "poisson", "rate": "20/s"}
WORKLOAD: dict[str, Any] = {"requests": 2000, "arrivals": ARRIVALS, "tokens": TOKENS}
STEP = {"fixed_s": GRID, "tokens": [[0, 0.0], [64, 0.0]], "lora": {"fixed_s": GRID, "per_adapter_s": GRID}}


def scenario(**sections: Any) -> Scenario:
    fleet = {"engine": "vllm-0.32", "profile": write_profile(STEP), "kv_tokens": 100_000, **sections.pop("fleet", {})}
    given = {"workload": WORKLOAD, "adapters": ADAPTERS, "cache": {"gpu": {"slots": 4}}}
    storage = {"load": fixed_time(GRID / 8), **sections.pop("storage", {})}
    return build(**{**given, **sections}, fleet=fleet, storage=storage)


def columns(recording: Recording) -> dict[str, Any]:
    return {name: column.tolist() for name, column in recording.requests.items()}


def traffic(one: Scenario, replication: int = 0) -> dict[str, np.ndarray]:
    chunks = list(build_world(one).traffic.chunks(replication))
    names = ("arrival_s", "adapter", "prompt_tokens", "output_tokens", "load_uniform", "session")
    return {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in names
        if getattr(chunks[0], name) is not None
    }


# What a scenario may say


ALONE = {"mix": [{"share": 1.0, "kind": "base"}]}


def test_a_fleet_of_base_requests_alone_has_no_lora() -> None:
    """As if the profile had no LoRA costs, and with the whole memory for the KV cache."""
    many = scenario(adapters=ALONE, cache={"gpu": {"slots": 200}}, fleet={"kv_tokens": None})
    few = scenario(adapters=ALONE, cache={"gpu": {"slots": 1}}, fleet={"kv_tokens": None})
    plain = {key: value for key, value in STEP.items() if key != "lora"}
    without = scenario(
        adapters=ALONE, fleet={"kv_tokens": None, "profile": write_profile(plain)}, cache={"gpu": {"slots": 1}}
    )
    worlds = [build_world(each) for each in (many, few, without)]
    assert len({world.pools[0].kv_tokens for world in worlds}) == 1, "slots take no memory"
    assert len({str(columns(run(world))) for world in worlds}) == 1
    assert set(run(worlds[0]).requests["adapter"].tolist()) == {BASE_MODEL}
    served = build_world(scenario(fleet={"kv_tokens": None}))
    assert served.pools[0].kv_tokens < worlds[0].pools[0].kv_tokens, "with adapters they do"
    assert (
        "no request is for an adapter, so LoRA is off: slots take no memory, and steps have no LoRA costs"
        in worlds[0].notes
    )


def test_the_command_line_of_base_requests_alone_does_not_enable_lora() -> None:
    flags = engine_flags(scenario(adapters=ALONE), None)["vLLM"]
    assert flags.startswith("vllm serve MODEL --")
    assert "lora" not in flags
    assert "--enable-lora" in engine_flags(scenario(), None)["vLLM"]


@pytest.mark.parametrize("engine", ["vllm", "continuous", "sglang", "s-lora", "lorax", "tensorrt-llm"])
def test_every_engine_serves_the_base_model_alone(engine: str) -> None:
    one = scenario(adapters=ALONE, cache={}, fleet={"engine": engine})
    point = evaluate_scenario(one).point
    assert point.metrics["ttft_p50_s"].value is not None
    assert traffic_sentence([point]) == "Traffic: all requests are for the base model."
    assert find_confidence(point, {}).metric != "miss_ratio", "nothing could miss"


def test_the_other_shares_are_relative_to_each_other() -> None:
    sizes = ({"share": 0.35, "size": "1 MB"}, {"share": 0.35, "size": "2 MB"})
    halves = [{"share": 0.5, "size": "1 MB"}, {"share": 0.5, "size": "2 MB"}]
    plain = build_world(scenario(adapters={"count": 40, "mix": halves})).pools[0].population
    for mix in ([BASE, *sizes], [sizes[0], BASE, sizes[1]]):
        found = build_world(scenario(adapters={"count": 40, "mix": mix})).pools[0].population
        assert found.kind_names == plain.kind_names
        assert found.size_bytes.tolist() == plain.size_bytes.tolist()


def test_a_profile_whose_time_is_all_of_lora_cannot_serve_them() -> None:
    profile = write_profile({"fixed_s": 0, "tokens": [[0, 0.0], [64, 0.0]], "lora": {"fixed_s": GRID}})
    assert build_world(scenario(adapters=PLAIN, fleet={"profile": profile})).pools[0].kv_tokens
    with pytest.raises(ScenarioError) as caught:
        build_world(scenario(fleet={"profile": profile}))
    assert caught.value.key == "fleet.profile"
    assert caught.value.problem == "a step without adapters takes no time in this profile"


# Traffic


def test_a_share_of_the_requests_changes_nothing_else() -> None:
    without, found = traffic(scenario(adapters=PLAIN)), traffic(scenario())
    base = found["adapter"] == BASE_MODEL
    assert abs(base.sum() - 0.3 * len(base)) < 4 * np.sqrt(len(base) * 0.3 * 0.7)
    assert np.array_equal(found["adapter"][~base], without["adapter"][~base])
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "load_uniform"):
        assert np.array_equal(found[name], without[name]), name
    assert set(without["adapter"][base].tolist()) == set(range(20)), "every adapter gives up requests alike"
    assert not np.array_equal(base, traffic(scenario(), 1)["adapter"] == BASE_MODEL), "replications differ"


def test_a_session_is_with_one_model() -> None:
    sessions = {"requests": 4, "gap_median": "1 s", "gap_sigma": 1, "gap_max": "10 s"}
    found = traffic(scenario(workload={**WORKLOAD, "requests": 4000, "sessions": sessions}))
    base = found["adapter"] == BASE_MODEL
    of_session = {int(session): set(base[found["session"] == session]) for session in np.unique(found["session"])}
    assert all(len(kinds) == 1 for kinds in of_session.values())
    share = sum(True in kinds for kinds in of_session.values()) / len(of_session)
    assert abs(share - 0.3) < 4 * np.sqrt(0.21 / len(of_session))


def test_lengths_by_adapter_give_the_base_model_its_own() -> None:
    tokens = {"by_adapter": 1.0, "prompt": {"law": "lognormal", "mean": 600, "p99": 5400, "max": 8192}}
    workload = {**WORKLOAD, "tokens": tokens}
    plain, found = (traffic(scenario(workload=workload, adapters=a)) for a in (PLAIN, ADAPTERS))
    base = found["adapter"] == BASE_MODEL
    assert np.array_equal(found["prompt_tokens"][~base], plain["prompt_tokens"][~base])
    assert len(set(found["prompt_tokens"][base].tolist())) == 1
    assert found["prompt_tokens"][base][0] not in set(plain["prompt_tokens"].tolist())


# Traces

ROWS = [(0.0, "mail", 4, 5), (1.0, None, 6, 7), (1.5, "sql", 4, 5), (2.0, None, 1, 1), (3.0, "mail", 2, 2)]
HEAD = ("timestamp_s", "adapter_id", "input_tokens", "output_tokens")


def as_csv(blank: str = "") -> str:
    lines = [f"{t},{blank if name is None else name},{p},{o}" for t, name, p, o in ROWS]
    return write_file(".csv", "\n".join([",".join(HEAD), *lines]) + "\n")


def as_jsonl() -> str:
    return write_file(".jsonl", "".join(json.dumps(dict(zip(HEAD, row, strict=True))) + "\n" for row in ROWS))


def as_parquet(folder: Path) -> str:
    path = folder / "trace.parquet"
    pq.write_table(pa.table({name: list(values) for name, *values in zip(HEAD, *ROWS, strict=True)}), path)
    return str(path)


def read(file: str) -> Any:
    return read_trace(Trace.model_validate({"file": file}))


def write_scenario(study: TraceStudy, trace: TraceData, folder: Path) -> str:
    """Write the fitted traffic and the files that it names; return the scenario's path."""
    for name, text in scenario_files(study, trace, "t", seed=1).items():
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder / SCENARIO)


def test_an_empty_adapter_is_the_base_model_in_every_format(tmp_path: Path) -> None:
    for file in (as_csv(), as_csv("  "), as_jsonl(), as_parquet(tmp_path)):
        data = read(file)
        assert data.adapter.tolist() == [0, -1, 1, -1, 0], file
        assert data.names == ("mail", "sql")
        assert data.base_share == 0.4
        assert data.prompt_tokens.tolist() == [4, 6, 4, 1, 2]


def test_a_request_without_an_adapter_needs_no_size() -> None:
    head = "timestamp_s,adapter_id,input_tokens,output_tokens,adapter_bytes\n"
    file = write_file(".csv", f"{head}0,mail,1,1,1000\n1,,1,1,\n2,sql,1,1,2000\n")
    assert read(file).adapter_bytes.tolist() == [1000, 2000]
    with pytest.raises(TraceError, match="the cell is empty"):
        read(write_file(".csv", f"{head}0,mail,1,1,\n1,,1,1,\n"))
    with pytest.raises(TraceError, match="not a usable number"):
        read(write_file(".csv", f"{head}0,mail,1,1,1000\n1,,1,1,-4\n"))


def test_a_trace_of_base_requests_alone_turns_lora_off(tmp_path: Path) -> None:
    """As ``mix: [{kind: base, share: 100%}]`` does, with the same results as this mix and a trace without adapters."""
    lengths = "".join(f"{second / 10},{{}}{second % 90 + 1},{second % 7 + 1}\n" for second in range(300))
    file = write_file(".csv", "timestamp_s,adapter_id,input_tokens,output_tokens\n" + lengths.format(*300 * [","]))
    log = write_file(".csv", "time,input_tokens,output_tokens\n" + lengths.format(*300 * [""]))
    fleet = {"kv_tokens": None, "profile": "l40s/qwen2.5-7b/vllm-0.24.0"}
    by_trace = build_world(scenario(workload={"trace": {"file": file}}, adapters={}, fleet=fleet))
    by_mix = build_world(
        scenario(
            workload={"trace": {"file": log, "columns": {"adapter": "none", "unit": "s"}}},
            adapters=ALONE,
            fleet=fleet,
        )
    )
    assert by_trace.traffic.base_share == 1
    assert by_trace.scenario.adapters == by_mix.scenario.adapters
    assert by_trace.pools[0].kv_tokens == by_mix.pools[0].kv_tokens
    assert [note for note in by_trace.notes if "LoRA is off" in note]
    assert columns(run(by_trace)) == columns(run(by_mix))
    with pytest.raises(TraceError, match="no row names an adapter, so no request uses a cache"):
        read_adapter_sequence(Trace(file=str(file)))
    study = study_trace(read_trace(Trace(file=str(file))), "t", fit_share=0.8, seed=1)
    assert (study.facts.adapters, study.facts.base_share, study.facts.curve) == (0, 1, None)
    written = load_scenario(write_scenario(study, read_trace(Trace(file=str(file))), tmp_path)).scenario
    assert written.adapters.base_alone


def test_a_format_of_several_name_columns_still_needs_them() -> None:
    file = write_file(".csv", "app,func,end_timestamp,duration\na,b,5,1\n,b,6,1\n")
    with pytest.raises(TraceError, match="the adapter's name is empty"):
        read(file)


def test_the_mix_cannot_say_what_the_trace_says() -> None:
    with pytest.raises(ScenarioError) as caught:
        build_world(scenario(workload={"trace": {"file": as_csv()}}, adapters={"mix": MIX}))
    assert (caught.value.key, caught.value.got) == ("adapters.mix.0.kind", "base")


def test_a_trace_without_adapters_takes_the_share_of_the_mix() -> None:
    rows = "".join(f"{second},4,4\n" for second in range(400))
    file = write_file(".csv", f"timestamp,input_length,output_length\n{rows}")
    one = scenario(workload={"trace": {"file": file, "format": "mooncake"}})
    base = traffic(one)["adapter"] == BASE_MODEL
    assert abs(base.mean() - 0.3) < 4 * np.sqrt(0.21 / 400)


def test_a_conversion_keeps_them(tmp_path: Path) -> None:
    data = read(as_csv())
    for suffix in (".csv", ".parquet"):
        out = io.BytesIO()
        write_plain(data, out, suffix)
        path = tmp_path / f"again{suffix}"
        path.write_bytes(out.getvalue())
        again = read(str(path))
        assert again.adapter.tolist() == data.adapter.tolist()
        assert again.names == data.names


def test_a_cache_replay_leaves_them_out() -> None:
    found = read_adapter_sequence(Trace(file=as_csv()))
    assert found.adapter.tolist() == [0, 1, 0]
    assert found.notes[-1].endswith("2 of 5 requests are for the base model and use no cache: they are left out")


def long_trace(count: int = 3000) -> str:
    rng = np.random.default_rng(4)
    times, named = np.cumsum(rng.exponential(0.1, count)), rng.random(count) >= 0.25
    adapters = np.where(named, (rng.random(count) ** 2 * 30).astype(int), -1).tolist()
    return write_trace([(float(t), a, 10, 5) for t, a in zip(times, adapters, strict=True)])


def test_a_study_says_their_share_and_its_scenario_keeps_it(tmp_path: Path) -> None:
    data = read(long_trace())
    study = study_trace(data, "t.csv", fit_share=0.5, seed=1)
    facts, share = study.facts, float((data.adapter == -1).mean())
    assert facts.base_share == facts.to_json()["base_share"] == share
    assert facts.requests == 3000
    rows = {row[0]: row[1] for row in facts_table(facts).rows}
    assert rows["for the base model"] == f"{100 * share:.1f} %"
    path = write_scenario(study, data, tmp_path)
    written = load_scenario(path, ["fleet.engine=vllm-0.32", "cache.gpu.slots=4"]).scenario
    assert written.adapters.base_share == pytest.approx(share, abs=1e-6)
    assert [kind.rank for kind in written.adapters.of_adapters] == [16]
    assert written.workload.arrivals.rate == pytest.approx(facts.rate_rps, rel=0.1)
    made = traffic(written)["adapter"]
    assert abs((made == -1).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(made))


def test_a_study_of_the_others_is_as_without_them() -> None:
    data = read(long_trace())
    named = data.for_adapters()
    found, alone = (study_trace(each, "t.csv", fit_share=0.5, seed=1).facts for each in (data, named))
    assert (found.concentration, found.curve, found.laws, found.sessions) == (
        alone.concentration,
        alone.curve,
        alone.laws,
        alone.sessions,
    )
    assert alone.base_share == 0


# Steps and engines


def test_a_step_without_adapters_runs_without_lora() -> None:
    lora = {
        "fixed_s": 1.0,
        "per_slot_s": 0.5,
        "per_slot_token_s": 0.25,
        "per_adapter_s": 2.0,
        "per_slot_prefill_token_s": 1,
    }
    cost = StepCost.model_validate({"fixed_s": 8.0, "tokens": [[0, 0], [64, 64]], "per_sequence_s": 0.5, "lora": lora})
    costs = StepCosts(cost, 4, 128, 16)
    beside = costs.with_base_model()
    details = (3, 5, 0.0, 0, 0)
    assert beside.step(8, 0, 0, 0, details) == 8 + 8 + 3 * 0.5
    assert beside.step(8, 0, 1, 16, details) == costs.step(8, 0, 1, 16, details) == 8 + 8 + 1.5 + 1 + 2 + 8 + 2 + 20
    assert beside.least_s == 9


@pytest.mark.parametrize("batching", ["mixed", "prefill-first"])
def test_a_batch_pays_for_lora_as_long_as_it_has_an_adapter(batching: str) -> None:
    # The adapter's request is loaded until 1, computes until 4, and decodes to 10 in steps of 3. The other joins at 4
    # and pays alike; from the end of the adapter on, its steps take 1.
    rows = [(0.0, 0, 1, 3), (GRID, -1, 1, 9), (50 * GRID, -1, 1, 4), (90 * GRID, 0, 1, 2)]
    one = scenario(
        workload={"trace": {"file": write_trace(rows)}},
        adapters={"count": 4, "size": "1 MiB"},
        fleet={"batching": batching, "max_num_seqs": 8},
        storage={"load": fixed_time(GRID)},
    )
    found = columns(run(one))
    ticks = [round(time / GRID, 9) for time in found["finished_s"]]
    if batching == "mixed":
        assert ticks[:3] == [10, 10 + 7, 50 + 4]
    else:  # its prefill has a step of its own, of the base model alone: 1; then two steps of both, and six
        assert ticks[:3] == [11, 11 + 6, 50 + 4]
    assert ticks[3] == 90 + 2 * 3
    assert found["outcome"][1:3] == [HIT, HIT]


def sglang(rows: list[tuple[float, int, int, int]], slots: int) -> Recording:
    one = scenario(
        workload={"trace": {"file": write_trace(rows)}},
        adapters={"count": 4, "size": "1 MiB"},
        fleet={"engine": "sglang"},
        cache={"gpu": {"slots": slots}},
    )
    return run(one)


def test_in_sglang_the_base_model_needs_a_slot_like_an_adapter() -> None:
    found = columns(sglang([(0.0, 0, 1, 400), (1.0, -1, 1, 2), (1.1, 0, 1, 2)], slots=1))
    assert found["finished_s"][2] < found["finished_s"][0] < found["finished_s"][1], "passed, like any over the limit"
    found = columns(sglang([(0.0, 0, 1, 400), (1.0, -1, 1, 2), (1.1, 0, 1, 2)], slots=2))
    assert found["finished_s"][1] < found["finished_s"][0]


def test_in_sglang_the_base_model_takes_the_place_of_an_idle_adapter() -> None:
    # Both adapters at once drive the base model out of two slots; its next request takes one of them.
    rows = [(0.0, 0, 1, 9), (0.0, 1, 1, 12), (10.0, -1, 1, 2), (20.0, 1, 1, 2), (30.0, 0, 1, 2)]
    assert columns(sglang(rows, slots=2))["outcome"] == [MISS, MISS, HIT, HIT, MISS]
    without = [row for row in rows if row[1] >= 0]
    assert columns(sglang(without, slots=2))["outcome"] == [MISS, MISS, HIT, HIT]


@pytest.mark.parametrize(
    "way",
    [
        {"fleet": {"engine": "continuous"}, "cache": {"gpu": {"slots": 4}, "eviction": "belady"}},
        {"fleet": {"engine": "vllm-0.8", "front_end": "vllm-0.8-scraped"}},
    ],
    ids=["belady", "front end"],
)
def test_who_counts_requests_by_adapter_leaves_it_out(way: dict[str, Any]) -> None:
    recording = run(scenario(**way))
    requests = recording.requests
    assert (requests["status"] == COMPLETED).all()
    assert set(requests["outcome"][requests["adapter"] == BASE_MODEL].tolist()) == {HIT}
    assert set(recording.loads["adapter"].tolist()) <= set(range(20))


# Fleets


@pytest.mark.parametrize("policy", ROUTERS.names)
def test_every_router_spreads_requests_to_the_base_model(policy: str) -> None:
    workload = {**WORKLOAD, "requests": 3000}
    if policy == "affinity-prefix":
        workload["prefix"] = {"shared_by": "adapter", "texts": 20, "tokens": {"law": "fixed", "value": 64}}
    one = scenario(fleet={"replicas": 3}, router={"policy": policy}, workload=workload)
    requests = run(one).requests
    assert (requests["status"] == COMPLETED).all()
    sent = np.bincount(requests["replica"][requests["adapter"] == BASE_MODEL], minlength=3)
    if policy != "aibrix-throughput":  # a pod whose first requests were long gets no more of them
        assert sent.min() > 0.15 * sent.sum(), "no replica is left out, and none gets all"


@pytest.mark.parametrize("policy", ["hash", "affinity-residency", "affinity-activity", "service-per-adapter"])
def test_adapters_go_where_they_go_without_the_base_model(policy: str) -> None:
    """A router that knows nothing of loads: its choices for adapters follow from the adapter alone."""
    view = View(
        loads=[0, 0, 0], up=[0, 1, 2], resident=[1, 2, 4, 0], running=[1, 2, 4, 0], inside=[{}, {}, {}], slots=2
    )
    router = make_router(policy, RouterContext(view, replicas=3, key=7, adapters=3, base_model=3))
    homes = {adapter: {router.choose(adapter, number) for number in range(50)} for adapter in range(3)}
    assert all(len(found) == 1 for found in homes.values())
    counts = np.bincount([router.choose(3, number) for number in range(900)], minlength=3)
    assert counts.min() > 0.2 * counts.sum()
    view.up = [0, 2]
    assert {router.choose(3, number) for number in range(50)} == {0, 2}


def test_views_that_lag_serve_it_too() -> None:
    for policy in ("affinity-residency", "affinity-activity"):
        one = scenario(fleet={"replicas": 3}, router={"policy": policy, "staleness": "500 ms"})
        assert (run(one).requests["status"] == COMPLETED).all()


@pytest.mark.parametrize("serve", ["dedicated", "swap"])
def test_beside_full_models_it_goes_to_the_replicas_of_the_base_model(serve: str) -> None:
    mix = [BASE, {"share": 0.6, "rank": 16}, {"share": 0.1, "kind": "full", "size": "2 GB"}]
    one = scenario(
        adapters={"count": 20, "mix": mix},
        fleet={"engine": "continuous", "replicas": 2, "full_models": {"serve": serve}},
        router={"policy": "affinity-residency"},
    )
    world = build_world(one)
    requests = run(world).requests
    full = np.append(world.traffic.population.full, False)[requests["adapter"]]
    assert full.any()
    assert np.array_equal(requests["replica"] >= 2, full)
    assert (requests["status"] == COMPLETED).all()


def test_a_fleet_for_the_base_model_and_full_models_alone() -> None:
    mix = [BASE, {"share": 0.7, "kind": "full", "size": "2 GB"}]
    one = scenario(
        adapters={"count": 3, "mix": mix}, fleet={"engine": "continuous", "full_models": {"serve": "dedicated"}}
    )
    requests = run(one).requests
    assert np.array_equal(requests["replica"] == 0, requests["adapter"] == BASE_MODEL)


def test_an_adapter_in_unified_memory_takes_room_that_the_base_model_need_not_have() -> None:
    rows = [(0.0, 0, 60, 30), (5.0, -1, 60, 30)]
    one = scenario(
        workload={"trace": {"file": write_trace(rows)}},
        adapters={"count": 1, "size": "4 MiB"},
        fleet={"engine": "s-lora", "kv_tokens": 100},
        cache={},
    )
    assert columns(run(one))["status"] == [2, COMPLETED], "32 of 100 tokens are the adapter's"


# Rollouts and faults


@pytest.mark.parametrize("strategy", ["new-name", "in-place", "unload-then-load", "drain-then-swap", "lazy-reread"])
def test_a_rollout_leaves_the_base_model_alone(strategy: str) -> None:
    one = scenario(
        workload={**WORKLOAD, "duration": "60 s", "requests": None},
        fleet={"engine": "continuous", "replicas": 2},
        rollouts=[{"strategy": strategy, "at": "20 s"}],
    )
    world = build_world(one)
    recording = run(world)
    requests = recording.requests
    base = requests["adapter"] == BASE_MODEL
    assert not requests["version"][base].any()
    assert not requests["marks"][base].any()
    assert requests["version"][~base].max() == 2
    mix = summarise([recording], facts_of(world), {}, []).version_mix["versions"]
    assert "none" not in mix or strategy == "unload-then-load"


@pytest.mark.parametrize("kind", ["misrouting", "base-model"])
def test_it_is_never_misrouted(kind: str) -> None:
    one = scenario(faults=[{"kind": kind, "probability": 1.0, "detector": {"checks": 0.5, "retries": 1}}])
    requests = run(one).requests
    wrong = (requests["marks"] & MISROUTED) > 0
    assert np.array_equal(~wrong, requests["adapter"] == BASE_MODEL)


# Metrics and plans


def point_of(world: World) -> Point:
    return summarise([run(world)], facts_of(world), {}, [])


def test_there_are_groups_of_the_base_model_and_of_adapters() -> None:
    point = point_of(build_world(scenario(workload={**WORKLOAD, "requests": 5000})))
    base, adapters, *bands = (group.row for group in point.groups)
    assert [group.name for group in point.groups[:2]] == ["base model", "adapters"]
    assert (base["adapters"], base["miss_ratio"], adapters["adapters"], len(bands)) == (0, None, 20, 3)
    assert base["requests"] + adapters["requests"] == 5000
    assert sum(band["requests"] for band in bands) == adapters["requests"]
    assert adapters["miss_ratio"] == pytest.approx(point.metrics["miss_ratio"].value)
    assert base["request_share"] == point.traffic["base_share"] == base["requests"] / 5000
    for key in ("ttft_p50_s", "ttft_p99_s", "e2e_p99_s"):
        assert 0 < base[key] < adapters[key], "no load precedes its first token"
    table = groups_table(point, "")
    assert [row[0] for row in table.rows[:2]] == ["base model", "adapters"]
    short = base_model_table(point)
    assert [row[:4] for row in short.rows] == [row[:4] for row in table.rows[:2]]
    assert traffic_sentence([point]).startswith(f"Traffic: {100 * base['request_share']:.1f} % of the requests are for")
    shown = traffic_table(point)
    assert ["requests for the base model", f"{100 * base['request_share']:.1f} %"] in shown.rows


def test_without_them_nothing_is_said_of_them() -> None:
    point = point_of(build_world(scenario(adapters=PLAIN)))
    assert "base_share" not in point.traffic
    assert base_model_table(point) is None
    assert traffic_sentence([point]).startswith("Traffic: the hottest 1 / 10 / 20 % of 20 adapters get ")
    few = replace(point, traffic={**point.traffic, "adapters": 2, "top_1pct": 0.6})
    assert traffic_sentence([few]).startswith("Traffic: the hottest of 2 adapters gets 60 % of the requests; it is ")
    assert [group.name for group in point.groups] == ["hottest 1 %", "next 9 %", "other 90 %"]


def test_their_rows_name_no_adapter() -> None:
    world = build_world(scenario(workload={"trace": {"file": as_csv()}}, adapters={"size": "1 MiB"}))
    rows = request_table(run(world), world.traffic.names).to_pylist()
    assert [row["adapter"] for row in rows] == [0, None, 1, None, 0]
    assert [row["adapter_id"] for row in rows] == ["mail", None, "sql", None, "mail"]
    assert [row["outcome"] for row in rows] == ["miss", None, "miss", None, "hit"]
    assert [row["tier"] for row in rows] == ["storage", None, "storage", None, "gpu"]
    assert [row["version"] for row in rows] == [1, None, 1, None, 1]


def test_screens_count_them_as_requests_but_not_as_accesses() -> None:
    plain, mixed = (screen(build_world(scenario(adapters=a))) for a in (PLAIN, ADAPTERS))
    assert mixed.miss_ratio == plain.miss_ratio
    assert mixed.loader_load == pytest.approx(0.7 * plain.loader_load)
    full = [{"share": 0.5, "rank": 16}, {"share": 0.2, "kind": "full", "size": "2 GB"}]
    fleet = {"engine": "continuous", "full_models": {"serve": "dedicated"}}
    shares = [{**kind, "share": kind["share"] / 0.7} for kind in full]
    alone, beside = (
        screen(build_world(scenario(adapters={"count": 21, "mix": mix}, fleet=fleet)))
        for mix in (shares, [BASE, *full])
    )
    assert beside.miss_ratio == pytest.approx(alone.miss_ratio)
    assert beside.loader_load == pytest.approx(0.7 * alone.loader_load)


def test_a_live_run_refuses_them() -> None:
    one = scenario(workload={**WORKLOAD, "requests": 100})
    with pytest.raises(ScenarioError) as caught:
        plan_requests(one, build_world(one).traffic)
    assert (caught.value.key, caught.value.allowed) == ("adapters.mix", "requests for adapters")


def test_what_ifs_keep_them() -> None:
    world = build_world(scenario(adapters={"count": 20, "mix": [BASE, {"share": 0.7, "rank": 16}]}))
    ranks = [change for change in changes(world) if change.label.startswith("rank ")]
    assert ranks
    for change in ranks:
        mix = change.set["adapters.mix"]
        assert mix[1:] == [{"share": "30%", "kind": "base"}]
        assert mix[0]["share"] == pytest.approx(0.7)


def test_remedies_keep_them() -> None:
    kinds = (AdapterKind(share=0.4, kind="base"), AdapterKind(share=0.6, rank=8))
    found = mixed_in(AdapterKind(share=1, rank=64), 0.25, kinds)
    assert [(kind.kind, kind.rank, pytest.approx(kind.share)) for kind in found] == [
        ("lora", 64, 0.15),
        ("base", 16, 0.4),
        ("lora", 8, 0.45),
    ]
