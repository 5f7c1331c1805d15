"""How adapters are applied to a linear layer: ``y[t] += B[slot(t)] · A[slot(t)] · x[t]``, in several ways.

Every backend takes the same stacked slots: A of shape (slots, max rank, d_in), B of shape (slots, d_out, max rank),
rows and columns beyond an adapter's rank zero. Only ``loop`` knows an adapter's own rank; the others multiply the
padding too, as serving engines do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)


@dataclass(frozen=True, slots=True)
class Routing:
    """Which slot each token of a batch uses.

    :ivar order: (tokens with an adapter,) their places, sorted by slot.
    :ivar slots: (the same,) their slots, sorted.
    :ivar ends: (slots,) int32, where each slot's tokens end in ``order``.
    :ivar segments: (slot, first, end, rank) of each distinct adapter, in places of ``order``.
    :ivar sequences: (first token, sequences, tokens of each, slots of the sequences) of each group of equal sequences.
    :ivar tiles: (tiles, 3) int32: slot, first and end place of ``order``, at most ``TILE`` tokens each.
    """

    order: torch.Tensor
    slots: torch.Tensor
    ends: torch.Tensor
    segments: tuple[tuple[int, int, int, int], ...]
    sequences: tuple[tuple[int, int, int, torch.Tensor], ...]
    tiles: torch.Tensor


TILE = 16
"""Tokens that one program of the Triton kernels takes: the least that its matrix product works on."""


def route(
    groups: Sequence[tuple[int, int, Sequence[int]]], ranks: dict[int, int], slots: int, device: torch.device
) -> Routing:
    """Lay out a batch.

    :param groups: (sequences, new tokens of each, slot of each sequence; -1 for none) in the order of the batch's
        tokens. Within a group all have an adapter or none has.
    :param ranks: each used slot's rank.
    :param slots: slots of the server.
    """
    slot_of_token: list[int] = []
    sequences = []
    for count, new, chosen in groups:
        if chosen and chosen[0] >= 0:
            index = torch.tensor(chosen, dtype=torch.int64, device=device)
            sequences.append((len(slot_of_token), count, new, index))
        slot_of_token += [slot for slot in chosen for _ in range(new)]
    placed = sorted((slot, token) for token, slot in enumerate(slot_of_token) if slot >= 0)
    segments, tiles, ends = [], [], []
    at = 0
    for slot in range(slots):
        first = at
        while at < len(placed) and placed[at][0] == slot:
            at += 1
        ends.append(at)
        if at > first:
            segments.append((slot, first, at, ranks[slot]))
            tiles += [(slot, start, min(start + TILE, at)) for start in range(first, at, TILE)]
    return Routing(
        order=torch.tensor([token for _, token in placed], dtype=torch.int64, device=device),
        slots=torch.tensor([slot for slot, _ in placed], dtype=torch.int64, device=device),
        ends=torch.tensor(ends, dtype=torch.int32, device=device),
        segments=tuple(segments),
        sequences=tuple(sequences),
        tiles=torch.tensor(tiles, dtype=torch.int32, device=device).reshape(-1, 3),
    )


Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Routing], None]
"""Adds into ``y`` (tokens, d_out), in place: ``(y, x, a, b, routing)``."""

TOLERANCE = 1e-2
"""Relative error against float32 that bf16 operands may have; NaN never passes."""


def apply_loop(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, routing: Routing) -> None:
    """Apply one adapter after the other, each with its own rank: the oracle."""
    for slot, first, end, rank in routing.segments:
        tokens = routing.order[first:end]
        hidden = x[tokens] @ a[slot, :rank].T
        y.index_add_(0, tokens, hidden @ b[slot, :, :rank].T)


def apply_grouped_mm(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, routing: Routing) -> None:
    """Sort tokens by slot, and let one grouped matrix product go over all slots: the reference path."""
    hidden = F.grouped_mm(x[routing.order], a.transpose(1, 2), offs=routing.ends)
    y.index_add_(0, routing.order, F.grouped_mm(hidden, b.transpose(1, 2), offs=routing.ends))


def apply_bmm(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, routing: Routing) -> None:
    """Gather a copy of A and B for every sequence, and multiply in batches."""
    for first, count, new, slots in routing.sequences:
        here = slice(first, first + count * new)
        hidden = torch.bmm(x[here].view(count, new, -1), a[slots].transpose(1, 2))
        y[here] += torch.bmm(hidden, b[slots].transpose(1, 2)).reshape(count * new, -1)


def apply_triton(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, routing: Routing) -> None:
    """Shrink and expand with two Triton kernels over tiles of tokens that share a slot."""
    from calibrate.device.triton_lora import expand, shrink

    expand(y, shrink(x, a, routing), b, routing)


def apply_vllm(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, routing: Routing) -> None:
    """Shrink and expand with the kernels of an installed vLLM, one module at a time; decoders pack modules."""
    from calibrate.device.vllm_lora import vllm_kernels

    kernels = vllm_kernels()
    kernels.apply(y, x, ((a, b),), kernels.prepare(routing, len(x)))


BACKENDS: dict[str, Apply] = {
    "grouped_mm": apply_grouped_mm,
    "bmm": apply_bmm,
    "loop": apply_loop,
    "triton": apply_triton,
    "vllm": apply_vllm,
}
REFERENCE = "grouped_mm"
PACKED = "vllm"
"""The backend that applies the modules of a packed layer together."""


def graphable(backend: str) -> bool:
    """Return whether a backend's launches stay the same from step to step, so that a graph can replay them."""
    return backend in ("grouped_mm", "bmm", "triton", PACKED)


def check(backend: str, device: torch.device, dtype: torch.dtype, seed: int) -> float:
    """Compare a backend with the loop in float32 on fresh random inputs; return the largest relative error.

    The error is ``|out - ref| / |ref|`` over all of y. Batches: decodes that share adapters, a long prompt, both
    at once with tokens that have no adapter; empty slots throughout.
    """
    draw = torch.Generator().manual_seed(seed)
    worst = 0.0
    groups = ((5, 1, (0, 2, 5, 2, 0)), (1, 33, (2,)), (2, 1, (-1, -1)))
    for d_in, d_out, max_rank in ((64, 128, 8), (128, 64, 32)):
        slots, ranks = 6, {0: max_rank, 2: max_rank // 2, 5: max_rank}
        for batch in (groups[:1], groups[1:2], groups):
            routing = route(batch, ranks, slots, device)
            tokens = sum(count * new for count, new, _ in batch)
            a = torch.randn(slots, max_rank, d_in, generator=draw)
            b = torch.randn(slots, d_out, max_rank, generator=draw)
            for slot, rank in ranks.items():
                a[slot, rank:], b[slot, :, rank:] = 0, 0
            x, y = torch.randn(tokens, d_in, generator=draw), torch.randn(tokens, d_out, generator=draw)
            a, b, x, y = (tensor.to(dtype).to(device) for tensor in (a, b, x, y))
            on_cpu = route(batch, ranks, slots, torch.device("cpu"))
            reference = y.float().cpu().clone()  # in float32 on the CPU it would else be y itself
            apply_loop(reference, x.float().cpu(), a.float().cpu(), b.float().cpu(), on_cpu)
            BACKENDS[backend](y, x, a, b, routing)
            error = (y.float().cpu() - reference).norm() / reference.norm()
            worst = max(worst, float(error)) if bool(torch.isfinite(error)) else float("inf")
    return worst
