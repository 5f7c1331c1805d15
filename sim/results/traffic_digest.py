"""Which traffic a point met: two points with the same one differ by design and not by chance."""

from __future__ import annotations

import hashlib

import numpy as np

from sim.results.records import Recording
from sim.results.sample_data import ScenarioFacts

_DRAWN = ("adapter", "prompt_tokens", "output_tokens")


def traffic_ids(recordings: list[Recording], facts: ScenarioFacts) -> dict[str, str]:
    """Return two short digests: ``requests`` and ``draws``.

    ``requests`` is the same where every request comes at the same time, for the same adapter, with the same lengths; in
    closed loops, where the same clients send the same requests, each when it has its last answer.
    ``draws`` is the same where as many requests come from the same random numbers (or are those of the same trace),
    whatever is made of them: another rate scales the same gaps, other lengths come from the same quantiles. Both know
    which requests are measured, so that parts with the same number hold the same requests.
    """
    counts = [(len(r.section_of), int((r.section_of >= 0).sum()), len(r.bounds)) for r in recordings]
    requests, draws = (hashlib.blake2b(repr(counts).encode(), digest_size=8) for _ in range(2))
    requests.update(repr(facts.closed_loop).encode() if facts.closed_loop is not None else b"")
    for recording in recordings:
        for name in ("arrival_s", *_DRAWN) if facts.closed_loop is None else _DRAWN:
            requests.update(np.ascontiguousarray(recording.requests[name]).data)
        if facts.seed is None:
            for name in _DRAWN:
                draws.update(np.ascontiguousarray(recording.requests[name]).data)
    draws.update(repr(facts.seed).encode())
    return {"requests": requests.hexdigest(), "draws": draws.hexdigest()}
