"""The law of loads from timed loads: open + tensors + padded tensors + bytes over bandwidth, tier by tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sim.arrays import Floats
from sim.errors import InputError
from sim.spec.profile import HoldOut, LoadCost, TierCost
from sim.studies.fidelity.least_squares import (
    DRAWS,
    LEFT_OUT,
    Problem,
    hold_out_line,
    left_out_errors,
    resample,
    significant,
    solve,
    sum_of_terms,
)

if TYPE_CHECKING:
    import pandas as pd

Tier = Literal["storage", "host"]

TIERS: dict[Tier, str] = {"storage": "load storage", "host": "load host"}
"""The kind of configuration that each tier is fitted to: complete loads."""

_TERMS = ("load", "tensor", "padded_tensor", "byte")
_QUANTILES = np.linspace(0, 1, 101)
_P99_SAMPLES = 100
"""Samples of a configuration from which on it has a p99 of its own."""
_NO_BANDWIDTH = 1e15
"""Bytes per second where bytes play no part."""


@dataclass(frozen=True, slots=True)
class LoadConfiguration:
    """The loads of one configuration.

    :ivar features: (4,): 1, tensors, padded tensors, bytes.
    :ivar seconds: (n,): a sample each, the mean of the loads at the same time; ``wall_s``: until all have ended.
    """

    key: str
    concurrency: int
    features: Floats
    seconds: Floats
    wall_s: Floats

    @property
    def median(self) -> float:
        """The median of its samples, seconds."""
        return float(np.median(self.seconds))


@dataclass(frozen=True, slots=True)
class ConcurrentLoads:
    """Loads at the same time.

    :ivar bytes_per_s: of all together, the median over adapters.
    :ivar slow_down: seconds of one of them over those of one alone, the median over adapters.
    """

    tier: Tier
    concurrency: int
    bytes_per_s: float
    slow_down: float


@dataclass(frozen=True, slots=True)
class LoadFit:
    """Fitted loads: the law of both tiers, errors on what was not fitted, and bootstrap draws over configurations.

    :ivar residuals: median absolute relative error of the fit by tier, as ``load.storage`` and ``load.host``.
    :ivar concurrent: what loads at the same time do to each other; the law itself is of one load alone.
    :ivar slow_down: factor on a step while copies run; None where it wasn't timed.
    """

    cost: LoadCost
    residuals: dict[str, float]
    hold_out: tuple[HoldOut, ...]
    concurrent: tuple[ConcurrentLoads, ...]
    draws: tuple[LoadCost, ...]
    slow_down: float | None


def fit_load_samples(frame: pd.DataFrame, manifest: Mapping[str, Any]) -> LoadFit:
    """Fit both tiers to the complete loads of a suite that ran one at a time.

    Non-negative least squares of relative errors over the medians of configurations.

    :param frame: samples, as ``read_samples`` gives them: key, kind, parameters, seconds, wall_s.
    :raises InputError: if a tier has too few configurations; the hint gives the manifest's reason.
    """
    cells = {tier: _cells(frame, kind, manifest) for tier, kind in TIERS.items()}
    alone = {tier: [cell for cell in found if cell.concurrency == 1] for tier, found in cells.items()}
    rng = np.random.default_rng(1)
    hold_out: list[HoldOut] = []
    for tier in TIERS:
        errors = left_out_errors(_problem(alone[tier]), sum_of_terms(_fit))
        hold_out.append(hold_out_line(f"medians of loads from {tier}", "law", LEFT_OUT, errors))
        hold_out += _odd_even(tier, alone[tier])
    return LoadFit(
        LoadCost(storage=_tier_cost(alone["storage"]), host=_tier_cost(alone["host"])),
        {
            f"load.{tier}": float(np.median(np.abs(_problem(found).errors(_law(found)))))
            for tier, found in alone.items()
        },
        tuple(hold_out),
        tuple(row for tier in TIERS for row in _concurrent(tier, cells[tier])),
        tuple(LoadCost(**{tier: _tier_cost(resample(alone[tier], rng)) for tier in TIERS}) for _ in range(DRAWS)),
        manifest.get("slow_down"),
    )


def _cells(frame: pd.DataFrame, kind: str, manifest: Mapping[str, Any]) -> list[LoadConfiguration]:
    found = []
    for key, rows in frame[frame["kind"] == kind].groupby("key", observed=True):
        p = rows["parameters"].iloc[0]
        features = np.array([1, p["tensors"], p["padded_tensors"], p["bytes"]], dtype=np.float64)
        seconds, wall = (rows[name].to_numpy(dtype=np.float64) for name in ("seconds", "wall_s"))
        found.append(LoadConfiguration(str(key), int(p["concurrency"]), features, seconds, wall))
    if sum(cell.concurrency == 1 for cell in found) < 2:
        reasons = [flag for flag in manifest.get("flags", ()) if "no cold" in flag or "skipped" in flag]
        raise InputError(
            f"too few configurations of {kind!r} to fit a law",
            got=sum(cell.concurrency == 1 for cell in found),
            allowed="2 or more",
            hint="; ".join(reasons[:3]) or "time more ranks and targets",
        )
    return found


def _problem(cells: Sequence[LoadConfiguration]) -> Problem:
    features = np.array([cell.features for cell in cells])
    medians = [cell.median for cell in cells]
    return Problem.of(dict(zip(_TERMS, features.T, strict=True)), medians, configuration=[cell.key for cell in cells])


_fit = partial(solve, loss="relative")


def _law(cells: Sequence[LoadConfiguration]) -> Floats:
    """Return seconds per load, tensor, padded tensor and byte, none below 0."""
    return _fit(_problem(cells))


def _tier_cost(cells: Sequence[LoadConfiguration]) -> TierCost:
    law = _law(cells)
    return TierCost(
        open_s=float(law[0]),
        per_tensor_s=float(law[1]),
        per_padded_tensor_s=float(law[2]),
        bandwidth_bytes_per_s=1 / float(law[3]) if law[3] > 1 / _NO_BANDWIDTH else _NO_BANDWIDTH,
        residual=tuple(significant(_residual(cells, law), 5)),
    )


def _residual(cells: Sequence[LoadConfiguration], law: Floats) -> Floats:
    """Return the quantiles of measured over predicted, every configuration with the same weight."""
    ratios = np.concatenate([cell.seconds / (cell.features @ law) for cell in cells])
    weights = np.concatenate([np.full(len(cell.seconds), 1 / len(cell.seconds)) for cell in cells])
    order = np.argsort(ratios)
    ratios, weights = ratios[order], weights[order]
    at = (np.cumsum(weights) - weights / 2) / weights.sum()
    return np.asarray(np.interp(_QUANTILES, at, ratios))


def _odd_even(tier: Tier, cells: Sequence[LoadConfiguration]) -> list[HoldOut]:
    """Return how well law and residual of the even samples predict p50 and p99 of the odd ones.

    A p99 is compared configuration by configuration where both halves together have 100 samples, else for the pooled
    ratios of all configurations.
    """
    even = [_half(cell, 0) for cell in cells]
    odd = [_half(cell, 1) for cell in cells]
    law = _law(even)
    residual = _residual(even, law)
    rows = []
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        factor = float(np.interp(share, _QUANTILES, residual))
        enough = [cell for cell in odd if share < 0.99 or 2 * len(cell.seconds) >= _P99_SAMPLES]
        errors = [factor * float(cell.features @ law) / float(np.quantile(cell.seconds, share)) - 1 for cell in enough]
        if not enough:
            measured = float(np.interp(share, _QUANTILES, _residual(odd, law)))
            errors = [factor / measured - 1]
        what = f"{name} of loads from {tier}" + ("" if enough else ", all configurations pooled")
        rows.append(hold_out_line(what, "law", "even samples predict odd ones", errors))
    return rows


def _half(cell: LoadConfiguration, first: int) -> LoadConfiguration:
    part = slice(first, None, 2) if len(cell.seconds) > 1 else slice(None)
    return replace(cell, seconds=cell.seconds[part], wall_s=cell.wall_s[part])


def _concurrent(tier: Tier, cells: Sequence[LoadConfiguration]) -> list[ConcurrentLoads]:
    alone = {tuple(cell.features): cell for cell in cells if cell.concurrency == 1}
    rows = []
    for count in sorted({cell.concurrency for cell in cells}):
        some = [cell for cell in cells if cell.concurrency == count and tuple(cell.features) in alone]
        if some:
            rates = [count * cell.features[3] / float(np.median(cell.wall_s)) for cell in some]
            factors = [cell.median / alone[tuple(cell.features)].median for cell in some]
            rows.append(ConcurrentLoads(tier, count, float(np.median(rates)), float(np.median(factors))))
    return rows
