"""Routers of AIBrix, the SGLang gateway and vLLM production-stack, by the rules in ``gateways``.

Where they see text, a token stands for ``CHARACTERS`` characters, and text is equal where the tokens are.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Final

from sim.policies.routing import gateways
from sim.policies.routing.prefixes import CHARACTERS, SentText, TextTree, in_characters, text_of
from sim.policies.routing.router_policy import Following, RouterContext, settings_of
from sim.rng import UniformDraws, uniform_draw
from sim.traffic.request import Request


class Deployed:
    """What these routers share: a view, and a draw for each request."""

    def __init__(self, context: RouterContext) -> None:
        self._view = context.view
        self._replicas = context.replicas
        self._key = context.key
        self._draws = UniformDraws(context.key)

    def one_of(self, replicas: list[int], number: int) -> int:
        """Return one of some replicas, drawn by the request's number."""
        return replicas[int(self._draws.of(number) * len(replicas))] if len(replicas) > 1 else replicas[0]

    def text(self) -> tuple[list[tuple[int, int]], int]:
        """Return the text of the request at hand and its length, in characters."""
        request = self._view.request
        return in_characters(text_of(request)), 0 if request is None else CHARACTERS * request.prompt_tokens


class LeastRequest(Deployed):
    """AIBrix ``least-request``: the pod with the fewest requests in flight, of equal ones one at random."""

    reads: ClassVar[frozenset[str]] = frozenset({"loads"})

    def choose(self, adapter: int, number: int) -> int:
        return self.one_of(gateways.least(self._view.loads, self._view.up), number)


class PrefixCache(Deployed):
    """AIBrix ``prefix-cache``: the pod that had most of the prompt, unless it has many more requests than others.

    The gateway remembers 200,000 blocks of 4 characters, of all pods and adapters together, which long prompts of
    their own use up in a hurry. That it also forgets them after 20 minutes is left out.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"loads", "request"})

    def __init__(self, context: RouterContext) -> None:
        super().__init__(context)
        self._sent = SentText(gateways.BLOCKS, gateways.BLOCK)

    def choose(self, adapter: int, number: int) -> int:
        text, length = self.text()
        percent = gateways.match_percent(self._sent, text, length, adapter, self._replicas)
        chosen = self.one_of(gateways.by_match(self._view.loads, percent, self._view.up), number)
        self._sent.sent(text, length, chosen, adapter)
        return chosen


class LeastLatency(Deployed, Following):
    """AIBrix ``least-latency``: the pod with the shortest usual prefill and decode; how long its queue is counts
    nothing. The means are of all requests since the start, whatever their adapter."""

    reads: ClassVar[frozenset[str]] = frozenset({"request"})

    def __init__(self, context: RouterContext) -> None:
        super().__init__(context)
        self._ended = [0] * context.replicas
        # Of the requests that ended, by pod: mean seconds of prefill and of decode, tokens of prompt and of output.
        self._sums, self._means = ([[0.0] * context.replicas for _ in range(4)] for _ in range(2))

    def choose(self, adapter: int, number: int) -> int:
        up = self._view.up
        all_up = len(up) == self._replicas
        prefill, decode, prompt, output = (each if all_up else [each[pod] for pod in up] for each in self._means)
        return up[gateways.last_least(gateways.expected_latency(prefill, decode, prompt, output))]

    def ended(self, request: Request, replica: int, now: float) -> None:
        self._ended[replica] += 1
        first_s, started_s = request.first_token_s, max(request.admitted_s, request.arrival_s)
        added = (first_s - started_s, now - first_s, request.prompt_tokens, request.output_tokens)
        for sums, means, each in zip(self._sums, self._means, added, strict=True):
            sums[replica] += each
            means[replica] = sums[replica] / self._ended[replica]


class Throughput(LeastLatency):
    """AIBrix ``throughput``: the pod with the fewest tokens a request, a token of a prompt counts twice; of equal ones
    one at random. Load counts nothing."""

    def choose(self, adapter: int, number: int) -> int:
        prompt, output = self._means[2:]
        tokens = [2 * mean + output[pod] for pod, mean in enumerate(prompt)]
        return self.one_of(gateways.least(tokens, self._view.up), number)


class LeastGpuCache(Deployed):
    """AIBrix ``least-gpu-cache``: the pod with the smallest share of its KV cache in use, of equal ones at random."""

    reads: ClassVar[frozenset[str]] = frozenset({"kv"})

    def choose(self, adapter: int, number: int) -> int:
        return self.one_of(gateways.least(self._view.kv, self._view.up), number)


class LeastKvCache(LeastGpuCache):
    """AIBrix ``least-kv-cache``: the same, of equal ones the last. It adds the KV cache in host memory, for which vLLM
    V1 has no metric."""

    def choose(self, adapter: int, number: int) -> int:
        return gateways.least(self._view.kv, self._view.up)[-1]


WINDOW_S: Final = 300.0
"""How long AIBrix counts the tokens of a user."""
OUTPUT_RATIO: Final = 1.5
OUTPUT_WEIGHT: Final = 2.0
"""Output tokens per input token that it expects of a request, and what each counts."""


class Vtc(Deployed):
    """AIBrix ``vtc-basic``: users with more tokens go to later pods, the third at most unless that is busy; tenants are
    the users, and without any, pods are drawn."""

    reads: ClassVar[frozenset[str]] = frozenset({"loads", "request"})

    def __init__(self, context: RouterContext) -> None:
        super().__init__(context)
        self._recent: deque[tuple[float, int, float]] = deque()  # time, user, tokens
        self._tokens: dict[int, float] = {}
        self._tenants_known = context.tenants

    def choose(self, adapter: int, number: int) -> int:
        up, request = self._view.up, self._view.request
        if request is None or not self._tenants_known:
            return self.one_of(up, number)
        while self._recent and self._recent[0][0] <= request.arrival_s - WINDOW_S:
            _, user, tokens = self._recent.popleft()
            self._tokens[user] -= tokens
        tokens_of = self._tokens or {request.tenant: 0.0}
        bucket = gateways.vtc_bucket(min(tokens_of.values()), max(tokens_of.values()))
        scores = gateways.vtc_scores(tokens_of.get(request.tenant, 0.0), bucket, [self._view.loads[pod] for pod in up])
        noisy = [
            score + gateways.NOISE * uniform_draw(self._key, number << 12 | place) for place, score in enumerate(scores)
        ]
        tokens = request.prompt_tokens * (1 + OUTPUT_WEIGHT * OUTPUT_RATIO)
        self._recent.append((request.arrival_s, request.tenant, tokens))
        self._tokens[request.tenant] = self._tokens.get(request.tenant, 0.0) + tokens
        return up[noisy.index(min(noisy))]


class CacheAware(Deployed):
    """SGLang gateway ``cache_aware``: the worker that had the longest beginning of the prompt first; the least loaded
    where too little matches, or where loads differ too much. Adapters are not part of the text."""

    reads: ClassVar[frozenset[str]] = frozenset({"loads", "request"})

    def __init__(self, context: RouterContext) -> None:
        super().__init__(context)
        self._settings = settings_of("sglang-cache-aware", context)
        self._tree = TextTree()

    def choose(self, adapter: int, number: int) -> int:
        view, settings = self._view, self._settings
        text, length = self.text()
        return gateways.cache_aware(
            self._tree,
            text,
            length,
            view.loads,
            view.up,
            threshold=settings["cache_threshold"],
            difference=settings["balance_abs"],
            ratio=settings["balance_rel"],
        )[2]


RATE_WINDOW_S: Final = 60.0
"""How long production-stack counts requests for the rate of a replica."""


class Session(Deployed):
    """production-stack ``session``: consistent hashing of the session; without one, the replica with the lowest rate
    of requests."""

    reads: ClassVar[frozenset[str]] = frozenset({"request"})

    def __init__(self, context: RouterContext) -> None:
        super().__init__(context)
        self._ring = gateways.SessionRing([f"http://r{replica}:8000" for replica in range(context.replicas)])
        self._sent: list[deque[float]] = [deque() for _ in range(context.replicas)]  # times, of the last minute
        self._used = [False] * context.replicas
        self._homes: dict[int, int] = {}  # by session, while all are up

    def choose(self, adapter: int, number: int) -> int:
        up, request = self._view.up, self._view.request
        now, session = (0.0, None) if request is None else (request.arrival_s, request.session)
        if session is None:
            chosen = gateways.lowest_rate([self._rate(replica, now) for replica in range(self._replicas)], up)
        elif len(up) == self._replicas and session in self._homes:
            chosen = self._homes[session]
        else:
            chosen = self._ring.home(f"session-{session}", up)
            if len(up) == self._replicas:
                self._homes[session] = chosen
        if request is not None:
            self._sent[chosen].append(now)
            self._used[chosen] = True
        return chosen

    def _rate(self, replica: int, now: float) -> float | None:
        if not self._used[replica]:
            return None
        times = self._sent[replica]
        while times and times[0] <= now - RATE_WINDOW_S:
            times.popleft()
        return len(times) / RATE_WINDOW_S


class PrefixAware(Deployed):
    """production-stack ``prefixaware``: of the replicas that had the longest beginning of the prompt one at random,
    whatever the load. Adapters are not part of the text, and nothing is forgotten."""

    reads: ClassVar[frozenset[str]] = frozenset({"request"})

    def __init__(self, context: RouterContext) -> None:
        super().__init__(context)
        self._trie = gateways.ChunkTrie()

    def choose(self, adapter: int, number: int) -> int:
        text, length = self.text()
        chosen = self.one_of(self._trie.matched(text, length, self._view.up)[1], number)
        self._trie.insert(text, length, chosen)
        return chosen
