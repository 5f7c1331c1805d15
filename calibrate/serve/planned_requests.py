"""The requests of a scenario as a client sends them: when, with which adapter, how many tokens each way."""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import ScenarioError
from sim.spec.scenario import Scenario
from sim.traffic.generate import Traffic

MOST_REQUESTS = 20_000
"""A live run lasts as long as its traffic: a scenario with more requests is most likely meant for planning."""

FIRST_TOKEN_ID, TOKEN_IDS = 5, 900
"""First token id of prompts, and how many ids they use: every vocabulary has these."""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send.

    :ivar at_s: seconds after the start of the run.
    :ivar adapter: its index.
    """

    index: int
    at_s: float
    adapter: int
    prompt_tokens: int
    output_tokens: int

    def prompt(self) -> list[int]:
        """Return the prompt as token ids: its length is exact, and no two requests in a row share a prefix."""
        return [FIRST_TOKEN_ID + (self.index * 7 + place) % TOKEN_IDS for place in range(self.prompt_tokens)]


def plan_requests(scenario: Scenario, traffic: Traffic) -> list[PlannedRequest]:
    """Return the first replication's requests.

    :raises ScenarioError: where there are too many for a live run, or one is too long for the server.
    """
    if traffic.total is not None and traffic.total > MOST_REQUESTS:
        raise ScenarioError(
            "too many requests for a live run",
            key="workload.requests",
            got=traffic.total,
            allowed=f"up to {MOST_REQUESTS:,}",
            hint="such as --set workload.requests=500",
        )
    if traffic.closed_loop is not None:
        raise ScenarioError(
            "a live run sends requests at given times, not when others are answered",
            key="workload.arrivals.process",
            got="closed",
            allowed="a process with a rate",
            hint="such as workload.arrivals: {process: poisson, rate: 2/s}",
        )
    if traffic.base_share > 0:
        raise ScenarioError(
            "a live run has no requests to the base model",
            key="adapters.mix" if scenario.adapters.base_share > 0 else "workload.trace.file",
            got=f"{traffic.base_share:.3g} of the requests",
            allowed="requests for adapters",
            hint="remove the kind base, or the rows without an adapter",
        )
    planned: list[PlannedRequest] = []
    for chunk in traffic.chunks(0):
        columns = (chunk.arrival_s, chunk.adapter, chunk.prompt_tokens, chunk.output_tokens)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        planned += [PlannedRequest(chunk.first + number, *row) for number, row in enumerate(rows)]
        if len(planned) > MOST_REQUESTS:
            raise ScenarioError(
                "too many requests for a live run",
                key="workload.duration",
                got=f"more than {MOST_REQUESTS:,}",
                hint="give a shorter one",
            )
    limit = scenario.fleet.max_model_len
    longest = max(planned, key=lambda request: request.prompt_tokens + request.output_tokens)
    if limit is not None and longest.prompt_tokens + longest.output_tokens > limit:
        raise ScenarioError(
            "a request is longer than the server takes",
            key="fleet.max_model_len",
            got=limit,
            allowed=f"at least {longest.prompt_tokens + longest.output_tokens}",
        )
    return planned


def longest_request(planned: list[PlannedRequest]) -> int:
    """Return the tokens of the longest request, prompt and answer."""
    return max(request.prompt_tokens + request.output_tokens for request in planned)
