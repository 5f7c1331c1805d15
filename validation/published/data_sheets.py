"""Judge profiles from data sheets by the kernel tables: ``python validation/published/data_sheets.py``.

The bundled profiles of cards with kernel tables stand for these (their step costs are within 0.4 to 1.6 % of them in
the median). What kernels reach of a data sheet is fitted to all cards but one, and predicts that one, each in turn;
engine overhead is the same on both sides. Prints how far decode steps and steps with prompts are off by card, and what
share of them the interval of a profile covers. ``--write`` fits to all cards and writes
``calibrate/kernels/efficiencies.json``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibrate.kernels.around_kernels import EngineOverhead, overhead_of
from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import CARDS
from calibrate.kernels.kernel_tables import Deployment
from calibrate.kernels.profile_from_kernels import DRAWS, orders_of
from calibrate.kernels.roofline import BANDWIDTH, FILE, FLOPS, Efficiencies, Fitted, Roofline, read_efficiencies
from calibrate.kernels.surrogate import predict
from sim.arrays import Floats
from sim.policies.kv.kv_rules import kv_tokens_left
from sim.spec.profile import LoraCost, load_profile
from sim.spec.profile_choice import profiles_of_known_gpus

_DECODE = [(n, context, 0, 0, 0) for n in (1, 4, 16, 32, 64, 128, 256) for context in (256, 1024, 4096, 16384)]
_PROMPTS = [
    (n, 1024 if n else 0, 1, tokens, before)
    for n in (0, 16, 64)
    for tokens in (128, 256, 512, 1024, 2048, 4096, 8000)
    for before in (0, 4096, 16384)
]
_STEP_TOKENS = 8192
_COMMON = (3e-6, 1.5e-5, 3e-5, 0.5, 5e-6)
"""Where the search for what all cards have in common starts, as in ``Fitted.common``; it ends within a factor of 10."""
_SHARES = (0.8, 0.7, 0.8, 0.6)
"""The same for what each card reaches."""
_CLIPPED = 0.05
"""Logarithm of an error from which it counts linearly in the fit."""
COVERED = 0.9
"""Share of the steps of cards that were left out which the interval is made to cover."""
ENDS = (0.05, 0.95)
"""Quantiles of a profile's draws that make its printed interval (``loraplan profiles list``)."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Steps of one bundled profile.

    :ivar steps: decoding sequences, their context, prompts, tokens of each, and those before, (n, 5).
    :ivar seconds: by kernel tables, with the engine's overhead, (n,).
    """

    deployment: Deployment
    steps: NDArray[np.int64]
    seconds: Floats
    overhead: EngineOverhead

    @property
    def card(self) -> str:
        return self.deployment.card.name

    @property
    def decoding(self) -> NDArray[np.bool_]:
        """Which steps have no prompt."""
        return np.asarray(self.steps[:, 2] == 0)

    def predicted(self, efficiencies: Efficiencies) -> Floats:
        """Return the seconds of the steps by data sheet, (n,)."""
        sequences = self.steps[:, 0] + self.steps[:, 2]
        around = self.overhead.step_s + self.overhead.per_sequence_s * sequences
        return Roofline(self.deployment, efficiencies).seconds(self.steps) * self.overhead.factor + around

    def errors(self, efficiencies: Efficiencies) -> Floats:
        """Return the logarithms of predicted over tabled seconds, (n,)."""
        return np.asarray(np.log(self.predicted(efficiencies) / self.seconds))


def shelf() -> list[Shelf]:
    """Return the bundled profiles that kernel tables made, of dense models with 16-bit weights."""
    found = []
    for each in profiles_of_known_gpus():
        if each.gpu not in CARDS or each.weights or not each.engine:
            continue
        profile, _ = load_profile(each.name)
        deployment = Deployment(CARDS[each.gpu], base_model_of(each.model), tensor_parallel=each.gpus)
        room = kv_tokens_left(profile.memory, 0)
        steps = [step for step in _DECODE + _PROMPTS if step[0] * step[1] + step[3] + step[4] < room]
        base_model = profile.step.model_copy(update={"lora": LoraCost()})
        seconds = np.array(predict(base_model, steps, _STEP_TOKENS))
        found.append(Shelf(deployment, np.array(steps), seconds, overhead_of(deployment)))
    return found


def fit(rows: Sequence[Shelf]) -> Fitted:
    """Fit what kernels reach on the cards of these profiles; the spread is left open."""
    cards = sorted({row.card for row in rows})
    common = len(_COMMON)

    def split(logs: Floats) -> Fitted:
        values = np.exp(logs)
        each = values[common:].reshape(len(cards), -1)
        return Fitted({name: tuple(each[at]) for at, name in enumerate(cards)}, tuple(values[:common]), {}, "")

    def errors(logs: Floats) -> Floats:
        fitted = split(logs)
        return np.concatenate([row.errors(fitted.of((row.card,))) for row in rows])

    start = np.log([*_COMMON, *_SHARES * len(cards)])
    most = np.concatenate((start[:common] + np.log(10), np.zeros(len(start) - common)))
    return split(least_squares(errors, start, bounds=(-np.inf, most), loss="soft_l1", f_scale=_CLIPPED).x)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A profile of a card, and what kernels reach according to all other cards."""

    row: Shelf
    efficiencies: Efficiencies

    @property
    def errors(self) -> Floats:
        return self.row.errors(self.efficiencies)

    def covered(self, spread: dict[str, float]) -> NDArray[np.bool_]:
        """Return which steps the interval over a profile's draws covers, (n,)."""
        orders = orders_of((BANDWIDTH, FLOPS))
        wide = {name: float(np.hypot(spread[name], self.row.overhead.spread)) for name in orders}
        drawn = [
            self.row.predicted(
                self.efficiencies.times({name: float(np.exp(wide[name] * orders[name][at])) for name in orders})
            )
            for at in range(DRAWS)
        ]
        low, high = np.quantile(drawn, ENDS, axis=0)
        return np.asarray((low <= self.row.seconds) & (self.row.seconds <= high))


def leave_out(rows: Sequence[Shelf]) -> list[LeftOut]:
    """Return every profile with what the other cards say."""
    found = []
    for card in CARDS:
        fitted = fit([row for row in rows if row.card != card])
        found += [LeftOut(row, fitted.of(tuple(fitted.shares))) for row in rows if row.card == card]
    return found


def spread_for(left_out: Sequence[LeftOut]) -> dict[str, float]:
    """Return the least spreads with which intervals cover what they should: decode steps show that of the bandwidth,
    steps with prompts that of the FLOP/s."""
    spread = {BANDWIDTH: 0.0, FLOPS: 0.0}
    for name, decoding in ((BANDWIDTH, True), (FLOPS, False), (BANDWIDTH, True)):  # each widens the other's a little
        for spread[name] in np.arange(0.0, 0.5, 0.005).tolist():
            if coverage(left_out, spread, decoding=decoding) >= COVERED:
                break
    return spread


def coverage(left_out: Sequence[LeftOut], spread: dict[str, float], *, decoding: bool) -> float:
    """Return the share of steps, without prompts or with some, that intervals cover."""
    inside = [each.covered(spread)[each.row.decoding == decoding] for each in left_out]
    return float(np.mean(np.concatenate(inside)))


def off(left_out: Sequence[LeftOut], *, decoding: bool) -> tuple[float, float, float]:
    """Return median, 90 % quantile and mean of the relative errors of steps, without prompts or with some."""
    errors = np.concatenate([np.expm1(each.errors)[each.row.decoding == decoding] for each in left_out])
    return float(np.median(np.abs(errors))), float(np.quantile(np.abs(errors), 0.9)), float(np.mean(errors))


def table(left_out: Sequence[LeftOut], spread: dict[str, float]) -> str:
    """Return how far each card is off when it is left out, and what intervals cover."""
    lines = [f"{'card':12s}{'profiles':>9s}{'decode: median':>16s}{'90 %':>7s}{'mean':>8s}{'covered':>9s}"]
    lines[0] += f"{'prompts: median':>18s}{'90 %':>7s}{'mean':>8s}{'covered':>9s}"
    for card in (*CARDS, "all"):
        some = [each for each in left_out if card in (each.row.card, "all")]
        line = f"{card:12s}{len(some):9d}"
        for decoding, width in ((True, 16), (False, 18)):
            median, most, mean = off(some, decoding=decoding)
            line += f"{median:{width}.1%}{most:7.1%}{mean:+8.1%}{coverage(some, spread, decoding=decoding):9.0%}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Print the comparison, or write what was fitted."""
    rows = shelf()
    left_out = leave_out(rows)
    if "--write" not in sys.argv[1:]:
        print(table(left_out, read_efficiencies().spread))
        return
    fitted, spread = fit(rows), spread_for(left_out)
    print(table(left_out, spread))
    decode, prompts = off(left_out, decoding=True), off(left_out, decoding=False)
    data: dict[str, Any] = {
        "shares": {name: [round(share, 4) for share in shares] for name, shares in fitted.shares.items()},
        "common": [float(f"{value:.4g}") for value in fitted.common],
        "spread": spread | {"own_card": 0.1},
        "error": f"kernels by data sheet: with each of {len(CARDS)} cards with kernel tables left out in turn, decode "
        f"steps are off by {decode[0]:.1%} (median) and {decode[1]:.1%} (90 % of steps), steps with prompts by "
        f"{prompts[0]:.1%} and {prompts[1]:.1%}; never compared with servers on other cards",
    }
    text = json.dumps(data, indent=2)
    FILE.write_text(re.sub(r"\[\s+([^]]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


if __name__ == "__main__":
    main()
