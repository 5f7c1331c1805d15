"""Random requests that share prefixes: as real tokens, and as the runs by which the simulator knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from random import Random

from naive_blocks import BASE, Job

from sim.traffic.request import Request


@dataclass
class Coming:
    """A request before it arrives.

    :ivar at_step: the step before which it arrives; for a later turn: steps after the end of the turn before.
    :ivar after: the request of the turn before.
    """

    request: Request
    job: Job
    at_step: int
    after: int | None = None


@dataclass
class _Text:
    """A text that prompts start with: the runs and tokens before it, and its own."""

    runs: tuple[tuple[int, int], ...]
    before: list[int]
    key: int
    tokens: list[int]


@dataclass
class Traffic:
    """Random traffic.

    :param size: tokens of a block; prompts and texts often end at the end of a block.
    :param adapters: number of adapters, which is that of the base model too.
    """

    random: Random
    size: int
    adapters: int
    base_share: float
    longest: int
    texts: list[_Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._token, self._key = count(), count()
        self._whole_blocks = self.random.choice((0.3, 0.3, 1.0))  # share of lengths that end at the end of a block
        self._tails = self.random.choice((0.7, 0.7, 0.2))  # share of prompts that go on after a text
        for _ in range(self.random.randint(1, 3)):
            self.texts.append(_Text((), [], next(self._key), self._fresh(self._length(1))))
        for _ in range(self.random.randint(0, 4)):
            # A text that leaves another one, at its end or in its middle: its key tells both.
            parent = self.random.choice(self.texts)
            cut = self.random.choice((len(parent.tokens), self.random.randint(0, len(parent.tokens))))
            start = len(parent.before) + cut
            if start > 2 * self.longest:
                continue
            runs = (*parent.runs, (start, parent.key)) if cut else parent.runs
            before = parent.before + parent.tokens[:cut]
            self.texts.append(_Text(runs, before, next(self._key), self._fresh(self._length(1))))

    def _fresh(self, tokens: int) -> list[int]:
        return [next(self._token) for _ in range(tokens)]

    def _length(self, least: int) -> int:
        length = self.random.randint(least, self.longest)
        if self.random.random() < self._whole_blocks:
            length = max(self.size * (length // self.size), least)
        return length

    def requests(self, number: int, spread: int) -> list[Coming]:
        """Return requests in the order of their arrivals; later turns, which arrive when others end, come last."""
        random = self.random
        first = [self._first(index) for index in range(number)]
        for coming, at_step in zip(first, sorted(random.randint(0, spread) for _ in first), strict=True):
            coming.at_step = at_step
        last = [coming for coming in first if coming.request.text_key >= 0]
        turns: list[Coming] = []
        while last and len(turns) < number:
            before = last.pop(random.randrange(len(last)))
            turns.append(self._turn(before, number + len(turns)))
            if random.random() < 0.7:
                last.append(turns[-1])
        return first + turns

    def _first(self, index: int) -> Coming:
        random = self.random
        adapter = self.adapters if random.random() < self.base_share else random.randrange(self.adapters)
        runs: tuple[tuple[int, int], ...] = ()
        prompt: list[int] = []
        if random.random() < 0.8:
            text = random.choice(self.texts)
            cut = len(text.tokens)
            if random.random() < self._tails / 2:
                cut = random.randint(0, cut)
            prompt = text.before + text.tokens[:cut]
            runs = (*text.runs, (len(prompt), text.key)) if cut else text.runs
        if not prompt or random.random() < self._tails:
            prompt = prompt + self._fresh(self._length(1))
        return self._coming(index, adapter, prompt, runs, next(self._key) if random.random() < 0.4 else -1)

    def _turn(self, before: Coming, index: int) -> Coming:
        prompt = before.job.prompt + before.job.answer + self._fresh(self._length(1))
        request = before.request
        turn = self._coming(index, request.adapter, prompt, request.shared, request.text_key)
        turn.at_step, turn.after = self.random.choice((0, 0, 1, 5)), request.index
        return turn

    def _coming(
        self, index: int, adapter: int, prompt: list[int], runs: tuple[tuple[int, int], ...], text: int
    ) -> Coming:
        answer = self._fresh(self._length(1))
        request = Request(index, 0.0, adapter, len(prompt), len(answer))
        request.shared, request.text_key, request.session = runs, text, None
        return Coming(request, Job(index, BASE if adapter == self.adapters else adapter, prompt, answer), 0)
