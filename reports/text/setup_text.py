"""What a result is about, in one line: device, model, engine, and the profile that its costs come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sim.results.model import GpuShare, Setup
from sim.results.point import Point
from sim.spec.engines import engine_words
from sim.spec.units import human_bytes

_MOST_NAMED = 2
"""Profiles that are named; of more, only how many there are."""
_ASSUMED_KEYS = {"GPU": "fleet.gpu", "base model": "adapters.base_model"}


def setup_line(points: Sequence[Point]) -> str:
    """Return on what the points were simulated; where they differ, every value. Empty: they don't say."""
    return setup_words([point.setup for point in points if point.setup is not None])


def setup_words(setups: Sequence[Setup]) -> str:
    """Return on what points are simulated, and what was assumed for them."""
    joint = "and" if any(each.pools for each in setups) else "or"
    setups = [own for each in setups for own in each.pools or (each,)]
    profiles = _profiles(setups, joint)
    shares = list(dict.fromkeys(each.share for each in setups if each.share))
    parts = [
        _listed((each.device for each in setups), joint),
        _listed((each.model for each in setups), joint),
        _listed((engine_words(each.engine) for each in setups), joint),
        profiles or ("all times given by the scenario" if setups else ""),
        _assumed(setups),
        f"{gpu_words(shares[0].replicas, shares[0].gpus)}; {_held(shares[0])}" if len(shares) == 1 else "",
    ]
    return " · ".join(part for part in parts if part)


def _assumed(setups: Sequence[Setup]) -> str:
    """Return what was assumed because the scenario doesn't name it, and the keys that name it."""
    names = list(dict.fromkeys(name for each in setups for name in each.assumed.split(", ") if name))
    keys = " and ".join(_ASSUMED_KEYS.get(name, name) for name in names)
    return f"{' and '.join(names)} assumed (set {keys})" if names else ""


def gpu_words(replicas: int, gpus: int) -> str:
    """Return the GPUs of replicas over several each, in words: ``3 replicas of 4 GPUs = 12 GPUs``."""
    return f"{replicas:,} replica{'s' if replicas != 1 else ''} of {gpus} GPUs = {replicas * gpus:,} GPUs"


def _held(share: GpuShare) -> str:
    """Return what each GPU holds, and what a load brings to it."""
    kept = (
        "" if share.slot_bytes is None else f"each GPU keeps {share.slots:,} slots of {human_bytes(share.slot_bytes)}; "
    )
    return f"{kept}a load copies up to {human_bytes(share.load_bytes or 0)} to each GPU"


def _profiles(setups: Iterable[Setup], joint: str) -> str:
    """Return the profiles with their status and why they were chosen, those with the same together."""
    names: dict[str, list[str]] = {}
    for each in setups:
        if each.profile and each.profile not in (known := names.setdefault(_origin(each), [])):
            known.append(each.profile)
    parts = []
    for origin, found in names.items():
        which = f"profile {_listed(found, joint)}" if len(found) <= _MOST_NAMED else f"{len(found)} profiles"
        parts.append(f"{which} ({origin})")
    return ", ".join(parts)


def _origin(setup: Setup) -> str:
    return "; ".join(filter(None, (setup.status, setup.chosen)))


def _listed(words: Iterable[str], joint: str) -> str:
    """Return each word once: ``a``, ``a or b``, ``a, b or c``.

    :param joint: ``or`` between points, ``and`` between pools of a fleet.
    """
    *first, last = dict.fromkeys(word for word in words if word) or [""]
    return f"{', '.join(first)} {joint} {last}" if first else last
