"""Replicas whose KV is copied to host memory and back, or to another replica, beside the steps."""

from __future__ import annotations

from collections.abc import Callable

from mypy_extensions import mypyc_attr

from sim.policies.kv.host_pool import HostPool, Job
from sim.policies.transfer_scheduler import TransferScheduler
from sim.traffic.request import Request
from sim.world.clock import LOAD_DONE, Call
from sim.world.replica.continuous import BatchServer
from sim.world.replica.modes.adapter_mode import AdapterMode
from sim.world.replica.server import ReplicaParts, ReplicaTotals


class Bus:
    """One direction of a link: one copy of KV after the other.

    A copy of an adapter takes half of it until the shorter of the two has ended: the adapter, or all KV that waits.

    :param bytes_per_s: its bandwidth.
    :ivar ends: when each copy of KV ends that has not; whoever starts one takes it out. ``busy_s``: of all copies.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self.ends: dict[object, float] = {}
        self.busy_s = 0.0

    def copy(self, what: object, size: float, now: float) -> float:
        """Begin, or queue, a copy of KV; return when it ends, if no adapter comes in between."""
        seconds = size / self._bytes_per_s
        self.ends[what] = self._free_s = max(self._free_s, now) + seconds
        self.busy_s += seconds
        return self._free_s

    def copy_adapter(self, size: float, now: float) -> float:
        """Copy an adapter; return by how many seconds KV delays it. All KV under way or queued ends as much later."""
        seconds = size / self._bytes_per_s
        self.busy_s += seconds
        shared_s = min(seconds, max(0.0, self._free_s - now))
        if shared_s:
            self._free_s += shared_s
            for what, end in self.ends.items():
                self.ends[what] = end + shared_s
        return shared_s


@mypyc_attr(allow_interpreted_subclasses=True)
class TransferServer(BatchServer):
    """A replica with a ``TransferScheduler``. What ends beside the steps is reported with the step then under way.

    With asynchronous scheduling, the host reads that report one step later.
    """

    def __init__(self, parts: ReplicaParts, scheduler: TransferScheduler, mode: AdapterMode) -> None:
        super().__init__(parts, scheduler, mode)
        self.transfers = scheduler
        self.copies_kv = True
        self._reports: list[tuple[float, Callable[[], None]]] = []  # not read yet: when it ended, what to do
        self._known = 0  # how many of these were there at the last boundary

    def report(self, outcome: Callable[[], None], *, matters: bool = True) -> None:
        """Call ``outcome`` when the host learns of something that has just ended.

        :param matters: whether the first boundary at which the host knows it may decide differently for that.
        """
        now = self.clock.now
        if self._event is None and not self._any_waits():
            outcome()  # a boundary would decide nothing
            return
        self._reports.append((now, outcome))
        if self._event is None:
            self._schedule(now)
        elif self._steps > 1 and matters:
            self._cut_leap(may_join_now=False, further=self._ahead)

    def _any_waits(self) -> bool:
        return self.mode.waiting.size() > 0 or len(self.transfers.waiting_apart) > 0

    def _take_reports(self) -> None:
        reports = self._reports
        if not reports:
            return
        due = len(reports)
        if self._asynchronous and self.scheduler.running:  # empty steps take no time
            # The host knows of what ended before the last step of the leap began.
            due = self._known
            began_s = self._started_s + self._elapsed(self._steps - 1) if self._steps > 1 else self._started_s
            while due < len(reports) and reports[due][0] < began_s:
                due += 1
        self._reports = reports[due:]
        self._known = len(self._reports)
        for _, outcome in reports[:due]:
            outcome()

    def _tries_again(self) -> bool:
        return len(self.transfers.preempted_now) > 0  # a step that preempts admits nobody

    def _awaits_report(self) -> bool:
        return len(self._reports) > 0

    def _queued_or_running(self) -> list[Request]:
        return super()._queued_or_running() + list(self.transfers.waiting_apart)


@mypyc_attr(allow_interpreted_subclasses=True)
class OffloadServer(TransferServer):
    """A replica that keeps the KV of prompts in host memory.

    :param block_bytes: of a block on each GPU; ``bytes_per_s``: between host memory and each GPU.
    """

    def __init__(
        self,
        parts: ReplicaParts,
        scheduler: TransferScheduler,
        mode: AdapterMode,
        pool: HostPool,
        block_bytes: float,
        bytes_per_s: float,
    ) -> None:
        super().__init__(parts, scheduler, mode)
        self.pool = pool
        self.to_gpu, self.to_host = Bus(bytes_per_s), Bus(bytes_per_s)
        self._block_bytes = block_bytes
        self._unsubmitted: list[Job] = []  # stores that begin with the next step
        self.loaded_blocks = self.stored_blocks = 0

    def link_s(self) -> float:
        """Return for how long the link that KV comes over was busy."""
        return self.to_gpu.busy_s

    def _start_copies(self, now: float) -> float:
        pool = self.pool
        for job in pool.loads:
            self.loaded_blocks += len(job.keys)
            self._submit(job, self.to_gpu, now)
        within = [self.to_gpu.ends[job] for job in pool.loads if job.request in self.scheduler.running]
        flushed = [job for job in pool.flushed if job in pool.stores]
        for job in (*self._unsubmitted, *flushed):
            self._submit(job, self.to_host, now)
        self._unsubmitted = [job for job in pool.stores if job not in pool.flushed]
        if not self.scheduler.decided.steps:
            for job in self._unsubmitted:
                self._submit(job, self.to_host, now)
            self._unsubmitted = []
        waits = [self.to_host.ends[job] for job in pool.flushed if job in self.to_host.ends]
        return max([now, *within, *waits]) - now

    def _submit(self, job: Job, bus: Bus, now: float) -> None:
        self.stored_blocks += len(job.keys) * job.stores
        end = bus.copy(job, len(job.keys) * self._block_bytes, now)
        self.clock.call_at(end, LOAD_DONE, self._ended, job)

    def _ended(self, event: Call) -> None:
        job: Job = event.subject
        ends = (self.to_host if job.stores else self.to_gpu).ends
        if ends[job] > self.clock.now:  # adapters came in between
            self.clock.schedule(ends[job], LOAD_DONE, event)
            return
        del ends[job]
        self.report(lambda: self._done(job))

    def _done(self, job: Job) -> None:
        self.pool.done(job)
        if not job.stores and job.request not in self.scheduler.running:
            self.transfers.arrived(job.request)

    def totals(self) -> ReplicaTotals:
        totals = super().totals()
        size = self.scheduler.kv.size
        totals.kv_loaded, totals.kv_stored = self.loaded_blocks * size, self.stored_blocks * size
        totals.kv_host_share = self.pool.share()
        return totals
