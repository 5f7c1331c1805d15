"""Speculative decoding: a draft guesses the next tokens of each sequence, and a step verifies them.

Source: vLLM 0.33 ``v1/core/sched/scheduler.py`` and ``async_scheduler.py``. A step computes one token and the drafts of
each decoding sequence, which get the accepted ones, up to the first that is rejected, and one more from the model
itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.policies.admission import WaitingQueue
from sim.policies.costs import StepCosts, StepDetails
from sim.policies.decode_ends import NEVER, DecodeEnds, by_index
from sim.policies.kv.drafting_store import DraftingStore
from sim.policies.kv.kv_store import held_tokens
from sim.policies.scheduler import Limits, Scheduler, Step
from sim.rng import uniform_draw
from sim.traffic.request import Request

_POSITIONS = 1 << 24
"""More than an answer has tokens: each of them has a draw of its own."""


def chances(acceptance: Sequence[float], tokens: int) -> list[float]:
    """Return how likely each of the drafted tokens is accepted, with all before it: products of the acceptances.

    :param acceptance: by position; the last one holds for later positions.
    """
    found, product = [], 1.0
    for position in range(tokens):
        product *= acceptance[min(position, len(acceptance) - 1)]
        found.append(product)
    return found


def accept_length(acceptance: Sequence[float], tokens: int) -> float:
    """Return the mean number of tokens that a sequence gets in a step."""
    return 1.0 + sum(chances(acceptance, tokens))


class Drafts:
    """How many drafts are accepted, and what drafting costs.

    The same token of the same request has the same draw in every design, so designs are compared on equal luck, and a
    longer draft never gets fewer tokens accepted.

    :param tokens: drafted for each sequence in a step.
    :param acceptances: by adapter, the last for the base model.
    :param share: of a decode step, for one drafted token.
    :param costs: of the model's steps without adapters.
    :param key: of the draws.
    """

    def __init__(
        self, tokens: int, acceptances: Sequence[Sequence[float]], share: float, costs: StepCosts, key: int
    ) -> None:
        by_acceptance = {tuple(each): chances(each, tokens) for each in acceptances}
        self._chances = [by_acceptance[tuple(each)] for each in acceptances]
        self.tokens, self._share, self._costs, self._key = tokens, share, costs, key

    def accepted(self, request: Request, generated: int, drafted: int) -> int:
        """Return how many of the drafts that follow a request's ``generated`` tokens are accepted."""
        luck = uniform_draw(self._key, request.index * _POSITIONS + generated)
        accepted = 0
        for chance in self._chances[request.adapter][:drafted]:
            if luck >= chance:
                break
            accepted += 1
        return accepted

    def seconds(self, tokens: int, kv_tokens: int, details: StepDetails) -> float:
        """Return the time of drafting behind a step: the draft's first token needs all that the step computed.

        :param tokens: of the step; ``details``: its own.
        """
        if not self._share:
            return 0.0
        sequences, later = details[0], (details[0], 0, 0.0, 0, 0)
        seconds = self._costs.step(tokens, kv_tokens, 0, 0, details)
        return self._share * (seconds + (self.tokens - 1) * self._costs.step(sequences, kv_tokens, 0, 0, later))


class WalkedEnds(DecodeEnds):
    """The ends of sequences that come earlier with every accepted draft."""

    def __init__(self, *, overruns: bool) -> None:
        super().__init__(overruns=overruns)
        self._ended: list[Request] = []  # those for which the step under way is the last

    def start(self, requests: list[Request], step: int) -> list[Request]:
        for request in requests:
            request.last_step = step + request.output_tokens - request.generated - 1
        return [r for r in requests if r.last_step == step and not (self._overruns and r.stops)]

    def end(self, request: Request) -> None:
        """Let the step under way be the last of a sequence."""
        self._ended.append(request)
        self.next_step = request.last_step

    def remove(self, request: Request) -> None:
        """Nothing to do: only the step under way has ends, and no sequence leaves between it and ``pop_next``."""

    def pop_next(self) -> list[Request]:
        ended, self._ended = self._ended, []
        self.next_step = NEVER
        return sorted(ended, key=by_index)


class SpeculativeScheduler(Scheduler):
    """Lets each decoding sequence verify its drafts in every step. No two steps are equal, so there are no leaps.

    With asynchronous scheduling a step is decided before it is known what the step ahead accepts. A sequence holds its
    place without getting tokens if its next token is surely the last one. One that ends sooner than that, by accepted
    drafts or by a stop token, verifies drafts once more, and these tokens are dropped. One that would reach the longest
    context if all drafts were accepted waits for a step, until it is known which are.

    :ivar verified: drafts of one sequence in one step, so far; ``drafted``: their tokens; ``accepted``: those of them
        that were accepted, also behind the end of an answer.
    """

    def __init__(
        self,
        limits: Limits,
        kv: DraftingStore,
        waiting: WaitingQueue,
        ranks: list[int],
        costs: StepCosts,
        drafts: Drafts,
    ) -> None:
        super().__init__(limits, kv, waiting, ranks, costs)
        self._drafting = kv
        self._drafts = drafts
        self._ends = self._walked = WalkedEnds(overruns=limits.asynchronous)
        self._dropped: list[tuple[Request, int]] = []  # sequences that have ended by it, and accepted drafts behind
        self._known: dict[Request, int] = {}  # with asynchronous scheduling, tokens before the step that ended last
        self.verified = self.drafted = self.accepted = 0

    def compose(self, now: float) -> Step:
        kv = self._drafting
        if self._asynchronous:
            self._pass_by([r for r in self.running if r.last_step >= 0 and kv.is_full(r)], now)
        kv.pads = self._partial is None
        step = super().compose(now)
        if step.tokens:
            sequences, prompt_tokens, attended, _, _ = self.details()
            details, kv_tokens = (sequences, prompt_tokens, attended, 0, 0), kv.tokens + step.decoding + kv.drafted
            dropped = sum([tokens for request, tokens in self._dropped if request.last_step >= 0])  # the GPU has them
            step.first_s += self._costs.per_kv_token_s * dropped
            step.first_s += self._drafts.seconds(step.tokens, kv_tokens + dropped, details)
        return step

    def _equal_steps(self) -> int:
        return 1

    def _preempt(self, now: float) -> Request:
        newest = next(reversed(self.running))
        if newest in self._passed_by:
            self._passed_by.remove(newest)
            self._resume([newest])
        return super()._preempt(now)

    def complete(self, steps: int, now: float) -> list[Request]:
        self._dropped = []
        self._known = {request: request.generated + 1 for request in self._passed_by}
        for request in self._passed_by:
            self._drafting.settle(request, request.context, 0)
        if self.decided.decoding:
            self._accept()
        return super().complete(steps, now)

    def _accept(self) -> None:
        """Let sequences end earlier by the drafts that are accepted."""
        kv, drafts, before, ahead = self._drafting, self._drafts, self.decode_steps, self._asynchronous
        for request in self.running:
            if request.last_step < 0:
                continue
            left = request.last_step - before
            if not left:  # the step ahead has ended it
                self._walked.end(request)
                continue
            drafted = kv.drafts(request)
            accepted = drafts.accepted(request, request.output_tokens - left, drafted)
            self.verified += 1
            self.drafted += drafted
            self.accepted += accepted
            extra = min(accepted, left - 1)
            if ahead:
                self._known[request] = request.output_tokens - left
                held = held_tokens(request, before) + int(request in self.late)  # its last one is known, too, if late
                kv.settle(request, held, drafted - extra)
            if extra:
                request.last_step -= extra
                kv.accept(extra)
            if extra == left - 1:
                if not ahead or (left == 1 and not request.stops):
                    self._walked.end(request)
                else:
                    self._dropped.append((request, accepted - extra))

    def tokens_so_far(self, request: Request) -> int:
        if not self._asynchronous or request.last_step == -1:
            return super().tokens_so_far(request)
        return self._known.get(request, request.generated)

    def details(self) -> StepDetails:
        sequences, tokens, attended, rank_tokens, passed = super().details()
        kv, ranks = self._drafting, self._ranks
        if self._rank_tokens:
            rank_tokens += sum([ranks[r.adapter] * kv.drafts(r) for r in self.running if r.last_step >= 0])
        return sequences, tokens - kv.drafted, attended, rank_tokens, passed

    def scheduled(self) -> dict[int, int]:
        kv = self._drafting
        drafted = {r.index: 1 + kv.drafts(r) for r in self.running if r.last_step >= 0 and self.decided.decoding}
        return super().scheduled() | drafted | dict.fromkeys(kv.padded, 1 + self._drafts.tokens)
