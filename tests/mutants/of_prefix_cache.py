"""Mistakes in prefix caching: ``sim/policies/kv/prefix_store.py`` and ``extents.py``."""

from __future__ import annotations

from mutant import Mutant

TWIN = "tests/property/test_prefix_twin.py"

_EXTENTS = "sim/policies/kv/extents.py"
_STORE = "sim/policies/kv/prefix_store.py"

PREFIX_CACHE = (
    Mutant(
        "adapters-share-blocks",
        _STORE,
        "if base else (request.adapter, key, 0))",
        "if base else (0, key, 0))",
        "requests with the same text but other adapters find each other's blocks",
        (TWIN,),
    ),
    Mutant(
        "last-token-may-be-cached",
        _STORE,
        "self._walk(request, path, (request.to_prefill - 1) // self.size)",
        "self._walk(request, path, request.to_prefill // self.size)",
        "a request whose whole prompt is cached has nothing to compute",
        (TWIN,),
    ),
    Mutant(
        "unused-hits-need-no-room",
        _STORE,
        "                    idle += end - extent.cover\n        left",
        "                    idle += 0\n        left",
        "cached blocks without a user are taken although they count as free",
        (TWIN,),
    ),
    Mutant(
        "younger-twin-is-found",
        _STORE,
        "extent = twins[0]",
        "extent = twins[-1]",
        "of two equal blocks the younger one is shared",
        (TWIN,),
    ),
    Mutant(
        "twins-are-merged",
        _STORE,
        "            if known:\n                # The two",
        "            if known and False:\n                # The two",
        "a block that is filled a second time replaces the first",
        (TWIN,),
    ),
    Mutant(
        "ended-in-any-order",
        _STORE,
        "requests = sorted(requests, key=self._place_of)",
        "requests = sorted(requests, key=self._place_of, reverse=True)",
        "requests that end in one step free their blocks in another order",
        (TWIN,),
    ),
    Mutant(
        "first-block-freed-first",
        _STORE,
        "for extent, end in reversed(spans):",
        "for extent, end in spans:",
        "the blocks that are shared most are evicted first",
        (TWIN,),
    ),
    Mutant(
        "answers-are-not-found",
        _STORE,
        "if request.text_key >= 0 or last_step != self._step:",
        "if last_step != self._step:",
        "the next turn of a conversation does not find the answer before it",
        (TWIN,),
    ),
    Mutant(
        "preempted-look-nothing-up",
        _STORE,
        "if not request.shared and request.text_key < 0 and not request.preemptions:",
        "if not request.shared and request.text_key < 0:",
        "a request that comes back computes again what is still there",
        (TWIN,),
    ),
    Mutant(
        "evicted-too-late",
        _STORE,
        "            self.settle()\n        if len(requests) > 1",
        "            pass\n        if len(requests) > 1",
        "blocks become free before the ones that decodes took are evicted",
        (TWIN,),
    ),
    Mutant(
        "uncached-first-in-old-versions",
        _STORE,
        "            if self._uncached_last:\n                self._append(Segment(None, 0, 1, False))\n",
        "",
        "before 0.23 blocks without content go to the end of the free queue",
        (TWIN,),
    ),
    Mutant(
        "reserved-block-is-lost",
        _STORE,
        "if self._reserved and tokens % size == 0:",
        "if self._reserved and tokens % size < 0:",
        "a preempted decode keeps the block that it would have taken",
        (TWIN,),
    ),
    Mutant(
        "cover-shrinks-too-far",
        _EXTENTS,
        "self.cover = max(users) if users else self.first",
        "self.cover = self.first",
        "blocks become free that another request still uses",
        (TWIN,),
    ),
    Mutant(
        "free-blocks-found-but-not-taken-out",
        _STORE,
        "                segment.first = end\n                return\n",
        "                return\n",
        "a block is in use and in the free queue",
        (TWIN,),
    ),
    Mutant(
        "overlapping-turns-fill-the-same-blocks",
        _STORE,
        "            if other.first == end:\n",
        "            if other.first < 0:\n",
        "a turn that ends after a later one fills blocks that are known already",
        (TWIN,),
    ),
)
