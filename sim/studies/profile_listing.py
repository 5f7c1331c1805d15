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


@dataclass(frozen=True, slots=True)
class ProfileFilter:
    """Which profiles to list; what is empty lets all pass.

    :ivar words: each in the name, the device, the model or the engine.
    """

    words: tuple[str, ...] = ()
    gpu: str = ""
    model: str = ""
    status: str = ""

    def check(self) -> None:
        """Refuse what no profile can be.

        :raises InputError: with the key of the option.
        """
        if self.gpu and gpu_named(self.gpu) is None:
            hint = unknown_gpu_hint(self.gpu)
            raise InputError("unknown GPU", key="--gpu", got=self.gpu, allowed=", ".join(GPUS), hint=hint)
        if self.status and self.status not in STATUSES:
            near, listed = did_you_mean(self.status, STATUSES), ", ".join(STATUSES)
            raise InputError("unknown status", key="--status", got=self.status, allowed=listed, hint=near)

    def passes(self, row: ProfileRow) -> bool:
        """Return whether a profile is wanted."""
        gpu = gpu_named(self.gpu) if self.gpu else None
        text = _text_of(row)
        return (
            all(word.lower() in text for word in self.words)
            and (gpu is None or row.gpu == gpu.name)
            and (not self.model or plain_name(row.model).startswith(plain_name(self.model)))
            and (not self.status or row.status == self.status)
        )

    def no_match(self, rows: Sequence[ProfileRow]) -> InputError:
        """Return the error where none passes: how to build one, if a GPU and a model are given, or a word to correct.

        :param rows: all that there are.
        """
        said = [*self.words, self.gpu, self.model, self.status]
        gpu = gpu_named(self.gpu) or next((found for word in self.words if (found := gpu_named(word))), None)
        hint = "loraplan profiles list shows all"
        wrong_word = _near_word(self.words, rows)
        if gpu is not None and any(is_model(self.model, known) for known in BASE_MODELS):
            hint = f"build one: {build_command(gpu.name, self.model, 'vllm', 1)}"
        elif wrong_word:
            hint = wrong_word
        elif self.model:
            hint = did_you_mean(plain_name(self.model), BASE_MODELS) or hint
        return InputError("no profile matches", got=" ".join(filter(None, said)), hint=hint)


def _text_of(row: ProfileRow) -> str:
    return " ".join((row.name, row.gpu, row.device, row.model, row.engine, row.status)).lower()


def _near_word(words: Sequence[str], rows: Sequence[ProfileRow]) -> str | None:
    """Return ``did you mean …?`` for the first word that no profile has, or None."""
    texts = [_text_of(row) for row in rows]
    parts = {part for text in texts for part in re.split(r"[\s/,()-]+", text)}
    known = sorted(parts | {re.split(r"\d", part)[0] for part in parts} - {""})
    missed = [word.lower() for word in words if not any(word.lower() in text for text in texts)]
    return next((near for word in missed if (near := did_you_mean(word, known))), None)


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


def list_profiles(folder: Path | None = None, wanted: ProfileFilter = ProfileFilter()) -> list[ProfileRow]:
    """Return the bundled profiles that are wanted, or those of a folder.

    Other JSON files of the folder are passed over.

    :raises InputError: where there is no such folder, or none is as wanted.
    """
    wanted.check()
    there = _all_rows(folder)
    rows = [row for row in there if wanted.passes(row)]
    if not rows and wanted != ProfileFilter():
        raise wanted.no_match(there)
    return rows


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
