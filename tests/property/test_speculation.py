"""Speculative decoding: a naive twin of vLLM's scheduler, closed forms, and laws of any fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from random import Random
from typing import Any

import numpy as np
import pytest
from drafting_fleets import HOST_S, STEP, twin_sections
from recordings import simulate_checked
from strategies import build, run, write_profile, write_trace
from test_kv_transfers import fleet_of

from sim.policies.costs import StepCosts
from sim.policies.kv.drafting_store import DraftingStore
from sim.policies.speculation import Drafts, accept_length, chances
from sim.results.point_summary import summarise
from sim.results.records import COMPLETED, Recording
from sim.rng import stream_key, uniform_draw
from sim.spec.profile import StepCost
from sim.spec.scenario_file import load_scenario
from sim.studies.evaluate import facts_of
from sim.traffic.request import BASE_MODEL, Request
from sim.world.build import build_world
from sim.world.world import World

TWINS, FLEETS = 120, 40


# The twin: one replica, every adapter in its slot, blocks that are real, and vLLM's loop over requests.


@dataclass(eq=False)
class Job:
    index: int
    arrival_s: float
    adapter: int
    prompt: int
    output: int
    stops: bool = False
    computed: int = 0
    generated: int = 0
    drafts: bool = False
    blocks: list[int] = field(default_factory=list)
    new: int = 0
    padding: int = 0
    decodes: bool = False
    preemptions: int = 0
    placeholders: int = 0
    made: int = 0
    last_s: float = -1.0
    admitted_s: float = -1.0
    first_token_s: float = -1.0
    finished_s: float = -1.0

    @property
    def tokens(self) -> int:
        return self.prompt + self.generated


class Twin:
    def __init__(self, world: World) -> None:
        self.scenario = scenario = world.scenario
        spec = scenario.fleet.speculation
        self.spec, self.size = spec, scenario.fleet.block_size
        self.ahead = 0 if spec.method == "ngram" else spec.tokens
        tokens = world.pools[0].kv_tokens
        assert tokens is not None
        self.longest = scenario.fleet.max_model_len or tokens
        self.free = list(range(tokens // self.size))
        self.caches = scenario.fleet.prefix_caching
        self.content: dict[int, tuple[int, int]] = {}
        self.key = stream_key(scenario.run.seed, 0, "speculation")
        self.kinds, self.kind = scenario.adapters.of_adapters, world.pools[0].population.kind
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.verified = self.drafted = self.accepted = 0
        self.gaps: list[float] = []

    def run(self, jobs: list[Job]) -> None:
        now, to_come = 0.0, list(jobs)
        while to_come or self.waiting or self.running:
            if not self.waiting and not self.running:
                now = max(now, to_come[0].arrival_s)
            while to_come and to_come[0].arrival_s <= now:
                self.waiting.append(to_come.pop(0))
            scheduled = self.schedule(now)
            now += self.seconds(scheduled) + (HOST_S if scheduled else 0.0)
            self.update(scheduled, now)

    def allocate(self, job: Job, new: int, whole: int) -> bool:
        """Give a job blocks for ``new`` tokens, and for what the draft computes; ``whole``: tokens that must fit."""
        most = min(job.computed + new + self.ahead, self.longest)
        lacking = -(-most // self.size) - len(job.blocks)
        if max(lacking, -(-whole // self.size) - len(job.blocks)) > len(self.free):
            return False
        for _ in range(lacking):
            block = self.free.pop(0)
            self.content.pop(block, None)
            job.blocks.append(block)
        if self.caches:
            for place in range(min(job.computed + new, job.tokens) // self.size):
                self.content.setdefault(job.blocks[place], (job.index, place))
        return True

    def release(self, job: Job) -> None:
        for block in reversed(job.blocks):
            if block in self.content:
                self.free.append(block)
            else:
                self.free.insert(0, block)
        job.blocks = []

    def schedule(self, now: float) -> list[Job]:
        budget, place, scheduled, preempted = self.scenario.fleet.max_num_batched_tokens, 0, list[Job](), False
        while place < len(self.running) and budget:
            job = self.running[place]
            ends = job.computed + 2 - job.placeholders >= job.prompt + job.output and not job.stops
            new = job.tokens + (self.spec.tokens if job.drafts else 0) + job.placeholders - job.computed
            new = min(new, budget, self.longest - job.computed - 1)
            if (job.placeholders and ends) or not new:
                place += 1
                continue
            while not self.allocate(job, new, 0):
                victim = self.running.pop()
                self.release(victim)
                victim.computed, victim.placeholders, victim.drafts, preempted = 0, 0, False, True
                victim.preemptions += 1
                self.waiting.insert(0, victim)
                if victim is job:
                    break
            if job not in self.running:
                break
            job.new, job.padding, job.decodes = new, 0, job.drafts
            scheduled.append(job)
            budget -= new
            place += 1
        prompts, decodes = any(not job.decodes for job in scheduled), len(scheduled) > 0
        while self.waiting and budget and not preempted and len(self.running) < self.scenario.fleet.max_num_seqs:
            job = self.waiting[0]
            found = self.find(job)
            left = job.tokens - len(found) * self.size
            new = min(left, budget)
            job.padding = 0
            if left == 1 and not prompts and (decodes or found) and job.tokens + self.spec.tokens < self.longest:
                job.padding = self.spec.tokens
                new += self.spec.tokens
                if new > budget:
                    break
            kept = list(self.free)
            self.free = [block for block in self.free if block not in found]
            job.blocks, job.computed = list(found), len(found) * self.size
            if not self.allocate(job, new, job.tokens):
                self.free, job.blocks, job.computed = kept, [], 0
                break
            self.waiting.pop(0)
            self.running.append(job)
            job.new, job.decodes = new, False
            job.admitted_s = now if job.admitted_s < 0 else job.admitted_s
            scheduled.append(job)
            budget -= new
        return scheduled

    def find(self, job: Job) -> list[int]:
        found: list[int] = []
        for place in range((job.tokens - 1) // self.size):
            block = next((block for block, what in self.content.items() if what == (job.index, place)), None)
            if block is None:
                break
            found.append(block)
        return found

    def seconds(self, scheduled: list[Job]) -> float:
        def step(tokens: int, kv_tokens: int, pairs: float) -> float:
            return 0.01 + 1e-4 * tokens + 3e-6 * kv_tokens + 2e-4 * len(scheduled) + 1e-7 * pairs

        if not scheduled:
            return 0.0
        kv = sum(self.held(job) + job.new for job in scheduled if job.decodes)
        prompts = [job for job in scheduled if not job.decodes]
        pairs = sum(job.computed + 1 + i for job in prompts for i in range(job.new - job.padding))
        once = step(sum(job.new for job in scheduled), kv, pairs)
        later = (self.spec.tokens - 1) * step(len(scheduled), kv, 0)
        return once + self.spec.draft * (once + later)

    def held(self, job: Job) -> int:
        return job.computed

    def update(self, scheduled: list[Job], now: float) -> None:
        for job in scheduled:
            drafted = job.new - 1 if job.decodes else 0
            tokens = 1
            if job.decodes:
                accepted = self.luck(job, job.generated, drafted)
                self.verified += 1
                self.drafted += drafted
                self.accepted += accepted
                tokens += accepted
                job.computed += 1 + accepted
            else:
                job.computed += job.new - job.padding
                if job.computed < job.tokens:
                    continue
            job.drafts = True
            job.generated = min(job.generated + tokens, job.output)
            self.note(job, now)
            if job.generated == job.output:
                job.finished_s = now
                self.running.remove(job)
        for job in sorted(scheduled, key=lambda each: each.admitted_s):
            if job.finished_s == now:
                self.release(job)

    def note(self, job: Job, now: float) -> None:
        if job.first_token_s < 0:
            job.first_token_s = now
        else:
            self.gaps.append(now - job.last_s)
        job.last_s = now

    def luck(self, job: Job, generated: int, drafted: int) -> int:
        """Follow the drafts one by one: each is accepted with its own chance, given that all before it were."""
        luck = uniform_draw(self.key, job.index * 2**24 + generated)
        acceptance: Sequence[float] = self.spec.acceptance
        if job.adapter != BASE_MODEL:
            acceptance = self.kinds[self.kind[job.adapter]].acceptance or acceptance
        accepted, chance = 0, 1.0
        while accepted < drafted:
            chance *= acceptance[accepted] if accepted < len(acceptance) else acceptance[-1]
            if luck >= chance:
                break
            accepted += 1
        return accepted


@dataclass
class Given:
    """What a step gives a job: tokens that it makes, and how many of its drafts are accepted."""

    job: Job
    life: int
    tokens: int
    drafted: int
    decodes: bool


class TwinAhead(Twin):
    """As vLLM's ``AsyncScheduler``: what is on its way is computed, and stands for placeholders, until it is there."""

    def run(self, jobs: list[Job]) -> None:
        now, ended_s, to_come = 0.0, 0.0, list(jobs)
        under_way: list[tuple[list[Given], float]] = []
        while to_come or self.waiting or self.running or under_way:
            while to_come and to_come[0].arrival_s <= now:
                self.waiting.append(to_come.pop(0))
            if self.waiting or self.running:
                scheduled = self.schedule(now)
                now += HOST_S
                ended_s = max(ended_s, now) + self.seconds(scheduled)
                under_way.append((self.hand_over(scheduled), ended_s))
                if len(under_way) < 2:
                    continue
            elif not under_way:
                now = to_come[0].arrival_s
                continue
            rows, there_s = under_way.pop(0)
            now = max(now, there_s)
            for row in rows:
                self.process(row, now)

    def held(self, job: Job) -> int:
        return job.prompt + job.made - 1

    def hand_over(self, scheduled: list[Job]) -> list[Given]:
        rows = []
        for job in scheduled:
            drafted = job.new - 1 if job.decodes else job.padding
            job.computed += job.new
            if job.computed < job.tokens + job.placeholders:
                continue
            job.placeholders += 1 + drafted
            if not job.drafts:
                job.drafts, job.made = True, job.generated
            tokens = 1 + (self.luck(job, job.made, drafted) if job.decodes else 0)
            job.made += tokens
            rows.append(Given(job, job.preemptions, tokens, drafted, job.decodes))
        return rows

    def process(self, row: Given, now: float) -> None:
        job, rejected = row.job, 1 + row.drafted - row.tokens
        if job.finished_s >= 0:
            return
        if row.decodes:
            self.verified += 1
            self.drafted += row.drafted
            self.accepted += row.tokens - 1
        given = min(row.tokens, job.output - job.generated)
        job.generated += given
        if row.life == job.preemptions:
            job.computed -= rejected
            job.placeholders -= rejected + given
            for place in range((job.computed - job.placeholders) // self.size if self.caches else 0):
                self.content.setdefault(job.blocks[place], (job.index, place))
        self.note(job, now)
        if job.generated == job.output:
            job.finished_s = now
            (self.running if job in self.running else self.waiting).remove(job)
            self.release(job)


def jobs_of(world: World, recording: Recording) -> list[Job]:
    columns = ("index", "arrival_s", "adapter", "prompt_tokens", "output_tokens")
    rows = zip(*(recording.requests[name].tolist() for name in columns), strict=True)
    stops = [bool(stop) for chunk in world.traffic.chunks(0) for stop in chunk.stops]
    return [Job(*row, stops[row[0]]) for row in rows]


@pytest.mark.parametrize("ahead", [False, True], ids=["step by step", "ahead"])
@pytest.mark.parametrize("number", range(TWINS))
def test_every_step_is_that_of_the_naive_twin(number: int, ahead: bool) -> None:
    world = build_world(build(**twin_sections(Random(number), ahead=ahead)))
    recording = run(world)
    twin = TwinAhead(world) if ahead else Twin(world)
    jobs = jobs_of(world, recording)
    twin.run(jobs)
    assert recording.requests["preemptions"].tolist() == [job.preemptions for job in jobs]
    for name in ("admitted_s", "first_token_s", "finished_s"):
        np.testing.assert_allclose(recording.requests[name], [getattr(job, name) for job in jobs], rtol=1e-9)
    assert int(recording.gap_counts.sum()) == len(twin.gaps)
    assert float(recording.gap_sum_s.sum()) == pytest.approx(sum(twin.gaps), rel=1e-9)
    if twin.verified:
        facts = recording.facts
        counts = facts["drafts_verified"], facts["drafted_tokens"], facts["accepted_tokens"]
        assert counts == (twin.verified, twin.drafted, twin.accepted)


def test_the_twins_preempt_and_draft_less_at_the_end_of_the_context() -> None:
    worlds = [build_world(build(**twin_sections(Random(number)))) for number in range(TWINS)]
    recordings = [run(world) for world in worlds]
    assert sum(int(np.sum(recording.requests["preemptions"]) > 0) for recording in recordings) > 10
    cut = [
        recording.facts["drafted_tokens"] < recording.facts["drafts_verified"] * world.scenario.fleet.speculation.tokens
        for world, recording in zip(worlds, recordings, strict=True)
        if world.scenario.fleet.speculation is not None and "drafted_tokens" in recording.facts
    ]
    assert any(cut)


# Closed forms.

LIGHT: dict[str, Any] = {
    "workload": {
        "requests": 1500,
        "arrivals": {"process": "poisson", "rate": "20/s"},
        "tokens": {"prompt": {"law": "fixed", "value": 10}, "output": {"law": "uniform", "low": 1, "high": 120}},
    },
    "adapters": {"count": 4, "rank": 8},
    "cache": {"gpu": {"slots": 4}, "host": {"slots": 4}, "warm": 4},
    "run": {"seed": 5, "warmup": 0.0},
}


def light(
    speculation: dict[str, Any] | None,
    *,
    adapters: dict[str, Any] | None = None,
    ahead: bool = False,
    host_s: float = 0.0,
    **workload: Any,
) -> World:
    fleet = {
        "engine": "vllm",
        "profile": write_profile(step={**STEP, "host_s": host_s}),
        "async_scheduling": ahead,
        "max_model_len": 4000,
        **({} if speculation is None else {"speculation": speculation}),
    }
    sections = {**LIGHT, "workload": {**LIGHT["workload"], **workload}, "fleet": fleet}
    return build_world(build(**{**sections, **({} if adapters is None else {"adapters": adapters})}))


def steps_needed(reached: list[float], longest: int) -> tuple[list[float], list[float]]:
    """Return mean and variance of the steps for up to ``longest`` tokens, by what the first step gives."""
    ends = [1.0, *reached, 0.0]
    exactly = [ends[i] - ends[i + 1] for i in range(len(reached) + 1)]
    mean, square = [0.0], [0.0]
    for left in range(1, longest + 1):
        after = [max(0, left - 1 - extra) for extra in range(len(exactly))]
        mean.append(1 + sum(p * mean[rest] for p, rest in zip(exactly, after, strict=True)))
        square.append(1 + sum(p * (2 * mean[rest] + square[rest]) for p, rest in zip(exactly, after, strict=True)))
    return mean, [s - m * m for m, s in zip(mean, square, strict=True)]


@pytest.mark.parametrize("ahead", [False, True], ids=["step by step", "ahead"])
@pytest.mark.parametrize(("tokens", "acceptance"), [(1, [0.7]), (3, [0.8, 0.6, 0.5]), (5, [0.6]), (4, [0.9, 0.0])])
def test_accepted_tokens_and_steps_are_those_of_the_closed_form(
    tokens: int, acceptance: list[float], ahead: bool
) -> None:
    recording = run(light({"tokens": tokens, "acceptance": acceptance, "draft": 0.05}, ahead=ahead))
    steps, accepted = recording.facts["drafts_verified"], recording.facts["accepted_tokens"]
    reached = [float(np.prod([*acceptance, *[acceptance[-1]] * tokens][: i + 1])) for i in range(tokens)]
    mean = sum(reached)
    variance = sum((2 * i + 1) * chance for i, chance in enumerate(reached)) - mean**2
    assert accept_length(acceptance, tokens) == pytest.approx(1 + mean)
    assert abs(accepted - steps * mean) <= 4 * sqrt(steps * variance)
    outputs = recording.requests["output_tokens"].astype(int) - 1  # the prompt's step gives the first
    each, spread = steps_needed(reached, int(outputs.max()))
    expected, deviation = sum(each[n] for n in outputs), sqrt(sum(spread[n] for n in outputs))
    assert 0 < deviation < 0.02 * expected
    assert abs(steps - expected) <= 4 * deviation
    assert int(recording.gap_counts.sum()) == steps  # tokens of a step come together


def test_base_model_and_kinds_of_adapters_have_their_own_acceptance() -> None:
    kinds = [{"kind": "base", "share": 0.5}, {"share": 0.25, "rank": 8, "acceptance": 0.2}, {"share": 0.25, "rank": 8}]
    for kind, given in ((0, 0.9), (1, 0.2), (2, 0.9)):
        alone = [{**each, "share": float(i == kind)} for i, each in enumerate(kinds)]
        adapters = {"count": 4, "mix": alone if kind else [alone[0]]}
        world = light({"tokens": 2, "acceptance": 0.9, "draft": 0.05}, adapters=adapters)
        assert world.pools[0].accept_length == pytest.approx(1 + given + given**2)
        facts = run(world).facts
        mean = 1 + facts["accepted_tokens"] / facts["drafts_verified"]
        assert mean == pytest.approx(1 + given + given**2, abs=4 * 0.9 / sqrt(facts["drafts_verified"]))
    mixed = light({"tokens": 2, "acceptance": 0.9, "draft": 0.05}, adapters={"count": 400, "mix": kinds})
    facts = run(mixed).facts
    assert mixed.pools[0].accept_length == pytest.approx(
        1 + facts["accepted_tokens"] / facts["drafts_verified"], rel=0.1
    )


def test_where_all_requests_are_for_full_models_the_base_models_acceptance_is_told() -> None:
    full = ["adapters.mix=[{share: 1, kind: full}]", "fleet.full_models={serve: dedicated}", "sweep=null"]
    loaded = load_scenario("speculation", [*full, "adapters.count=2", "cache.gpu.slots=2"])
    spec = loaded.scenario.fleet.speculation
    assert build_world(loaded.scenario).pools[0].accept_length == accept_length(spec.acceptance, spec.tokens)


@pytest.mark.parametrize("section", [None, {"tokens": 0, "acceptance": 0.7, "draft": 0.05}])
def test_no_drafts_change_nothing(section: dict[str, Any] | None) -> None:
    plain, other = run(light(None), sections=4), run(light(section), sections=4)
    assert plain.facts == other.facts
    for name, column in plain.requests.items():
        assert column.tobytes() == other.requests[name].tobytes(), name
    for each in ("gap_counts", "gap_sum_s", "busy_s", "blocked_s"):
        assert getattr(plain, each).tobytes() == getattr(other, each).tobytes(), each
    assert plain.running_area == other.running_area


def test_free_drafts_that_are_never_accepted_cost_their_verification_alone() -> None:
    """One request at a time: each of its steps is as long as one without drafts, and 3 more tokens."""
    outputs = {"prompt": {"law": "fixed", "value": 10}, "output": {"law": "fixed", "value": 50}}
    one: dict[str, Any] = {"requests": 20, "arrivals": {"process": "poisson", "rate": "1/min"}, "tokens": outputs}
    plain = run(light(None, **one))
    drafted = run(light({"tokens": 3, "acceptance": 0.0, "draft": 0.0}, **one))
    longer = drafted.requests["finished_s"] - plain.requests["finished_s"]
    np.testing.assert_allclose(longer, 49 * 3 * (1e-4 + 3e-6), rtol=1e-6)


@pytest.mark.parametrize("acceptance", [0.0, 0.7, 1.0])
def test_ahead_the_host_is_waited_for_once_and_not_in_every_step(acceptance: float) -> None:
    """One request at a time: the GPU computes a step while the host prepares the next."""
    one: dict[str, Any] = {"requests": 20, "arrivals": {"process": "poisson", "rate": "1/min"}}
    drafts = {"tokens": 3, "acceptance": acceptance, "draft": 0.1}
    by_step, ahead = (run(light(drafts, ahead=each, host_s=HOST_S, **one)) for each in (False, True))
    steps = by_step.facts["drafts_verified"]
    assert steps == ahead.facts["drafts_verified"] > 0
    np.testing.assert_allclose(ahead.requests["first_token_s"], by_step.requests["first_token_s"], rtol=1e-12)
    sooner = by_step.requests["finished_s"] - ahead.requests["finished_s"]
    assert float(sooner.sum()) == pytest.approx(steps * HOST_S, rel=1e-6)


def test_a_token_has_the_same_luck_in_every_design() -> None:
    costs = StepCosts(StepCost(fixed_s=0.01, tokens=((0, 0.0), (10, 0.1))), 0, 10)
    designs = [Drafts(tokens, [[0.7], [0.5]], 0.0, costs, 17) for tokens in (1, 3, 6)]
    for index in range(200):
        request = Request(index, 0.0, 0, 10, 100)
        short, middle, long = (each.accepted(request, 30, 6) for each in designs)
        assert (short, middle) == (min(long, 1), min(long, 3))
        other = Request(index, 0.0, 1, 10, 100)
        assert designs[2].accepted(other, 30, 6) <= long  # an adapter with less acceptance has no better luck


# Accept lengths that were measured: https://github.com/sgl-project/sglang/pull/34337, 96 prompts a route, answers of
# 20 tokens; mean and standard error of the base model and of each adapter. "4 draft tokens" of NEXTN are a token and
# 3 drafts. The other lengths are not in the table: 7 is a guess.
MEASURED = {
    "nextn": (3, [(3.097, 0.034), (3.208, 0.024)]),
    "dflash": (7, [(2.793, 0.061), (2.708, 0.067), (2.669, 0.069)]),
    "dspark": (7, [(2.919, 0.123), (2.878, 0.119), (2.663, 0.097)]),
}
SPREAD = (0.23, 1.09)
"""Of the mean accept length of a prompt, between prompts, over all routes."""


def acceptance_for(length: float, tokens: int) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if accept_length([middle], tokens) < length else (low, middle)
    return low


@pytest.mark.parametrize("name", MEASURED)
def test_measured_accept_lengths_lie_inside_the_interval_with_their_acceptance(name: str) -> None:
    tokens, routes = MEASURED[name]
    lengths = []
    for length, _ in routes:
        given = acceptance_for(length, tokens)
        answers = {"prompt": {"law": "fixed", "value": 40}, "output": {"law": "fixed", "value": 20}}
        world = light({"tokens": tokens, "acceptance": given, "draft": 0.05}, requests=96, tokens=answers)
        runs = [run(world, replication).facts for replication in range(10)]
        means = [1 + facts["accepted_tokens"] / facts["drafts_verified"] for facts in runs]
        half = 2.26 * float(np.std(means, ddof=1))  # of one run of 96 prompts, t with 9 degrees of freedom
        lengths.append((float(np.mean(means)), half))
        assert abs(means[0] - length) <= half + 4 * half / sqrt(10)
        assert abs(np.mean(means) - length) <= half
    (base, base_half), *adapters = lengths
    for (adapter, half), (measured, _) in zip(adapters, routes[1:], strict=True):
        change, seen = adapter / base - 1, measured / routes[0][0] - 1
        assert -0.09 <= seen <= 0.04
        assert abs(change - seen) <= sqrt(half**2 + base_half**2) / base


@pytest.mark.parametrize("name", MEASURED)
def test_the_spread_between_prompts_is_as_measured(name: str) -> None:
    """What the acceptance does not give: how much one prompt's accept length differs from another's."""
    tokens, routes = MEASURED[name]
    costs = StepCosts(StepCost(fixed_s=0.01, tokens=((0, 0.0), (10, 0.1))), 0, 10)
    drafts = Drafts(tokens, [[acceptance_for(routes[0][0], tokens)]], 0.0, costs, 3)
    means = []
    for index in range(96):
        request, generated, steps, accepted = Request(index, 0.0, 0, 40, 20), 1, 0, 0
        while generated < 20:
            extra = drafts.accepted(request, generated, tokens)
            generated, steps, accepted = generated + 1 + extra, steps + 1, accepted + extra
        means.append(1 + accepted / steps)
    assert SPREAD[0] <= np.std(means, ddof=1) <= SPREAD[1]


# Laws of any fleet.


@pytest.mark.parametrize("number", range(FLEETS))
def test_any_fleet_conserves_requests_tokens_and_blocks(number: int) -> None:
    random = Random(number)
    sections = fleet_of(random, prefix_caching=random.random() < 0.7, replicas=random.randint(1, 3))
    tokens = random.randint(1, 4)
    sections["fleet"] |= {
        "speculation": {"tokens": tokens, "acceptance": [0.7, 0.4], "draft": 0.05, "method": "draft_model"},
    }
    recording, times = simulate_checked(build_world(build(**sections)), 1)
    assert times
    assert_tokens_add_up(recording, tokens, sections["fleet"]["async_scheduling"])


def assert_tokens_add_up(recording: Recording, tokens: int, ahead: bool) -> None:
    requests = recording.requests
    done = requests["status"] == COMPLETED
    assert done.any()
    answers = int(np.sum(requests["output_tokens"][done]))
    facts, preemptions = recording.facts, int(np.sum(requests["preemptions"]))
    again = int(recording.gap_counts.sum() - facts["drafts_verified"])  # prompts computed after a preemption
    assert again <= preemptions if ahead else again == preemptions  # ahead, the last token may be on its way
    prompts = int(np.sum(done)) + again  # each gives one token
    assert facts["drafted_tokens"] <= facts["drafts_verified"] * tokens
    given = prompts + facts["drafts_verified"] + facts["accepted_tokens"]
    assert answers <= given  # what is accepted behind the end of an answer is dropped
    assert given - answers <= np.sum(done) * tokens + again
    assert chances([0.7, 0.4], tokens)[0] == 0.7


def test_a_request_that_is_sent_again_finds_the_blocks_of_its_new_adapter_alone() -> None:
    store = DraftingStore(total=16, size=4, tokens=2, ahead=0, longest=60, budget=64, finds=True)
    first = Request(0, 0.0, adapter=0, prompt_tokens=12, output_tokens=4, text_key=7)
    assert store.reserve_decodes()
    assert store.take(first, 12, 12, store.cached_tokens(first))
    first.context = 12
    store.give_back([first], early=True)
    found = [Request(0, 0.0, adapter, 13, 4, text_key=7) for adapter in (1, 0)]
    assert [store.known_tokens(request) for request in found] == [0, 12]
    assert not store._keys, "keys of requests that have left, or never came, pile up"


def test_a_run_without_room_for_any_draft_has_no_metrics_of_drafts() -> None:
    rows = [(float(second), 0, 10, 2) for second in range(5)]
    speculation = {"tokens": 3, "acceptance": 0.5, "draft": 0.1}
    fleet = {"engine": "vllm", "profile": write_profile(step=STEP), "async_scheduling": False, "kv_tokens": 512}
    fleet |= {"max_model_len": 12, "max_num_seqs": 4, "speculation": speculation}
    cache = {"gpu": {"slots": 1}, "host": {"slots": 1}}
    sections = {"workload": {"trace": {"file": write_trace(rows)}}, "adapters": {"count": 1, "rank": 8}}
    world = build_world(build(**sections, cache=cache, fleet=fleet))
    recording = run(world)
    assert (recording.requests["status"] == COMPLETED).all()
    assert "drafts_wasted" not in summarise([recording], facts_of(world), {}, []).metrics


def test_an_acceptance_without_speculation_is_said_to_have_no_effect() -> None:
    sections = twin_sections(Random(1))
    del sections["fleet"]["speculation"]
    notes = build_world(build(**sections)).notes
    assert "adapters: an acceptance has no effect without fleet.speculation" in notes
