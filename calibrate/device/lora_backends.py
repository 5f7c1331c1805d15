"""How adapters are applied to a linear layer: ``y[t] += B[slot(t)] · A[slot(t)] · x[t]``, in several ways.

Every backend takes the same stacked slots: A of shape (slots, max rank, d_in), B of shape (slots, d_out, max rank),
rows and columns beyond an adapter's rank zero. Only ``loop`` knows an adapter's own rank; the others multiply the
padding too, as serving engines do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)

from sim.errors import InputError


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


# The LoRA kernels of an installed vLLM, called as its ``PunicaWrapperGPU`` calls them.
#
# Written against ``vllm.lora.ops.triton_ops`` of vLLM 0.8.5 to 0.32, which have it under one name with two signatures:
# ``LoRAKernelMeta.meta_args(tokens)`` and, later, ``meta_args(tokens, specialize_active_lora)``. What it returns goes
# to both kernels as it is. Any other signature is refused.
#
# Modules that vLLM packs (q, k and v; gate and up) are one launch, whichever of them adapters target: the others' slots
# hold zeros.

SUPPORTED = "0.8.5 to 0.32"
_MAKE = ("max_loras", "max_num_tokens", "device")
_META_ARGS = (("self", "token_nums"), ("self", "token_nums", "specialize_active_lora"))
_POINTERS = ("_LORA_A_PTR_DICT", "_LORA_B_PTR_DICT")
_SCALE = 1.0

Slots = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""A (slots, max rank, d_in) and B (slots, d_out, max rank) of modules that are packed into one layer."""


class VllmKernels:
    """Shrink and expand of an installed vLLM."""

    def __init__(self) -> None:
        """Import vLLM.

        :raises InputError: where it is missing, or its kernels have another signature.
        """
        try:
            vllm = import_module("vllm")
            triton_ops = import_module("vllm.lora.ops.triton_ops")
            utils = import_module("vllm.lora.ops.triton_ops.utils")
        except ImportError as error:
            raise InputError(
                "vLLM's LoRA kernels can't be imported",
                key="--backend",
                got="vllm",
                allowed=f"vLLM {SUPPORTED} in this environment",
                hint=f"{str(error).splitlines()[0]}; or leave this backend out",
            ) from None
        self.version = str(getattr(vllm, "__version__", "unknown"))
        self._utils = utils
        try:
            self._shrink, self._expand = triton_ops.lora_shrink, triton_ops.lora_expand
            self._meta = triton_ops.LoRAKernelMeta
            made = tuple(inspect.signature(self._meta.make).parameters)[: len(_MAKE)]
            args = tuple(inspect.signature(self._meta.meta_args).parameters)
            known = made == _MAKE and args in _META_ARGS and all(hasattr(utils, name) for name in _POINTERS)
        except (AttributeError, TypeError, ValueError):
            known, args = False, ()
        if not known:
            raise InputError(
                "this version of vLLM calls its LoRA kernels in a way that is not supported",
                key="--backend",
                got=f"vllm {self.version}",
                allowed=f"vLLM {SUPPORTED}",
                hint="leave this backend out",
            )
        self._more: tuple[Any, ...] = (False,) if len(args) == len(_META_ARGS[1]) else ()
        self._kept: list[dict[Any, Any]] = []
        self._zeroes: bool | None = None

    def prepare(self, routing: Routing, tokens: int) -> tuple[Any, ...]:
        """Return what both kernels need to know of a batch: vLLM computes it once a step, outside of CUDA graphs.

        vLLM keeps strides by the address of a layer's slots. Ours lie at one address whatever their number and rank,
        so its notes are put aside; they stay alive, since a captured graph may still read them.
        """
        for name in _POINTERS:
            notes = getattr(self._utils, name)
            self._kept.append(dict(notes))
            notes.clear()
        device = routing.order.device
        slot_of_token = torch.full((tokens,), -1, dtype=torch.int64, device=device)
        slot_of_token[routing.order] = routing.slots
        meta = self._meta.make(len(routing.ends), tokens, device=device)
        meta.prepare_tensors(slot_of_token)
        return tuple(meta.meta_args(tokens, *self._more))

    def apply(self, y: torch.Tensor, x: torch.Tensor, slots: Slots, prepared: tuple[Any, ...]) -> None:
        """Add the adapters' part of one packed layer into ``y``, in place.

        :param y: (tokens, d_out of all modules together), contiguous.
        """
        a, b = tuple(a for a, _ in slots), tuple(b for _, b in slots)
        shape = (len(slots), x.shape[0], a[0].shape[1])
        empty = torch.empty if self._zeroed_by_kernel(x, a, prepared) else torch.zeros
        hidden = empty(shape, dtype=torch.float32, device=x.device)
        self._shrink(x, a, hidden, *prepared, _SCALE)
        self._expand(hidden, b, y, *prepared, offset_start=0, add_inputs=True)

    def _zeroed_by_kernel(self, x: torch.Tensor, a: tuple[torch.Tensor, ...], prepared: tuple[Any, ...]) -> bool:
        """Return whether shrink clears its output itself, as later versions do; older ones add to what is there."""
        if self._zeroes is None:
            hidden = torch.ones(len(a), x.shape[0], a[0].shape[1], dtype=torch.float32, device=x.device)
            self._shrink(torch.zeros_like(x), a, hidden, *prepared, _SCALE)
            routed = prepared[0] >= 0
            self._zeroes = bool((hidden[:, routed] == 0).all())
        return self._zeroes


@lru_cache(maxsize=1)
def vllm_kernels() -> VllmKernels:
    """Return the kernels of the installed vLLM.

    :raises InputError: where it is missing, or its kernels have another signature.
    """
    return VllmKernels()


def check_vllm(device: torch.device) -> str:
    """Check that vLLM's kernels can run; return its version.

    :raises InputError: where they can't.
    """
    if device.type != "cuda":
        raise InputError(
            "vLLM's kernels need a GPU with CUDA",
            key="--backend",
            got=f"vllm on {device.type}",
            hint="leave this backend out, or give --device cuda",
        )
    return vllm_kernels().version
