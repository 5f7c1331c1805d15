"""Named random streams: one for each (seed, replication, purpose, block).

A stream is addressed by what it is for, never by the order in which it is used. Changing the cache
size, the router or the number of replicas leaves every arrival, adapter and length as it was, so two
designs are compared on the same traffic (common random numbers).
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, replication: int, purpose: str, block: int = 0) -> np.random.Generator:
    """Return the generator of one purpose.

    :param purpose: such as ``"arrivals"``; its hash is part of the key.
    :param block: index of a block of consecutive requests or adapters, so that long runs are
        generated in pieces.
    """
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    key = (seed, replication, int.from_bytes(digest, "little"), block)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
