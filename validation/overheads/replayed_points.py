"""Measured serving points, replayed by the simulator: built profiles under the clients that measured the servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from calibrate.kernels.around_kernels import overhead_of
from calibrate.kernels.kernel_tables import Deployment
from calibrate.kernels.profile_from_kernels import build_profile
from sim.errors import InputError
from sim.results.records import COMPLETED
from sim.spec.profile import LoraCost, Profile
from sim.spec.scenario import Scenario
from sim.world.build import build_world
from sim.world.replication import simulate
from validation.overheads.loop_schedule import REQUESTS_EACH
from validation.overheads.serving_points import ServingPoint

_PRESETS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt-llm"}
"""Engines by their names in scenarios."""


@dataclass(frozen=True, slots=True)
class ReplayedPoint:
    """A measured point and what the simulator says of it.

    :ivar first_s: mean time to the first token, with what the engine's overhead has outside of steps.
    :ivar token_s: mean time between tokens.
    :ivar spread: of the profile's step costs: standard deviation of their logarithm over its draws.
    """

    point: ServingPoint
    first_s: float
    token_s: float
    spread: float


def replay_points(
    points: Iterable[ServingPoint], progress: Callable[[int], None] = lambda done: None
) -> list[ReplayedPoint]:
    """Simulate measured closed loops, each with the built profile of its deployment.

    Points of deployments for which no profile is built are left out.
    """
    found = []
    profiles: dict[Deployment, str | None] = {}
    with TemporaryDirectory() as folder:
        for point in points:
            deployment = point.deployment
            if deployment not in profiles:
                path = Path(folder, f"{len(profiles)}.json")
                profiles[deployment] = str(path) if _write_profile(point, path) else None
            profile = profiles[deployment]
            if profile is not None:
                found.append(replay(point, profile))
                progress(len(found))
    return found


def _write_profile(point: ServingPoint, path: Path) -> bool:
    """Write the profile of a point's deployment; return whether there is one."""
    try:
        built = build_profile(point.deployment, "").profile
    except InputError:
        return False
    path.write_text(as_measured(built, point.kv_bytes).model_dump_json())
    return True


def as_measured(profile: Profile, kv_bytes: int) -> Profile:
    """Return a profile in which LoRA costs nothing and takes no memory: the servers had none.

    :param kv_bytes: of a number in their KV caches; built profiles have 2.
    """
    step = profile.step.model_copy(update={"lora": LoraCost()})
    tokens = profile.memory.kv_bytes_per_token * kv_bytes // 2
    memory = profile.memory.model_copy(update={"slot_layout": "exact", "kv_bytes_per_token": tokens})
    return profile.model_copy(update={"step": step, "memory": memory, "draws": ()})


def scenario_of(point: ServingPoint, profile: str) -> Scenario:
    """Return the scenario of a point.

    :param profile: path of the profile of its deployment.
    """
    loop, engine = point.loop, point.deployment.engine
    low, high = loop.spread
    workload = {
        "requests": loop.clients * REQUESTS_EACH,
        "arrivals": {"process": "closed", "concurrency": loop.clients},
        "tokens": {
            name: {"law": "uniform", "low": max(round(low * mean), least), "high": max(round(high * mean), least)}
            for name, mean, least in (("prompt", loop.prompt, 1), ("output", loop.answer, 2))
        },
    }
    fleet: dict[str, Any] = {
        "engine": f"vllm-{point.version}" if engine == "vllm" and point.version else _PRESETS[engine],
        "profile": profile,
        "max_num_seqs": loop.clients if loop.batch_slots is None else max(loop.batch_slots, 1),
        "max_num_batched_tokens": max(loop.budget, loop.clients + 1),
        "chunked_prefill": loop.chunked,
    }
    if engine != "trtllm":
        fleet["prefix_caching"] = False
    return Scenario.model_validate(
        {
            "schema_version": 1,
            "name": "point",
            "workload": workload,
            "adapters": {"base_model": point.deployment.model.name, "count": 1, "rank": 1, "size": "1 MB"},
            "fleet": fleet,
            "cache": {"gpu": {"size": "1 MB"} if engine == "trtllm" else {"slots": 1}, "warm": 1},
            "run": {"warmup": 0},
        }
    )


def replay(point: ServingPoint, profile: str) -> ReplayedPoint:
    """Simulate one point.

    :param profile: path of the profile of its deployment.
    """
    requests = simulate(build_world(scenario_of(point, profile)), 0, 1).requests
    assert np.all(requests["status"] == COMPLETED), f"line {point.line}: a request was not served"
    arrived, first, done = (
        np.asarray(requests[name], dtype=np.float64) for name in ("arrival_s", "first_token_s", "finished_s")
    )
    overhead = overhead_of(point.deployment)
    tokens = np.asarray(requests["output_tokens"], dtype=np.float64)
    return ReplayedPoint(
        point,
        float(np.mean(first - arrived)) + overhead.outside_s,
        float(np.mean((done - first) / (tokens - 1))),
        overhead.spread,
    )
