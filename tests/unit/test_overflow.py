"""Sums of bytes that do not fit into 64 bits are refused, not wrapped around."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sim.errors import InputError
from sim.policies.replay.cache_replay import replay, replay_stepwise
from sim.policies.replay.lru_curve import lru_byte_curve

REQUESTS = 1024  # so that one more than LARGEST makes exactly 2**63
LARGEST = (2**63 - 1) // REQUESTS


@pytest.mark.parametrize(
    "count",
    [
        lambda objects, sizes: replay("lru", objects, sizes, 2**62),
        lambda objects, sizes: replay("lfu", objects, sizes, 2**62),
        lambda objects, sizes: replay_stepwise("belady", objects, sizes, 2**62),
        lambda objects, sizes: lru_byte_curve(objects, sizes, [2**62]),
    ],
)
def test_sizes_whose_sum_would_wrap_round_are_refused(count: Callable[..., object]) -> None:
    objects = np.zeros(REQUESTS, dtype=np.int32)
    count(objects, np.array([LARGEST]))
    with pytest.raises(InputError, match="too many to be counted") as refused:
        count(objects, np.array([LARGEST + 1]))
    assert refused.value.key == "adapter_bytes"
    assert refused.value.got == LARGEST + 1
    assert f"{LARGEST:,}" in str(refused.value.allowed)


def test_the_largest_sums_allowed_are_right() -> None:
    objects = np.zeros(REQUESTS, dtype=np.int32)
    for policy in ("lru", "lfu"):
        replayed = replay(policy, objects, np.array([LARGEST]), LARGEST - 1)
        assert replayed.missed_bytes == replayed.requested_bytes == REQUESTS * LARGEST
