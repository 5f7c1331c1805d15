"""Routers that send a request where its adapter is: by what is in GPU memory, or by what runs."""

from __future__ import annotations

from typing import ClassVar

from sim.policies.routing.protocol import Setting, load_limit
from sim.rng import luck

_MOST_MASKS = 1 << 16


class ByResidency:
    """A replica that has the adapter in GPU memory, or is loading it; else the least loaded.

    Of several that have it, the one with the fewest requests, the first of equal ones; with a bound, only if it is not
    full. Where nobody has it, equally loaded replicas are drawn by the request's luck. Always taking the first would
    send every new adapter to replica 0 as long as traffic is light, and thrash its cache beside empty ones. Drawing
    gives all replicas the same rate of insertions, so that their caches together work as one of their total size.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"loads", "resident"})

    def __init__(self, setting: Setting) -> None:
        self._view = setting.view
        self._replicas = setting.replicas
        self._bound = setting.bound
        self._key = setting.key
        self._holders: dict[int, tuple[int, ...]] = {}  # the replicas in a mask, for masks seen before
        self._up: list[int] = []  # those up when some were down last, and their mask
        self._up_mask = 0

    def choose(self, adapter: int, number: int) -> int:
        view = self._view
        loads, up = view.loads, view.up
        mask = view.resident[adapter]
        if len(up) < self._replicas:
            mask &= self._mask(up)
        if mask:
            if mask & (mask - 1):
                chosen = min(self._holders.get(mask) or self._listed(mask), key=loads.__getitem__)
            else:
                chosen = mask.bit_length() - 1
            if self._bound is None or loads[chosen] < load_limit(self._bound, loads, up):
                return chosen
        return self._spread(loads, up, number)

    def _spread(self, loads: list[int], up: list[int], number: int) -> int:
        """Return one of the least loaded, by luck."""
        if len(up) < self._replicas:
            least = min(map(loads.__getitem__, up))
            candidates = [replica for replica in up if loads[replica] == least]
            return candidates[int(luck(self._key, number) * len(candidates))]
        least = min(loads)
        chosen, equal = loads.index(least), loads.count(least)
        if equal > 1:
            for _ in range(int(luck(self._key, number) * equal)):
                chosen = loads.index(least, chosen + 1)
        return chosen

    def _listed(self, mask: int) -> tuple[int, ...]:
        if len(self._holders) >= _MOST_MASKS:
            self._holders.clear()
        holders = self._holders[mask] = tuple(r for r in range(self._replicas) if mask >> r & 1)
        return holders

    def _mask(self, up: list[int]) -> int:
        if up != self._up:
            self._up = up.copy()
            self._up_mask = sum(1 << replica for replica in up)
        return self._up_mask


class ByActivity:
    """The replica with the highest score for the adapter; of several, one by the request's luck.

    The scores are those of the LoRA affinity scorer (llm-d/llm-d-router, ``pkg/epp/framework/plugins/scheduling/scorer/
    loraaffinity/lora_affinity.go``, since its pull request 2625; it came from the Gateway API Inference Extension): 1.0
    where the adapter runs; 0.8 where fewer adapters run or wait than the replica can run; 0.6 where the adapter waits;
    0.0 elsewhere. It sees requests, not residents: an idle resident counts for nothing.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"running", "inside"})

    def __init__(self, setting: Setting) -> None:
        self._view = setting.view
        self._key = setting.key
        self._known: dict[int, list[int]] = {}  # by adapter, its best replicas at this reading
        self._reading = 0

    def choose(self, adapter: int, number: int) -> int:
        view = self._view
        if view.reading != self._reading or not view.reading:
            self._known.clear()
            self._reading = view.reading
        best = self._known.get(adapter)
        if best is None:
            best = self._known[adapter] = self._best(adapter)
        return best[0] if len(best) == 1 else best[int(luck(self._key, number) * len(best))]

    def _best(self, adapter: int) -> list[int]:
        view = self._view
        up, running, inside = view.up, view.running, view.inside
        if len(up) == len(running):  # the same lists, sooner
            active = [r for r, adapters in enumerate(running) if adapter in adapters]
        else:
            active = [r for r in up if adapter in running[r]]
        if active:
            return active
        slots = view.slots
        return [r for r in up if len(inside[r]) < slots] or [r for r in up if adapter in inside[r]] or up.copy()
