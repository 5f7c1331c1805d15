"""Mistakes in prefix caching: ``sim/policies/kv/prefix_store.py`` and its neighbours."""

from __future__ import annotations

from mutant import Mutant

TWIN = "tests/property/test_prefix_twin.py"

_STORE = "sim/policies/kv/prefix_store.py"
_LOOKUP = "sim/policies/kv/prefix_lookup.py"
_KNOWN = "sim/policies/kv/known_blocks.py"
_QUEUE = "sim/policies/kv/free_queue.py"

PREFIX_CACHE = (
    Mutant(
        "adapters-share-blocks",
        _KNOWN,
        "if base else (request.adapter, key, 0), block)",
        "if base else (0, key, 0), block)",
        "requests with the same text but other adapters find each other's blocks",
        (TWIN,),
    ),
    Mutant(
        "last-token-may-be-cached",
        _LOOKUP,
        "limit = (request.to_prefill - 1) // size",
        "limit = request.to_prefill // size",
        "a request whose whole prompt is cached has nothing to compute",
        (TWIN,),
    ),
    Mutant(
        "unused-hits-need-no-room",
        _LOOKUP,
        "        self._found_idle = idle\n",
        "        self._found_idle = 0\n",
        "cached blocks without a user are taken although they count as free",
        (TWIN,),
    ),
    Mutant(
        "younger-twin-is-found",
        _KNOWN,
        "            *_, last = first.chain()\n            last.next = extent\n",
        "            extent.next, first.next = first.next, extent\n",
        "of two equal blocks the younger one is shared",
        (TWIN,),
    ),
    Mutant(
        "twins-are-merged",
        _STORE,
        "            if equal is not None:\n                # Equal",
        "            if equal is not None and False:\n                # Equal",
        "a block that is filled a second time replaces the first",
        (TWIN,),
    ),
    Mutant(
        "ended-in-any-order",
        _STORE,
        "requests = sorted(requests, key=_place)",
        "requests = sorted(requests, key=_place, reverse=True)",
        "requests that end in one step free their blocks in another order",
        (TWIN,),
    ),
    Mutant(
        "first-block-freed-first",
        _QUEUE,
        "extent, end = spans.pop()",
        "extent, end = spans.pop(0)",
        "the blocks that are shared most are evicted first",
        (TWIN,),
    ),
    Mutant(
        "answers-are-not-found",
        _STORE,
        "                spans = self._fill_turn(request, spans, full)\n",
        "                self._unfilled.pop(request.text_key, None)\n",
        "the next turn of a conversation does not find the answer before it",
        (TWIN,),
    ),
    Mutant(
        "preempted-look-nothing-up",
        _LOOKUP,
        "if shared or text >= 0 or request.preemptions else 0",
        "if shared or text >= 0 else 0",
        "a request that comes back computes again what is still there",
        (TWIN,),
    ),
    Mutant(
        "evicted-too-late",
        _STORE,
        "        if due > queue.due:\n            queue.due = due\n",
        "",
        "blocks become free before the ones that decodes took are evicted",
        (TWIN,),
    ),
    Mutant(
        "uncached-first-in-old-versions",
        _STORE,
        "                queue.append_uncached()\n",
        "                pass\n",
        "before 0.23 blocks without content go to the end of the free queue",
        (TWIN,),
    ),
    Mutant(
        "reserved-block-is-lost",
        _STORE,
        "            full = tokens // size\n            if self._uncached_last",
        "            full, freed = tokens // size, int(tokens % size > 0)\n            if self._uncached_last",
        "a preempted decode keeps the block that it would have taken",
        (TWIN,),
    ),
    Mutant(
        "preempted-before-decodes-take-theirs",
        _STORE,
        "        self._queue.note_free(self._free)  # decodes take their blocks before the request frees its own\n",
        "",
        "decodes take the blocks of the request that is preempted, and cached ones stay",
        (TWIN,),
    ),
    Mutant(
        "cover-shrinks-too-far",
        _QUEUE,
        "                cover = extent.cover = others.pop()\n",
        "                others.pop()\n                cover = extent.cover = extent.first\n",
        "blocks become free that another request still uses",
        (TWIN,),
    ),
    Mutant(
        "free-blocks-found-but-not-taken-out",
        _QUEUE,
        "                segment.first = end\n                return\n",
        "                return\n",
        "a block is in use and in the free queue",
        (TWIN,),
    ),
    Mutant(
        "overlapping-turns-fill-the-same-blocks",
        _STORE,
        "if extent.end != end or extent.twin or extent.next is not None or first[key] is not extent:\n",
        "if extent.twin or extent.next is not None or first[key] is not extent:\n",
        "a turn that ends after a later one takes its blocks for its own",
        (TWIN,),
    ),
    Mutant(
        "known-prompts-are-filled-again",
        _STORE,
        "if key not in known.first:",
        "if True:",
        "a prompt that another request has filled in the same step is no twin of it",
        (TWIN,),
    ),
    Mutant(
        "a-turn-overlooks-the-one-that-runs",
        _LOOKUP,
        "        if text in self._unfilled:\n            self.settle()\n            self._fill_text(text)\n",
        "",
        "a turn that comes before the last one has ended does not find its prompt",
        ("tests/unit/test_prefix_store.py",),
    ),
    Mutant(
        "cut-extents-change-places",
        _QUEUE,
        "for part in (rest, extent):",
        "for part in (extent, rest):",
        "the first blocks of a twin are evicted before the rest of it",
        ("tests/unit/test_prefix_store.py",),
    ),
    Mutant(
        "evicted-blocks-are-found",
        _QUEUE,
        "            self.note_free(free)\n            self.evict()\n        return end",
        "            pass\n        return end",
        "a request finds blocks that have been evicted",
        (TWIN,),
    ),
    Mutant(
        "due-blocks-are-found",
        _QUEUE,
        "if from_here_on > free or from_here_on > self.blocks - self.due:",
        "if from_here_on > free:",
        "a request finds blocks that were to be evicted when fewer were free than now",
        (TWIN,),
    ),
)
