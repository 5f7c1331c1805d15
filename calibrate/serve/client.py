"""One streaming request over ``/v1/completions``, with a stamp for every piece of the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from calibrate.serve.connection import ConnectionBroken, Host
from calibrate.serve.planned_requests import PlannedRequest
from calibrate.serve.server_errors import ServerError
from sim.errors import InputError

COMPLETE, SHORT, REFUSED, BROKEN = "complete", "short", "refused", "broken"
"""How a request ended: with all its tokens; with fewer; with an HTTP error; in the middle."""


@dataclass(slots=True)
class SentRequest:
    """One request and what came back. Times are monotonic seconds; 0 where nothing arrived.

    :ivar stamps: when each piece with tokens arrived, and the tokens received by then.
    :ivar problem: what the server said, where it refused.
    """

    request: PlannedRequest
    sent: float = 0.0
    stamps: list[tuple[float, int]] = field(default_factory=list)
    status: str = BROKEN
    problem: str = ""

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
    pieces: list[tuple[float, bytes]] = []
    body = payload(request, model)

    def take(now: float, data: bytes) -> None:
        pieces.append((now, data))

    try:
        answer = await host.request("/v1/completions", body, take)
    except (ConnectionBroken, OSError) as error:
        result.problem = str(error) or type(error).__name__
        result.stamps = _stamps(pieces)[0]
        return result
    result.sent = answer.sent
    if answer.status != 200:
        result.status, result.problem = REFUSED, refusal(answer.status, b"".join(data for _, data in pieces))
        return result
    result.stamps, problem = _stamps(pieces)
    if problem:
        result.status, result.problem = BROKEN, problem
    elif result.tokens < request.output_tokens:
        result.status, result.problem = SHORT, f"{result.tokens} of {request.output_tokens} tokens"
    else:
        result.status = COMPLETE
    return result


def refusal(status: int, body: bytes) -> str:
    """Return what a server says with an HTTP error."""
    try:
        data: Any = json.loads(body)
        error = data.get("error", data) if isinstance(data, dict) else data
        words = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    except ValueError:
        words = body.decode("utf-8", errors="replace").strip()
    return f"HTTP {status}: {str(words)[:300]}" if words else f"HTTP {status}"


def _stamps(pieces: list[tuple[float, bytes]]) -> tuple[list[tuple[float, int]], str]:
    """Return the stamps of an event stream and the error in it; an event may come in pieces, or several in one."""
    stamps: list[tuple[float, int]] = []
    rest, tokens = b"", 0
    for now, data in pieces:
        *lines, rest = (rest + data).split(b"\n")
        before = tokens
        for line in lines:
            if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
                continue
            try:
                event = json.loads(line[5:])
            except ValueError:
                return stamps, "an event that is not JSON"
            if not isinstance(event, dict):
                return stamps, "an event that is no JSON object"
            if event.get("error"):
                error = event["error"]
                words = error.get("message") or error if isinstance(error, dict) else error
                return stamps, str(words)[:300]
            usage = event.get("usage")
            if usage:
                tokens = max(tokens, int(usage.get("completion_tokens") or 0))
            elif event.get("choices") and event["choices"][0].get("text"):
                tokens += 1  # a server that doesn't count as it goes: a piece is a token
        if tokens > before:
            stamps.append((now, tokens))
    return stamps, ""


async def served_models(host: Host) -> tuple[list[str], list[str]]:
    """Return the names of base models and of adapters that a server lists.

    :raises ServerError, InputError: where it can't be reached, or is no OpenAI-compatible server.
    """
    try:
        status, body = await host.get("/v1/models")
    except (ConnectionBroken, OSError) as error:
        raise ServerError(
            f"the server can't be reached: {error}", where=host.url, hint="is it up, and is this its address?"
        ) from None
    if status in (401, 403):
        raise InputError("the server requires a key", key="--url", got=f"HTTP {status}", hint="set OPENAI_API_KEY")
    try:
        if status != 200:
            raise ValueError(status)
        rows = json.loads(body)["data"]
        bases = [str(row["id"]) for row in rows if not row.get("parent")]
        adapters = [str(row["id"]) for row in rows if row.get("parent")]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            "this is not an OpenAI-compatible server",
            key="--url",
            got=f"{host.url}/v1/models answers HTTP {status}",
            hint="give the address without /v1",
        ) from None
    return bases, adapters
