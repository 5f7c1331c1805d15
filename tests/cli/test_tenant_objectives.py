"""Tenants: what each gets, and plans, headroom and --check go by their SLOs as by that of the fleet."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command_line import CommandLine

from reports.formatting import metric_words
from reports.text.headroom_text import headroom_sentences
from sim.errors import InputError
from sim.results.run_directory.store import read_run
from sim.results.slo_terms import all_terms, metric_of, split_term, tenant_term
from sim.results.verdict import met_probability
from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import EvaluationOptions, evaluate_scenario
from sim.studies.headroom import find_headroom
from sim.studies.plan.findings import PlanReading, plan_answer
from sim.studies.plan.report import plan_report
from sim.studies.plan.study import make_plan
from sim.studies.plan.what_if import changes
from sim.world.build import build_world

SCENARIO = """\
schema_version: 1
name: shared
workload:
  requests: 6000
  arrivals: {process: poisson, rate: 25/s}
adapters: {count: 8, base_model: llama-3.1-8b}
fleet: {engine: fixed, service: {law: exponential, mean: 100 ms}}
cache: {gpu: {slots: 8}, warm: 8}
storage: {load: {law: fixed, value: 1 ms}}
router: {policy: least-loaded}
run: {replications: 2}
plan: {minimize: fleet.replicas, range: [1, 8]}
"""
FLEET = "slo: {e2e_p99: 800 ms, queue_mean: 50 ms}\n"
ALL = "tenants: [{name: all, adapters: 8, slo: {e2e_p99: 800 ms, queue_mean: 50 ms}}]\n"
TWO = """\
tenants:
  - {name: chat.a, adapters: 4, share: 50%, slo: {queue_mean: 5 ms}}
  - {name: batch, adapters: 4, share: 50%, slo: {queue_mean: 500 ms}}
"""


def load(folder: Path, text: str, *overrides: str):
    file = folder / "shared.yaml"
    file.write_text(text, encoding="utf-8")
    return load_scenario(str(file), overrides)


def test_names_of_terms_are_read_back() -> None:
    name = tenant_term("chat.a", "ttft_p99_s")
    assert split_term(name) == ("chat.a", "ttft_p99_s")
    assert split_term("ttft_p99_s") == ("", "ttft_p99_s")
    assert metric_words(name) == "p99 TTFT of chat.a"


def test_a_plan_for_the_one_tenant_is_that_for_the_fleet(tmp_path: Path) -> None:
    """Whose SLO it is changes no verdict, no probability and no simulation."""
    fleet = make_plan(load(tmp_path, SCENARIO + FLEET), tmp_path / "fleet")
    tenant = make_plan(load(tmp_path, SCENARIO + ALL), tmp_path / "tenant")
    assert tenant.record.answer == fleet.record.answer
    assert tenant.record.grades == fleet.record.grades
    assert [entry.score for entry in tenant.record.looks] == [entry.score for entry in fleet.record.looks]
    assert [split_term(entry.term) for entry in tenant.record.looks] == [
        ("all", entry.term) for entry in fleet.record.looks
    ]
    assert tenant.record.simulated_requests == fleet.record.simulated_requests


def test_the_headroom_of_the_one_tenant_is_that_of_the_fleet(tmp_path: Path) -> None:
    overrides = ("fleet.replicas=4",)
    fleet = find_headroom(load(tmp_path, SCENARIO + FLEET, *overrides).scenario)
    tenant = find_headroom(load(tmp_path, SCENARIO + ALL, *overrides).scenario)
    assert (tenant.outcome, tenant.multiple, tenant.lo, tenant.hi) == (
        fleet.outcome,
        fleet.multiple,
        fleet.lo,
        fleet.hi,
    )
    assert split_term(tenant.term) == ("all", fleet.term)
    assert " of all misses its target at about" in headroom_sentences(tenant)
    assert [each.name for each in tenant.failing.tenants] == ["all"], "what decides may be its requests alone"


def test_a_plan_meets_every_slo_and_names_the_tenant_that_decides(tmp_path: Path) -> None:
    alone = SCENARIO + TWO.replace("slo: {queue_mean: 5 ms}", "slo: {}")
    strict = make_plan(load(tmp_path, SCENARIO + TWO), tmp_path / "both")
    loose = make_plan(load(tmp_path, alone), tmp_path / "one")
    assert strict.record.answer["fleet.replicas"] > loose.record.answer["fleet.replicas"], "chat wants less waiting"
    data = read_run(tmp_path / "both")
    assert split_term(PlanReading(data).decides())[0] == "chat.a"
    assert plan_report(data).data["decides"] == "chat.a"
    said = plan_answer(data)
    assert "The SLO of chat.a decides." in said.details
    assert "mean queue wait of chat.a is" in said.binding_sentence
    with_fleet = make_plan(load(tmp_path, alone + "slo: {queue_mean: 5 ms}\n"), tmp_path / "fleet")
    assert with_fleet.record.answer == strict.record.answer
    assert (
        "The SLO of the fleet decides, not those of its tenants." in plan_answer(read_run(tmp_path / "fleet")).details
    )


def test_a_tenant_of_the_whole_traffic_has_the_calibration_of_the_fleet(tmp_path: Path) -> None:
    text = """\
schema_version: 1
name: drawn
workload: {requests: 1500, arrivals: {process: poisson, rate: 5/s}}
adapters: {count: 8, base_model: llama-3.1-8b}
fleet: {gpu: h100-80gb}
cache: {gpu: {slots: 8}, host: {slots: 8}, warm: 8}
slo: {ttft_p50: 100 ms}
tenants: [{name: all, adapters: 8, slo: {ttft_p50: 100 ms}}]
run: {replications: 2}
"""
    point = evaluate_scenario(load(tmp_path, text).scenario, EvaluationOptions(draws=True)).point
    (tenant,) = point.tenants
    assert tenant.metrics == {name: point.metrics[name] for name in tenant.metrics}
    assert tenant.metrics["ttft_p50_s"].calibration_hi is not None
    name = tenant_term("all", "ttft_p50_s")
    assert met_probability(point, {name: 0.05}) == met_probability(point, {"ttft_p50_s": 0.05}) < 1
    again = type(point).from_json(json.loads(json.dumps(point.to_json())))
    assert again.tenants == point.tenants
    assert metric_of(point.without_calibration(), name).calibration_hi is None
    endless, known = metric_of(point.of_endless_run(), name), metric_of(point, name)
    assert (endless.lo, endless.hi, endless.settled) == (known.value, known.value, True)
    assert endless.calibration_hi == known.calibration_hi is not None


def test_a_plan_without_any_slo_is_refused(tmp_path: Path) -> None:
    bare = SCENARIO + "tenants: [{name: all, adapters: 8}]\n"
    assert not all_terms(load(tmp_path, bare).scenario)
    with pytest.raises(InputError, match="a plan needs an SLO to meet"):
        make_plan(load(tmp_path, bare), tmp_path / "out")
    tokens = SCENARIO + "tenants: [{name: all, adapters: 8, slo: {tpot_mean: 1 s}}]\n"
    with pytest.raises(InputError) as caught:
        make_plan(load(tmp_path, tokens), tmp_path / "out")
    assert "tenants.0.slo.tpot_mean: engine fixed has no tokens" in str(caught.value)


def test_the_command_answers_where_only_tenants_have_slos(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SCENARIO + TWO)
    loraplan.headroom = True
    ended = loraplan.succeeds("plan", "shared.yaml", "--jobs", "1", "--what-if", "--out", "out")
    assert "The SLO of chat.a decides." in ended.out
    assert "of chat.a misses its target at about" in ended.out
    doubled = next(line for line in ended.out.splitlines() if line.startswith("half the traffic"))
    assert "–" not in doubled, "every term of a tenant has its change"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "of chat.a" in page


@pytest.mark.parametrize(("over", "code"), [("10s,1ms", 1), ("10s,9s", 0)])
def test_a_sweep_is_checked_by_the_objectives_of_each_point(
    tmp_path: Path, loraplan: CommandLine, over: str, code: int
) -> None:
    file = tmp_path / "shared.yaml"
    quick = ("--set", "workload.requests=2000", "--set", "fleet.replicas=12", "--check", "--quiet", "--out", "out")
    for text, key in ((SCENARIO + FLEET, "slo.e2e_p99"), (SCENARIO + TWO, "tenants.1.slo.e2e_p99")):
        file.write_text(text, encoding="utf-8")
        assert loraplan("sweep", str(file), "--over", f"{key}={over}", *quick, "--overwrite").code == code


@pytest.mark.parametrize("arrivals", ["{process: poisson}", "{process: poisson, rate: 25/s}"])
def test_twice_the_traffic_scales_the_rates_of_tenants_and_their_sum(tmp_path: Path, arrivals: str) -> None:
    tenants = TWO.replace("batch, adapters: 4, share: 50%", "batch, adapters: 4, rate: 15/s")
    text = (SCENARIO + tenants.replace("share: 50%", "rate: 10/s")).replace("{process: poisson, rate: 25/s}", arrivals)
    loaded = load(tmp_path, text)
    twice = next(change for change in changes(build_world(loaded.scenario)) if change.label == "twice the traffic")
    scenario = loaded.with_values(twice.set).scenario
    assert [tenant.rate for tenant in scenario.tenants] == [20, 30]
    assert scenario.workload.arrivals.rate == 50


# What each tenant gets on the command line


SERVED = """\
schema_version: 1
name: shared
workload:
  requests: 3000
  arrivals: {process: poisson, rate: 5/s}
adapters: {count: 8, base_model: llama-3.1-8b}
fleet: {gpu: h100-80gb, price: 2.50}
cache: {gpu: {slots: 8}, host: {slots: 8}, warm: 8}
tenants:
  - {name: chat, adapters: 4, share: 50%, slo: {ttft_p50: 10 s}}
  - {name: batch, adapters: 4, share: 50%, slo: {ttft_p50: TARGET}}
run: {replications: 2}
"""


def test_a_run_shows_what_each_tenant_gets(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SERVED.replace("TARGET", "10 s"))
    loraplan.succeeds("run", "shared.yaml", "--jobs", "1", "--check", "--out", "out")
    with (tmp_path / "out" / "tenants.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["tenant"] for row in rows} == {"chat", "batch"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    tenants = summary["points"][0]["tenants"]
    assert [tenants[name]["slo"] for name in ("chat", "batch")] == ["met", "met"]


def test_check_fails_where_one_tenant_misses_its_own_slo(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SERVED.replace("TARGET", "1 ms"))
    result = loraplan("run", "shared.yaml", "--all", "--jobs", "1", "--check", "--quiet")
    assert result.code == 1, result.err
    assert result.out.startswith("shared: The SLO of batch is not met: its median TTFT is ")
    assert "not met: median TTFT" in result.out
    (tmp_path / "shared.yaml").write_text(SERVED.replace("TARGET", "1 ms") + "slo: {ttft_p50: 10 s}\n")
    result = loraplan(
        "run", "shared.yaml", "--all", "--jobs", "1", "--check", "--quiet", "--no-headroom", "--overwrite"
    )
    assert result.code == 1, result.err
    assert result.out.startswith("shared: The SLO of batch is not met: "), "the fleet's is"


def test_a_sweep_says_that_one_tenant_misses_its_own_slo(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SERVED.replace("TARGET", "1 ms") + "slo: {ttft_p50: 10 s}\n")
    result = loraplan(
        "sweep", "shared.yaml", "--all", "--jobs", "1", "--check", "--quiet", "--over", "fleet.replicas=1,2"
    )
    assert result.code == 1, result.err
    assert result.out.startswith("shared: The SLO is not met with 1 or 2 replicas.")
    assert "The SLO of batch is not met at 2 of 2 points." in result.out
    assert "The cheapest point that meets the SLO" not in result.out


def test_a_bucket_that_is_too_small_for_one_tenant_is_no_overload_of_another(
    loraplan: CommandLine, tmp_path: Path
) -> None:
    bucket = "bucket: {rate: 200/s, burst: 12288, full: queue}"
    text = SERVED.replace("TARGET", "1 s").replace("slo: {ttft_p50: 1 s}", bucket)
    (tmp_path / "shared.yaml").write_text(text)
    result = loraplan.succeeds("run", "shared.yaml", "--all", "--jobs", "1", "--quiet", "--no-headroom")
    table = result.out.splitlines()
    start = table.index("Tenants")
    assert [line.split()[:2] for line in table[start + 2 : start + 4]] == [["chat", "met"], ["batch", "–"]]
    assert "The bucket of batch admits 200 of" in result.out, "its queue grows, and that of the fleet doesn't"
