"""Profiles as rows and as coefficients with units: what ``loraplan profiles list`` and ``show`` say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sim.errors import ScenarioError
from sim.spec.profile import Profile, bundled_profiles, load_profile

Status = Literal["measured", "derived", "assumed"]
NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One profile.

    :ivar name: what ``fleet.profile`` takes: a bundled name, or a path.
    :ivar gpus: of one replica (tensor parallelism).
    :ivar engine: with its version.
    :ivar stated: the status with its note, in words.
    :ivar error: how far predictions are from measurements, as the profile says.
    :ivar made_by: the command that wrote it.
    """

    name: str
    device: str
    model: str
    weights: str
    gpus: int
    engine: str
    status: Status
    stated: str
    error: str
    made_by: str


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One number of a profile.

    :ivar path: its dotted path in the file.
    :ivar unit: ``s``, ``B``, ``B/s``, ``tokens`` … or nothing.
    :ivar source: where it comes from.
    """

    path: str
    value: Any
    unit: str
    source: str


def list_profiles(folder: Path | None = None) -> list[ProfileRow]:
    """Return the bundled profiles, or those of a folder.

    Other JSON files of the folder are passed over.

    :raises ScenarioError: where there is no such folder.
    """
    if folder is None:
        return [profile_row(name, load_profile(name)[0]) for name in bundled_profiles()]
    if not folder.is_dir():
        raise ScenarioError("no such folder", key="--from", got=str(folder))
    rows = []
    for file in sorted(folder.rglob("*.json")):
        try:
            rows.append(profile_row(str(file), load_profile(f"./{file}" if not file.is_absolute() else str(file))[0]))
        except ScenarioError:
            continue
    return rows


def profile_row(name: str, profile: Profile) -> ProfileRow:
    """Return the row of a profile."""
    engine = profile.conditions.engine if profile.conditions else NOT_RECORDED
    return ProfileRow(
        name=name,
        device=profile.device,
        model=profile.model,
        weights=profile.dtype,
        gpus=profile.tensor_parallel,
        engine=engine,
        status=profile.status,
        stated=profile.stated,
        error=profile.error,
        made_by=profile.provenance.command if profile.provenance else "by hand",
    )


def coefficients(profile: Profile) -> list[Coefficient]:
    """Return every number of a profile's costs, memory and envelope."""
    data = profile.model_dump(mode="json")
    return [
        Coefficient(path, value, _unit(path), _source(path, profile.sources))
        for section in ("step", "load", "memory", "envelope")
        for path, value in _leaves(data[section], section)
    ]


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(data, Mapping):
        yield path, data
        return
    for name, value in data.items():
        yield from _leaves(value, f"{path}.{name}")


def _unit(path: str) -> str:
    name = path.rpartition(".")[2]
    if path == "step.tokens":
        return "tokens, s"
    if path.startswith("envelope."):
        return {"sequences": "sequences", "distinct_adapters": "adapters", "slots": "slots"}.get(name, "")
    for ending, unit in (("_bytes_per_s", "B/s"), ("_bytes", "B"), ("_bytes_per_token", "B/token"), ("_s", "s")):
        if name.endswith(ending):
            return unit
    return ""


def _source(path: str, sources: Mapping[str, str]) -> str:
    while path and path not in sources:
        path = path.rpartition(".")[0]
    return sources.get(path, NOT_RECORDED)
