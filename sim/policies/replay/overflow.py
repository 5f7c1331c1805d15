"""Guard for sums of bytes over many requests: numpy's integers have 64 bits and overflow silently."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError

LIMIT = 2**63


def check_byte_sums(requests: int, sizes: NDArray[np.integer]) -> None:
    """Refuse sizes for which the bytes of all requests might overflow.

    :raises InputError: if requests times the largest size is not below 2**63.
    """
    largest = int(sizes.max()) if len(sizes) else 0
    if requests * largest >= LIMIT:
        raise InputError(
            "the bytes of all requests are too many to be counted",
            key="adapter_bytes",
            got=largest,
            allowed=f"at most {(LIMIT - 1) // requests:,} for {requests:,} requests",
            hint="sizes are in bytes: is the column in another unit?",
        )
