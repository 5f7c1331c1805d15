"""Profiles with bootstrap draws, made from a bundled one: its costs times given factors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.spec.profile import load_profile

BUNDLED = "h100-64gb/llama-3.1-8b/vllm-0.8.5"


def scaled_costs(step: float, load: float) -> dict[str, Any]:
    """The bundled profile's step and load costs, all seconds times a factor."""
    profile, _ = load_profile(BUNDLED)
    data = profile.model_dump(mode="json")
    costs = {"step": _times(data["step"], step), "load": data["load"]}
    for tier in costs["load"].values():
        tier["bandwidth_bytes_per_s"] /= load
        for key in ("open_s", "per_tensor_s", "per_padded_tensor_s"):
            tier[key] *= load
    return costs


def write_profile(
    path: Path, draws: Sequence[tuple[float, float]] = (), *, step: float = 1.0, load: float = 1.0
) -> str:
    """Write a profile and return its path.

    :param draws: factors on step and load costs, one pair a draw.
    :param step, load: factors on the profile's own costs.
    """
    profile, _ = load_profile(BUNDLED)
    data = {**profile.model_dump(mode="json"), **scaled_costs(step, load), "name": "test/with-draws"}
    data["draws"] = [scaled_costs(*factors) for factors in draws]
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, dict):
        return {key: _times(item, factor) for key, item in value.items()}
    if isinstance(value, list):
        return [[tokens, seconds * factor] for tokens, seconds in value]
    return value * factor
