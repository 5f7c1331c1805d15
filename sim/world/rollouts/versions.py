"""Which version of an adapter lies where, for rollouts that keep its name: on storage, in host memory, on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from sim.traffic.request import FROM_STORAGE


class LoadListener(Protocol):
    """What loaders tell of every load: ``reads`` when it begins, ``came`` at its end."""

    def load_started(self, adapter: int, tier: int) -> None: ...

    def load_ended(self, adapter: int, tier: int) -> None: ...


class Versions:
    """The versions of one replica. They only rise.

    :param born: version by adapter that it has from the start, where that isn't 1.
    :ivar files: version by adapter that loads from storage read here, where that isn't the one it was born with.
    :ivar on_gpu, in_host: version of the copy there, or of the last one that was there.
    :ivar awaited: what follows when the version on storage comes to the GPU, by adapter; several rollouts may wait.
    :ivar changed: called with adapter, old and new version when a newer version takes the place of an older one on the
        GPU, at a step boundary; requests under way go on with the new one.
    """

    def __init__(self, initial_versions: Mapping[int, int]) -> None:
        self._initial_versions = initial_versions
        self.files: dict[int, int] = {}
        self.awaited: dict[int, list[Callable[[], None]]] = {}
        self.on_gpu: dict[int, int] = {}
        self.in_host: dict[int, int] = {}
        self._reading: dict[int, int] = {}
        self.on_change: Callable[[int, int, int], None] = lambda adapter, old, new: None

    def of(self, adapter: int) -> int:
        """Return the version that requests are answered with."""
        return self.on_gpu.get(adapter) or self._initial_versions.get(adapter, 1)

    def on_storage(self, adapter: int) -> int:
        """Return the version that a load from storage reads."""
        return self.files.get(adapter) or self._initial_versions.get(adapter, 1)

    def load_started(self, adapter: int, tier: int) -> None:
        """Note that a load to the GPU begins: what it reads is what lies there now."""
        if adapter not in self.files:
            return  # it was never replaced: no need to write down what all copies are
        if tier == FROM_STORAGE:
            self._reading[adapter] = self.on_storage(adapter)
        else:
            self._reading[adapter] = self.in_host.get(adapter) or self._initial_versions.get(adapter, 1)

    def load_ended(self, adapter: int, tier: int) -> None:
        """Note that a load to the GPU has ended; one from storage leaves its copy in host memory, if there is some."""
        if adapter not in self.files:
            return
        version = self._reading.pop(adapter, 0) or self._initial_versions.get(adapter, 1)
        if tier == FROM_STORAGE:
            self.in_host[adapter] = version
        self.put(adapter, version)

    def put(self, adapter: int, version: int) -> None:
        """Note which version is on the GPU from now on."""
        before = self.of(adapter)
        if version > before:  # else a load that began before the swap ends after it
            self.on_gpu[adapter] = version
            self.on_change(adapter, before, version)
        if adapter in self.awaited and version == self.on_storage(adapter):
            self.no_copy(adapter)

    def awaits(self, adapter: int, then: Callable[[], None]) -> None:
        """Call ``then`` when the version on storage comes to the GPU, or no older copy is left."""
        self.awaited.setdefault(adapter, []).append(then)

    def no_copy(self, adapter: int) -> None:
        """Note that there is no copy older than the version on storage."""
        for then in self.awaited.pop(adapter, ()):
            then()

    def forget(self) -> None:
        """Note that the replica has lost all its copies: what it loads from now on comes from storage."""
        self.on_gpu, self.in_host = dict(self.files), dict(self.files)
        self._reading, self.awaited = {}, {}


class HostLoadListener:
    """The same for loads to host memory that come before those to the GPU."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._reading: dict[int, int] = {}

    def load_started(self, adapter: int, tier: int) -> None:
        self._reading[adapter] = self._versions.on_storage(adapter)

    def load_ended(self, adapter: int, tier: int) -> None:
        self._versions.in_host[adapter] = self._reading.pop(adapter)
