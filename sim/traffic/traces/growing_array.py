"""Arrays that grow block by block, in pieces large enough to go back to the system when they are joined."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 18
"""Entries of a piece: 1 MB or more, so that its memory is mapped by itself and never leaves holes in the heap."""


class GrowingArray:
    """Append arrays of one type, and join them with no more than a piece in memory twice.

    :param kind: the type, such as ``np.float64``.
    """

    def __init__(self, kind: type[np.generic]) -> None:
        self._kind = kind
        self._pieces: list[NDArray[Any]] = []
        self._filled = 0
        self.count = 0

    def append(self, values: NDArray[Any]) -> None:
        """Append a one-dimensional array."""
        self.count += len(values)
        while len(values):
            if not self._pieces or self._filled == PIECE:
                self._pieces.append(np.empty(PIECE, dtype=self._kind))
                self._filled = 0
            room = values[: PIECE - self._filled]
            self._pieces[-1][self._filled : self._filled + len(room)] = room
            self._filled += len(room)
            values = values[len(room) :]

    def take(self) -> NDArray[Any]:
        """Return everything that was appended, and hold nothing any more."""
        whole = np.empty(self.count, dtype=self._kind)
        end = self.count
        while self._pieces:
            piece = self._pieces.pop()
            begin = len(self._pieces) * PIECE
            whole[begin:end] = piece[: end - begin]
            end = begin
        self.count = self._filled = 0
        return whole
