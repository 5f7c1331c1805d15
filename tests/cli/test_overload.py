"""What limits an overloaded fleet is named, and its latencies are not called settled."""

from __future__ import annotations

import json

import pytest
from command_line import CommandLine

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
    ended = loraplan("run", "quickstart", *SHORT, "--set", "workload.arrivals.rate=40/s", "--json")
    metrics = json.loads(ended.out)["points"][0]["metrics"]
    assert not metrics["ttft_p99_s"]["settled"]
    assert not metrics["e2e_mean_s"]["settled"]


def test_refused_requests_are_no_overload(loraplan: CommandLine) -> None:
    ended = loraplan(
        "run", "quickstart", *SHORT, "--set", "fleet.kv_tokens=1504", "--set", "workload.arrivals.rate=0.5/s"
    )
    assert "verloaded" not in ended.out + ended.err
    assert "requests were refused: prompt and output don't fit" in ended.err
