"""One request on its way through the simulation: a hot object with slots and almost no behaviour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Final

HIT: Final = 0
DELAYED_HIT: Final = 1
MISS: Final = 2
"""How a request found its adapter: resident, on its way, or absent, so that it started a load."""
FROM_GPU: Final = 0
FROM_HOST: Final = 1
FROM_STORAGE: Final = 2
"""The tier that its adapter came from."""
BASE_MODEL = -1
"""Stands for an adapter in traffic, traces and results where a request is for the base model alone. Replicas
index lists with it, so they use the number after those of all adapters instead: what ``serve_base_model`` returns."""


class Request:
    """A request and its state. Times are in seconds, -1 until they are known.

    :ivar load_s, host_load_s: time of the load that it may have to start, from storage and from host memory.
    :ivar service_s: service time, for engine ``fixed``.
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
    :ivar last_step: value of the scheduler's decode counter after its last token; -1 while not decoding.
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
        "load_s", "load_wait_s", "outcome", "output_tokens", "place", "preemptions", "prompt_tokens", "service_s",
        "session", "shared", "tenant", "text_key", "tier", "to_prefill",
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
        self.output_tokens = output_tokens
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
        return fresh


Runs = tuple[tuple[int, int], ...]
"""What ``Request.shared`` is."""


def requests_of(
    first: int,
    arrival_s: list[float],
    adapter: list[int],
    tokens: tuple[list[int], list[int]],
    times_s: tuple[list[float], list[float], list[float]],
    text: tuple[Iterable[Runs], Iterable[int]] | None,
) -> Iterator[Request]:
    """Create requests one by one, as they arrive; all lists have a value for each.

    :param first: index of the first of them.
    :param tokens: of prompt and answer; ``times_s``: ``load_s``, ``host_load_s`` and ``service_s``.
    :param text: ``shared`` and ``text_key``, where requests share text.
    """
    prompts, outputs = tokens
    loads_s, host_loads_s, services_s = times_s
    if text is not None:
        yield from map(Request, count(first), arrival_s, adapter, *tokens, *times_s, *text)
        return
    # Written out, because compiled code then creates requests without packing their arguments.
    index = first
    for arrived_s, own, prompt, output, load_s, host_load_s, service_s in zip(
        arrival_s, adapter, prompts, outputs, loads_s, host_loads_s, services_s, strict=True
    ):
        yield Request(index, arrived_s, own, prompt, output, load_s, host_load_s, service_s)
        index += 1


def of_tenant(request: Request, tenant: int) -> Request:
    """Return a request that has just been made, as one of this tenant."""
    request.tenant = tenant
    return request
