"""What a result is about, in one line: device, model, engine, and the profile that its costs come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sim.results.model import GpuShare, Setup
from sim.results.point import Point
from sim.spec.engines import engine_words
from sim.spec.units import human_bytes


def setup_line(points: Sequence[Point]) -> str:
    """Return on what the points were simulated; where they differ, every value. Empty: they don't say."""
    setups = [point.setup for point in points if point.setup is not None]
    profiles = _profiles(setups)
    assumed = _listed(each.assumed for each in setups)
    parts = [
        _listed(each.device for each in setups),
        _listed(each.model for each in setups),
        _listed(engine_words(each.engine) for each in setups),
        f"profile {profiles}" if profiles else "all times given by the scenario" if setups else "",
        f"assumed, as the scenario names none: {assumed}" if assumed else "",
        _listed(
            f"{gpu_words(each.share.replicas, each.share.gpus)}; {_held(each.share)}" for each in setups if each.share
        ),
    ]
    return " · ".join(part for part in parts if part)


def gpu_words(replicas: int, gpus: int) -> str:
    """Return the GPUs of replicas over several each, in words: ``3 replicas of 4 GPUs = 12 GPUs``."""
    return f"{replicas:,} replica{'s' if replicas != 1 else ''} of {gpus} GPUs = {replicas * gpus:,} GPUs"


def _held(share: GpuShare) -> str:
    """Return what each GPU holds, and what a load brings to it."""
    kept = (
        "" if share.slot_bytes is None else f"each GPU keeps {share.slots:,} slots of {human_bytes(share.slot_bytes)}; "
    )
    return f"{kept}a load copies up to {human_bytes(share.load_bytes or 0)} to each GPU"


def _profiles(setups: Iterable[Setup]) -> str:
    """Return the profiles with their status and why they were chosen, those with the same together."""
    names: dict[str, list[str]] = {}
    for each in setups:
        if each.profile:
            names.setdefault("; ".join(filter(None, (each.status, each.chosen))), []).append(each.profile)
    return ", ".join(f"{_listed(each)} ({said})" for said, each in names.items())


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(word for word in words if word))
