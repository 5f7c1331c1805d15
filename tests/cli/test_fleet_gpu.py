"""``fleet.gpu`` on the command line: sweeps and plans over GPUs, and what they say of the profiles that they get."""

from __future__ import annotations

from command_line import CommandLine

SMALL = ("--set", "workload.requests=600", "--set", "run.replications=1")


def test_a_sweep_over_gpus_gets_a_profile_for_each(loraplan: CommandLine) -> None:
    over = ("--over", "fleet.gpu=l40s,h100", "--set", "adapters.base_model=qwen3-8b")
    swept = loraplan.succeeds("sweep", "quickstart", "--all", *over, *SMALL, "--out", "run")
    second = next(line for line in swept.out.splitlines() if " · profile " in line)
    assert second.endswith(
        " · profile l40s/qwen3-8b/vllm-0.24.0 or h100-80gb/qwen3-8b/vllm-0.24.0 "
        "(derived; nearest version of the engine)"
    ), "profiles that were chosen for the same reason share one"
    points = loraplan.data("sweep", "quickstart", *over, *SMALL, "--out", "run")["points"]
    slow, fast = (point["metrics"]["tpot_mean_s"]["value"] for point in points)
    assert slow > 1.5 * fast, "an L40S has a quarter of the memory bandwidth"
    assert "fleet.gpu: unknown GPU (got h300, allowed: a10, a100-40gb, a100-80gb, a10g, " in loraplan.refused(
        "sweep", "quickstart", "--all", "--over", "fleet.gpu=l40s,h300", *SMALL
    )
