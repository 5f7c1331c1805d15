"""One streaming request over ``/v1/completions``, with a stamp for every piece of the answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrate.serve.connection import Host
from calibrate.serve.http_answer import PIECE_BYTES, Answer, Broken, ServerError
from sim.cells import printable
from sim.errors import InputError, ScenarioError
from sim.reading import brackets_fit
from sim.spec.scenario import Scenario
from sim.traffic.generate import Traffic

# The requests of a scenario as a client sends them: when, with which adapter, how many tokens each way.

MOST_REQUESTS = 20_000
"""A live run lasts as long as its traffic: a scenario with more requests is most likely meant for planning."""

FIRST_TOKEN_ID, TOKEN_IDS = 5, 900
"""First token id of prompts, and how many ids they use: every vocabulary has these."""


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send.

    :ivar at_s: seconds after the start of the run.
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
            key="workload.arrivals.process" if scenario.workload.client is None else "workload.client.max_concurrency",
            got="closed" if scenario.workload.client is None else traffic.closed_loop.concurrency,
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
    limit, longest = scenario.fleet.max_model_len, longest_request(planned)
    if limit is not None and longest > limit:
        raise ScenarioError(
            "a request is longer than the server takes",
            key="fleet.max_model_len",
            got=limit,
            allowed=f"at least {longest}",
        )
    return planned


def longest_request(planned: Sequence[PlannedRequest]) -> int:
    """Return the tokens of the longest request, prompt and answer."""
    return max(request.prompt_tokens + request.output_tokens for request in planned)


# JSON from a server, which may be anything: parsed within bounds, and its texts cut short for messages.

WORDS = 300
"""Letters of what a server says that are shown and kept, at most."""


def parse_json(data: bytes) -> Any:
    """Return what JSON says.

    :raises ValueError: where it is not JSON, or nested so deep that reading it takes too much.
    """
    if not brackets_fit(data):
        raise ValueError("too many brackets")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deep") from None


def words_of(said: object) -> str:
    """Return what a server said, cut short and without control characters."""
    if isinstance(said, str):
        return printable(said, WORDS)
    try:
        return printable(repr(said), WORDS)
    except (RecursionError, ValueError):  # nested too deep, a number of too many digits
        return "an error that can't be shown"


# An event stream becomes stamps: when each piece with tokens came, and how many tokens had come by then.

PENDING_BYTES = 64 << 10
"""Bytes that are kept unread, pieces at ``PIECE_BYTES`` more each; from here on they are read at once."""

EVENT_BYTES = 64 << 10
"""Bytes of an event, at most. Those of vLLM have some 400."""

SPARE_TOKENS = 16
"""Tokens that may come beyond twice those that were asked for."""


class EventStream:
    """What comes of one answer.

    Pieces are kept and read later, a few at a time: reading them as they come would delay the stamps of other answers.

    :param asked: tokens that were asked for. An answer of more than twice as many is broken: some servers that do not
        count their tokens send one in two pieces.
    :ivar problem: what is wrong with the stream, as far as it was read; ``pending``: bytes that are kept unread.
    """

    def __init__(self, asked: int, stamps: list[tuple[float, int]]) -> None:
        self.problem = ""
        self._stamps = stamps
        self._most_tokens = 2 * asked + SPARE_TOKENS
        self._tokens = 0
        self._pieces: list[tuple[float, bytes]] = []
        self.pending = 0
        self._rest = b""

    def add(self, now: float, data: bytes) -> None:
        """Take a piece; an event may come in pieces, or several in one.

        :raises Broken: where something is wrong with those that were read by now.
        """
        self._pieces.append((now, data))
        self.pending += len(data) + PIECE_BYTES
        if self.pending > PENDING_BYTES:
            self.read()
        if self.problem:
            raise Broken(self.problem)

    def read(self) -> None:
        """Read what has come so far; what follows a problem is dropped."""
        pieces, self._pieces, self.pending = self._pieces, [], 0
        try:
            for now, data in pieces:
                if not self.problem:
                    self._read_piece(now, data)
        except ValueError as error:
            self.problem = str(error)

    def end(self) -> None:
        """Read what is left; half an event at the end counts nowhere."""
        self.read()
        self._rest = b""

    def _read_piece(self, now: float, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        before = self._tokens
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                self._tokens = self._count(_event(line[5:]))
        if len(self._rest) > EVENT_BYTES:
            raise ValueError(f"an event of more than {EVENT_BYTES >> 10} KiB")
        if self._tokens > before:
            self._stamps.append((now, self._tokens))

    def _count(self, event: dict[str, Any]) -> int:
        usage, choices, tokens = event.get("usage"), event.get("choices"), self._tokens
        if usage:
            reported = usage.get("completion_tokens") if isinstance(usage, dict) else usage
            if reported is not None and type(reported) is not int:
                raise ValueError("an event with a number of tokens that is no number")
            tokens = max(tokens, reported or 0)
        elif choices:
            if not isinstance(choices, list) or not isinstance(choices[0], dict):
                raise ValueError("an event that is no completion")
            tokens += bool(choices[0].get("text"))  # a server that doesn't count as it goes: a piece is a token
        if tokens > self._most_tokens:
            raise ValueError("more tokens than were asked for")
        return tokens


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = parse_json(data)
    except ValueError:
        raise ValueError("an event that is not JSON") from None
    if not isinstance(event, dict):
        raise ValueError("an event that is no JSON object")
    if event.get("error"):
        error = event["error"]
        raise ValueError(words_of(error.get("message") or error if isinstance(error, dict) else error))
    return event


MODELS_BYTES = 16 << 20
"""Bytes of the list of models, at most. One of 10,000 adapters has 6 MB."""

NAME_LETTERS = 1024
"""Letters of a model's name, at most."""

REFUSAL_BYTES = 64 << 10
"""Bytes that are read of an answer with an HTTP error; what comes after them is dropped."""

ANSWER_BYTES, TOKEN_BYTES = 1 << 20, 16 << 10
"""Bytes of a streamed answer, at most: so many, and so many more for each token that was asked for."""

COMPLETE, SHORT, REFUSED, BROKEN = "complete", "short", "refused", "broken"
"""How a request ended: with all its tokens; with fewer; with an HTTP error; in the middle."""


@dataclass(slots=True)
class SentRequest:
    """One request and what came back. Times are monotonic seconds; 0 where nothing arrived.

    :ivar stamps: when each piece with tokens came, and the tokens that had come by then; complete at its end.
    :ivar problem: what the server said, where it refused.
    """

    request: PlannedRequest
    sent: float = 0.0
    stamps: list[tuple[float, int]] = field(default_factory=list)
    status: str = BROKEN
    problem: str = ""
    stream: EventStream = field(init=False)

    def __post_init__(self) -> None:
        self.stream = EventStream(self.request.output_tokens, self.stamps)

    @property
    def first(self) -> float:
        """When the first token arrived."""
        return self.stamps[0][0] if self.stamps else 0.0

    @property
    def last(self) -> float:
        """When the last token arrived."""
        return self.stamps[-1][0] if self.stamps else 0.0

    @property
    def tokens(self) -> int:
        """Tokens that arrived."""
        return self.stamps[-1][1] if self.stamps else 0

    def gaps(self) -> list[float]:
        """Return the seconds between tokens; tokens of one piece arrived together."""
        result: list[float] = []
        for (before, had), (now, has) in zip(self.stamps, self.stamps[1:], strict=False):
            result += [now - before, *([0.0] * (has - had - 1))]
        return result


def payload(request: PlannedRequest, model: str) -> bytes:
    """Return the body: an exact number of prompt tokens, and a completion of an exact length."""
    return json.dumps(
        {
            "model": model,
            "prompt": request.prompt(),
            "max_tokens": request.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    ).encode()


async def send(host: Host, request: PlannedRequest, model: str, into: SentRequest | None = None) -> SentRequest:
    """Send one request and return what arrived, complete or not.

    :param into: filled as pieces arrive, so that a caller that gives up keeps them.
    """
    result = into or SentRequest(request)
    stream, refused = result.stream, bytearray()

    def take(answer: Answer, now: float, data: bytes) -> None:
        if answer.status == 200:
            stream.add(now, data)
        else:
            refused.extend(data[: REFUSAL_BYTES - len(refused)])

    most = ANSWER_BYTES + TOKEN_BYTES * request.output_tokens
    try:
        answer = await host.request("/v1/completions", payload(request, model), take, most)
    except (Broken, OSError) as error:
        stream.end()
        result.problem = words_of(str(error) or type(error).__name__)
        return result
    result.sent = answer.sent
    if answer.status != 200:
        result.status, result.problem = REFUSED, refusal(answer.status, bytes(refused))
        return result
    stream.end()
    if stream.problem:
        result.status, result.problem = BROKEN, stream.problem
    elif result.tokens < request.output_tokens:
        result.status, result.problem = SHORT, f"{result.tokens} of {request.output_tokens} tokens"
    else:
        result.status = COMPLETE
    return result


def refusal(status: int, body: bytes) -> str:
    """Return what a server says with an HTTP error."""
    words: Any = body.decode("utf-8", errors="replace").strip()
    with contextlib.suppress(ValueError):
        data = parse_json(body)
        error = data.get("error", data) if isinstance(data, dict) else data
        words = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return f"HTTP {status}: {words_of(words)}" if words else f"HTTP {status}"


async def served_models(host: Host, limit_s: float) -> tuple[list[str], list[str]]:
    """Return the names of base models and of adapters that a server lists.

    :param limit_s: seconds in which it must have answered.
    :raises ServerError, InputError: where it can't be reached, or is no OpenAI-compatible server.
    """
    hint = "is it up, and is this its address?"
    try:
        status, body = await host.get("/v1/models", limit_s, MODELS_BYTES)
    except Broken as error:
        raise ServerError(f"the server gives no answer that can be used: {error}", where=host.url, hint=hint) from None
    except OSError as error:
        raise ServerError(f"the server can't be reached: {error}", where=host.url, hint=hint) from None
    if status in (401, 403):
        raise InputError("the server requires a key", key="--url", got=f"HTTP {status}", hint="set OPENAI_API_KEY")
    try:
        if status != 200:
            raise ValueError(status)
        rows = parse_json(body)["data"]
        bases = [_name(row["id"]) for row in rows if not row.get("parent")]
        adapters = [_name(row["id"]) for row in rows if row.get("parent")]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            "no OpenAI-compatible server",
            key="--url",
            got=f"{host.url}/v1/models answers HTTP {status}",
            hint="give the address that stands before /v1",
        ) from None
    return bases, adapters


def _name(said: object) -> str:
    """Return a model's name.

    :raises ValueError: where it is none that can be sent back and shown.
    """
    if not isinstance(said, str) or not said.isprintable() or not 1 <= len(said) <= NAME_LETTERS:
        raise ValueError("not a name")
    return said
