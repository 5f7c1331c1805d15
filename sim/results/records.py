"""What one replication leaves behind: a row per request and per load, and sums over steps.

A run is cut into a warm-up, ``sections`` equal parts of the measured requests, and a drain after the last arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats
from sim.traffic.request import BASE_MODEL, HIT

if TYPE_CHECKING:
    import pyarrow

    from sim.results.sample_data import ScenarioFacts

COMPLETED: Final = 0
UNFINISHED: Final = 1
REFUSED: Final = 2
FAILED: Final = 3
"""How a request ended: with its last token; not before the simulation stopped; refused (too long for the KV cache, or
its adapter was not served just then); failed (its replica died, its adapter could not be loaded, its answer was found
wrong to the last try)."""
STATUS_WORDS = ("completed", "unfinished", "refused", "failed")

MIXED, STALE, GATED, LOST, LOAD_FAILED, REROUTED = 1, 2, 4, 8, 16, 32
"""Marks of a request: answered, to its end or not, by more than one version; by a version older than the one that
everybody should have had when it came; refused because its adapter was being replaced; lost with its replica; failed
because its adapter could not be loaded; sent to another replica because its own died."""
WRONG_SERVED, WRONG_DETECTED, RETRIED, OLD_PREFIX, WRONG_LOAD, MISROUTED = 64, 128, 256, 512, 1024, 2048
"""More of them: a wrong answer was taken for right; a wrong answer was noticed; it was sent again after that; its
prefix came from an older version; it loaded an adapter that no request needed; it reached a wrong adapter, or
none, at least once."""
LIMITED = 4096
"""And one: it was refused in front of the fleet, because the token bucket of its tenant lacked tokens."""

MARKS = {
    "mixed": MIXED,
    "stale": STALE,
    "gated": GATED,
    "lost": LOST,
    "load-failed": LOAD_FAILED,
    "rerouted": REROUTED,
    "wrong-served": WRONG_SERVED,
    "wrong-detected": WRONG_DETECTED,
    "retried": RETRIED,
    "old-prefix": OLD_PREFIX,
    "wrong-load": WRONG_LOAD,
    "misrouted": MISROUTED,
    "limited": LIMITED,
}
"""Marks by the words of ``requests.parquet``."""

HOST_FILL_ROW = np.dtype([("index", "<i8"), ("wait_s", "<f8")])
"""Layout of ``Recording.host_fills``."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the fleet.

    :ivar time_s: when.
    :ivar kind: ``rollout``, ``stage``, ``complete``, ``rollback``, ``crash``, ``detected``, ``restart``, ``fault``,
        ``over``, ``end`` (the run, with something planned that never came).
    :ivar text: in words, for a timeline.
    :ivar rollout: number of the rollout that it belongs to; None for other events.
    :ivar missed: of a ``rollback``: name, value (None: too many requests failed) and limit of each term of the gate
        that did not hold; of an ``end`` before a gate had enough requests, how many it had and waits for.
    """

    time_s: float
    kind: str
    text: str
    rollout: int | None = None
    missed: tuple[tuple[str, float | None, float], ...] = ()


@dataclass(slots=True)
class Recording:
    """One replication, ready for statistics.

    :ivar requests: columns of ``recorder.REQUEST_COLUMNS``, sorted by index; times that never came are -1, and so is
        the adapter of a request to the base model. Beside those ``marks`` (``MIXED`` and so on, added up),
        ``version`` and ``last_version`` (1 and more) of the first and the last token
        so far (0: there is none, or the answer was by the base model, or by another adapter and went unnoticed),
        ``tokens_before`` (tokens by other versions than the last one), ``tries`` (how often a request was sent again),
        ``detected`` (how many wrong answers to it were noticed), and ``session`` where the traffic has sessions.
        ``cached_tokens`` (found cached at the first admission) is there with a prefix cache alone.
    :ivar loads: columns started_s, ended_s, adapter, tier, asked_s, replica; the adapter's number is beyond those of
        the traffic where a new version has a name of its own.
    :ivar host_fills: index and wait_s of completed requests that waited for host memory, where that fills at arrival:
        the part of load_wait_s that lies before their admission, however loads to the GPU happen.
    :ivar backoffs: (n, 4) pauses in which a loader was held between attempts at a load: start, end, whether the next
        attempt began, replica.
    :ivar events: what happened to the fleet, in order.
    :ivar bounds: (sections + 1,) times: section i is from ``bounds[i]`` to ``bounds[i + 1]``, the last is the end
        of the measured time.
    :ivar first_measured: index of the first measured request; ``section_of``: by request, -1 in the warm-up.
    :ivar gap_counts: (sections, GAP_BINS) gaps between tokens; ``gap_sum_s``: (sections,) their sum.
    :ivar busy_s: (sections,) seconds in which a step ran; ``blocked_s``: by reason, (reasons, sections).
    :ivar prefix_blocks_evicted: cached KV blocks that were taken for other content; None without a prefix cache.
    :ivar running_area: sequence-seconds in the batch over the whole run, from steps alone.
    :ivar room_short_s: seconds of the measured time in which a load waited for a slot.
    :ivar inside_area: request-seconds in the replicas over the whole run, counted at arrivals and departures.
    :ivar busy_by_replica: (replicas,) seconds of the measured time in which a step ran.
    :ivar facts: single numbers that only some worlds have.
    :ivar lives: (n, 5) one row for each replica that an autoscaler had: its place, and when its cold start began, when
        it was ready, when its drain began and when it was gone; infinite: not before the simulation stopped. The
        replicas of the start begin and are ready at 0. Empty where the fleet stays as it is.
    :ivar held: (n, 2) index of each request that waited in front of the fleet for its tenant's token bucket, and when
        it was sent on; infinite: not before the simulation stopped.
    :ivar hand_overs: (n, 6) one row for each completed request whose prompt another replica computed: its index, when
        the prompt was complete, its read ordered, it was read, and taken into the batch that answers, and the part of
        load_wait_s that lies in that batch.
    :ivar moves: (n, 4) one row for each adapter that a placement controller put on a replica or took from it: time,
        adapter, replica, 1 or 0. The placement of the start is at 0.
    """

    requests: dict[str, NDArray[np.generic]]
    loads: dict[str, Floats]
    bounds: Floats
    section_of: NDArray[np.int32]
    gap_counts: NDArray[np.int64]
    gap_sum_s: Floats
    busy_s: Floats
    blocked_s: Floats
    running_area: float
    room_short_s: float
    inside_area: float
    stopped_s: float
    busy_by_replica: Floats = field(default_factory=lambda: np.zeros(0))
    host_fills: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=HOST_FILL_ROW))
    backoffs: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    evictions: int = 0
    in_use_peak: int = 0
    kv_peak_share: float = 0.0
    prefix_blocks_evicted: int | None = None
    events: list[Event] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    lives: Floats = field(default_factory=lambda: np.zeros((0, 5)))
    moves: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    held: Floats = field(default_factory=lambda: np.zeros((0, 2)))
    hand_overs: Floats = field(default_factory=lambda: np.zeros((0, 6)))

    def measured(self) -> dict[str, NDArray[np.generic]]:
        """Return the columns of the measured requests."""
        measured = self.section_of >= 0
        return {name: column[measured] for name, column in self.requests.items()}


# The table of requests: Arrow columns from numpy arrays, put together from buffers.
#
# ``pyarrow.array`` and ``pyarrow.table`` import pandas to find out whether they were given something of pandas, which
# takes longer than a small simulation.


def column(values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pyarrow.Array:
    """Return an array of numbers or truth values.

    :param missing: which values are null.
    """
    import pyarrow as pa

    present = None if missing is None or not missing.any() else pa.py_buffer(_bits(~missing))
    data = _bits(values) if values.dtype == np.bool_ else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [present, pa.py_buffer(data)])


def words(
    which: NDArray[Any], texts: Sequence[str], missing: NDArray[np.bool_] | None = None
) -> pyarrow.DictionaryArray:
    """Return an array of texts, each of which is kept once.

    :param which: the place of each row's text in ``texts``.
    :param missing: which rows are null.
    """
    import pyarrow as pa

    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    dictionary = pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))
    return pa.DictionaryArray.from_arrays(column(which, missing), dictionary)


def table(columns: Mapping[str, pyarrow.Array]) -> pyarrow.Table:
    """Return a table of columns by name."""
    import pyarrow as pa

    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def _bits(values: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(values, bitorder="little")


def request_table(recording: Recording, names: tuple[str, ...], facts: ScenarioFacts | None = None) -> pyarrow.Table:
    """Return one row a request of one replication: every stamp, outcome, adapter, replica, version.

    A request to the base model has no adapter, and so no outcome and no tier. Neither has one that never got to its
    adapter: it was not admitted, and no load began for it.

    :param names: adapter names, or () where adapters are numbered.
    :param facts: where there are tenants, each request has the name of its own.
    """
    requests: dict[str, NDArray[Any]] = recording.requests
    columns = {name: column(values) for name, values in requests.items()}
    texts = {
        "outcome": ["hit", "delayed_hit", "miss"],
        "tier": ["gpu", "host", "storage"],
        "status": list(STATUS_WORDS),
    }
    base = requests["adapter"] == BASE_MODEL
    none = base | ((requests["admitted_s"] < 0) & (requests["outcome"] == HIT))
    for name, values in texts.items():
        columns[name] = words(requests[name].astype(np.int8), values, None if name == "status" else none)
    columns["adapter"] = column(requests["adapter"], base)
    if names:
        columns["adapter_id"] = words(requests["adapter"], names, base)
    if facts is not None and facts.tenant_of is not None:
        tenant = facts.tenant_of[requests["adapter"].astype(np.int64)]
        columns["tenant"] = words(tenant, [one.name for one in facts.tenants])
    columns["marks"] = words(*mark_words(requests["marks"]))
    columns["measured"] = column(recording.section_of >= 0)
    for name in ("admitted_s", "first_token_s", "finished_s"):
        columns[name] = column(requests[name], requests[name] < 0)
    for name in ("version", "last_version"):
        columns[name] = column(requests[name], requests[name] == 0)
    return table(columns)


def mark_words(marks: NDArray[Any]) -> tuple[NDArray[np.int32], list[str]]:
    """Return the marks of requests as words with spaces between, each text once: (n,) which text, and the texts."""
    found, which = np.unique(marks, return_inverse=True)
    texts = [" ".join(word for word, mark in MARKS.items() if value & mark) for value in found.tolist()]
    return which.astype(np.int32), texts
