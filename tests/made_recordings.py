"""Recordings and facts made by hand: what is not given is that of requests to which nothing happened."""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.results.recording.leaps import GAP_BINS
from sim.results.records import COMPLETED, Recording
from sim.results.sample_data import ScenarioFacts
from sim.traffic.request import HIT

ZERO = ("adapter", "prompt_tokens", "tier", "replica", "preemptions", "marks", "tokens_before", "tries")
LOADS = ("started_s", "ended_s", "asked_s", "adapter", "tier", "replica")


def recording_of(requests: dict[str, Any], bounds: np.ndarray, stopped_s: float, **given: Any) -> Recording:
    """Return the recording of these columns of requests, in sections with these bounds."""
    count, sections = len(requests["arrival_s"]), len(bounds) - 1
    columns: dict[str, Any] = {
        "index": np.arange(count),
        "outcome": np.full(count, HIT),
        "status": np.full(count, COMPLETED),
        **{name: np.zeros(count, dtype=np.int64) for name in ZERO},
        **{name: np.zeros(count) for name in ("load_queue_s", "load_wait_s")},
        **{name: np.ones(count, dtype=np.int64) for name in ("version", "last_version")},
    }
    fields: dict[str, Any] = {
        "loads": {name: np.zeros(0) for name in LOADS},
        "gap_counts": np.zeros((sections, GAP_BINS), dtype=np.int64),
        "gap_sum_s": np.zeros(sections),
        "busy_s": np.zeros(sections),
        "blocked_s": np.zeros((4, sections)),
        **dict.fromkeys(("running_area", "room_short_s", "inside_area"), 0.0),
    }
    return Recording(requests=columns | requests, bounds=bounds, stopped_s=stopped_s, **fields | given)


def scenario_facts(slo: dict[str, float], **changes: Any) -> ScenarioFacts:
    given: dict[str, Any] = {
        "size_bytes": np.array([10]),
        "kind_names": ("all",),
        "fixed": False,
        "blocking": False,
        "replicas": 1,
        "loaders": 1,
        "slots": 4,
        "kv_tokens": 1000,
        "max_num_seqs": 8,
        **changes,
    }
    kind = np.zeros(len(given["size_bytes"]), dtype=np.int64)
    return ScenarioFacts(**{"slo": slo, "kind": kind, **given})
