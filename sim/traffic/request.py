"""One request on its way through the simulation: a hot object with slots and almost no behaviour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from librt.strings import read_f64_le, read_i64_le
from mypy_extensions import i64, mypyc_attr

HIT: Final = 0
DELAYED_HIT: Final = 1
MISS: Final = 2
"""How a request found its adapter: resident, on its way, or absent, so that it started a load."""
FROM_GPU: Final = 0
FROM_HOST: Final = 1
FROM_STORAGE: Final = 2
"""The tier that its adapter came from."""
UNBLOCKED: Final = 0
BY_BATCH_SLOTS: Final = 1
BY_KV: Final = 2
BY_ADAPTER_LIMIT: Final = 3
"""Why a request was not admitted at the last step boundary: no batch slot, no KV blocks, or (where loads start at
admission) no room for its adapter among those in use."""
HOLDING: Final = -2
"""``Request.last_step`` of a request in the batch that gets no token in this step, and keeps its KV blocks."""
BASE_MODEL = -1
"""Stands for an adapter in traffic, traces and results where a request is for the base model alone. Replicas
index lists with it, so they use the number after those of all adapters instead: what ``serve_base_model`` returns."""


@mypyc_attr(acyclic=True)  # compiled, the cycle collector need not know of it
class Request:
    """A request and its state. Times are in seconds, -1 until they are known.

    :ivar load_s, host_load_s: time of the load that it may have to start, from storage and from host memory.
    :ivar service_s: service time, for engine ``fixed``.
    :ivar max_tokens: its limit. Above ``output_tokens``, the answer ends with the end token, which nothing foresees.
    :ivar key: place in the waiting queue; the lowest is first.
    :ivar claimed: whether it counts as a user of its adapter, if loads start at admission.
    :ivar asked_s: time at which it asked for a load; unset before.
    :ivar load_wait_s: time from then to the end of the load.
    :ivar load_queue_s: the part of that wait before the load started, for a loader or for a slot.
    :ivar to_prefill: tokens still to prefill before its next output token.
    :ivar chunk: prompt tokens that it computes in the step under way, if it prefills; unset before its first step.
    :ivar context: KV tokens that it holds; for a decoding request, those at the start of decoding.
    :ivar generated: output tokens before its current prefill: 0 unless it was preempted.
    :ivar place: its place among all admissions to its batch, for a KV store that needs it; otherwise unset.
    :ivar last_step: value of the scheduler's decode counter after its last token; -1 while not decoding, and
        ``HOLDING`` while it only holds its place.
    :ivar stops: whether a stop token ends it, which an engine with asynchronous scheduling can't foresee; otherwise its
        ``max_tokens`` do.
    :ivar last_token_s: time of a preempted request's last token; unset before.
    :ivar session: number of its session, if any; set only if rollouts or faults need it.
    :ivar tenant: place of its tenant in the scenario; 0 without tenants.
    :ivar shared: the first runs of its tokens, which other requests may have too: (end, key) each, in order. The tokens
        from the end of the run before to ``end`` belong to ``key``, a number from 0 on. A key stands for all tokens
        before it as well: two requests have the same tokens up to a position exactly if the keys up to there are equal.
        So requests that leave a common run at different places have different keys from there on.
    :ivar text_key: key of all its tokens after those runs, prompt and answer alike. A conversation keeps one key, since
        the prompt of each turn starts with the prompt and the answer of the turn before. -1: no other request has them.
    :ivar cached_tokens: tokens that it found cached when it was first admitted.
    """

    # Written out, not a dataclass: passing two dozen defaults through __init__ costs as much as an event.
    __slots__ = (
        "adapter", "admitted_s", "arrival_s", "asked_s", "cached_tokens", "chunk", "claimed", "context",
        "first_token_s", "generated", "host_load_s", "index", "key", "last_step", "last_token_s", "load_queue_s",
        "load_s", "load_wait_s", "max_tokens", "outcome", "output_tokens", "place", "preemptions", "prompt_tokens",
        "service_s", "session", "shared", "stops", "tenant", "text_key", "tier", "to_prefill",
    )  # fmt: skip  # names in a paragraph, not one a line
    asked_s: float
    chunk: int
    last_token_s: float
    place: int
    session: int | None

    def __init__(
        self,
        index: int,
        arrival_s: float,
        adapter: int,
        prompt_tokens: int,
        output_tokens: int,
        load_s: float = 0.0,
        host_load_s: float = 0.0,
        service_s: float = 0.0,
        shared: tuple[tuple[int, int], ...] = (),
        text_key: int = -1,
    ) -> None:
        self.index = self.key = index
        self.arrival_s = arrival_s
        self.adapter = adapter
        self.prompt_tokens = self.to_prefill = prompt_tokens
        self.output_tokens = self.max_tokens = output_tokens
        self.load_s = load_s
        self.host_load_s = host_load_s
        self.service_s = service_s
        self.outcome = HIT
        self.tier = FROM_GPU
        self.claimed = False
        self.admitted_s = self.first_token_s = -1.0
        self.load_queue_s = self.load_wait_s = 0.0
        self.context = self.generated = self.preemptions = 0
        self.last_step = -1
        self.shared = shared
        self.text_key = text_key
        self.cached_tokens = 0
        self.tenant = 0
        self.stops = False

    def fresh_copy(self) -> Request:
        """Return a copy of the request as it arrived, to be served from the start."""
        fresh = Request(
            self.index,
            self.arrival_s,
            self.adapter,
            self.prompt_tokens,
            self.output_tokens,
            self.load_s,
            self.host_load_s,
            self.service_s,
            self.shared,
            self.text_key,
        )
        fresh.session = self.session
        fresh.tenant = self.tenant
        fresh.stops = self.stops
        fresh.max_tokens = self.max_tokens
        return fresh


Runs = tuple[tuple[int, int], ...]
"""(end, key) of each run of tokens, as in ``Request.shared``."""


class ArrivingRequests:
    """Requests yet to arrive: those of one chunk of traffic, made one by one.

    Columns come as packed bytes, one value of 8 bytes for each request: compiled code reads numbers from there without
    creating Python objects.

    :param first: index of the first of them.
    :param arrival_s, load_s, host_load_s, service_s: packed floats: fields of ``Request``.
    :param adapter, prompt_tokens, output_tokens, tenant: packed integers; no tenants: empty.
    :param stops: ``stops`` as integers; false for all: empty.
    :param text: ``shared`` and ``text_key`` of each, where requests share text.
    :param max_tokens: the limit of all whose answers are shorter; the others end by their limit.
    """

    def __init__(
        self,
        first: int,
        arrival_s: bytes,
        adapter: bytes,
        tokens: tuple[bytes, bytes],
        times_s: tuple[bytes, bytes, bytes],
        tenant: bytes = b"",
        text: Iterator[tuple[Runs, int]] | None = None,
        stops: bytes = b"",
        max_tokens: int = 0,
    ) -> None:
        self._index = first
        self._max_tokens = max_tokens
        self._place: i64 = 0
        self._end: i64 = len(arrival_s)
        self._arrival_s, self._adapter, self._tenant, self._text = arrival_s, adapter, tenant, text
        self._stops = stops
        self._prompt_tokens, self._output_tokens = tokens
        self._load_s, self._host_load_s, self._service_s = times_s

    def next(self) -> Request | None:
        """Return the next request; None after the last."""
        place = self._place
        if place == self._end:
            return None
        self._place = place + 8
        index = self._index
        self._index = index + 1
        request = Request(
            index,
            read_f64_le(self._arrival_s, place),
            read_i64_le(self._adapter, place),
            read_i64_le(self._prompt_tokens, place),
            read_i64_le(self._output_tokens, place),
            read_f64_le(self._load_s, place),
            read_f64_le(self._host_load_s, place),
            read_f64_le(self._service_s, place),
        )
        if self._text is not None:
            request.shared, request.text_key = next(self._text)
        if self._max_tokens > request.output_tokens:
            request.max_tokens = self._max_tokens
        if self._tenant:
            request.tenant = read_i64_le(self._tenant, place)
        if self._stops:
            request.stops = read_i64_le(self._stops, place) != 0
        return request
