"""When decoding sequences end, counted in decode steps."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from sim.traffic.request import Request


class DecodeEnds:
    """The decoding sequences of a batch by ``last_step``.

    :param running: the sequences of the batch by index.
    """

    def __init__(self, running: dict[int, Request]) -> None:
        self._running = running
        self._ending: dict[int, list[int]] = {}  # indices by last step, none of which is empty
        self._steps: list[int] = []  # a heap of these last steps

    def start(self, requests: list[Request], step: int) -> list[Request]:
        """Let sequences decode that get their next token at ``step``; return those for which it is the last."""
        ending, ended = self._ending, []
        for request in requests:
            request.last_step = last = step + request.output_tokens - request.generated - 1
            if last == step:
                ended.append(request)
            elif last in ending:
                ending[last].append(request.index)
            else:
                ending[last] = [request.index]
                heappush(self._steps, last)
        return ended

    def remove(self, request: Request) -> None:
        """Remove a sequence that leaves before its end."""
        last = request.last_step
        self._ending[last].remove(request.index)
        if not self._ending[last]:
            del self._ending[last]
            self._steps.remove(last)
            heapify(self._steps)

    def pop_ended(self, step: int) -> list[Request]:
        """Remove and return the sequences that end at ``step``, in the order of their index; none ends before it."""
        if not self._steps or self._steps[0] > step:
            return []
        return list(map(self._running.__getitem__, sorted(self._ending.pop(heappop(self._steps)))))

    def next_end(self) -> int:
        """Return the step at which the next sequence ends; at least one decodes."""
        return self._steps[0]
