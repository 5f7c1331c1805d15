"""Which adapter slot each token of a batch uses, laid out as the backends need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


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
