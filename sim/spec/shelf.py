"""Bundled profiles by what their names say: ``GPU/MODEL[-FORMAT][-tpN]/ENGINE-VERSION``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sim.spec.gpus import gpu_named
from sim.spec.profile import bundled_profiles

_ENGINE_NAMES = {"trtllm": "tensorrt-llm"}
"""Engines in names of profiles that scenarios name otherwise."""
_FORMATS = ("fp8", "fp8-block", "int8", "int4", "nvfp4", "mxfp4")


@dataclass(frozen=True, slots=True)
class Shelved:
    """A profile by its name.

    :ivar device: the first part of the name.
    :ivar gpu: the same as ``fleet.gpu`` has it; empty for a device that ``fleet.gpu`` doesn't take.
    :ivar engine: as scenarios write it; empty where the name has none.
    """

    name: str
    device: str
    gpu: str
    model: str
    weights: str
    gpus: int
    engine: str


def profiles_of_known_gpus() -> tuple[Shelved, ...]:
    """Return the bundled profiles that a choice is made from."""
    named = (shelved(name) for name in bundled_profiles())
    return tuple(each for each in named if each.gpu)


def shelved(name: str) -> Shelved:
    """Return what a name says; one that is not that of a bundled profile says little."""
    device, middle, made = (*name.split("/"), "", "")[:3]
    found = re.fullmatch(rf"(.+?)(?:-({'|'.join(_FORMATS)}))?(?:-tp(\d+))?", middle)
    model, weights, gpus = found.groups() if found else (middle, None, None)
    gpu = gpu_named(device)
    family, dash, version = made.partition("-")
    engine = "" if made == "assumed" else f"{_ENGINE_NAMES.get(family, family)}{dash}{version}"
    return Shelved(name, device, "" if gpu is None else gpu.name, str(model), weights or "", int(gpus or 1), engine)
