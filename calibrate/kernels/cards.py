"""The GPUs that there are kernel tables for, and those that differ from one in their memory alone, under the names that
people use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sim.errors import InputError, did_you_mean
from sim.spec.gpus import GPUS, gpu_named

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU.

    :ivar name: as in ``--gpu`` and in the names of profiles.
    :ivar system: its name in the kernel tables.
    :ivar memory_bytes: what the driver reports, with ECC.
    :ivar batch_sequences: most sequences of a batch that vLLM allows unless told otherwise (``max_num_seqs``).
    :ivar kernels_of: the card that its kernels were measured on; unset: itself.
    :ivar caution: where its kernel tables are off, against measured servers; goes on after a semicolon.

    Numbers are from the maker's data sheets; memory as nvidia-smi shows it.
    """

    name: str
    system: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    multiprocessors: int
    architecture: str
    batch_sequences: int = 1024
    kernels_of: Card | None = None
    caution: str = ""

    @property
    def label(self) -> str:
        """As its maker calls it."""
        return GPUS[self.name].label


_A100 = "; the A100's tables are 9 to 14 % slow at batch 1 and too fast above 40"
CARDS = {
    card.name: card
    for card in (
        Card("a100-80gb", "a100_sxm", 81920 * MIB, 2.039e12, 108, "ampere", 256, caution=_A100),
        Card("b200", "b200_sxm", 183359 * MIB, 8.0e12, 148, "blackwell"),
        Card("h100-80gb", "h100_sxm", 81559 * MIB, 3.35e12, 132, "hopper"),
        Card("h200", "h200_sxm", 143771 * MIB, 4.8e12, 132, "hopper"),
        Card("l40s", "l40s", 46068 * MIB, 0.864e12, 142, "ada", 256),
    )
}
"""Cards with kernel tables of their own."""
SCALED = {
    card.name: card
    for card in (
        Card("a100-40gb", "a100_sxm", 40960 * MIB, 1.555e12, 108, "ampere", 256, CARDS["a100-80gb"]),
        Card("h100-64gb", "h100_sxm", 65247 * MIB, 2.0e12, 132, "hopper", 256, CARDS["h100-80gb"]),
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
        self._of_one = dict(self._shared(_ONE))
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
            if name.endswith("_gemm"):
                extra += max(self._ratio * self._of_one[name] - ms, 0.0)
            elif not name.endswith(_LINKS):
                extra += (self._ratio - 1) * ms
        return extra

    def _uncached_kv_token_ms(self, decoding: int) -> float:
        attention = (self._handle.mixed_step_breakdown_per_op(_ONE, decoding, n, 2)[2] for n in (_SHORT, _LONG))
        short, long = (float(sum(ms for _, ms, *_ in each)) for each in attention)
        return max(long - short, 0.0) / (decoding * (_LONG - _SHORT))
