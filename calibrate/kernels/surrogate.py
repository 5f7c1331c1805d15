"""Step costs that stand for a model's kernel tables: sampled over an envelope, fitted, and judged on other steps.

The fit minimises the squares of relative errors over non-negative coefficients. The smallest sum of absolute errors
would be no better in the median, and worse above: it gives up small groups of steps, such as prompts alone in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from sim.arrays import Floats
from sim.policies.costs import StepCosts
from sim.rng import stream
from sim.spec.profile import StepCost
from sim.studies.fidelity.least_squares import significant

StepSeconds = Callable[[int, int, int, int, int], float]
"""Seconds of a step by decoding sequences, their context, prompts, tokens of each in this step, and before it."""

_FEW_TOKENS = (1, 2, 8, 16, 24, 32, 48, 64, 65, 80, 96, 112, 128, 129, 144, 160, 161, 192, 193, 224, 256, 257)
_TOKENS = (320, 384, 385, 448, 512, 513, 640, 768, 769, 896, 1024, 1025, 1152, 1280, 1281, 1408, 1536, 1537, 1792)
KNOTS = (*_FEW_TOKENS, *_TOKENS, 2048, 2049, 3072, 4096, 6144, 8192, 12288, 16384)
"""Tokens of a step between which its cost is linear. Matrix products come in tiles, so that one token more than a
multiple of 64 may cost a step, 16 % of the whole at 1,025: these have two knots."""
_BATCHES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
_CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_CHUNKS = (32, 64, 96, 128, 176, 192, 208, 256, 288, 384, 416, 480, 512, 576, 736, 768, 769, 832, 900, 992, 1024, 1025)
_LONG_CHUNKS = (1088, 1152, 1248, 1281, 1344, 1408, 1536, 1537, 1792, 2016, 2048, 2049, 3072, 4096, 6144, 8192, 16384)
JUDGED = 2000
"""Steps that judge the fit."""
_LEAST_CONTEXT, _LEAST_PROMPT = 64, 32
"""Tokens of the shortest sequence and of the shortest prompt in the envelope: with hundreds of shorter ones in a step,
what a kernel takes to start outweighs what it computes, which step costs don't tell apart."""


@dataclass(frozen=True, slots=True)
class StepEnvelope:
    """The steps over which costs are fitted and judged: the most sequences and tokens of a step, tokens of a sequence,
    and KV tokens in memory."""

    sequences: int
    tokens: int
    context: int
    kv_tokens: int

    def holds(self, step: Step) -> bool:
        """Return whether a step lies within."""
        decoding, context, prompts, tokens, before = step
        return (
            0 < decoding + prompts <= self.sequences
            and decoding + prompts * tokens <= self.tokens
            and max(context, tokens + before) <= self.context
            and decoding * (context + 1) + prompts * (tokens + before) <= self.kv_tokens
        )


Step = tuple[int, int, int, int, int]
"""Decoding sequences, their context, prompts, tokens of each in this step, and before it."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """Step costs, and their relative errors on steps that they were not fitted to.

    :ivar signed: relative errors, of all steps that judged.
    :ivar decoding: which of these have no prompt.
    """

    step: StepCost
    signed: Floats
    decoding: NDArray[np.bool_]

    @property
    def errors(self) -> Floats:
        """Absolute relative errors."""
        return np.abs(self.signed)

    def quantile(self, share: float) -> float:
        """Return a quantile of all errors."""
        return float(np.quantile(self.errors, share))

    def median(self, *, decoding: bool) -> float:
        """Return the median error of steps without prompts, or with some."""
        return float(np.median(self.errors[self.decoding == decoding]))


def fit_cost(step_s: StepSeconds, envelope: StepEnvelope) -> StepCost:
    """Fit step costs to kernels."""
    fitted = [step for step in _grid(envelope) if envelope.holds(step)]
    knots = np.array([knot for knot in KNOTS if knot < envelope.tokens] + [envelope.tokens], dtype=np.float64)
    return step_cost(_fit(features(fitted, knots), _seconds(step_s, fitted)), knots)


def fit_surrogate(step_s: StepSeconds, envelope: StepEnvelope) -> Surrogate:
    """Fit step costs to kernels, and judge them on steps drawn over the whole envelope."""
    cost = fit_cost(step_s, envelope)
    judged = _drawn(envelope)
    seconds = _seconds(step_s, judged)
    predicted = np.array(predict(cost, judged, envelope.tokens))
    decoding = np.array([step[2] == 0 for step in judged])
    return Surrogate(cost, predicted / seconds - 1, decoding)


def predict(cost: StepCost, steps: list[Step], most_tokens: int) -> list[float]:
    """Return the seconds of steps as the simulator charges them."""
    costs = StepCosts(cost, 0, most_tokens)
    return [
        costs.step(
            decoding + prompts * tokens,
            decoding * (context + 1),
            0,
            0,
            (decoding + prompts, prompts * tokens, prompts * tokens * (before + (tokens + 1) / 2), 0, 0),
        )
        for decoding, context, prompts, tokens, before in steps
    ]


def features(steps: list[Step], knots: Floats) -> Floats:
    """Return what each coefficient is multiplied with, (n, terms): a constant, tokens between knots, sequences, KV
    tokens, attended pairs, whether there is a prompt, and whether a sequence decodes."""
    decoding, context, prompts, tokens, before = np.array(steps, dtype=np.float64).T
    total = decoding + prompts * tokens
    between = [np.clip(total - low, 0, high - low) for low, high in pairwise(knots.tolist())]
    return np.column_stack(
        (
            np.ones(len(steps)),
            *between,
            decoding + prompts,
            decoding * (context + 1),
            prompts * tokens * (before + (tokens + 1) / 2),
            prompts > 0,
            decoding > 0,
        )
    )


def step_cost(coefficients: Floats, knots: Floats) -> StepCost:
    """Return the profile's step costs from coefficients; knots that say nothing are left out."""
    fixed, *slopes, sequence, kv_token, attended, prefill, decode = significant(coefficients.tolist())
    seconds = np.concatenate(([0.0], np.cumsum(np.array(slopes) * np.diff(knots))))
    table = list(zip(knots.tolist(), seconds.tolist(), strict=True))
    return StepCost(
        fixed_s=fixed,
        tokens=tuple((tokens, round(value, 9)) for tokens, value in _needed(table)),
        per_sequence_s=sequence,
        per_kv_token_s=kv_token,
        per_attended_token_s=attended,
        prefill_step_s=prefill,
        decode_step_s=decode,
    )


def _needed(table: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the pairs of a table without those on a line between their neighbours."""
    kept = table[:1]
    for here, after in pairwise(table[1:]):
        (x0, y0), (x1, y1), (x2, y2) = kept[-1], here, after
        if abs(y0 + (y2 - y0) * (x1 - x0) / (x2 - x0) - y1) > 1e-9:
            kept.append(here)
    return [*kept, table[-1]]


def _fit(x: Floats, seconds: Floats) -> Floats:
    relative = x / seconds[:, None]
    scale = np.maximum(relative.max(axis=0), 1e-300)
    found: Floats = nnls(relative / scale, np.ones(len(seconds)), maxiter=10_000)[0] / scale
    return found


def _seconds(step_s: StepSeconds, steps: list[Step]) -> Floats:
    return np.array([step_s(*step) for step in steps])


def _grid(envelope: StepEnvelope) -> Iterator[Step]:
    for decoding in _BATCHES:
        for context in _CONTEXTS:
            yield decoding, context, 0, 0, 0
    for decoding in (0, *_BATCHES[::3]):
        for context in _CONTEXTS[:8:3]:
            for tokens in (*_CHUNKS, *_LONG_CHUNKS):
                for prompts in (1, 2, 4, 8, 32):
                    yield decoding, context if decoding else 0, prompts, tokens, 0
                for before in (tokens, 4 * tokens, envelope.context - tokens):
                    if before > 0:
                        yield decoding, context if decoding else 0, 1, tokens, before


def _drawn(envelope: StepEnvelope) -> list[Step]:
    """Return steps drawn log-uniformly over the envelope; every other one has prompts, half of these are chunks."""
    draws = stream(0, 0, "kernel-steps")
    found: list[Step] = []
    while len(found) < JUDGED:
        u = draws.random(5)
        decoding, context = _log(u[0], 1, envelope.sequences), _log(u[1], _LEAST_CONTEXT, envelope.context)
        step = (decoding, context, 0, 0, 0)
        if len(found) % 2:
            tokens = _log(u[2], _LEAST_PROMPT, envelope.tokens)
            chunked = len(found) % 4 == 1
            prompts = 1 if chunked else _log(u[3], 1, max(envelope.tokens // tokens, 1))
            alone = u[4] < 0.25
            step = (
                0 if alone else decoding,
                0 if alone else context,
                prompts,
                tokens,
                int(u[4] * envelope.context) if chunked else 0,
            )
        if envelope.holds(step):
            found.append(step)
    return found


def _log(uniform: np.float64, least: int, most: int) -> int:
    exact: float = least * (most / least) ** float(uniform)
    return round(exact)
