"""Pools of replicas: how a scenario says them, what is refused, and what results, costs and plans say of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from loraplan import run
from reports.tables.slice_tables import pools_table, replicas_table
from reports.text.headroom_text import failing_limit
from reports.text.setup_text import setup_line
from sim.errors import InputError
from sim.results.fleet_costs import priced
from sim.results.point import Point
from sim.results.run_directory.result_files import points_csv, summary_json
from sim.results.run_directory.store import read_run
from sim.spec.engine_flags.command_lines import engine_flags, why_no_flags
from sim.spec.profile_choice import prices_of, profiles_digest, replica_prices
from sim.spec.scenario_file import LoadedScenario, load_scenario
from sim.studies.backends.pool import Local
from sim.studies.deploy.deployment import check_deployment
from sim.studies.design import make_design
from sim.studies.evaluate import evaluate_scenario
from sim.studies.execution import Execution
from sim.studies.headroom import find_headroom
from sim.studies.plan.findings import plan_answer
from sim.studies.plan.screen import screen
from sim.studies.plan.study import make_plan
from sim.studies.plan.what_if import changes
from sim.world.build import build_world
from sim.world.replication import simulate

SCENARIO = """\
schema_version: 1
name: pools
workload:
  requests: 2500
  arrivals: {process: poisson, rate: 12/s}
  tokens: {prompt: {law: fixed, value: 100}, output: {law: fixed, value: 20}}
adapters:
  base_model: llama-3.1-8b
  count: 40
  mix: [{share: 20%, kind: base}, {share: 60%, rank: 8}, {share: 20%, rank: 32}]
fleet:
  engine: vllm
  max_num_seqs: 64
  gpu: h100-80gb
  pools:
    - {name: big, replicas: 1, price: 3 USD/h}
    - name: small
      replicas: 2
      gpu: l40s
      price: 1 USD/h
      max_num_seqs: 32
      cache: {gpu: {slots: 8}}
cache: {gpu: {slots: 16}}
run: {replications: 2}
slo: {ttft_p99: 2 s}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pools.yaml"
    path.write_text(SCENARIO)
    return path


def load(file: Path, *overrides: str) -> LoadedScenario:
    return load_scenario(str(file), overrides)


def test_a_pool_has_the_keys_of_the_fleet_unless_it_says_otherwise(file: Path) -> None:
    big, small = load(file).scenario.pools
    assert (big.fleet.gpu, big.fleet.max_num_seqs, big.cache.gpu.slots) == ("h100-80gb", 64, 16)
    assert (small.fleet.gpu, small.fleet.max_num_seqs, small.cache.gpu.slots) == ("l40s", 32, 8)
    assert (big.fleet.replicas, small.fleet.replicas) == (1, 2)
    assert load(file).scenario.fleet.total == 3
    assert small.cache.eviction == "vllm-lru", "the preset of its engine"
    sglang = load(file, "fleet.pools.small.engine=sglang").scenario.pools[1]
    assert (sglang.cache.eviction, sglang.cache.gpu.slots) == ("lru", 8), "of another engine, another preset"


def test_a_pool_is_set_by_its_name_or_place(file: Path) -> None:
    for key in ("fleet.pools.small.replicas", "fleet.pools.1.replicas"):
        assert [pool.replicas for pool in load(file, f"{key}=5").scenario.fleet.pools] == [1, 5]
    profile = "h100-80gb/llama-3.1-8b/vllm-0.24.0"
    big = load(file, f"fleet.pools.big.profile={profile}").scenario.pools[0]
    assert (big.fleet.profile, big.fleet.gpu) == (profile, None), "a profile takes the place of the fleet's GPU"
    sized = load(file, "fleet.pools.small.cache.gpu.size=1 GB", "fleet.engine=continuous").scenario.pools
    assert (sized[1].cache.gpu.slots, sized[1].cache.gpu.size) == (None, 10**9)
    assert sized[0].cache.gpu.slots == 16


def test_resolved_values_show_what_a_pool_says_and_no_defaults(file: Path) -> None:
    shown = {key: value for key, value, _ in load(file).rows() if key.startswith("fleet.pools.1")}
    assert shown == {
        "fleet.pools.1.name": "small",
        "fleet.pools.1.replicas": "2",
        "fleet.pools.1.serves": "all",
        "fleet.pools.1.gpu": "l40s",
        "fleet.pools.1.price": "1",
        "fleet.pools.1.max_num_seqs": "32",
        "fleet.pools.1.cache.gpu.slots": "8",
    }
    again = load(file)
    assert again.with_values({}).scenario == again.scenario


def test_a_pool_of_some_adapters_has_slots_of_their_size(file: Path) -> None:
    parts = ("fleet.pools.small.gpu=null", "fleet.pools.small.cache=null", "fleet.pools.small.max_num_seqs=null")
    low = ("fleet.pools.small.serves={kinds: [1]}", *parts)
    all_, low_ranks = (build_world(load(file, *low).scenario).pools[i] for i in (0, 1))
    assert low_ranks.kv_tokens > all_.kv_tokens, "slots for rank 8 leave more memory than slots for rank 32"
    assert int(low_ranks.population.rank.max()) == 8
    base = build_world(load(file, "fleet.pools.small.serves=base", *parts).scenario).pools[1]
    assert base.kv_tokens > low_ranks.kv_tokens, "without LoRA, slots take no memory"
    pinned = load(file, *low, "fleet.engine=continuous", "cache.pinned=3").scenario
    kind = all_.traffic.population.kind
    assert {int(kind[adapter]) for adapter in build_world(pinned).pools[1].pinned} == {0}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedScenario, Point]:
    path = tmp_path_factory.mktemp("pools") / "pools.yaml"
    path.write_text(SCENARIO)
    loaded = load(path)
    return loaded, evaluate_scenario(loaded.scenario).point


TENANTS = "tenants=[{name: a, adapters: 25, share: 60%}, {name: b, adapters: 15, base_model: true, share: 40%}]"


@pytest.mark.parametrize("kinds", ["", "kinds: [2], "])
def test_a_pool_of_tenants_takes_their_requests_alone(file: Path, kinds: str) -> None:
    parts = (TENANTS, "fleet.pools.small.serves={tenants: [b]}", f"fleet.pools.big.serves={{{kinds}tenants: [a]}}")
    if kinds:  # the others' requests go anywhere
        parts = (*parts, "fleet.pools.small.serves=all")
    world = build_world(load(file, *parts).scenario)
    big, small = world.pools
    tenant_of = world.traffic.tenant_of
    assert tenant_of is not None
    of_a = (tenant_of == 0) & np.append(world.traffic.population.kind == 1, False) if kinds else tenant_of == 0
    assert big.takes.tolist() == of_a.tolist()
    assert not big.population.size_bytes[~of_a[:-1]].any()
    assert (big.serves_base_model, small.serves_base_model) == (False, True)
    requests = simulate(world, 0, 1).requests
    went, adapter = requests["replica"].astype(np.int64), requests["adapter"].astype(np.int64)
    assert (went[~of_a[adapter]] >= small.first).all()
    assert kinds or (went[of_a[adapter]] < small.first).all()


def test_a_pool_of_tenants_has_slots_as_large_as_their_adapters(file: Path) -> None:
    one = ("tenants=[{name: a, adapters: 1, share: 10%}, {name: b, adapters: 39, base_model: true, share: 90%}]",)
    world = build_world(load(file, *one, "fleet.pools.small.serves={tenants: [a]}").scenario)
    rank = world.traffic.population.rank[0]
    low = build_world(load(file, f"fleet.pools.small.serves={{kinds: [{1 if rank == 8 else 2}]}}").scenario)
    assert world.pools[1].population.slot_bytes == low.pools[1].population.slot_bytes


def test_pools_on_one_profile_have_the_digest_of_a_fleet_on_it(file: Path) -> None:
    """Comparing the two, there is nothing to say of different profiles."""
    alike = load_scenario(str(file), ["fleet.pools.small.gpu=h100-80gb"]).scenario
    alone = load_scenario(str(file), ["fleet.pools=null", "fleet.replicas=2"]).scenario
    assert profiles_digest(alike) == profiles_digest(alone) != profiles_digest(load_scenario(str(file)).scenario)


def test_results_are_given_by_pool(evaluated: tuple[LoadedScenario, Point]) -> None:
    _, point = evaluated
    big, small = (pool.row for pool in point.pools)
    assert ([pool.name for pool in point.pools], big["replicas"], big["gpus"]) == (["big", "small"], 1, 1)
    assert (small["replicas"], small["gpus"]) == (2, 2)
    assert "H100" in big["device"]
    assert big["requests"] + small["requests"] == point.traffic["requests"]
    assert big["ttft_p99_s"] < small["ttft_p99_s"], "the smaller card is slower"
    assert [one.facts["pool"] for one in point.replicas] == ["big", "small", "small"]
    assert Point.from_json(json.loads(json.dumps(point.to_json()))).pools == point.pools
    rows = points_csv([point]).splitlines()
    assert f"pools.small.requests,{small['requests']},,,requests" in [row.rstrip(",") for row in rows]
    assert len({len(row.split(",")) for row in rows}) == 1
    assert summary_json("pools", [point])["points"][0]["pools"][1]["pool"] == "small"


def test_a_report_names_pools_and_both_cards(evaluated: tuple[LoadedScenario, Point]) -> None:
    _, point = evaluated
    table, replicas = pools_table(point, ""), replicas_table(point, "")
    assert [row[0] for row in table.rows] == ["big", "small"]
    assert [row[0] for row in replicas.rows] == ["0 (big)", "1 (small)", "2 (small)"]
    assert setup_line([point]).startswith("NVIDIA H100 80GB HBM3 and NVIDIA L40S · llama-3.1-8b · vllm")
    assert setup_line([Point.from_json(json.loads(json.dumps(point.to_json())))]) == setup_line([point])


def test_costs_are_each_pools_price_times_its_gpus(evaluated: tuple[LoadedScenario, Point]) -> None:
    loaded, point = evaluated
    assert point.metrics["usd_per_month"].value == pytest.approx((3 + 2 * 1) * 730)
    assert [pool.facts["usd_per_month"] for pool in point.pools] == pytest.approx([3 * 730, 2 * 730])
    mean, by_pool, _ = prices_of(loaded.scenario)
    assert mean == pytest.approx(5 / 3)
    assert by_pool == (3.0, 1.0)
    assert replica_prices(loaded.scenario) == {"fleet.pools.big.replicas": 3.0, "fleet.pools.small.replicas": 1.0}
    assert priced(point, *prices_of(loaded.scenario)) is point
    idle = sum((1 - pool.row["gpu_utilization"]) * pool.row["usd_per_month"] for pool in point.pools)
    assert idle > 0
    found = point.metrics["idle_usd_per_month"]
    assert found.value == pytest.approx(idle), "each GPU at the price of its pool"
    assert found.lo is None or found.lo <= found.value <= (found.hi or 0)
    free = priced(point, None)
    assert "usd_per_month" not in free.metrics
    assert all("usd_per_month" not in pool.facts for pool in free.pools)
    dearer = load_scenario(loaded.source, ["fleet.pools.small.price=2"]).scenario
    assert priced(point, *prices_of(dearer)).metrics["usd_per_month"].value == pytest.approx(7 * 730)


def test_each_pool_takes_the_same_draw_of_its_own_profile(file: Path) -> None:
    world = make_design(load(file).scenario).world
    assert world.draws == min(len(pool.profile.draws) for pool in world.pools if pool.profile)
    for pool, drawn in zip(world.pools, world.with_draw(3).pools, strict=True):
        assert drawn.profile.step == pool.profile.draws[3].step


def test_formulas_add_up_what_pools_can_do(file: Path) -> None:
    both = screen(build_world(load(file).scenario))
    one, two = (screen(build_world(load(file, f"fleet.pools.{i}.replicas=0").scenario)) for i in (1, 0))
    assert both.gpu_load == pytest.approx(1 / (1 / one.gpu_load + 1 / two.gpu_load))


def test_what_needs_one_kind_of_replica_says_so(file: Path) -> None:
    loaded = load(file)
    with pytest.raises(InputError, match="a fleet of pools has no manifest"):
        check_deployment(loaded.scenario)
    assert engine_flags(loaded.scenario, 1000) == {}
    assert "each pool is started in its own way" in why_no_flags(loaded.scenario)
    groups = {change.group for change in changes(build_world(loaded.scenario))}
    assert groups == {"traffic", "router"}, "keys of caches may be others in each pool"
    for change in changes(build_world(loaded.scenario)):
        build_world(loaded.with_values(change.set).scenario)


def test_headroom_counts_the_batch_slots_of_all_pools_and_names_the_keys_of_the_slowest(
    evaluated: tuple[LoadedScenario, Point],
) -> None:
    loaded, point = evaluated
    found = find_headroom(loaded.scenario, point)
    assert found.multiple > 1
    _, remedy = failing_limit(found)
    assert re.findall(r"\((.*?)\)", remedy) == [
        "router.policy: least-loaded",
        "fleet.pools.small.cache.host.slots",
    ], "each pool has keys of its own"


def test_a_plan_finds_the_cheapest_mix(tmp_path: Path) -> None:
    """Rates are such that one small replica is too few and either two small ones or a big one are enough."""
    fixed = "engine: fixed\n  service: {law: fixed, value: 100 ms}\n  gpu: null"
    text = SCENARIO.replace("engine: vllm\n  max_num_seqs: 64\n  gpu: h100-80gb", fixed)
    text = text.replace("      gpu: l40s\n", "      service: {law: fixed, value: 200 ms}\n")
    text = text.replace("      max_num_seqs: 32\n", "").replace("rate: 12/s", "rate: 7/s")
    text = text.replace("slo: {ttft_p99: 2 s}", "slo: {e2e_mean: 1 s}\nstorage: {load: {law: fixed, value: 1 ms}}")
    question = "plan:\n  minimize: [fleet.pools.big.replicas, fleet.pools.small.replicas]\n  range: [[0, 2], [0, 4]]\n"
    for small, answer, total in (("1", (0, 2), 2.0), ("1.6", (1, 0), 3.0)):
        path = tmp_path / f"plan-{small}.yaml"
        path.write_text(text.replace("price: 1 USD/h", f"price: {small} USD/h") + question)
        planned = make_plan(load_scenario(str(path)), tmp_path / small, Execution(Local(1)))
        assert tuple(planned.record.answer.values()) == answer
        (row,) = [row for row in planned.record.frontier if row.set == planned.record.answer]
        assert row.price == total
        found = plan_answer(read_run(tmp_path / small))
        assert f" for ${total:.0f} an hour, the cheapest mix: " in found.headline
        assert "Not enough: 1 replica of small or fewer." in found.details


def test_pools_say_their_role_where_prompts_and_answers_are_apart() -> None:
    result = run("prefill-decode", {"workload.requests": 300, "run.replications": 1}, jobs=1)
    prefill, decode = result.point.pools
    assert (prefill.facts["role"], decode.facts["role"]) == ("prefill", "decode")
    assert prefill.facts["requests"] == 0
    assert decode.facts["requests"] > 0, "a request is counted where it is answered"
    table = pools_table(result.point, "")
    assert table is not None
    assert "role" in table.head
    assert "counted in the pool that answers it" in table.note
    assert "prefill" not in points_csv([result.point]), "a column of numbers"
