"""The steps of a closed loop: clients that each send their next request when the last one is answered.

This is how the servers that we compare with were measured: all clients start at once, each sends ten requests, and the
means are over all of them. Which requests share a step does not depend on how long steps take. So the schedule
comes first, and any costs can be put on it: its sums are linear in the coefficients of a step's cost. The simulator
follows the same rules, but takes the costs first (``validation.overheads.replayed_points``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from sim.arrays import Floats
from sim.rng import stream

REQUESTS_EACH = 10
"""Requests of each client; benchmarks with these lengths send ten times as many as there are clients."""
_CONTEXTS = 16
"""Mean contexts are rounded to multiples of this, so that steps repeat and their seconds can be kept."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A closed loop on one replica.

    :ivar spread: lengths are spread evenly between these shares of ``prompt`` and ``answer``.
    :ivar budget: most tokens of a step.
    :ivar chunked: whether a prompt may be split over steps; otherwise only one that is larger than the budget.
    :ivar batch_slots: requests in the batch, at most (``max_num_seqs``); unset: as many as there are clients.
    :ivar wait_steps: while others decode, prompts wait for so many steps to be computed together, unless they are
        ``wait_tokens`` or more together with those that decode. TensorRT-LLM: ``batch_wait_timeout_iters`` and
        ``batch_wait_max_tokens_ratio``.
    """

    clients: int
    prompt: int
    answer: int
    spread: tuple[float, float] = (1.0, 1.0)
    budget: int = 8192
    chunked: bool = True
    batch_slots: int | None = None
    wait_steps: int = 0
    wait_tokens: float = inf


@dataclass(frozen=True, slots=True)
class LoopSteps:
    """Sums over the steps of a closed loop, for a mean request.

    Each array is (seconds of kernels, steps, sequences, steps with a prompt), so that a step's cost times it is a time.

    :ivar first: from the arrival to the first token.
    :ivar token: between two tokens of the answer.
    """

    first: Floats
    token: Floats


def loop_steps(loop: Loop, step_s: Callable[[int, int, int, int, int], float]) -> LoopSteps:
    """Return the sums over the steps of a closed loop under continuous batching with chunked prompts.

    A step decodes every running sequence, then fills its budget with prompts in order of arrival. The engine composes
    its next step as soon as one has ended, so a request that its client sends then joins one step later.

    :param step_s: seconds of kernels by decoding sequences, mean context, prompts, tokens of each, and those before.
    """
    state = _State(loop, step_s)
    while state.waiting or state.ending or state.sent:
        state.advance()
    return LoopSteps(np.mean(state.firsts, axis=0), np.mean(state.tokens, axis=0))


class _Request:
    """A request on its way."""

    __slots__ = ("answer", "arrived", "done", "first", "prompt")

    def __init__(self, arrived: Floats, prompt: int, answer: int) -> None:
        self.arrived, self.prompt, self.answer = arrived, prompt, answer
        self.first, self.done = arrived, 0


class _State:
    """The loop between two steps.

    :ivar total: sums over all steps so far.
    :ivar sent: requests on their way, which reach the engine while the next step runs.
    :ivar ending: running requests, by the step of their last token.
    :ivar context: KV tokens of all running sequences.
    """

    def __init__(self, loop: Loop, step_s: Callable[[int, int, int, int, int], float]) -> None:
        count = loop.clients * REQUESTS_EACH
        draws = stream(0, 0, "closed-loop").random((count, 2))
        low, high = loop.spread
        shares = low + (high - low) * draws
        self._prompts = np.maximum(np.rint(shares[:, 0] * loop.prompt), 1).astype(int).tolist()
        self._answers = np.maximum(np.rint(shares[:, 1] * loop.answer), 2).astype(int).tolist()
        self._step_s, self._budget = step_s, max(loop.budget, loop.clients + 1)
        self._loop = loop
        self._slots = loop.clients if loop.batch_slots is None else max(loop.batch_slots, 1)
        self._count = 0
        self._waited = 0
        self.sent: list[_Request] = []
        self.total = np.zeros(4)
        self.steps = self.running = self.context = 0
        self.waiting: list[_Request] = []
        self.ending: dict[int, list[_Request]] = defaultdict(list)
        self.firsts: list[Floats] = []
        self.tokens: list[Floats] = []
        self._send(loop.clients)

    def advance(self) -> None:
        """Take the next step, or all up to the next change."""
        arriving, self.sent = self.sent, []
        if not self.running and not self.waiting:  # the first to come starts an idle engine, without the others
            self.waiting, arriving = arriving[:1], arriving[1:]
        chunks = self._chunks()
        if chunks:
            self._step(chunks)
        else:
            self._decode_alone(1 if arriving or self.waiting else min(self.ending) - self.steps)
        self.waiting += arriving

    def _chunks(self) -> list[tuple[_Request, int]]:
        """Return the prompts of the next step, each with its tokens."""
        loop, left, chunks = self._loop, self._budget - self.running, list[tuple[_Request, int]]()
        for request in self.waiting:
            rest = request.prompt - request.done
            if (
                left <= 0
                or self.running + len(chunks) >= self._slots
                or (rest > left and not loop.chunked and rest <= self._budget and (self.running or chunks))
            ):
                break
            chunks.append((request, min(rest, left)))
            left -= chunks[-1][1]
        together = self.running + sum(tokens for _, tokens in chunks)
        if chunks and self.running and self._waited < loop.wait_steps and together < loop.wait_tokens:
            self._waited += 1
            return []
        self._waited = 0 if chunks else self._waited
        return chunks

    def _decode_alone(self, steps: int) -> None:
        """Take steps that each decode the same sequences."""
        middle = self.context + self.running * (steps - 1) / 2
        seconds = self._step_s(self.running, self._mean(middle), 0, 0, 0)
        self._take(steps, np.array((seconds, 1.0, self.running, 0.0)))

    def _step(self, chunks: list[tuple[_Request, int]]) -> None:
        """Take one step that has prompts."""
        before, tokens = chunks[0][0].done, sum(tokens for _, tokens in chunks)
        # Tables know prompts of one length; a step's are averaged.
        each = tokens if len(chunks) == 1 else round(tokens / len(chunks))
        mean = self._mean(self.context)
        seconds = self._step_s(self.running, mean, len(chunks), each, before if len(chunks) == 1 else 0)
        for request, tokens in chunks:
            request.done += tokens
        started = [request for request, _ in chunks if request.done == request.prompt]
        self.waiting = self.waiting[len(started) :]
        self._take(1, np.array((seconds, 1.0, self.running + len(chunks), 1.0)))
        for request in started:
            request.first = self.total
            self.ending[self.steps + request.answer - 1].append(request)
            self.running, self.context = self.running + 1, self.context + request.prompt

    def _mean(self, context: float) -> int:
        if not self.running:
            return 0
        return max(round(context / self.running / _CONTEXTS) * _CONTEXTS, 1)

    def _take(self, steps: int, sums: Floats) -> None:
        self.total = self.total + steps * sums
        self.steps += steps
        self.context += steps * self.running
        ended = self.ending.pop(self.steps, [])
        for request in ended:
            self.running -= 1
            self.context -= request.prompt + request.answer - 1
            self.firsts.append(request.first - request.arrived)
            self.tokens.append((self.total - request.first) / (request.answer - 1))
        self._send(len(ended))

    def _send(self, count: int) -> None:
        for number in range(self._count, min(self._count + count, len(self._prompts))):
            self.sent.append(_Request(self.total, self._prompts[number], self._answers[number]))
            self._count += 1
