"""Profiles as rows and as coefficients with units: what ``loraplan profiles list`` and ``show`` say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sim.errors import InputError, ScenarioError, did_you_mean
from sim.policies.costs import StepCosts
from sim.spec.gpus import GPUS, gpu_named, unknown_gpu_hint
from sim.spec.profile import Profile, StepCost, bundled_profiles, load_profile
from sim.spec.profile_choice import BASE_MODELS, build_command, gpu_of, is_model, plain_name

Status = Literal["measured", "derived", "assumed"]
STATUSES: tuple[Status, ...] = ("measured", "derived", "assumed")
NOT_RECORDED = "not recorded"
SEQUENCES, CONTEXT, ADAPTERS, RANK, SLOTS = 32, 800, 16, 16, 32
"""The decode step by which profiles are compared: sequences, KV tokens of each, distinct adapters and their rank."""


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One profile.

    :ivar name: what ``fleet.profile`` takes: a bundled name, or a path.
    :ivar gpu: as ``fleet.gpu`` takes it; empty for another device.
    :ivar gpus: of one replica (tensor parallelism).
    :ivar engine: with its version.
    :ivar error: how far predictions are from measurements, as the profile says.
    :ivar tpot_error: half the width of the 90 % interval of a decode step over the profile's draws, over its
        duration: a share; None without draws, so that nothing is known.
    :ivar made_by: the command that wrote it.
    """

    name: str
    gpu: str
    device: str
    model: str
    weights: str
    gpus: int
    engine: str
    status: Status
    tpot_error: float | None
    error: str
    made_by: str


def list_profiles(
    folder: Path | None = None, words: Sequence[str] = (), gpu: str = "", model: str = "", status: str = ""
) -> list[ProfileRow]:
    """Return the bundled profiles that are wanted, or those of a folder; what is empty lets all pass.

    Other JSON files of the folder are passed over.

    :param words: each in the name, the device, the model, the engine or the status.
    :raises InputError: where there is no such GPU, status or folder, or none is as wanted.
    """
    card = gpu_named(gpu) if gpu else None
    if gpu and card is None:
        raise InputError("unknown GPU", key="--gpu", got=gpu, allowed=", ".join(GPUS), hint=unknown_gpu_hint(gpu))
    if status and status not in STATUSES:
        near, listed = did_you_mean(status, STATUSES), ", ".join(STATUSES)
        raise InputError("unknown status", key="--status", got=status, allowed=listed, hint=near)
    there = _all_rows(folder)
    texts = [" ".join((row.name, row.gpu, row.device, row.model, row.engine, row.status)).lower() for row in there]
    rows = [
        row
        for row, text in zip(there, texts, strict=True)
        if all(word.lower() in text for word in words)
        and (card is None or row.gpu == card.name)
        and (not model or plain_name(row.model).startswith(plain_name(model)))
        and (not status or row.status == status)
    ]
    said = [*words, gpu, model, status]
    if rows or not any(said):
        return rows
    # How to build one, if a GPU and a model are given, or a word to correct: the first that no profile has.
    card = card or next((found for word in words if (found := gpu_named(word))), None)
    parts = {part for text in texts for part in re.split(r"[\s/,()-]+", text)}
    known = sorted(parts | {re.split(r"\d", part)[0] for part in parts} - {""})
    missed = [word.lower() for word in words if not any(word.lower() in text for text in texts)]
    hint = "loraplan profiles list shows all"
    if card is not None and any(is_model(model, each) for each in BASE_MODELS):
        hint = f"build one: {build_command(card.name, model, 'vllm', 1)}"
    elif near_word := next((near for word in missed if (near := did_you_mean(word, known, 0.7))), None):
        hint = near_word
    elif model:
        hint = did_you_mean(plain_name(model), BASE_MODELS) or hint
    raise InputError("no profile matches", got=" ".join(filter(None, said)), hint=hint)


def _all_rows(folder: Path | None) -> Sequence[ProfileRow]:
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
        gpu=gpu_of(profile) or "",
        device=profile.device,
        model=profile.model,
        weights=profile.dtype,
        gpus=profile.tensor_parallel,
        engine=engine,
        status=profile.status,
        tpot_error=tpot_error(profile),
        error=profile.error,
        made_by=profile.provenance.command if profile.provenance else "by hand",
    )


def tpot_error(profile: Profile) -> float | None:
    """Return how far the duration of a decode step may be off, by the profile's own draws: a share, or None."""
    if not profile.draws:
        return None
    low, high = np.quantile([_decode_step_s(draw.step) for draw in profile.draws], (0.05, 0.95))
    return round(float(high - low) / 2 / _decode_step_s(profile.step), 4)


def _decode_step_s(cost: StepCost) -> float:
    details = (SEQUENCES, 0, 0.0, SEQUENCES * RANK, 0)
    costs = StepCosts(cost, SLOTS, SEQUENCES, RANK)
    return costs.step(SEQUENCES, SEQUENCES * CONTEXT, ADAPTERS, ADAPTERS * RANK, details)


def coefficients(profile: Profile) -> list[dict[str, Any]]:
    """Return every number of a profile's costs, memory and envelope: ``path``, ``value``, ``unit`` and ``source``."""
    data = profile.model_dump(mode="json")
    return [
        {"path": path, "value": value, "unit": _unit(path), "source": _source(path, profile.sources)}
        for section in ("step", "load", "memory", "envelope")
        for path, value in _leaves(data[section], section)
        if value is not None
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
