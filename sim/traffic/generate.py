"""Puts traffic together: chunks of requests as numpy arrays, the same for every design that is compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sim.arrays import Floats, Ints
from sim.errors import ScenarioError
from sim.rng import stream
from sim.spec.scenario import Scenario
from sim.spec.sections.benchmark_clients import ClosedLoop, SglangBench, SLoraClient, VllmBench
from sim.spec.sections.tenants import shares_of
from sim.spec.sections.traffic_laws import (
    ClosedArrivals,
    GammaArrivals,
    MmppArrivals,
    WeibullArrivals,
    WeightsPopularity,
)
from sim.spec.sections.workload import AdapterKind
from sim.traffic.adapters import ModelShape, populate, with_sizes
from sim.traffic.benchmark_clients import requests_of
from sim.traffic.lengths import LengthPairs, TokenLengths, check_together, together
from sim.traffic.popularity import AdapterSampler, newcomers, read_weights, weights_of
from sim.traffic.request import BASE_MODEL
from sim.traffic.sessions import SessionSource, mean_gap
from sim.traffic.shared_text import Conversations, SharedText, SystemPrompts, TextsOfRun
from sim.traffic.sources import (
    AggregateArrivals,
    ArrivalsPerAdapter,
    ClosedLoopSource,
    ConstantSizes,
    DriftingSource,
    GrowingSizes,
    ReplayedTrace,
    RequestBlock,
    RequestSource,
    cut,
    with_base_requests,
)
from sim.traffic.tenant_traffic import TenantArrivals, tenant_of_adapters, weights_by_tenant
from sim.traffic.traces.read import TraceData, read_trace

BLOCK = 1 << 16
"""Requests made at a time. Part of the random streams' key: changing it changes all traffic."""

MAX_SESSIONS = 5_000_000
"""Sessions running at a time, at most."""
MAX_NEWCOMERS, MAX_TRADES, MAX_TRADED, MAX_CHANGES = 10_000_000, 200_000, 20_000_000, 5_000_000
"""Limits of one run: new adapters, times that popularity drifts, adapters that change places by that, and changes of a
random rate. More would take longer than the requests."""

MAX_TEXTS = 10_000_000
"""System prompts of all adapters, at most."""

UNNAMED_ADAPTERS = 100
"""Adapters of a trace that names none, where the scenario gives no count."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive requests; every array has shape (n,).

    :ivar first: index of the first request.
    :ivar arrival_s: -1 in a closed loop, where only the simulation knows when a request is sent.
    :ivar adapter: ``BASE_MODEL`` where a request is for the base model.
    :ivar load_uniform, host_load_uniform, service_uniform: uniform in [0, 1); decide the time of the load or
        service that the request brings about, whatever the design.
    :ivar stops: whether a stop token ends the request, and not its ``max_tokens``.
    :ivar session: the session number of each request, from 0 in each replication; None without sessions. A generated
        session uses one adapter; one of a trace may use several.
    :ivar text: which tokens other requests have too; None where no two requests have any.
    """

    first: int
    arrival_s: Floats
    adapter: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    load_uniform: Floats
    host_load_uniform: Floats
    service_uniform: Floats
    stops: NDArray[np.bool_]
    session: Ints | None = None
    text: SharedText | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)


class Traffic:
    """The requests of a scenario.

    :ivar population: every adapter's size and rank; new adapters by churn come last, after ``places`` at the start.
    :ivar names: adapter names where a trace or weights file gives them, else ().
    :ivar total: number of requests; None if only the duration is known.
    :ivar end_s: no request arrives after this time; None without a duration.
    :ivar base_share: share of the requests that are for the base model, by the mix or in the trace; ``base_alone``: all
        are, so that LoRA is off.
    :ivar tenant_of: the tenant of each adapter, and last of the base model, by its place in the scenario;
        (adapters + 1,). None without tenants.
    :ivar notes: sentences for the user.
    :param weights_bytes: of the base model, and of a full fine-tune without a size of its own.
    :raises TraceError, ScenarioError: where a file or a count can't be used.
    """

    def __init__(self, scenario: Scenario, base_model: str | ModelShape, weights_bytes: int = 0) -> None:
        workload = scenario.workload
        self._seed = scenario.run.seed
        self._workload = workload
        self._trace: TraceData | None = None
        self.names: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()
        cvs: Floats | None = None
        if workload.trace is not None:
            self._trace = read_trace(workload.trace, workload.requests, seed=self._seed)
            self.names, self.notes = self._trace.names, self._trace.notes
            lengths = workload.tokens.model_fields_set - {"stop", "max_tokens", "ignore_eos"}
            if self._trace.prompt_tokens is not None and lengths:
                raise ScenarioError("the trace has its own lengths", key="workload.tokens", hint="remove tokens")
        elif workload.client is not None:
            adapters = 0 if scenario.adapters.base_alone else scenario.adapters.count or 0
            self._trace = requests_of(workload.client, adapters, workload.requests)
        elif isinstance(workload.popularity, WeightsPopularity):
            weights = read_weights(workload.popularity.file)
            self.names, cvs = weights.names, weights.cv
            gaps_have_cv = isinstance(workload.arrivals, GammaArrivals | WeibullArrivals)
            if not np.isnan(cvs).all() and not (gaps_have_cv and getattr(workload.arrivals, "per", "") == "adapter"):
                self.notes += (
                    f"{workload.popularity.file}: its cv column has no effect without gamma or Weibull arrivals per "
                    "adapter",
                )
        self.base_share = _base_share(scenario, self._trace)
        if self._trace is not None and self._trace.base_alone:
            scenario, self._trace = without_adapters(scenario), self._trace.without_names()
        self.base_alone = scenario.adapters.base_alone
        count = _adapter_count(scenario, self.names)
        if scenario.adapters.count is None and not self.names and not scenario.adapters.base_alone:
            self.notes += (
                f"the trace names no adapters and adapters.count is not set: its requests ask for {count} adapters, "
                f"drawn from workload.popularity ({workload.popularity.law})",
            )
        self.end_s = workload.duration
        self.total = workload.requests
        if self._trace is not None:
            times = self._trace.arrival_s
            self.total = len(times) if self.end_s is None else int(np.searchsorted(times, self.end_s, side="left"))
        self.places = count
        self._new = newcomers(workload.churn, count, self.expected_s()) if workload.churn is not None else 0
        self._check_size()
        in_turn = isinstance(workload.client, SLoraClient)
        population = populate(scenario.adapters, base_model, count + self._new, weights_bytes, in_turn=in_turn)
        sizes = None if self._trace is None else self._trace.adapter_bytes
        self.population = population if sizes is None else with_sizes(population, sizes, scenario.adapters.mix)
        named = None if self._trace is None else self._trace.adapter
        self._tenants = scenario.tenants
        law = workload.popularity
        self._weights: Floats | None = None
        self._chooser: AdapterSampler | None = None
        if named is None and shares_of(self._tenants):
            self._weights = weights_by_tenant(law, self._tenants, count)
            self._chooser = AdapterSampler(self._weights / self._weights.sum())
        elif named is None:
            self._weights = weights_of(law, count)
            self._chooser = AdapterSampler(self._weights, in_turn=law.in_turn)
        self.tenant_of: Ints | None = None
        if self._tenants:
            self.tenant_of = tenant_of_adapters(self._tenants, self.names, count, self.base_share)
        self._source = self._make_source(cvs)
        tokens = workload.tokens
        prompt, output = TokenLengths(tokens.prompt), TokenLengths(tokens.output)
        if self._trace is None or self._trace.prompt_tokens is None:
            check_together(prompt, output, workload.prefix)
        self._lengths = LengthPairs(prompt, output, tokens.correlation, tokens.by_adapter)
        self._scores: tuple[int, Floats] | None = None
        self._check_prefix()

    @property
    def replayed(self) -> bool:
        """Whether arrivals come from a trace, so that every replication sees the same ones."""
        return self._trace is not None

    @property
    def closed_loop(self) -> ClosedLoop | None:
        """The closed loop that requests come from; None where they arrive whether or not others were answered."""
        workload = self._workload
        if isinstance(workload.client, VllmBench | SglangBench) and workload.client.is_closed:
            return workload.client
        return workload.arrivals if isinstance(workload.arrivals, ClosedArrivals) else None

    @property
    def due_s(self) -> Floats | None:
        """When the clients of a closed loop may send each request at the earliest; None: as soon as one is free."""
        return None if self._trace is None or self.closed_loop is None else self._trace.arrival_s

    @property
    def rate(self) -> float | None:
        """Mean requests per second; None in a closed loop, where it follows from the answers."""
        if self.closed_loop is not None:
            return None
        if self._trace is not None:
            times = self._trace.arrival_s
            return len(times) / float(times[-1]) if times[-1] > 0 else float("inf")
        arrivals = self._workload.arrivals
        assert arrivals is not None, "checked by Workload"
        assert not isinstance(arrivals, ClosedArrivals), "said above"
        return arrivals.rate

    def expected_requests(self) -> int | None:
        """Return how many requests are expected; None in a closed loop that runs for a duration."""
        if self.total is not None or self.rate is None:
            return self.total
        return int(self.rate * (self.end_s or 0.0))

    def longest_request(self, tenant: int) -> float:
        """Return the most tokens, of prompt and answer together, that a request of a tenant may have."""
        trace, workload = self._trace, self._workload
        if trace is not None and trace.prompt_tokens is not None and trace.output_tokens is not None:
            tokens = trace.prompt_tokens.astype(np.int64) + trace.output_tokens
            if trace.adapter is not None:
                assert self.tenant_of is not None, "there are tenants"
                tokens = tokens[self.tenant_of[trace.adapter] == tenant]
            return float(tokens.max(initial=0))
        laws = [workload.tokens.prompt, workload.tokens.output]
        if workload.prefix is not None:
            laws.append(workload.prefix.tokens)
        longest = sum(TokenLengths(law).most for law in laws)
        if workload.sessions is not None and workload.sessions.history:
            longest = max(longest, workload.sessions.max_context)
        return longest

    def share_above(self, tokens: int) -> float:
        """Return the share of requests with more tokens than this, of prompt and answer together.

        Generated ones: without history, with a system prompt of median length, and as if prompt and answer were
        independent, by 500 quantiles of each.
        """
        if self._trace is not None and self._trace.prompt_tokens is not None and self._trace.output_tokens is not None:
            return float(np.mean(self._trace.prompt_tokens.astype(np.int64) + self._trace.output_tokens > tokens))
        workload = self._workload
        laws = [TokenLengths(law) for law in (workload.tokens.prompt, workload.tokens.output)]
        prefix = 0 if workload.prefix is None else int(TokenLengths(workload.prefix.tokens).at(np.zeros(1))[0])
        if prefix + sum(law.most for law in laws) <= tokens:
            return 0.0
        scores = np.array([NormalDist().inv_cdf((place + 0.5) / 500) for place in range(500)])  # without scipy
        prompt, output = (law.at(scores) for law in laws)
        return float(np.mean(prefix + prompt[:, None] + output > tokens))

    @property
    def shares_text(self) -> bool:
        """Whether requests may have tokens in common, which a prefix cache could find."""
        if self._trace is not None and self._trace.text is not None:
            return True
        return self._workload.shared_prefix is not None or self._has_history

    @property
    def _has_history(self) -> bool:
        return self._workload.sessions is not None and self._workload.sessions.history

    def shares(self) -> Floats:
        """Return each adapter's share of the requests for adapters, from the trace or by law; (places,)."""
        asked = self._weights
        if asked is None:
            assert self._trace is not None, "without a trace there is a law"
            assert self._trace.adapter is not None, "without names there is a law"
            named = self._trace.adapter[self._trace.adapter != BASE_MODEL]
            asked = np.bincount(named, minlength=self.places).astype(np.float64)
        return np.asarray(asked / asked.sum())

    def hottest(self) -> Ints:
        """Return the adapters from the most to the least popular one."""
        return np.argsort(-self.shares(), kind="stable")

    def chunks(self, replication: int) -> Iterator[Chunk]:
        """Yield the requests of one replication in order, in chunks of at most ``BLOCK``."""
        first = 0
        texts = self._texts(replication)
        for piece in self._pieces(replication):
            chunk = self._chunk(replication, first // BLOCK, first, piece)
            yield chunk if texts is None else self._with_text(replication, chunk, texts)
            first += len(piece.times)

    def arrivals(self, replication: int) -> Iterator[tuple[Floats, Ints]]:
        """Yield times and adapters alone, in pieces of ``BLOCK``, and the rest; requests to the base model included."""
        for times, adapters, _ in self._pieces(replication):
            yield times, adapters

    def _pieces(self, replication: int) -> Iterator[RequestBlock]:
        pieces = cut(self._source.blocks(replication, self.total), BLOCK, self.total, self.end_s)
        if self.base_share == 0 or self._chooser is None:  # or a trace says itself which requests are for it
            return pieces
        return with_base_requests(pieces, self.base_share, self._seed, replication, BLOCK)

    def _check_size(self) -> None:
        """Refuse changes so frequent, or runs so long, that they would take longer than the requests themselves."""
        workload, seconds = self._workload, self.expected_s()
        changes = [("churn", "adapters would be replaced too often", float(self._new), MAX_NEWCOMERS)]
        if workload.drift is not None:
            times = seconds / workload.drift.every
            moved = times * max(2.0, workload.drift.share * self.places)
            changes.append(("drift", "adapters would trade places too often", moved, MAX_TRADED))
            changes.append(("drift.every", "adapters would trade places too often", times, MAX_TRADES))
        if isinstance(workload.arrivals, MmppArrivals):
            states = workload.arrivals.states
            times = seconds / (sum(state.time for state in states) / len(states))
            changes.append(("arrivals.states", "the rate would change too often", times, MAX_CHANGES))
        if workload.sessions is not None:
            law = workload.sessions
            assert self.rate is not None, "no sessions in a closed loop"
            at_a_time = self.rate * (1 - 1 / law.requests) * mean_gap(law)
            changes.append(("sessions", "too many sessions would run at a time", at_a_time, MAX_SESSIONS))
        for key, problem, times, most in changes:
            if times > most:
                raise ScenarioError(
                    problem, key=f"workload.{key}", got=f"about {times:,.0f}", allowed=f"up to {most:,}"
                )

    def expected_s(self) -> float:
        """Return how long requests are expected to arrive; infinite where that follows from the answers."""
        if self.end_s is not None:
            return self.end_s
        assert self.total is not None, "a run has a count or a duration"
        return float("inf") if self.rate is None else self.total / self.rate

    def _make_source(self, cvs: Floats | None) -> RequestSource:
        workload, seed, chooser = self._workload, self._seed, self._chooser
        if self._trace is not None:
            trace = self._trace
            times = trace.arrival_s if self.due_s is None else np.full(len(trace), -1.0)
            return ReplayedTrace(times, trace.adapter, trace.session, chooser, seed, BLOCK)
        arrivals, sessions = workload.arrivals, workload.sessions
        assert arrivals is not None, "checked by Workload"
        assert chooser is not None, "only a trace names adapters"
        if isinstance(arrivals, ClosedArrivals):
            return ClosedLoopSource(chooser, seed, BLOCK)
        rate = arrivals.rate / (1.0 if sessions is None else sessions.requests)
        sizes = GrowingSizes(1.0 if sessions is None else sessions.requests)
        source: RequestSource
        assert self._weights is not None, "only a trace names adapters"
        if any(tenant.arrivals_key for tenant in self._tenants):
            assert self.tenant_of is not None, "there are tenants"
            return TenantArrivals(arrivals, self._tenants, self.tenant_of, self._weights, seed)
        if getattr(arrivals, "per", "aggregate") == "adapter":
            source = ArrivalsPerAdapter(arrivals, rate, self._weights, cvs, seed, sizes)
        else:
            source = AggregateArrivals(
                arrivals, rate, chooser, seed, ConstantSizes(BLOCK) if sessions is None else sizes
            )
        if workload.drift is not None or workload.churn is not None:
            source = DriftingSource(source, workload.drift, workload.churn, self.places, self._new, seed)
        return source if sessions is None else SessionSource(source, rate, sessions, chooser, seed)

    def _chunk(self, replication: int, block: int, first: int, piece: RequestBlock) -> Chunk:
        arrival, adapter, session = piece
        count = len(arrival)

        def rng(purpose: str) -> np.random.Generator:
            return stream(self._seed, replication, purpose, block)

        trace, text = self._trace, None
        if trace is not None and trace.text is not None:
            text = trace.text.part(first, first + count)
        if trace is not None and trace.prompt_tokens is not None and trace.output_tokens is not None:
            span = slice(first, first + count)
            prompt, output = trace.prompt_tokens[span].astype(np.int64), trace.output_tokens[span].astype(np.int64)
        else:
            between = self._adapter_scores(replication)[:, adapter] if self._workload.tokens.by_adapter else None
            prompt, output = self._lengths.draw((rng("prompt"), rng("output")), count, between)
        return Chunk(
            first=first,
            arrival_s=arrival,
            adapter=adapter,
            prompt_tokens=prompt,
            output_tokens=output,
            load_uniform=rng("load").random(count),
            host_load_uniform=rng("host-load").random(count),
            service_uniform=rng("service").random(count),
            stops=rng("stop").random(count) < (self._workload.tokens.stop if self._workload.client is None else 0.0),
            session=session,
            text=text,
        )

    def _texts(self, replication: int) -> TextsOfRun | None:
        """Return what makes prompts of shared text and of their own, if the workload has any."""
        prefix, sessions, source = self._workload.shared_prefix, self._workload.sessions, self._source
        if prefix is None and not self._has_history:
            return None
        prompts = None if prefix is None else SystemPrompts(prefix, len(self.population), self._seed, replication)
        if sessions is None or not sessions.history:
            return TextsOfRun(prompts, None)
        assert isinstance(source, SessionSource), "there are sessions"
        first_key = 0 if prompts is None else len(prompts.tokens)
        return TextsOfRun(prompts, Conversations(sessions.max_context, first_key), source.turns_before(replication))

    def _with_text(self, replication: int, chunk: Chunk, texts: TextsOfRun) -> Chunk:
        """Return requests whose prompts begin with what they share."""
        block = chunk.first // BLOCK
        number = np.arange(chunk.first, chunk.first + len(chunk)) if chunk.session is None else chunk.session
        if self._has_recorded_lengths:
            return replace(chunk, text=texts.within(chunk.adapter, number))

        def lengths(adapter: Ints) -> tuple[Ints, Ints]:
            between = self._adapter_scores(replication)[:, adapter] if self._workload.tokens.by_adapter else None
            rngs = (stream(self._seed, replication, f"history-{kind}", block) for kind in ("prompt", "output"))
            return self._lengths.draw((next(rngs), next(rngs)), len(adapter), between)

        prompt, text = texts.add(chunk.adapter, number, chunk.prompt_tokens, chunk.output_tokens, lengths)
        prompt, output = together(prompt, chunk.output_tokens)
        return replace(chunk, prompt_tokens=prompt, output_tokens=output, text=text)

    @property
    def _has_recorded_lengths(self) -> bool:
        return self._trace is not None and self._trace.prompt_tokens is not None

    def _check_prefix(self) -> None:
        """Refuse system prompts that do not fit to the adapters or to a trace."""
        prefix = self._workload.prefix
        if prefix is None:
            return
        sharers = len(self.population) if prefix.shared_by == "adapter" else 1
        if sharers * prefix.texts > MAX_TEXTS:
            raise ScenarioError(
                "there would be too many texts",
                key="workload.prefix.texts",
                got=f"{prefix.texts:,} for each of {sharers:,} adapters",
                allowed=f"up to {MAX_TEXTS:,} together",
            )
        if self._trace is not None and self._trace.text is not None:
            raise ScenarioError(
                "the trace says itself which tokens requests share", key="workload.prefix", hint="remove prefix"
            )
        if self._has_recorded_lengths:
            for chunk in self.chunks(0):
                assert chunk.text is not None, "there is a prefix"
                longer = np.flatnonzero(chunk.text.ends > chunk.prompt_tokens)
                if len(longer):
                    place = int(longer[0])
                    raise ScenarioError(
                        "the prefix is longer than a recorded prompt, which should begin with it",
                        key="workload.prefix.tokens",
                        got=f"{chunk.text.ends[place]:,} tokens, request {chunk.first + place + 1:,} of the trace has "
                        f"{chunk.prompt_tokens[place]:,}",
                        hint="give a shorter prefix",
                    )

    def _adapter_scores(self, replication: int) -> Floats:
        """Return normal scores of every adapter's lengths, shape (2, adapters + 1): prompts, outputs."""
        if self._scores is None or self._scores[0] != replication:
            # A stream each, so that the first adapters' scores don't depend on how many there are. The last ones are
            # those of the base model, which is adapter -1.
            kinds = (stream(self._seed, replication, f"adapter-{kind}") for kind in ("prompt", "output"))
            self._scores = replication, np.stack([rng.standard_normal(len(self.population) + 1) for rng in kinds])
        return self._scores[1]


def without_adapters(scenario: Scenario) -> Scenario:
    """Return a scenario whose requests are all for the base model."""
    mix = (AdapterKind(share=1.0, kind="base"),)
    return scenario.model_copy(update={"adapters": scenario.adapters.model_copy(update={"mix": mix})})


def _base_share(scenario: Scenario, trace: TraceData | None) -> float:
    """Return the share of the requests that are for the base model.

    :raises ScenarioError: if both the mix and the trace say so.
    """
    if trace is None or trace.adapter is None:
        return scenario.adapters.base_share
    if scenario.adapters.base_share > 0 and not (scenario.adapters.base_alone and trace.base_alone):
        place = next(i for i, kind in enumerate(scenario.adapters.mix) if kind.kind == "base")
        raise ScenarioError(
            "the trace itself says which requests are for the base model: those that name no adapter",
            key=f"adapters.mix.{place}.kind",
            got="base",
            allowed="lora, full",
            hint="remove this kind, or leave the adapter of such requests empty in the trace",
        )
    return trace.base_share


def _adapter_count(scenario: Scenario, names: tuple[str, ...]) -> int:
    given = scenario.adapters.count
    if given is None:  # of the base model alone, no adapter is ever asked for
        return len(names) or (1 if scenario.adapters.base_alone else UNNAMED_ADAPTERS)
    if given < len(names):
        raise ScenarioError(
            "fewer adapters than the file names",
            key="adapters.count",
            got=given,
            allowed=f"{len(names)} or more",
            hint="or leave it out",
        )
    return given
