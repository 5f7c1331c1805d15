"""Which measured requests are late for a target, where those without an answer are infinitely late."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Mask
from sim.results.point import LateShare, Metric
from sim.results.records import FAILED, LIMITED, REFUSED, UNFINISHED
from sim.results.sample_data import STAMPS, MeasuredRequests, request_targets
from sim.results.slo_terms import quantile_of
from sim.results.statistics import share_of_requests

_RARE = 0.01
"""Where fewer requests are late, the slowest ones up to this share show how much requests depend on each other."""


def unserved(m: MeasuredRequests) -> Mask:
    """Return which measured requests were refused or failed: they never get a right answer."""
    return was_unserved(m.column("status"))


def was_unserved(status: NDArray[Any]) -> Mask:
    """Return which of these statuses are of requests that were refused or failed."""
    return np.asarray((status == REFUSED) | (status == FAILED))


def unserved_counts(m: MeasuredRequests) -> dict[str, int]:
    """Return how many measured requests were not served, and what made refused ones too long; nothing if all were."""
    lost = unserved(m)
    if not lost.any():
        return {}
    refused = m.column("status") == REFUSED
    too_long = refused & (m.column("replica") < 0) & ((m.column("marks") & LIMITED) == 0)
    tokens = m.column("prompt_tokens")[too_long] + m.column("output_tokens")[too_long]
    limits = [limit for limit in (m.facts.max_model_len, m.facts.kv_tokens) if limit is not None]
    return {
        "requests": len(lost),
        "refused": int(refused.sum()),
        "failed": int(lost.sum() - refused.sum()),
        "too_long": int(too_long.sum()),
        "longest_tokens": int(np.max(tokens, initial=0)),
        "limit_tokens": min(limits, default=0),
    }


def is_served(m: MeasuredRequests) -> bool:
    """Return whether every measured request was served, or may still be in time where the run ends before that."""
    if unserved(m).any():
        return False
    waiting = m.column("status") == UNFINISHED
    return not waiting.any() or not any(
        np.any(waiting & (_seconds(m, name.partition("_")[0]) > target))
        for name, target in m.facts.slo.items()
        if _is_quantile(name)
    )


def attainment(m: MeasuredRequests, good: Mask, slow: Mask) -> Metric:
    """Return the share of requests that complete within every target for single requests (docs/metrics.md).

    :param good: which ones do; ``slow``: which ones are late.
    """
    decided = (m.column("status") != UNFINISHED) | slow
    return _share(m, good, decided, _times_target(m), m.sections)


def late_shares(m: MeasuredRequests) -> dict[str, LateShare]:
    """Return, for each latency term of the SLO, the share of the measured requests that it counts as late.

    Of a quantile those refused, failed, or beyond the target, completed or not. What may still be in time when the run
    ends is left out. Of a mean, TPOT and ITL, where an infinite value would say nothing, those refused or failed.
    """
    terms = ((name, target) for name, target in m.facts.slo.items() if name != "miss_ratio")
    return {name: LateShare(target, replace(_late_share(m, name, target), parts=[])) for name, target in terms}


def _late_share(m: MeasuredRequests, name: str, target: float) -> Metric:
    lost = unserved(m)
    # A rollout or a fault is one event: it meets some sections and not others.
    sections = 1 if m.facts.strategies or m.facts.faults else m.sections
    if not _is_quantile(name):
        return _share(m, lost, np.ones_like(lost), lost.astype(np.float64), sections)
    wait = _seconds(m, name.partition("_")[0])
    late = lost | (wait > target)
    return _share(m, late, (m.column("status") != UNFINISHED) | late, np.where(lost, np.inf, wait), sections)


def _is_quantile(name: str) -> bool:
    """Return whether a term is about a quantile of what requests take; gaps are not recorded by request."""
    return quantile_of(name) is not None and not name.startswith("itl")


def _seconds(m: MeasuredRequests, stage: str) -> Floats:
    """Return the seconds that each request takes in a stage, or for a token after the first (``tpot``)."""
    if stage != "tpot":
        return _wait(m, STAMPS[stage])
    gaps = np.maximum(m.column("output_tokens") - 1, 1)
    return np.asarray((_wait(m, "finished_s") - _wait(m, "first_token_s")) / gaps, dtype=np.float64)


def _wait(m: MeasuredRequests, stamp: str) -> Floats:
    """Return the seconds from arrival to a stamp; to the end of the run where it hasn't come by then."""
    at = m.column(stamp)
    return np.asarray(np.where(at < 0, m.stopped_s, at) - m.column("arrival_s"), dtype=np.float64)


def _times_target(m: MeasuredRequests) -> Floats:
    """Return how many times its tightest target for single requests each request takes; infinite without an answer."""
    found = np.where(unserved(m), np.inf, 0.0)
    for stage, targets in request_targets(m.facts, m.column("adapter")).items():
        if stage != "tpot" or not m.facts.fixed:
            found = np.maximum(found, _seconds(m, stage) / np.maximum(targets, 1e-9))
    return np.asarray(found, dtype=np.float64)


def _share(m: MeasuredRequests, chosen: Mask, of: Mask, slowness: Floats, sections: int) -> Metric:
    """Return how many of the requests ``of`` are ``chosen``: the late ones, or all others.

    :param sections: parts of a replication; 1: its interval comes from replications alone.
    """
    sections = 1 if m.alone else sections
    rare = not m.alone and min(int(chosen.sum()), int(of.sum()) - int(chosen.sum())) < _RARE * int(of.sum())
    tail = chosen
    if rare and of.any():
        tail = of & (slowness >= np.quantile(slowness[of], 1 - _RARE, method="lower"))
    parts = m.replications * sections
    over, under, slow = (m.count(which).reshape(parts, -1).sum(axis=1) for which in (chosen, of, tail))
    return share_of_requests(over, under, slow, sections)
