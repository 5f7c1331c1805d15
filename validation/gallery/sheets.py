"""Profiles from data sheets against kernel tables of cards that were left out of their fit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from calibrate.kernels.roofline import read_efficiencies
from sim.errors import InputError
from validation.gallery.entry import Bar, Entry, Row, Source
from validation.published.data_sheets import LeftOut, coverage, leave_out, off, shelf

NAME = "data-sheets"
SHOWN = {"decode_ms": (32, 1024, 0, 0, 0), "prefill_ms": (0, 0, 1, 1024, 0)}
"""Steps that the page shows: decoding sequences, their context, prompts, tokens of each, and those before."""
left_out = cache(lambda: leave_out(shelf()))


def predict(path: Path | None) -> list[Row]:
    """Predict a decode step and a prefill of every bundled profile from kernel tables, its card left out."""
    if path:
        raise InputError("this source takes no rows", key="--rows", got=str(path), hint="its truth are kernel tables")
    return [row for each in left_out() if (row := _row(each)).published]


def _row(each: LeftOut) -> Row:
    card, model = each.row.deployment.card.name, each.row.deployment.model.name
    places = {name: np.flatnonzero((each.row.steps == step).all(axis=1)) for name, step in SHOWN.items()}
    predicted = each.row.predicted(each.efficiencies)
    published, found = (
        {name: float(seconds[at[0]]) * 1000 for name, at in places.items() if len(at)}
        for seconds in (each.row.seconds, predicted)
    )
    return Row(NAME, f"{card} {model} TP{each.row.deployment.tensor_parallel}", published, found)


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Return the bars over all steps, of which the rows are a few."""
    spread = read_efficiencies().spread
    found = [
        Bar("decode steps, median error", off(left_out(), decoding=True)[0], 0.20),
        Bar("steps with prompts, median error", off(left_out(), decoding=False)[0], 0.25),
    ]
    for what, decoding in (("decode steps", True), ("steps with prompts", False)):
        share = coverage(left_out(), spread, decoding=decoding)
        found += [Bar(f"{what} inside the 90 % interval, distance from 90 %", abs(share - 0.9), 0.05)]
    return found


SOURCE = Source(
    (
        Entry(
            NAME,
            "Cards without kernel tables, by their data sheets",
            "kernel tables of NVIDIA's aiconfigurator-core 0.12 (Apache-2.0), through the bundled profiles",
            "bandwidth, FLOP/s and memory of the card; each of five cards left out of the fit in turn",
            "what kernels reach of a data sheet, on the other four cards; the width of the interval, on all five",
            bars,
            "These are times of kernels, not of servers ([profiles](profiles.md#my-card-has-no-kernel-tables)).",
        ),
    ),
    predict,
)
