"""The bundled profiles, with the source of every number."""

from __future__ import annotations

import json
from typing import Any

from reference.markdown import linked, table


def _profiles() -> tuple[list[Any], list[Any]]:
    """Return the bundled profiles with sources of their own, and those built from kernel tables."""
    from sim.spec.profile import bundled_profiles, load_profile

    own: list[Any] = []
    built: list[Any] = []
    for profile in (load_profile(name)[0] for name in bundled_profiles()):
        made = profile.provenance is not None and profile.provenance.command.startswith("loraplan profiles build")
        (built if made else own).append(profile)
    return own, built


def built_profiles() -> str:
    """Return one table of the profiles that are built from kernel tables."""
    rows = []
    for profile in _profiles()[1]:
        surrogate = profile.error.partition(";")[0].removeprefix("step costs reproduce the kernel tables ")
        rows.append([f"`{profile.name}`", profile.device, profile.model, str(profile.tensor_parallel), surrogate])
    return "\n" + table(["profile", "device", "model", "GPUs", "step costs against the kernel tables"], rows) + "\n"


def profile_sections() -> str:
    """Return a section for each bundled profile that is not built from kernel tables."""
    parts = []
    for profile in _profiles()[0]:
        data = json.loads(profile.model_dump_json())
        lines = [
            f"- status: **{profile.status}**",
            f"- device: {profile.device}",
            f"- model: {profile.model}, {profile.dtype}",
            f"- {profile.description}",
            f"- error: {linked(profile.error)}",
        ]
        numbers = _number_sources(data, profile.sources)
        sources = list(dict.fromkeys(source for _, source in numbers))
        rows = [[f"`{key}`", _number(data, key), str(sources.index(source) + 1)] for key, source in numbers]
        if profile.provenance is not None:
            lines += _provenance(profile.provenance)
        listed = "\n".join(f"{at}. {source}" for at, source in enumerate(sources, 1))
        head = ["number", "value", "source"]
        parts.append("\n".join([f"## {profile.name}", "", *lines, "", table(head, rows), "", "Sources:", "", listed]))
    return "\n\n".join(["", *parts, ""])


def _number_sources(data: Any, sources: dict[str, str]) -> list[tuple[str, str]]:
    """Return every number's path and its source: its own, or that of the nearest section around it."""
    paths = [path for key in sources if "." not in key for path in _leaves(data[key], key)]
    paths += [key for key in sources if "." in key and key not in paths]
    found = []
    for path in sorted(set(paths), key=paths.index):
        near = path
        while near not in sources:
            near = near.rpartition(".")[0]
        found.append((path, sources[near]))
    return found


def _leaves(data: Any, path: str) -> list[str]:
    if path == "envelope" or not isinstance(data, dict):
        return [path]
    return [leaf for name, value in data.items() for leaf in _leaves(value, f"{path}.{name}")]


def _provenance(provenance: Any) -> list[str]:
    errors = ", ".join(f"{name} {error:.1%}" for name, error in provenance.residuals.items())
    lines = [f"- written by `{provenance.command}`", f"- median errors of the fit: {errors}"]
    if provenance.calibration_runs:
        lines.append(f"- calibrated by {len(provenance.calibration_runs)} runs: {provenance.calibration}")
    return lines


def _number(data: Any, key: str) -> str:
    for part in key.split("."):
        data = data[part]
    if isinstance(data, dict):
        return ", ".join(f"{name} {value:,}" for name, value in data.items())
    if isinstance(data, list) and data and isinstance(data[0], list):
        return ", ".join(f"{x:,.0f}: {y:g}" for x, y in data)
    if isinstance(data, list):
        return f"{data[0]:g} … {data[len(data) // 2]:g} … {data[-1]:g} ({len(data)} quantiles)"
    if isinstance(data, str):
        return data
    return f"{data:,}" if isinstance(data, int) else f"{data:g}"
