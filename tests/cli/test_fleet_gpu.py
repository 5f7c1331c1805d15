"""``fleet.gpu`` on the command line: sweeps and plans over GPUs, and what they say of the profiles that they get."""

from __future__ import annotations

import json

from command_line import CommandLine

SMALL = ("--set", "workload.requests=600", "--set", "run.replications=1")


def test_a_sweep_over_gpus_gets_a_profile_for_each(loraplan: CommandLine) -> None:
    over = ("--over", "fleet.gpu=l40s,h100", "--set", "adapters.base_model=qwen3-8b")
    swept = loraplan("sweep", "quickstart", "--all", *over, *SMALL, "--out", "run")
    assert swept.code == 0, swept.err
    second = next(line for line in swept.out.splitlines() if " · profile " in line)
    assert second.endswith(
        " · profile l40s/qwen3-8b/vllm-0.24.0 or h100-80gb/qwen3-8b/vllm-0.24.0 "
        "(derived; nearest version of the engine)"
    ), "profiles that were chosen for the same reason share one"
    points = json.loads(loraplan("sweep", "quickstart", *over, *SMALL, "--out", "run", "--json").out)["points"]
    slow, fast = (point["metrics"]["tpot_mean_s"]["value"] for point in points)
    assert slow > 1.5 * fast, "an L40S has a quarter of the memory bandwidth"
    wrong = loraplan("sweep", "quickstart", "--all", "--over", "fleet.gpu=l40s,h300", *SMALL)
    assert (wrong.code, wrong.out) == (2, "")
    assert "fleet.gpu: unknown GPU (got h300, allowed: a10, a100-40gb, a100-80gb, a10g, " in wrong.err


def test_a_plan_prices_fleets_by_their_gpu(loraplan: CommandLine) -> None:
    fleets = (
        "plan.fleets=[{name: H100, price: 3, set: {fleet.gpu: h100}}, {name: L40S, price: 1, set: {fleet.gpu: l40s}}]"
    )
    more = ("--set", fleets, "--set", "plan.range=[1, 2]", "--set", "workload.arrivals.rate=1/s")
    slo = ("--set", "slo.ttft_p99=", "--set", "slo.e2e_p99=", "--set", "slo.e2e_mean=100 s")
    planned = loraplan("plan", "plan-cheapest-fleet", *SMALL, *more, *slo, "--json", "--out", "run")
    assert planned.code == 0, planned.err
    answer = json.loads(planned.out)
    assert answer["best"]["fleet"] == "L40S"
    assert answer["setup"]["profile"] == "l40s/llama-3.1-8b/vllm-0.24.0"
    assert answer["setup"]["assumed"] == ""
