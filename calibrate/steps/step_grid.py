"""Which steps are timed: batch size, distinct adapters, ranks, slots and KV vary independently of each other.

Public measurements let some of them rise together (more adapters, more slots, fuller batches), so that a cost for every
distinct adapter and a factor on the step's time can't be separated. Here each varies alone around a centre, then all at
random (a Latin hypercube), and a far corner is left for checking what a fit says beyond its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from calibrate.device.lora_backends import REFERENCE, graphable
from calibrate.samples import Configuration
from calibrate.steps.decoder import SequenceGroup
from sim.traffic.adapters import MODULES, ModelShape

Kind = Literal["decode", "prefill", "mixed", "head"]
PARTS = {
    "base-decode": "decodes without LoRA, over batch size and context",
    "lora-decode": "decodes with LoRA by the first backend, over adapters, slots and ranks",
    "prefill": "prompts and mixed steps, with LoRA by the first backend and without",
    "backends": "LoRA by the other backends",
    "eager": "decodes that are also timed as CUDA graphs, launched one by one",
}
"""Parts of the grid, the most telling first: a fit needs the first three."""
CAPTURE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Batch sizes that are captured as CUDA graphs, as vLLM captures them (in steps of 8 there)."""


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One batch to be timed.

    :ivar groups: sequences, decoding ones first.
    :ivar distinct: distinct adapters in the batch; 0: LoRA is off.
    :ivar slots: adapter slots of the server, each padded to ``max_rank``.
    :ivar ranks: assigned to the distinct adapters in turn.
    :ivar graph: replayed as a CUDA graph; eager otherwise.
    """

    kind: Kind
    groups: tuple[SequenceGroup, ...]
    distinct: int = 0
    slots: int = 0
    max_rank: int = 0
    ranks: tuple[int, ...] = ()
    targets: tuple[str, ...] = MODULES
    backend: str = REFERENCE
    graph: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of the step."""
        return sum(group.count * group.new for group in self.groups)

    @property
    def sequences(self) -> int:
        """Sequences of the step."""
        return sum(group.count for group in self.groups)

    @property
    def kv_tokens(self) -> int:
        """KV tokens that the step holds, its own included."""
        return sum(group.count * (group.context + group.new) for group in self.groups)

    @property
    def slot_ranks(self) -> int:
        """What LoRA memory grows with."""
        return self.slots * self.max_rank

    def adapters(self) -> list[list[int]]:
        """Return the slot of every sequence, by group: the distinct adapters in turn, in random slots."""
        if not self.distinct:
            return [[-1] * group.count for group in self.groups]
        used = np.random.default_rng(self.slots).permutation(self.slots)[: self.distinct].tolist()
        at, assigned = 0, []
        for group in self.groups:
            assigned.append([used[(at + index) % self.distinct] for index in range(group.count)])
            at += group.count
        return assigned

    def rank_of_slot(self) -> dict[int, int]:
        """Return the rank of each used slot, in the order in which they are assigned."""
        order = dict.fromkeys(slot for group in self.adapters() for slot in group if slot >= 0)
        return {slot: self.ranks[index % len(self.ranks)] for index, slot in enumerate(order)}

    def configuration(self) -> Configuration:
        """Return what names it and everything that a fit must know."""
        decode = [group for group in self.groups if group.new == 1]
        prompts = [group for group in self.groups if group.new > 1]
        parameters = {
            "tokens": self.tokens,
            "sequences": self.sequences,
            "decode_kv_tokens": sum(group.count * (group.context + 1) for group in decode),
            "prefill_tokens": sum(group.count * group.new for group in prompts),
            "attended": sum(g.count * g.new * (g.context + (g.new + 1) / 2) for g in prompts),
            "distinct": self.distinct,
            "slots": self.slots,
            "max_rank": self.max_rank,
            "rank_sum": sum(self.rank_of_slot().values()),
            "rank_tokens": self._token_ranks(),
            "targets": ",".join(self.targets) if self.distinct else "",
            "backend": self.backend if self.distinct else "",
            "graph": self.graph,
        }
        return Configuration(self._key(), self.kind, parameters)

    def work(self, shape: ModelShape, layers: int, width: int) -> tuple[int, int]:
        """Return the fewest bytes that a step must move and the operations that it must do.

        Each weight, adapter of the batch and KV token is read once; hidden states stay in caches.

        :param width: bytes of a number.
        """
        head = shape.vocab * shape.hidden
        if self.kind == "head":
            return width * head, 2 * self.sequences * head
        linear, ranks = shape.linear_parameters(), self.rank_of_slot()
        per_rank = sum(sum(shape.module(name)) for name in self.targets)
        token_ranks = self._token_ranks()
        pairs = sum(group.count * group.new * (group.context + (group.new + 1) / 2) for group in self.groups)
        kv_numbers = 2 * self.kv_tokens * shape.kv_heads * shape.head_dim
        moved = width * (layers * (linear + per_rank * sum(ranks.values()) + kv_numbers) + head)
        of_layer = self.tokens * linear + per_rank * token_ranks + 2 * pairs * shape.heads * shape.head_dim
        return int(moved), int(2 * (layers * of_layer + self.sequences * head))

    def _token_ranks(self) -> int:
        ranks, assigned = self.rank_of_slot(), zip(self.groups, self.adapters(), strict=True)
        return sum(group.new * ranks[slot] for group, slots in assigned for slot in slots if slot >= 0)

    def _key(self) -> str:
        batch = "+".join(f"{group.count}x{group.new}@{group.context}" for group in self.groups)
        how = "graph" if self.graph else "eager"
        if not self.distinct:
            return f"{self.kind} {batch} base {how}"
        ranks = "/".join(map(str, self.ranks))
        targets = "all-linear" if self.targets == MODULES else ",".join(self.targets)
        return (
            f"{self.kind} {batch} d{self.distinct} r{ranks} of {self.max_rank} s{self.slots} {targets} "
            f"{self.backend} {how}"
        )


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a grid reaches.

    :ivar kv_tokens: the most KV tokens of a step; ``slot_ranks``: the most slots times rank.
    """

    batches: Sequence[int]
    contexts: Sequence[int]
    distinct: Sequence[int]
    slots: Sequence[int]
    ranks: Sequence[int]
    prompts: Sequence[int]
    random: int
    kv_tokens: int
    slot_ranks: int


FULL = Extent(
    batches=CAPTURE_SIZES,
    contexts=(128, 512, 2048, 8192),
    distinct=(1, 2, 4, 8, 16, 32, 64, 128),
    slots=(8, 32, 64, 128, 256),
    ranks=(8, 16, 32, 64),
    prompts=(16, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    random=60,
    kv_tokens=160_000,
    slot_ranks=256 * 16,
)
QUICK = Extent(
    batches=(1, 8, 32, 64),
    contexts=(64, 512),
    distinct=(1, 4, 16),
    slots=(8, 32),
    ranks=(8, 32),
    prompts=(16, 128, 1024),
    random=12,
    kv_tokens=40_000,
    slot_ranks=32 * 32,
)


def make_grid(extent: Extent, backends: Sequence[str], *, graphs: bool, seed: int = 1) -> list[StepSpec]:
    """Return the steps to be timed, none twice, all within the extent's memory.

    :param backends: the first is timed on everything; the others on the sweeps around the centre.
    :param graphs: whether the device replays graphs: decodes are then timed both as graphs and eagerly.
    """
    specs = [*_base(extent), *_sweeps(extent, backends[0]), *_random(extent, backends[0], seed)]
    specs.append(_corner(extent, backends[0]))
    specs += [replace(one, backend=other) for other in backends[1:] for one in _sweeps(extent, other, short=True)]
    specs = [replace(one, backend=one.backend if one.distinct else REFERENCE) for one in specs]
    if graphs:
        specs += [
            replace(one, graph=True)
            for one in specs
            if one.kind == "decode" and one.sequences in CAPTURE_SIZES and (not one.distinct or graphable(one.backend))
        ]
    fits = [one for one in specs if one.kv_tokens <= extent.kv_tokens and one.slot_ranks <= extent.slot_ranks]
    return list({one._key(): one for one in fits}.values())


def heads(specs: Sequence[StepSpec]) -> list[StepSpec]:
    """Return the output heads of the batch sizes in a grid: what is not scaled where fewer layers are timed."""
    sizes = sorted({one.sequences for one in specs})
    return [StepSpec("head", (SequenceGroup(size, 1, 0),)) for size in sizes]


def parts_of(specs: Sequence[StepSpec], backend: str) -> dict[str, list[StepSpec]]:
    """Return each part's steps; every step is in one part.

    :param backend: the first one, which the profile is fitted to.
    """
    graphs = {replace(one, graph=False)._key() for one in specs if one.graph}
    found: dict[str, list[StepSpec]] = {part: [] for part in PARTS}
    for one in specs:
        twin = not one.graph and one._key() in graphs  # the same step is timed as a graph too
        found[_part_of(one, backend, twin=twin)].append(one)
    return found


def _part_of(one: StepSpec, backend: str, *, twin: bool) -> str:
    if one.distinct and one.backend != backend:
        return "backends"
    if twin:
        return "eager"
    if one.kind in ("prefill", "mixed"):
        return "prefill"
    return "lora-decode" if one.distinct else "base-decode"


def _decode(batch: int, context: int) -> tuple[SequenceGroup, ...]:
    return (SequenceGroup(batch, 1, context),)


def _prompts(count: int, tokens: int, context: int = 0) -> tuple[SequenceGroup, ...]:
    return (SequenceGroup(count, tokens, context),)


def _middle(values: Sequence[int]) -> int:
    return values[len(values) // 2]


def _centre(extent: Extent, backend: str) -> StepSpec:
    rank = extent.ranks[min(1, len(extent.ranks) - 1)]
    return StepSpec(
        "decode",
        _decode(_middle(extent.batches), extent.contexts[min(1, len(extent.contexts) - 1)]),
        _middle(extent.distinct) // 2,
        _middle(extent.slots),
        rank,
        (rank,),
        backend=backend,
    )


def _base(extent: Extent) -> list[StepSpec]:
    """Return steps without LoRA: decodes over batch and context, prompts, and both at once."""
    context = extent.contexts[min(1, len(extent.contexts) - 1)]
    specs = [StepSpec("decode", _decode(batch, length)) for batch in extent.batches for length in extent.contexts]
    specs += [StepSpec("prefill", _prompts(1, prompt)) for prompt in extent.prompts]
    specs += [
        StepSpec("prefill", _prompts(1, prompt, length))
        for prompt in extent.prompts[1::3]
        for length in extent.contexts[1:]
    ]
    specs += [StepSpec("prefill", _prompts(4, prompt)) for prompt in extent.prompts[1:-2]]
    specs += [
        StepSpec("mixed", (SequenceGroup(_middle(extent.batches), 1, context), SequenceGroup(1, prompt, 0)))
        for prompt in extent.prompts[1:-1]
    ]
    return specs


def _sweeps(extent: Extent, backend: str, *, short: bool = False) -> list[StepSpec]:
    """Return LoRA steps in which one thing at a time moves away from the centre."""
    centre = _centre(extent, backend)
    context = centre.groups[0].context
    large = max(batch for batch in extent.batches if batch * (context + 1) <= extent.kv_tokens)
    specs = [centre]
    specs += [
        replace(centre, groups=_decode(batch, context), distinct=min(centre.distinct, batch))
        for batch in extent.batches
    ]
    most = max(extent.slots)
    specs += [
        replace(centre, groups=_decode(large, context), distinct=count, slots=most)
        for count in extent.distinct
        if count <= min(large, most)
    ]
    specs += [replace(centre, kind="prefill", groups=_prompts(1, prompt), distinct=1) for prompt in extent.prompts]
    if short:
        return specs
    specs += [replace(centre, slots=slots, distinct=min(centre.distinct, slots)) for slots in extent.slots]
    specs += [replace(centre, max_rank=rank, ranks=(rank,)) for rank in extent.ranks]
    for padded in extent.ranks[1:]:
        lower = [rank for rank in extent.ranks if rank < padded]
        specs += [replace(centre, max_rank=padded, ranks=(rank,)) for rank in lower]
        specs.append(replace(centre, max_rank=padded, ranks=(*lower, padded)))
    specs += [replace(centre, groups=_decode(centre.sequences, length)) for length in extent.contexts]
    specs += [
        replace(centre, kind="prefill", groups=_prompts(4, prompt), distinct=count)
        for prompt in extent.prompts[1:-2]
        for count in (1, 4)
    ]
    specs += [
        replace(centre, kind="prefill", groups=_prompts(1, extent.prompts[-2]), distinct=1, slots=slots)
        for slots in extent.slots
    ]
    specs += [
        replace(centre, kind="mixed", groups=(*centre.groups, *_prompts(1, prompt))) for prompt in extent.prompts[1:-1]
    ]
    specs += [replace(centre, targets=targets) for targets in (("q", "v"), ("q", "k", "v", "o"))]
    return specs


def _random(extent: Extent, backend: str, seed: int) -> list[StepSpec]:
    """Return decodes at random: every factor's range is covered evenly, and no two factors move together."""
    from scipy.stats.qmc import LatinHypercube

    draws = LatinHypercube(d=5, rng=seed).random(extent.random)
    specs = []
    for batch_at, context_at, distinct_at, slots_at, rank_at in draws:
        batch, context = _pick(extent.batches, batch_at), _pick(extent.contexts, context_at)
        slots, rank = _pick(extent.slots, slots_at), _pick(extent.ranks, rank_at)
        slots = max((s for s in extent.slots if s <= slots and s * rank <= extent.slot_ranks), default=0)
        batch = max((b for b in extent.batches if b <= batch and b * (context + 1) <= extent.kv_tokens), default=0)
        if slots and batch:
            distinct = min(_pick(extent.distinct, distinct_at), batch, slots)
            specs.append(StepSpec("decode", _decode(batch, context), distinct, slots, rank, (rank,), backend=backend))
    return specs


def _corner(extent: Extent, backend: str) -> StepSpec:
    slots, context = max(extent.slots), extent.contexts[min(1, len(extent.contexts) - 1)]
    rank = max(rank for rank in extent.ranks if rank * slots <= extent.slot_ranks)
    batch = max(batch for batch in extent.batches if batch * (context + 1) <= extent.kv_tokens)
    distinct = min(max(extent.distinct), batch, slots)
    return StepSpec("decode", _decode(batch, context), distinct, slots, rank, (rank,), backend=backend)


def _pick(values: Sequence[int], at: float) -> int:
    return values[int(at * len(values))]
