"""A decoder stack with the shapes of a real model, random weights, LoRA on its linear layers: what steps are made of.

It computes what a Llama-like model computes in one step (RMSNorm, q/k/v, rotary positions, attention over a KV cache,
o, gate/up, SwiGLU, down, and the output head on the last token of each sequence), so its time is that of the real
thing on the same kernels. Its output is meaningless: weights are random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention.bias import causal_lower_right

from calibrate.device.lora_backends import BACKENDS, PACKED, Routing, vllm_kernels
from sim.traffic.adapters import MODULES, ModelShape

_NORM_EPS = 1e-5
_ROPE_BASE = 10_000.0


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """Sequences of a batch that have equally many tokens.

    :ivar count: sequences; ``new``: tokens of each in this step; ``context``: tokens of each in the KV cache before it.
    """

    count: int
    new: int
    context: int


Groups = Sequence[SequenceGroup]
"""The sequences of one step, decoding ones first."""


@dataclass(frozen=True, slots=True)
class Lora:
    """How adapters are applied in a step: by which backend, to which modules, from which slots.

    :ivar prepared: what ``PACKED`` knows of the batch (``VllmKernels.prepare``).
    """

    backend: str
    targets: Sequence[str]
    slots: int
    max_rank: int
    routing: Routing
    prepared: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class DecoderSize:
    """What a decoder's memory depends on.

    :ivar layers: decoder layers, at most the model's.
    :ivar slot_ranks: the largest product of slots and maximum rank; smaller slot sets are views of the same memory.
    :ivar kv_tokens: the most KV tokens of a step.
    """

    shape: ModelShape
    layers: int
    slot_ranks: int = 0
    kv_tokens: int = 0

    def needed_bytes(self, width: int) -> dict[str, int]:
        """Return the bytes that a ``Decoder`` allocates, by what for; ``width``: bytes of a number."""
        shape = self.shape
        per_rank = sum(sum(shape.module(name)) for name in MODULES)
        return {
            "weights": width * (self.layers * shape.linear_parameters() + shape.vocab * shape.hidden),
            "slots": width * self.layers * self.slot_ranks * per_rank,
            "KV cache": width * self.layers * 2 * self.kv_tokens * shape.kv_heads * shape.head_dim,
        }


class Decoder:
    """Weights, LoRA slots and KV cache of a model, allocated once for all steps that are timed."""

    def __init__(self, size: DecoderSize, dtype: torch.dtype, device: torch.device, seed: int = 1) -> None:
        shape, layers, slot_ranks = size.shape, size.layers, size.slot_ranks
        self.shape, self.layers, self.dtype, self.device = shape, layers, dtype, device
        self._draw = torch.Generator(device=device).manual_seed(seed)
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self._widths = (query, key, key)
        scale = shape.hidden**-0.5
        self._norms = [1 + self._noise(2, shape.hidden, scale=0.1) for _ in range(layers)]
        self._qkv = [self._noise(query + 2 * key, shape.hidden, scale=scale) for _ in range(layers)]
        self._bias = [self._noise(query + 2 * key, scale=0.1) if shape.qkv_bias else None for _ in range(layers)]
        self._o = [self._noise(shape.hidden, query, scale=scale) for _ in range(layers)]
        self._gate_up = [self._noise(2 * shape.intermediate, shape.hidden, scale=scale) for _ in range(layers)]
        self._down = [self._noise(shape.hidden, shape.intermediate, scale=scale / 2) for _ in range(layers)]
        self._head = self._noise(shape.vocab, shape.hidden, scale=scale)
        self._head_norm = 1 + self._noise(shape.hidden, scale=0.1)
        self._lora: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = [
            {
                name: (
                    self._noise(slot_ranks * shape.module(name)[0], scale=0.02),
                    self._noise(slot_ranks * shape.module(name)[1], scale=0.02),
                )
                for name in MODULES
            }
            for _ in range(layers if slot_ranks else 0)
        ]
        self._kv = [self._noise(2, size.kv_tokens * key) for _ in range(layers)]

    def _noise(self, *size: int, scale: float = 1.0) -> torch.Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device).normal_(0, scale, generator=self._draw)

    def inputs(self, groups: Groups) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return hidden states (tokens, hidden), cosines and sines (2, tokens, head_dim / 2), places of last tokens."""
        tokens = sum(group.count * group.new for group in groups)
        places = [group.context + index for group in groups for _ in range(group.count) for index in range(group.new)]
        half = self.shape.head_dim // 2
        speed = _ROPE_BASE ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.tensor(places, dtype=torch.float32)[:, None] * speed
        last, at = [], 0
        for group in groups:
            last += [at + (index + 1) * group.new - 1 for index in range(group.count)]
            at += group.count * group.new
        turn = torch.stack((angle.cos(), angle.sin())).to(self.dtype).to(self.device)
        return self._noise(tokens, self.shape.hidden), turn, torch.tensor(last, device=self.device)

    def step(
        self, x: torch.Tensor, turn: torch.Tensor, last: torch.Tensor, groups: Groups, lora: Lora | None
    ) -> torch.Tensor:
        """Run one step; return the next token of every sequence, shape (sequences,)."""
        for layer in range(self.layers):
            norms = self._norms[layer]
            h = F.rms_norm(x, (self.shape.hidden,), norms[0], _NORM_EPS)
            qkv = F.linear(h, self._qkv[layer], self._bias[layer])
            self._adapt(layer, lora, h, qkv, ("q", "k", "v"), self._widths)
            mixed = self._attend(layer, qkv, turn, groups)
            out = F.linear(mixed, self._o[layer])
            self._adapt(layer, lora, mixed, out, ("o",), (self.shape.hidden,))
            x = x + out
            h = F.rms_norm(x, (self.shape.hidden,), norms[1], _NORM_EPS)
            both = F.linear(h, self._gate_up[layer])
            self._adapt(layer, lora, h, both, ("gate", "up"), (self.shape.intermediate,) * 2)
            gate, up = both.chunk(2, dim=-1)
            act = F.silu(gate) * up
            out = F.linear(act, self._down[layer])
            self._adapt(layer, lora, act, out, ("down",), (self.shape.hidden,))
            x = x + out
        return self.head(x, last)

    def head(self, x: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Return the likeliest next token after each of the ``last`` places."""
        h = F.rms_norm(x[last], (self.shape.hidden,), self._head_norm, _NORM_EPS)
        return F.linear(h, self._head).argmax(dim=-1)

    def _adapt(
        self,
        layer: int,
        lora: Lora | None,
        x: torch.Tensor,
        y: torch.Tensor,
        names: Sequence[str],
        widths: Sequence[int],
    ) -> None:
        if lora is None:
            return
        if lora.backend == PACKED:
            if any(name in lora.targets for name in names):
                slots = [self.slots(layer, name, lora.slots, lora.max_rank) for name in names]
                vllm_kernels().apply(y, x, slots, lora.prepared)
            return
        at = 0
        for name, width in zip(names, widths, strict=True):
            if name in lora.targets:
                a, b = self.slots(layer, name, lora.slots, lora.max_rank)
                BACKENDS[lora.backend](y[:, at : at + width], x, a, b, lora.routing)
            at += width

    def slots(self, layer: int, name: str, slots: int, max_rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of a module's slots: A (slots, max rank, d_in) and B (slots, d_out, max rank)."""
        d_in, d_out = self.shape.module(name)
        a, b = self._lora[layer][name]
        rows = slots * max_rank
        return a[: rows * d_in].view(slots, max_rank, d_in), b[: rows * d_out].view(slots, d_out, max_rank)

    def _attend(self, layer: int, qkv: torch.Tensor, turn: torch.Tensor, groups: Groups) -> torch.Tensor:
        shape = self.shape
        q, k, v = qkv.split(self._widths, dim=-1)
        q = _rotate(q.view(-1, shape.heads, shape.head_dim), turn)
        k = _rotate(k.view(-1, shape.kv_heads, shape.head_dim), turn)
        v = v.view(-1, shape.kv_heads, shape.head_dim)
        parts, token, used = [], 0, 0
        for group in groups:
            here, length = slice(token, token + group.count * group.new), group.context + group.new
            size = group.count * length * shape.kv_heads * shape.head_dim
            keys, values = (
                pool[used : used + size].view(group.count, shape.kv_heads, length, shape.head_dim)
                for pool in self._kv[layer]
            )
            keys[:, :, group.context :] = k[here].view(group.count, group.new, shape.kv_heads, -1).transpose(1, 2)
            values[:, :, group.context :] = v[here].view(group.count, group.new, shape.kv_heads, -1).transpose(1, 2)
            queries = q[here].view(group.count, group.new, shape.heads, -1).transpose(1, 2)
            mask = None if group.new == 1 or group.context == 0 else causal_lower_right(group.new, length)
            out = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=group.new > 1 and mask is None, enable_gqa=True
            )
            parts.append(out.transpose(1, 2).reshape(group.count * group.new, -1))
            token, used = here.stop, used + size
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _rotate(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn pairs of a head's halves by each token's angles; x has shape (tokens, heads, head_dim)."""
    cos, sin = turn[0][:, None], turn[1][:, None]
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
