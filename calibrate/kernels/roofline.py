"""Kernels of a step from a card's data sheet, where there are no kernel tables of the card or of the model's shape.

A kernel takes the time to start it, its bytes over the bandwidth, and its operations over the FLOP/s. The last two
overlap and add up as squares, which fits the tables better than the longer of both. Neither reaches what the data sheet
says: the shares of it that matrix products and attention get are those of the cards with kernel tables
(``efficiencies.json``, written by ``validation/published/data_sheets.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibrate.kernels.cards import CARDS, Card
from calibrate.kernels.kernel_tables import Deployment, check_parallel, check_weights
from sim.arrays import Floats
from sim.errors import InputError
from sim.spec.profile_choice import ANCHOR_STEP

FILE = Path(__file__).with_name("efficiencies.json")
BANDWIDTH, FLOPS = "bandwidth", "flops"
"""What is uncertain of a card: how much of its bandwidth and of its FLOP/s kernels reach."""
_NORM_BYTES, _ACTIVATION_BYTES = 16, 6
"""Bytes of memory traffic a token and layer: two norms with their residual read and write ``hidden`` numbers of 2 bytes
four times each; the activation reads two of ``intermediate`` and writes one."""
_SMALL_KERNELS = 3
"""Of a layer, beside its four matrix products and its attention: two norms and an activation."""
_OTHER_MAKER = 2.0
"""How much wider the interval of a card is whose maker's kernels were not among the measured ones: an assumption."""


@dataclass(frozen=True, slots=True)
class Efficiencies:
    """What kernels reach of a data sheet.

    :ivar matrix_bandwidth: share of the bandwidth where a matrix product is bound by its weights; norms get it too.
    :ivar attention_bandwidth: the same for the KV cache that decoding sequences read.
    :ivar attention_flops: share of the FLOP/s for the attention of prompts.
    :ivar start_s: of every matrix product, norm and activation.
    :ivar decode_attention_s: to start the attention of one layer for decoding sequences.
    :ivar prompt_attention_s: the same for prompts.
    :ivar link: share of the bandwidth to other GPUs, where several sum up their parts.
    :ivar link_s: to start such a sum.
    """

    matrix_bandwidth: float
    matrix_flops: float
    attention_bandwidth: float
    attention_flops: float
    start_s: float
    decode_attention_s: float
    prompt_attention_s: float
    link: float
    link_s: float

    def times(self, factors: Mapping[str, float]) -> Efficiencies:
        """Return these with shares of the bandwidth and of the FLOP/s multiplied by a factor each."""
        bandwidth, flops = factors[BANDWIDTH], factors[FLOPS]
        return replace(
            self,
            matrix_bandwidth=self.matrix_bandwidth * bandwidth,
            attention_bandwidth=self.attention_bandwidth * bandwidth,
            matrix_flops=self.matrix_flops * flops,
            attention_flops=self.attention_flops * flops,
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was fitted to the cards with kernel tables.

    :ivar shares: of each card: of the bandwidth and the FLOP/s for matrix products, of both for attention.
    :ivar common: of all cards: times to start, and the link.
    :ivar spread: standard deviation of the logarithm of what a card reaches, by ``BANDWIDTH`` and ``FLOPS``; on a card
        with tables, for a shape that they lack, under ``own_card``.
    :ivar error: what leaving out each card says, in words.
    """

    shares: dict[str, tuple[float, float, float, float]]
    common: tuple[float, float, float, float, float]
    spread: dict[str, float]
    error: str

    def of(self, cards: tuple[str, ...]) -> Efficiencies:
        """Return the efficiencies of a card like these: the geometric mean of their shares."""
        means = np.exp(np.mean(np.log([self.shares[name] for name in cards]), axis=0))
        values: list[float] = [*means.tolist(), *self.common]
        return Efficiencies(*values)


@lru_cache(maxsize=1)
def read_efficiencies() -> Fitted:
    """Return what was fitted, as the file has it."""
    data = json.loads(FILE.read_text())
    return Fitted(
        {name: tuple(shares) for name, shares in data["shares"].items()},
        tuple(data["common"]),
        data["spread"],
        data["error"],
    )


def efficiencies_of(card: Card) -> Efficiencies:
    """Return what kernels reach on a card: what its own tables say, where it has any, else the mean over all cards."""
    own = (card.kernels_of or card).name
    return read_efficiencies().of((own,) if card.system else tuple(CARDS))


def spread_of(card: Card) -> dict[str, float]:
    """Return the spread of what kernels reach on a card."""
    spread = read_efficiencies().spread
    if card.system:
        return dict.fromkeys((BANDWIDTH, FLOPS), spread["own_card"])
    wider = _OTHER_MAKER if card.architecture == "cdna3" else 1.0
    return {name: wider * spread[name] for name in (BANDWIDTH, FLOPS)}


class Roofline:
    """The seconds of one replica's kernels in a step, by data sheet; the engine's own overhead is not among them."""

    def __init__(self, deployment: Deployment, efficiencies: Efficiencies) -> None:
        """Work out the bytes and the operations of a model.

        :raises InputError: for a mixture of experts, or weights that are not of 16 bits: no efficiency is known.
        """
        model, gpus = deployment.model, deployment.tensor_parallel
        check_parallel(model, gpus)
        check_weights(model, deployment.weights)
        if model.shape.experts or deployment.weights != "bf16":
            what = "mixtures of experts" if model.shape.experts else f"{deployment.weights} weights"
            raise InputError(
                f"profiles from data sheets are of dense models with 16-bit weights: how fast kernels of {what} are is "
                "not known",
                key="--model" if model.shape.experts else "--weights",
                got=model.name if model.shape.experts else deployment.weights,
                allowed=None if model.shape.experts else "bf16",
                hint=f"give a card with kernel tables: --gpu {', '.join(CARDS)}"
                if model.shape.experts
                else ANCHOR_STEP,
            )
        shape, card = model.shape, deployment.card
        hidden, query = shape.module_on_gpu("q", gpus)
        key_value = shape.module_on_gpu("k", gpus)[1]
        up = shape.module_on_gpu("up", gpus)[1]
        self._products = [(hidden, query + 2 * key_value), (query, hidden), (hidden, 2 * up), (up, hidden)]
        self._head = (hidden, shape.vocab // gpus)
        self._layers, self._several, self._efficiencies = shape.layers, gpus > 1, efficiencies
        self._bandwidth = card.bandwidth_bytes_per_s * efficiencies.matrix_bandwidth
        self._flops = card.flops * efficiencies.matrix_flops
        self._small_s = (_NORM_BYTES * hidden + _ACTIVATION_BYTES * up) / self._bandwidth
        self._kv_token_s = 2 * 2 * key_value / (card.bandwidth_bytes_per_s * efficiencies.attention_bandwidth)
        self._pair_s = 4 * query / (card.flops * efficiencies.attention_flops)
        # Each GPU sends its part of the sum to the others and gets theirs, half of the link in each direction.
        self._sum_s = 2 * (gpus - 1) / gpus * 2 * hidden / (card.link_bytes_per_s / 2 * efficiencies.link)

    def step_s(self, decoding: int, context: int, prompts: int = 0, prompt_tokens: int = 0, before: int = 0) -> float:
        """Return the seconds of one step's kernels (as ``KernelTables.step_s``)."""
        return float(self.seconds(np.array([[decoding, context, prompts, prompt_tokens, before]]))[0])

    def seconds(self, steps: NDArray[np.int64]) -> Floats:
        """Return the seconds of steps, (n, 5) → (n,)."""
        decoding, context, prompts, each, before = np.asarray(steps, dtype=np.float64).T
        tokens, reached = decoding + prompts * each, self._efficiencies
        layer = tokens * self._small_s + _SMALL_KERNELS * reached.start_s
        for product in self._products:
            layer += self._product_s(tokens, *product)
        layer += (decoding > 0) * reached.decode_attention_s + decoding * (context + 1) * self._kv_token_s
        layer += (prompts > 0) * reached.prompt_attention_s
        layer += prompts * each * (before + (each + 1) / 2) * self._pair_s
        if self._several:
            layer += 2 * (reached.link_s + tokens * self._sum_s)
        found: Floats = self._layers * layer + self._product_s(decoding + prompts, *self._head)
        return found

    def _product_s(self, tokens: Floats, d_in: int, d_out: int) -> Floats:
        moved = 2 * d_in * d_out + 2 * tokens * (d_in + d_out)
        seconds = np.hypot(moved / self._bandwidth, 2 * tokens * d_in * d_out / self._flops)
        return np.asarray(self._efficiencies.start_s + seconds)
