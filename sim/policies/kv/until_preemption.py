"""The KV store of an engine with prefix caching where no two requests share text."""

from __future__ import annotations

from sim.policies.kv.counting_store import CountingStore
from sim.policies.kv.kv_store import KvStore
from sim.policies.kv.prefix_store import PrefixStore


class CountUntilPreemption(CountingStore):
    """Counts blocks until a request is preempted. Only such a request can find blocks, its own, when it comes back.

    A request is preempted when fewer blocks are free than are needed. These are taken before the ones that it gives
    back, whatever they contain, so nothing that happened before matters.

    :param uncached_last: as in ``PrefixStore``.
    """

    def __init__(self, total: int, size: int, *, uncached_last: bool = False) -> None:
        super().__init__(total, size)
        self._uncached_last = uncached_last
        self._outdated: set[int] = set()  # running requests, by index, whose weights have changed under way

    def forget(self, adapter: int) -> None:
        self._outdated &= {request.index for request in self.running}
        self._outdated.update(request.index for request in self.running if request.adapter == adapter)

    def before_preemption(self) -> KvStore:
        store = PrefixStore(self.total, self.size, uncached_last=self._uncached_last)
        store.lags = self.lags
        store.take_over(self.running, self._step, self._free_after(0), self._peak_tokens)
        store.lose(self._outdated)
        return store
