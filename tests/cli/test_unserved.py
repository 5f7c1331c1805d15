"""Refused and failed requests count against an SLO, in every command that judges by it, and what overloads is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import CommandLine

from sim import api
from sim.results.run_directory.store import read_run
from sim.results.verdict import MET, NOT_MET, verdict

# Half of the prompts don't fit into 2,048 tokens; the longest request has 4,020.
REFUSING = """\
schema_version: 1
name: rf
workload:
  requests: 1500
  arrivals: {process: poisson, rate: 3/s}
  tokens: {prompt: {law: uniform, low: 1, high: 4000}, output: {law: fixed, value: 20}}
adapters: {count: 8, rank: 16}
cache: {gpu: {slots: 8}, warm: 8}
fleet: {profile: h100-64gb/llama-3.1-8b/assumed, engine: continuous, kv_tokens: 2048}
slo: {ttft_p99: 5 s}
run: {replications: 5}
"""
FAILING = """\
extends: rf.yaml
name: failing
workload: {tokens: {prompt: {law: uniform, low: 1, high: 400}}}
cache: {gpu: {slots: 4}, warm: 4}
fleet: {kv_tokens: 65536}
faults: [{kind: failing-loads, probability: 60%, retries: 0}]
"""
REFUSED = r"4\d\.?\d? % of the requests were refused"
LONGEST = r"the longest has 4,0\d\d tokens"


@pytest.fixture(autouse=True)
def scenarios(tmp_path: Path) -> None:
    (tmp_path / "rf.yaml").write_text(REFUSING, encoding="utf-8")
    (tmp_path / "failing.yaml").write_text(FAILING, encoding="utf-8")


def test_a_run_that_refuses_half_misses_its_slo(loraplan: CommandLine) -> None:
    ended = loraplan("run", "rf.yaml", "--jobs", "1", "--check", "--out", "run")
    assert ended.code == 1
    lines = ended.out.splitlines()
    assert re.match(
        rf"rf: The SLO is not met: {REFUSED}, more than the 1 % that a target for p99 TTFT allows; ", lines[0]
    )
    assert re.search(r"; p99 TTFT of the completed ones is \d+ ms ", lines[0])
    assert re.match(
        rf"  First limit  Refusals: {REFUSED}: {LONGEST}, and the KV cache of a replica holds 2,048\. Enlarge it: by ",
        next(line for line in lines if line.startswith("  First limit")),
    )
    assert "The verdict is sure: clearly more requests go unserved or late" in ended.out
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "SLO not met" in page
    assert "of the requests were refused" in page
    assert api.run("rf.yaml").meets_slo is False
    loraplan.succeeds("run", "rf.yaml", "--jobs", "1", "--check", "--set", "fleet.kv_tokens=65536")


def test_an_slo_on_misses_still_says_what_is_refused(loraplan: CommandLine) -> None:
    other = ("--set", "slo.ttft_p99=null", "--set", "slo.miss_ratio=50%")
    ended = loraplan.succeeds("run", "rf.yaml", "--all", "--jobs", "1", "--check", *other)
    assert ended.out.startswith("rf: The SLO is met: miss ratio is 0 %")
    assert re.search(REFUSED, ended.out)


def test_what_the_limit_is_of_is_named(loraplan: CommandLine) -> None:
    settings = ("--set", "fleet.kv_tokens=8192", "--set", "fleet.max_model_len=1000")
    ended = loraplan("run", "rf.yaml", "--all", "--jobs", "1", *settings)
    assert "and fleet.max_model_len allows 1,000. Raise it to 4,0" in ended.out


def test_failed_requests_are_late_ones(loraplan: CommandLine) -> None:
    ended = loraplan("run", "failing.yaml", "--all", "--jobs", "1", "--check", "--out", "run")
    assert ended.code == 1
    assert re.search(r"The SLO is not met: \d\d\.\d % of the requests failed, more than the 1 %", ended.out)
    assert "their adapter could not be loaded. Allow more retries" in ended.out
    assert api.run("failing.yaml").meets_slo is False


def test_a_sweep_marks_points_that_refuse(loraplan: CommandLine) -> None:
    tokens = ("--jobs", "1", "--over", "fleet.kv_tokens=2048,65536")
    ended = loraplan("sweep", "rf.yaml", "--all", *tokens, "--check", "--out", "swept")
    assert ended.code == 1
    assert ended.out.startswith("rf: The SLO is met from 65,536 KV tokens on; at 2,048 it isn't.")
    assert re.search(r"^2,048 +not met: unserved requests .* refusals *$", ended.out, re.MULTILINE)
    page = Path("swept/report.html").read_text(encoding="utf-8")
    assert re.search(r"Refused and failed requests \(up to 4\d\.\d %\) have no latency", page)
    grid = loraplan("sweep", "rf.yaml", "--all", *tokens, "--over", "workload.arrivals.rate=2/s,3/s", "--out", "grid")
    assert "2 of 4 combinations meet the SLO." in grid.out
    heat = Path("grid/report.html").read_text(encoding="utf-8")
    assert "2 of 4 cells meet the SLO." in heat
    assert {verdict(p, {"ttft_p99_s": 5.0}) for p in read_run(Path("grid")).points} == {MET, NOT_MET}


def test_a_plan_finds_the_least_that_serves_everybody(loraplan: CommandLine) -> None:
    question = ("plan", "rf.yaml", "--jobs", "1", "--minimize", "fleet.kv_tokens=2048..65536:2048", "--out", "planned")
    ended = loraplan.succeeds(*question, "--all")
    assert ended.out.startswith("rf: Use 4,096 KV tokens: ")
    assert re.search(rf"With 2,048 KV tokens, {REFUSED}; at the answer every request is served\.", ended.out)
    assert re.search(rf"At 2,048 KV tokens, {REFUSED}: {LONGEST}, and the KV cache of a replica holds 2,048", ended.out)
    assert re.search(r"kv_tokens 2048: not met \(4\d\.?\d? % of the requests refused or failed; ", ended.err)
    assert loraplan.data(*question)["binding"] == "refusals"
    assert ">refused or failed<" in Path("planned/report.html").read_text(encoding="utf-8")


def test_where_every_request_is_refused_a_plan_goes_on(loraplan: CommandLine) -> None:
    # At 16 tokens none completes, so there is no p99; that is no reason to give up.
    question = ("plan", "rf.yaml", "--jobs", "1", "--minimize")
    assert (
        loraplan.data(*question, "fleet.kv_tokens=16..8208:1024", "--out", "planned")["answer"]["fleet.kv_tokens"]
        == 4112
    )
    assert loraplan(*question, "fleet.kv_tokens=16..1024:16", "--out", "none").code == 1


def test_no_rate_is_low_enough_for_requests_that_never_fit(loraplan: CommandLine) -> None:
    ended = loraplan("plan", "rf.yaml", "--all", "--jobs", "1", "--maximize", "workload.arrivals.rate=1/s..4/s:1/s")
    assert ended.code == 1
    assert "No value of arrival rate from 1/s to 4/s meets the SLO" in ended.out
    assert re.search(rf"{LONGEST}, and the KV cache of a replica holds 2,048", ended.out)


def test_what_if_and_compare_judge_alike(loraplan: CommandLine) -> None:
    loraplan("run", "rf.yaml", "--jobs", "1", "--set", "fleet.kv_tokens=65536", "--out", "serving")
    loraplan("run", "rf.yaml", "--jobs", "1", "--out", "refusing")
    ended = loraplan("compare", "serving", "refusing", "--json", "--check")
    found = json.loads(ended.out)
    assert ended.code == 1
    assert found["worse_slo_terms"] == ["ttft_p99_s"]
    assert found["points"][0]["why"] == "the SLO is met only with A"
    assert "refused" in found["judged"]
    strict = ("run", "rf.yaml", "--jobs", "1", "--set", "slo.ttft_p99=1 ms")
    loraplan(*strict, "--set", "fleet.kv_tokens=65536", "--out", "strict")
    loraplan(*strict, "--out", "strict-refusing")
    both = loraplan.data("compare", "strict", "strict-refusing")
    assert "better" not in both["answer"], "quick, for half of the requests are refused"


SHORT = ("--set", "workload.requests=6000", "--set", "run.replications=2")


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        ("fleet.max_num_seqs=10", "the batch was full"),
        ("fleet.kv_tokens=6000", "KV block"),
        ("cache.gpu.slots=2", "every slot was in use"),
        ("storage={load: {law: fixed, value: 900 ms}}", "loads need"),
    ],
)
def test_the_limit_is_named(loraplan: CommandLine, setting: str, limit: str) -> None:
    idealised = ("--set", "fleet.engine=continuous", "--set", "cache.host=null")
    ended = loraplan.succeeds("run", "quickstart", *SHORT, *idealised, "--set", setting)
    assert "Overloaded" in ended.out
    (line,) = (line for line in ended.out.splitlines() if line.startswith("  First limit  "))
    assert limit in line, ended.out
    assert "overloaded" in ended.err


def test_overload_is_never_settled(loraplan: CommandLine) -> None:
    metrics = loraplan.data("run", "quickstart", *SHORT, "--set", "workload.arrivals.rate=40/s")["points"][0]["metrics"]
    assert not metrics["ttft_p99_s"]["settled"]
    assert not metrics["e2e_mean_s"]["settled"]


def test_refused_requests_are_no_overload(loraplan: CommandLine) -> None:
    ended = loraplan(
        "run", "quickstart", *SHORT, "--set", "fleet.kv_tokens=1504", "--set", "workload.arrivals.rate=0.5/s"
    )
    assert "verloaded" not in ended.out + ended.err
    assert "requests were refused: prompt and output don't fit" in ended.err
