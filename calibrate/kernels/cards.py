"""The GPUs that there are kernel tables for, and those that differ from one in their memory alone, under the names that
people use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sim.errors import InputError, did_you_mean
from sim.spec.gpus import gpu_named

MIB = 1 << 20
DATA_SHEETS = "the maker's data sheets; memory as nvidia-smi shows it"


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU.

    :ivar name: as in ``--gpu`` and in the names of profiles.
    :ivar system: its name in the kernel tables.
    :ivar label: as its maker calls it.
    :ivar memory_bytes: what the driver reports, with ECC.
    :ivar bandwidth_bytes_per_s: of its memory, from the data sheet.
    :ivar multiprocessors: streaming multiprocessors, from the data sheet.
    :ivar batch_sequences: most sequences of a batch that vLLM allows unless told otherwise (``max_num_seqs``).
    :ivar kernels_of: the card that its kernels were measured on; unset: itself.
    :ivar architecture: of its multiprocessors: ``hopper``, ``blackwell``, ``ampere`` or ``ada``.
    :ivar caution: where its kernel tables are off, against measured servers; goes on after a semicolon.
    """

    name: str
    system: str
    label: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    multiprocessors: int
    batch_sequences: int = 1024
    kernels_of: Card | None = None
    architecture: str = ""
    caution: str = ""


CARDS = {
    card.name: card
    for card in (
        Card(
            "a100-80gb",
            "a100_sxm",
            "NVIDIA A100-SXM4-80GB",
            81920 * MIB,
            2.039e12,
            108,
            256,
            architecture="ampere",
            caution="; the A100's tables are 9 to 14 % slow at batch 1 and too fast above 40",
        ),
        Card("b200", "b200_sxm", "NVIDIA B200", 183359 * MIB, 8.0e12, 148, architecture="blackwell"),
        Card("h100-80gb", "h100_sxm", "NVIDIA H100 80GB HBM3", 81559 * MIB, 3.35e12, 132, architecture="hopper"),
        Card("h200", "h200_sxm", "NVIDIA H200", 143771 * MIB, 4.8e12, 132, architecture="hopper"),
        Card("l40s", "l40s", "NVIDIA L40S", 46068 * MIB, 0.864e12, 142, 256, architecture="ada"),
    )
}
"""Cards with kernel tables of their own."""
SCALED = {
    card.name: card
    for card in (
        Card(
            "a100-40gb",
            "a100_sxm",
            "NVIDIA A100-SXM4-40GB",
            40960 * MIB,
            1.555e12,
            108,
            256,
            architecture="ampere",
            kernels_of=CARDS["a100-80gb"],
        ),
        Card(
            "h100-64gb",
            "h100_sxm",
            "NVIDIA H100 64GB",
            65247 * MIB,
            2.0e12,
            132,
            256,
            architecture="hopper",
            kernels_of=CARDS["h100-80gb"],
        ),
    )
}
"""Cards that compute like one of these and have a slower memory."""


def card_of(name: str) -> Card:
    """Return the card that a user names.

    :raises InputError: for any other; lists those that there are.
    """
    gpu, known = gpu_named(name), CARDS | SCALED
    if gpu is not None and gpu.name in known:
        return known[gpu.name]
    raise InputError(
        "there are no kernel tables for this GPU",
        key="--gpu",
        got=name,
        allowed=", ".join(known),
        hint=did_you_mean(name, known) or "measure it: loraplan calibrate all",
    )


# Kernels on a card that differs from a measured one in its memory alone.
#
# An H100 with 64 GB computes like one with 80 GB, but reads its memory at 2.0 instead of 3.35 TB/s. What a kernel takes
# there follows from what bounds it, and nothing is fitted:
#
# - *matrix products* read their weights at least once. A product of one token does nothing else, so its time times the
#   ratio of the bandwidths is the least that one of more tokens takes;
# - *attention of decoding sequences* takes a time for every sequence, which stays, and one for every KV token, which
#   goes with the bandwidth; contexts of 2,048 and 4,096 tokens tell it apart;
# - *norms, activations, embeddings* move bytes and go with the bandwidth;
# - *attention of prompts* is bound by arithmetic, and messages between GPUs by their links: both stay.

_SHORT, _LONG = 2048, 4096
_ONE = 1
_LINKS = ("_ar", "_ar_1", "_ar_2", "_p2p")


class OtherMemory:
    """What a step takes longer with a slower memory.

    :param handle: the package's engine of a model on the card that kernels were measured on.
    :param ratio: that card's bandwidth over the wanted one's, above 1.
    """

    def __init__(self, handle: Any, ratio: float) -> None:
        self._handle, self._ratio = handle, ratio
        self._products_of_one = {name: ms for name, ms in self._shared(_ONE) if _is_product(name)}
        self._shared_extra_ms = lru_cache(maxsize=None)(self._uncached_shared_extra_ms)
        self._kv_token_ms = lru_cache(maxsize=None)(self._uncached_kv_token_ms)

    def extra_ms(self, tokens: int, decoding: int, context: int) -> float:
        """Return the additional milliseconds of a step with so many tokens, of which some decode with a context."""
        extra = self._shared_extra_ms(tokens)
        if decoding:
            extra += (self._ratio - 1) * self._kv_token_ms(decoding) * decoding * (context + 1)
        return extra

    def _shared(self, tokens: int) -> list[tuple[str, float]]:
        shared, _, _ = self._handle.mixed_step_breakdown_per_op(tokens, 0, tokens, 2)
        return [(name, ms) for name, ms, *_ in shared]

    def _uncached_shared_extra_ms(self, tokens: int) -> float:
        extra = 0.0
        for name, ms in self._shared(tokens):
            if _is_product(name):
                extra += max(self._ratio * self._products_of_one[name] - ms, 0.0)
            elif not name.endswith(_LINKS):
                extra += (self._ratio - 1) * ms
        return extra

    def _uncached_kv_token_ms(self, decoding: int) -> float:
        short, long = (self._attention_ms(decoding, context) for context in (_SHORT, _LONG))
        return max(long - short, 0.0) / (decoding * (_LONG - _SHORT))

    def _attention_ms(self, decoding: int, context: int) -> float:
        _, _, attention = self._handle.mixed_step_breakdown_per_op(_ONE, decoding, context, 2)
        return float(sum(ms for _, ms, *_ in attention))


def _is_product(name: str) -> bool:
    return name.endswith("_gemm")
