"""Speculation against vLLM's own schedulers: tokens of each request, free blocks and preemptions of every step."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from drafting_fleets import twin_sections
from strategies import build
from vllm_environment import PYTHON, needs_vllm

from sim.policies.speculation import SpeculativeScheduler
from sim.world.build import build_world
from sim.world.replica.continuous import BatchServer
from sim.world.replication import simulate

CASES = 60


def recorded(number: int, ahead: bool) -> dict[str, Any]:
    """Simulate a random fleet; return what it decided in each step, and how many drafts were lucky."""
    random = Random(number)
    sections = twin_sections(random, ahead=ahead)
    sections["fleet"]["block_size"] = random.choice([1, 4, 16])
    world = build_world(build(**sections))
    steps: list[tuple[float, dict[int, int], int, int]] = []
    luck: dict[str, int] = {}

    def watching(server: type[BatchServer]) -> Callable[..., BatchServer]:
        class Watching(server):  # type: ignore[valid-type, misc]
            def _next_leap(self, now: float) -> float:
                end: float = super()._next_leap(now)
                if self._steps:
                    scheduler = self.scheduler
                    steps.append((now, scheduler.scheduled(), scheduler.kv.free_blocks(), scheduler.preempted))
                    note(scheduler)
                return end

        return Watching

    def note(scheduler: SpeculativeScheduler) -> None:
        for request in scheduler.running:
            if request.last_step >= 0:
                generated = scheduler._generated(request)
                drafts = scheduler._drafting.drafts(request)
                luck[f"{request.index}/{generated}"] = scheduler._drafts.accepted(request, generated, drafts)

    requests = simulate(world, 0, 1, watching).requests
    stops = [bool(stop) for chunk in world.traffic.chunks(0) for stop in chunk.stops]
    names = ("index", "arrival_s", "prompt_tokens", "output_tokens")
    rows = zip(*(requests[name].tolist() for name in names), strict=True)
    fleet, pool = world.scenario.fleet, world.pools[0]
    assert pool.kv_tokens is not None
    return {
        "tokens": fleet.speculation.tokens,
        "ahead": 0 if fleet.speculation.method == "ngram" else fleet.speculation.tokens,
        "size": fleet.block_size,
        "blocks": pool.kv_tokens // fleet.block_size,
        "longest": fleet.max_model_len,
        "seqs": fleet.max_num_seqs,
        "budget": fleet.max_num_batched_tokens,
        "caches": fleet.prefix_caching,
        "asynchronous": ahead,
        "requests": [
            {"id": str(i), "arrival_s": s, "prompt": p, "output": o, "stops": ahead and stops[i]} for i, s, p, o in rows
        ],
        "steps": steps,
        "luck": luck,
    }


@pytest.mark.nightly
@pytest.mark.interpreted
@needs_vllm
@pytest.mark.parametrize("ahead", [False, True], ids=["step by step", "ahead"])
def test_vllm_schedules_the_same_tokens_and_blocks(ahead: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name("vllm_speculation.py"))],
        input=json.dumps([recorded(number, ahead) for number in range(CASES)]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [case for case in found if "vllm" in case] == []
    assert [case["left"] for case in found] == [[]] * CASES
    assert sum(case["steps"] for case in found) > 10_000
    assert sum(case["preempted"] for case in found) > 50
