"""Shrink (x·Aᵀ) and expand (·Bᵀ) as Triton kernels: one program for each tile of tokens that share a slot.

Triton is optional. Without a GPU the kernels run in its interpreter (``TRITON_INTERPRET=1``), slowly, for tests.
"""

# ruff: noqa: N803 (constants of Triton kernels are in upper case)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from calibrate.device.lora_backends import Routing

_BLOCK = 64
_TOKENS = 16


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _shrink(
    x: Any,
    a: Any,
    hidden: Any,
    order: Any,
    tiles: Any,
    d_in: Any,
    rank: Any,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    tile = tl.program_id(0)
    slot = tl.load(tiles + 3 * tile).to(tl.int64)
    place = tl.load(tiles + 3 * tile + 1) + tl.arange(0, TOKENS)
    inside = place < tl.load(tiles + 3 * tile + 2)
    token = tl.load(order + place, mask=inside, other=0)
    row = tl.arange(0, RANK)
    total = tl.zeros((TOKENS, RANK), dtype=tl.float32)
    for start in range(0, d_in, BLOCK):
        column = start + tl.arange(0, BLOCK)
        left = tl.load(
            x + token[:, None] * d_in + column[None, :], mask=inside[:, None] & (column < d_in)[None, :], other=0.0
        )
        right = tl.load(
            a + (slot * rank + row[None, :]) * d_in + column[:, None],
            mask=(row < rank)[None, :] & (column < d_in)[:, None],
            other=0.0,
        )
        total += tl.dot(left, right)
    tl.store(
        hidden + place[:, None] * rank + row[None, :],
        total.to(hidden.dtype.element_ty),
        mask=inside[:, None] & (row < rank)[None, :],
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _expand(
    hidden: Any,
    b: Any,
    y: Any,
    order: Any,
    tiles: Any,
    d_out: Any,
    rank: Any,
    stride: Any,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    tile = tl.program_id(0)
    slot = tl.load(tiles + 3 * tile).to(tl.int64)
    place = tl.load(tiles + 3 * tile + 1) + tl.arange(0, TOKENS)
    inside = place < tl.load(tiles + 3 * tile + 2)
    token = tl.load(order + place, mask=inside, other=0)
    row = tl.arange(0, RANK)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(
        hidden + place[:, None] * rank + row[None, :], mask=inside[:, None] & (row < rank)[None, :], other=0.0
    )
    right = tl.load(
        b + (slot * d_out + column[None, :]) * rank + row[:, None],
        mask=(row < rank)[:, None] & (column < d_out)[None, :],
        other=0.0,
    )
    here = y + token[:, None] * stride + column[None, :]
    there = inside[:, None] & (column < d_out)[None, :]
    total = tl.load(here, mask=there, other=0.0).to(tl.float32) + tl.dot(left, right)
    tl.store(here, total.to(y.dtype.element_ty), mask=there)


def shrink(x: torch.Tensor, a: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Return ``x[order] · A[slot]ᵀ``, shape (tokens with an adapter, max rank), in x's number format."""
    rank, d_in = a.shape[1], a.shape[2]
    hidden = torch.empty(len(routing.order), rank, dtype=x.dtype, device=x.device)
    tensors = (x.contiguous(), a, hidden, routing.order, routing.tiles)
    _shrink[(len(routing.tiles),)](*tensors, d_in, rank, **_constants(rank))
    return hidden


def expand(y: torch.Tensor, hidden: torch.Tensor, b: torch.Tensor, routing: Routing) -> None:
    """Add ``hidden · B[slot]ᵀ`` to ``y[order]``, in place; y may be some columns of a wider tensor."""
    d_out, rank = b.shape[1], b.shape[2]
    tensors = (hidden, b, y, routing.order, routing.tiles)
    grid = (len(routing.tiles), triton.cdiv(d_out, _BLOCK))
    _expand[grid](*tensors, d_out, rank, y.stride(0), **_constants(rank))


def _constants(rank: int) -> dict[str, int]:
    return {"TOKENS": _TOKENS, "RANK": max(16, triton.next_power_of_2(rank)), "BLOCK": _BLOCK}
