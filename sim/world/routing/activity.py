"""Adapters that run on each replica, for routers that need it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sim.policies.scheduler import Scheduler


class Activity(Protocol):
    """The adapters in the batches of the fleet."""

    def read(self) -> Sequence[int]:
        """Return, by adapter, a bit mask of the replicas that run it; valid until the next call."""
        ...


class BatchActivity:
    """Activity of replicas with batches, updated by the adapters that joined or left since the last reading.

    Few adapters change between two readings while a batch holds many. Reading whole batches would cost more than the
    rest of a router.
    """

    def __init__(self, adapters: int, replicas: int) -> None:
        self._masks = [0] * (adapters + 1)  # the base model is last
        self._toggled: list[list[int]] = [[] for _ in range(replicas)]
        self._schedulers: dict[int, Scheduler] = {}

    def replica(self, index: int, scheduler: Scheduler) -> None:
        """Follow a new scheduler, still without requests, at an index; the one before it has stopped."""
        if index in self._schedulers:
            dead = self._schedulers[index]
            dead.toggled = None
            self._toggled[index].extend(_adapters_of(dead))
        scheduler.toggled = self._toggled[index]
        self._schedulers[index] = scheduler

    def read(self) -> Sequence[int]:
        masks, bit = self._masks, 1
        for toggled in self._toggled:
            if toggled:
                for adapter in toggled:
                    masks[adapter] ^= bit
                toggled.clear()
            bit += bit
        return masks

    def check_integrity(self) -> None:
        """Assert that the masks agree with the batches."""
        masks = self.read()
        for index in range(len(self._toggled)):
            noted = {adapter for adapter, mask in enumerate(masks) if mask >> index & 1}
            there = _adapters_of(self._schedulers[index]) if index in self._schedulers else set()
            assert noted == there, f"replica {index}: {sorted(noted)} noted, {sorted(there)} there"


def _adapters_of(scheduler: Scheduler) -> set[int]:
    """Return the adapters of a batch, and the base model if it has requests for it."""
    return {request.adapter for request in scheduler.running}


class InFlightActivity:
    """Activity of replicas without batches: all requests inside count as running.

    :param counts: by replica, requests inside by adapter.
    """

    def __init__(self, adapters: int, counts: list[dict[int, int]]) -> None:
        self._adapters = adapters
        self._counts = counts

    def read(self) -> Sequence[int]:
        masks = [0] * (self._adapters + 1)
        for replica, adapters in enumerate(self._counts):
            for adapter in adapters:
                masks[adapter] |= 1 << replica
        return masks


class RunningNow:
    """The replicas that run an adapter at this moment, by adapter."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity

    def __getitem__(self, adapter: int) -> int:
        """Return a bit mask of the replicas."""
        return self._activity.read()[adapter]
