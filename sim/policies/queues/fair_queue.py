"""The virtual token counter (VTC): the tenant that was served least goes first.

Source: Sheng et al., Fairness in Serving Large Language Models (OSDI 2024, arXiv 2401.00588), algorithm 2. Every tenant
has a counter of the tokens that it was served: ``INPUT_WEIGHT`` for each token of a prompt when the request joins,
``OUTPUT_WEIGHT`` for each token of an answer when it comes, both over the tenant's weight. A tenant whose first request
joins the queue is lifted to the least counter of the tenants that wait, so that time without requests earns nothing.
Least counter first (LCF) is the same without the lift.

The paper's code (``slora/server/router`` of Ying1123/VTC-artifact: ``vtc_req_queue.py``, ``lcf_req_queue.py``,
``manager.py``) differs. It lifts no tenant while none waits. It charges a decode step for all its sequences when it
begins, and again when it ends a request, and so no answer's first token, which comes with the prompt.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from sim.policies.adapter_cache import AdapterCache
from sim.policies.admission import WaitingQueue, by_key
from sim.policies.scheduler import Scheduler
from sim.traffic.request import Request

INPUT_WEIGHT: Final = 1.0
OUTPUT_WEIGHT: Final = 2.0
"""What a token of a prompt and of an answer count, as in the paper: ``w_p`` and ``w_q``."""


class FairQueue(WaitingQueue):
    """Waiting requests by tenant. ``deferred`` holds the queues by the number of the tenant; ``ready`` stays empty.

    As in the paper, a request of the least served tenant that finds no room stops the scan. A preempted request returns
    to the head of its tenant's queue, and its prompt is not charged again.

    :param weights: of the tenants.
    :param cache: from which a request that joins claims its adapter; None: its adapter is resident and in use already.
    :param lifts: whether a tenant that comes back starts where the others are; otherwise this is LCF.
    :param as_in_code: whether the rules are those of the paper's code; otherwise they are those of the paper.
    :ivar counters: tokens that each tenant was served, weighted.
    """

    takes_turns = True
    defers = False

    def __init__(
        self, weights: Sequence[float], cache: AdapterCache | None, *, lifts: bool = True, as_in_code: bool = False
    ) -> None:
        super().__init__()
        self.counters = [0.0] * len(weights)
        self.as_in_code = as_in_code
        self._lifts = lifts
        self._weights = list(weights)
        self._cache = cache
        self._last: int | None = None  # the tenant that was the last to leave an empty queue behind

    def push(self, request: Request) -> None:
        tenant = request.tenant
        queue = self.deferred.get(tenant)
        if queue is None:
            if self._lifts:
                self._lift(tenant)
            self.deferred[tenant] = [request]
        elif queue[-1].key < request.key:
            queue.append(request)
        else:
            insort(queue, request, key=by_key)

    def _lift(self, tenant: int) -> None:
        """Let a tenant that comes to the queue start where the others are."""
        counters = self.counters
        if self.deferred:
            counters[tenant] = max(counters[tenant], min([counters[other] for other in self.deferred]))
        elif self._last is not None and not self.as_in_code:
            counters[tenant] = max(counters[tenant], counters[self._last])

    def next_candidate(self) -> Request | None:
        self.over_limit = False
        if not self.deferred:
            return None
        counters = self.counters
        tenant = min(self.deferred, key=lambda each: (counters[each], each))
        return self.deferred[tenant][0]

    def may_join(self, candidate: Request) -> bool:
        return self._cache is None or candidate.claimed or self._cache.can_claim(candidate.adapter)

    def pass_over(self, candidate: Request) -> bool:
        self.over_limit = True
        return False

    def take(self, candidate: Request) -> None:
        tenant = candidate.tenant
        queue = self.deferred[tenant]
        del queue[0]
        if not queue:
            del self.deferred[tenant]
            if not self.deferred:
                self._last = tenant
        if not candidate.preemptions:
            self.counters[tenant] += INPUT_WEIGHT * candidate.prompt_tokens / self._weights[tenant]
        if self._cache is not None:
            self._claim(candidate, self._cache)

    def charge(self, tenant: int, tokens: int) -> None:
        """Count tokens of answers that a tenant has got."""
        self.counters[tenant] += OUTPUT_WEIGHT * tokens / self._weights[tenant]

    def may_reorder(self) -> bool:
        return len(self.deferred) > 1

    def size(self) -> int:
        return sum(map(len, self.deferred.values()))

    def check_integrity(self) -> None:
        """Assert that every queue is in order and holds only requests of its own tenant."""
        for tenant, queue in self.deferred.items():
            assert queue, "empty queues are removed"
            assert all(request.tenant == tenant for request in queue)
            assert all(one.key < other.key for one, other in pairwise(queue))


class FairScheduler(Scheduler):
    """A scheduler that charges every tenant for the answers of its requests. Its queue is a ``FairQueue``."""

    charges = True
    _charged = 0  # steps of the leap under way that are charged already

    @property
    def _tenants(self) -> FairQueue:
        assert isinstance(self.waiting, FairQueue), "made together"
        return self.waiting

    def charge_begun(self, steps: int) -> None:
        self._charge_up_to(steps if self._tenants.as_in_code else steps - 1)

    def _charge_up_to(self, steps: int) -> None:
        queue, more = self._tenants, steps - self._charged
        if self.decided.decoding and more:
            for request in self.running:
                if request.last_step >= 0:
                    queue.charge(request.tenant, more)
        self._charged = steps

    def complete(self, steps: int, now: float) -> list[Request]:
        self._charge_up_to(steps)
        self._charged = 0
        queue, step = self._tenants, self.decided
        if not queue.as_in_code:
            for request in step.prefills:
                if not request.to_prefill:
                    queue.charge(request.tenant, 1)
        finished = super().complete(steps, now)
        if finished and queue.as_in_code:
            decoding = finished + [request for request in self.running if request.last_step >= 0]
            for request in decoding if step.decoding else step.prefills:
                queue.charge(request.tenant, 1)
        return finished

    def check_integrity(self) -> None:
        super().check_integrity()
        self._tenants.check_integrity()
