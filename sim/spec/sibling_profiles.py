"""Profiles of one device, model and engine that differ in the GPUs of a replica (tensor parallelism)."""

from __future__ import annotations

import shlex
from dataclasses import replace

from sim.errors import ScenarioError
from sim.spec.profile import Profile, bundled_profiles, load_profile
from sim.spec.shelf import shelved


def siblings(name: str) -> dict[int, str]:
    """Return the bundled profiles of the same device, model, weights and engine, by the GPUs of a replica.

    :param name: a bundled name, such as ``h100-80gb/llama-3.1-70b-tp4/vllm-0.24.0``; others have no siblings.
    """
    wanted = replace(shelved(name), name="", gpus=1)
    found = {
        each.gpus: each.name for each in map(shelved, bundled_profiles()) if replace(each, name="", gpus=1) == wanted
    }
    return dict(sorted(found.items()))


def sibling_profile(name: str, gpus: int | None) -> str:
    """Return the name of a profile, or of its sibling for so many GPUs of a replica; None: as many as it has.

    :raises ScenarioError: if there is no profile for so many GPUs; key ``fleet.tensor_parallel``.
    """
    if gpus is None:
        return name
    profile, _ = load_profile(name)
    if profile.tensor_parallel == gpus:
        return name
    known = siblings(name)
    if gpus in known:
        return known[gpus]
    there = {profile.tensor_parallel: name} | known
    raise ScenarioError(
        f"there is no profile of {profile.model} for so many GPUs on this device and engine",
        key="fleet.tensor_parallel",
        got=gpus,
        allowed=", ".join(f"{number} ({each})" for number, each in sorted(there.items())),
        hint=_build_hint(profile, gpus),
    )


def _build_hint(profile: Profile, gpus: int) -> str:
    """Return how to get the profile: the command that made this one, for other GPUs, if it was built."""
    command = shlex.split(profile.provenance.command) if profile.provenance else []
    if command[:3] != ["loraplan", "profiles", "build"]:
        return "fleet.profile takes a profile of your own"
    if "--tp" in command:
        del command[command.index("--tp") : command.index("--tp") + 2]
    more = ["--tp", str(gpus)] if gpus > 1 else []
    return f"build it: {shlex.join([*command, *more])}, and give its path as fleet.profile"
