"""One streaming request over ``/v1/completions``, with a stamp for every piece of the answer."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from calibrate.serve.connection import Host
from calibrate.serve.event_stream import EventStream
from calibrate.serve.http_answer import Answer, Broken
from calibrate.serve.planned_requests import PlannedRequest
from calibrate.serve.server_errors import ServerError
from calibrate.serve.server_json import parse_json, words_of
from sim.errors import InputError

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
    :ivar stream: makes the stamps of what comes.
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
