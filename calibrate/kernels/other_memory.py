"""Kernels on a card that differs from a measured one in its memory alone.

An H100 with 64 GB computes like one with 80 GB, but reads its memory at 2.0 instead of 3.35 TB/s. What a kernel takes
there follows from what bounds it, and nothing is fitted:

- *matrix products* read their weights at least once. A product of one token does nothing else, so its time times the
  ratio of the bandwidths is the least that one of more tokens takes;
- *attention of decoding sequences* takes a time for every sequence, which stays, and one for every KV token, which goes
  with the bandwidth; contexts of 2,048 and 4,096 tokens tell it apart;
- *norms, activations, embeddings* move bytes and go with the bandwidth;
- *attention of prompts* is bound by arithmetic, and messages between GPUs by their links: both stay.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

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
