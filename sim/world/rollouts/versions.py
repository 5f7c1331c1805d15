"""Versions of adapters on storage, in host memory and on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sim.traffic.request import FROM_STORAGE
from sim.world.replica.ports import WeightVersions


class Versions(WeightVersions):
    """The versions of one replica, by adapter, for rollouts that keep its name. They only rise.

    :param initial_versions: version at the start, if it is not 1.
    :param on_change: called with adapter, old and new version when a newer version replaces an older one on the GPU.
        That happens at a step boundary; requests in progress continue with the new one.
    :ivar files: version that loads from storage read, if it is not the initial one.
    :ivar on_gpu, in_host: version of the current copy, or of the last one.
    :ivar awaited: callbacks for when the version on storage reaches the GPU; several rollouts may wait.
    """

    hears_loads = True

    def __init__(self, initial_versions: Mapping[int, int], on_change: Callable[[int, int, int], None]) -> None:
        self._initial_versions = initial_versions
        self._on_change = on_change
        self.files: dict[int, int] = {}
        self.awaited: dict[int, list[Callable[[], None]]] = {}
        self.on_gpu: dict[int, int] = {}
        self.in_host: dict[int, int] = {}
        self._reading: dict[int, int] = {}

    def of(self, adapter: int) -> int:
        """Return the version that answers requests."""
        return self.on_gpu.get(adapter) or self._initial_versions.get(adapter, 1)

    def on_storage(self, adapter: int) -> int:
        """Return the version that a load from storage reads."""
        return self.files.get(adapter) or self._initial_versions.get(adapter, 1)

    def load_started(self, adapter: int, tier: int) -> None:
        """Note that a load to the GPU starts: it reads the current copy of its tier."""
        if adapter not in self.files:
            return  # it was never updated: all copies are of the initial version
        if tier == FROM_STORAGE:
            self._reading[adapter] = self.on_storage(adapter)
        else:
            self._reading[adapter] = self.in_host.get(adapter) or self._initial_versions.get(adapter, 1)

    def load_ended(self, adapter: int, tier: int) -> None:
        """Note that a load to the GPU has ended; one from storage leaves a copy in host memory, if any."""
        if adapter not in self.files:
            return
        version = self._reading.pop(adapter, 0) or self._initial_versions.get(adapter, 1)
        if tier == FROM_STORAGE:
            self.in_host[adapter] = version
        self.put(adapter, version)

    def put(self, adapter: int, version: int) -> None:
        """Set the version on the GPU."""
        before = self.of(adapter)
        if version > before:  # otherwise a load that began before the update ended after it
            self.on_gpu[adapter] = version
            self._on_change(adapter, before, version)
        if adapter in self.awaited and version == self.on_storage(adapter):
            self.no_copy(adapter)

    def awaits(self, adapter: int, then: Callable[[], None]) -> None:
        """Call ``then`` once the version on storage reaches the GPU, or no older copy is left."""
        self.awaited.setdefault(adapter, []).append(then)

    def no_copy(self, adapter: int) -> None:
        """Note that no copy is older than the version on storage."""
        for then in self.awaited.pop(adapter, ()):
            then()

    def forget(self) -> None:
        """Note that the replica has lost all its copies: it loads from storage from now on."""
        self.on_gpu, self.in_host = dict(self.files), dict(self.files)
        self._reading, self.awaited = {}, {}


class HostLoadVersions(WeightVersions):
    """Tracks versions through loads to host memory that precede those to the GPU."""

    hears_loads = True

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._reading: dict[int, int] = {}

    def load_started(self, adapter: int, tier: int) -> None:
        self._reading[adapter] = self._versions.on_storage(adapter)

    def load_ended(self, adapter: int, tier: int) -> None:
        self._versions.in_host[adapter] = self._reading.pop(adapter)


class DuplicateVersionBytes:
    """Bytes of residents, over all replicas, whose replica also holds a newer version of the same adapter.

    :param original: by number in the caches, the number in the traffic, which all versions of an adapter share. Later
        versions have higher numbers.
    :param concerned: adapters, as numbered in the traffic, that will have several versions.
    :ivar peak: most bytes so far.
    """

    def __init__(self, original: Sequence[int], size_bytes: Sequence[int], concerned: set[int]) -> None:
        self._original = original
        self._sizes = size_bytes
        self._concerned = concerned
        self._there: dict[tuple[int, int], set[int]] = {}
        self._bytes = 0
        self.peak = 0

    def placed(self, adapter: int, replica: int) -> None:
        """Note that an adapter has taken its room on a replica."""
        name = self._original[adapter]
        if name in self._concerned:
            there = self._there.setdefault((replica, name), set())
            before = self._extra(there)
            there.add(adapter)
            self._bytes += self._extra(there) - before
            self.peak = max(self.peak, self._bytes)

    def left(self, adapter: int, replica: int) -> None:
        """Note that an adapter has left a replica."""
        there = self._there.get((replica, self._original[adapter]))
        if there is not None:
            before = self._extra(there)
            there.discard(adapter)
            self._bytes += self._extra(there) - before

    def forget(self, replica: int) -> None:
        """Forget all adapters of a replica that has crashed."""
        for of_replica, name in list(self._there):
            if of_replica == replica:
                self._bytes -= self._extra(self._there.pop((of_replica, name)))

    def _extra(self, there: set[int]) -> int:
        return sum(self._sizes[adapter] for adapter in there) - self._sizes[max(there)] if len(there) > 1 else 0
