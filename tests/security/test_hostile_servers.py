"""What SECURITY.md promises about a server that `calibrate serve --url` talks to.

Whatever it sends: a sentence and an exit code, within the time that `--stall` gives and bounded memory.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile_server as hostile
import pytest
from command_line import CommandLine
from hostile_server import HostileServer, chunks, drip, endless, event, models, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_samples import write_samples

from calibrate.serve import ladder
from calibrate.serve.client import (
    ANSWER_BYTES,
    EVENT_BYTES,
    MODELS_BYTES,
    NAME_LETTERS,
    PENDING_BYTES,
    REFUSAL_BYTES,
    SPARE_TOKENS,
    TOKEN_BYTES,
    WORDS,
    EventStream,
    PlannedRequest,
    parse_json,
    refusal,
    served_models,
    words_of,
)
from calibrate.serve.connection import Host
from calibrate.serve.drive import METRICS_EVERY_S, Driver
from calibrate.serve.http_answer import HEAD_BYTES, PIECE_BYTES, Answer, AnswerReader, Broken, ServerError
from calibrate.serve.server_metrics import PAGE_BYTES, PAGE_LIMIT_S, over_run, parse_page, read_page
from sim.studies.observe.engine_metrics import LINE_LETTERS, MOST_KV_TOKENS

pytestmark = pytest.mark.waits

STALL_S = 2.0
PATIENCE_S = 30.0
"""What a test waits for a command of one stall: predicting takes some of it, and the machine may be busy."""


@pytest.fixture
def server() -> Iterator[HostileServer]:
    with hostile.running() as server:
        yield server


Serve = Callable[..., str]
Talk = Callable[[Host], Awaitable[Any]]


def talk(server: HostileServer, work: Talk) -> Any:
    """Return what comes of some work with a connection to the server."""

    async def connected() -> Any:
        host = Host(server.url)
        try:
            return await work(host)
        finally:
            await host.close()

    return asyncio.run(connected())


@pytest.fixture
def serve(server: HostileServer, loraplan: CommandLine) -> Serve:
    """Run the command against the server, to an exit code; return what it said."""
    write_samples()

    def run(*more: str, url: str | None = None, code: int = 3) -> str:
        costs = [] if "--fit" in more else ["--profile", "profile.json"]
        arguments = [*costs, "--repeat", "1", "--stall", str(STALL_S), *more]
        begun = time.monotonic()
        ended = loraplan("calibrate", "serve", "short.yaml", "--url", url or server.url, *arguments)
        assert time.monotonic() - begun < PATIENCE_S
        said = ended.err
        assert "Traceback" not in said
        assert "failure inside" not in said
        assert all(letter.isprintable() or letter == "\n" for letter in said)
        assert ended.code == code, said
        return said

    return run


def test_security_md_names_these_bounds() -> None:
    text = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    promise = text.partition("**A hostile server gets no further than its answers.**")[2].partition("## No promises")[0]
    assert "tests/security/test_hostile_servers.py" in promise
    bounds = {
        "http_answer.py": (HEAD_BYTES,),
        "client.py": (
            *(MODELS_BYTES, NAME_LETTERS, ANSWER_BYTES, TOKEN_BYTES, REFUSAL_BYTES),
            *(PENDING_BYTES, EVENT_BYTES, WORDS),
        ),
        "server_metrics.py": (PAGE_BYTES, LINE_LETTERS),
    }
    for file, values in bounds.items():
        rows = " ".join(line for line in promise.splitlines() if line.endswith(f"| `calibrate/serve/{file}` |"))
        for value in values:
            words = [f"{value:,}", f"{value >> 10} KiB", f"{value >> 20} MiB"]
            assert any(f" {word} " in re.sub("[;,] ", " ", rows) for word in words), (file, value)
    assert f"may take {PAGE_LIMIT_S:.0f} s, and\n  {METRICS_EVERY_S:.0f} s during the traffic" in promise
    assert f"at most twice the requested tokens and {SPARE_TOKENS}" in promise
    assert f"a KV cache of more than {MOST_KV_TOKENS:,} tokens" in promise


# Time is bounded: a server that never answers, or never ends


def test_a_server_that_is_well_is_served(server: HostileServer, serve: Serve) -> None:
    serve(code=0)
    assert server.asked.count("/v1/completions") == 4 + 30


@pytest.mark.promise("A hostile server gets no further than its answers.")
@pytest.mark.promise("The connection and the list of models may take as long as `--stall`, together.")
def test_a_server_that_accepts_and_never_answers(server: HostileServer, serve: Serve) -> None:
    server.accepts = hostile.silent
    assert f"error: {server.url}: the server gives no answer that can be used: no complete answer within 2 s" in serve()


def test_a_server_that_never_shakes_hands(server: HostileServer, serve: Serve) -> None:
    server.accepts = hostile.silent
    assert "no complete answer within 2 s" in serve(url=server.url.replace("http:", "https:"))


@pytest.mark.promise("A metrics page may take 10 s")
def test_a_metrics_page_that_never_comes_is_no_metrics_page(server: HostileServer, serve: Serve) -> None:
    server.answers["/metrics"] = hostile.silent
    serve(code=0)


@pytest.mark.promise("a few seconds after `--stall` seconds in which no token came")
@pytest.mark.parametrize("good_for", [0, 4 + 8])
def test_completions_that_never_begin(server: HostileServer, serve: Serve, good_for: int) -> None:
    server.answers["/v1/completions"], server.good_for = hostile.silent, good_for
    assert "the server stalled: no token came for 2 s" in serve()


HEAD = b"HTTP/1.1 200 OK\r\n"
LONG = HEAD + b"Content-Length: 1000000\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "headers": (HEAD, b"a: b\r\n"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n"),
    "a body with a length": (LONG, b" "),
    "a body without one": (HEAD + b"\r\n", b" "),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "blank lines": (CHUNKED, b"2\r\n\n\n\r\n"),
    "signs of life": (CHUNKED, b"8\r\n: ping\n\n\r\n"),
    "events without tokens": (CHUNKED, b"b\r\ndata: {}\n\n\n\r\n"),
    "the size of a chunk": (CHUNKED, b"0"),
    "the extension of a chunk": (CHUNKED + b"1;", b"a"),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n"),
}


@pytest.mark.promise("Bytes without tokens, such as blank lines, do not count.")
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/metrics"])
def test_an_answer_that_drips_for_ever(server: HostileServer, serve: Serve, path: str) -> None:
    server.answers[path] = drip(*DRIPS["signs of life"], every_s=0.1)
    if path == "/metrics":
        serve("--stall", "20", code=0)  # tokens come, however busy this machine is
        return
    said = "no complete answer within 2 s" if path == "/v1/models" else "the server stalled: no token came for 2 s"
    assert said in serve()


@pytest.mark.parametrize("what", DRIPS)
def test_drips_of_every_kind_end_in_time(server: HostileServer, what: str) -> None:
    server.answers = dict.fromkeys(("/v1/models", "/v1/completions", "/metrics"), drip(*DRIPS[what], every_s=0.05))

    async def ask() -> None:
        driver = Driver(Host(server.url), hostile.ADAPTERS, stall_s=0.4)
        try:
            with pytest.raises(ServerError, match=r"no complete answer within|not HTTP"):
                await served_models(driver.host, driver.stall_s)
            assert await read_page(driver.host, driver.stall_s) is None
            with pytest.raises(ServerError, match=r"the server stalled: no token came for|not HTTP"):
                await driver.one(PlannedRequest(0, 0.0, 0, 8, 4))
        finally:
            await driver.host.close()

    begun = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - begun < 10


def test_traffic_with_pauses_longer_than_a_stall_is_none(server: HostileServer, serve: Serve) -> None:
    def slowly(connection: socket.socket) -> None:
        time.sleep(0.6)
        connection.sendall(hostile.completion(6))

    server.answers["/v1/completions"], server.good_for = slowly, 4
    trace = ["timestamp_s,adapter_id,input_tokens,output_tokens", *(f"{2.5 * n},a{n},20,6" for n in range(3))]
    Path("trace.csv").write_text("\n".join(trace) + "\n")
    serve("--set", "workload={trace: {file: trace.csv}}", code=0)


# Memory is bounded: endless or huge answers


ENDLESS = {
    "headers": (HEAD, b"a: b\r\n" * 1000),
    "one header": (HEAD + b"a: ", b"b" * 5000),
    "a status line": (b"HTTP/1.1 200 ", b"O" * 5000),
    "no HTTP": (b"", b"a" * 5000),
    "a body with a length": (HEAD + b"Content-Length: 999999999999999\r\n\r\n", b" " * 5000),
    "a body without one": (HEAD + b"\r\n", b" " * 5000),
    "chunks": (CHUNKED, b"1388\r\n" + b" " * 5000 + b"\r\n"),
    "tiny chunks": (CHUNKED, b"1\r\n \r\n" * 1000),
    "a huge chunk": (CHUNKED + b"fffffffffff\r\n", b" " * 5000),
    "the size of a chunk": (CHUNKED, b"0" * 5000),
    "the extension of a chunk": (CHUNKED + b"1;", b"a" * 5000),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n" * 1000),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
}


@pytest.mark.promise("may talk to a server that sends anything.")
@pytest.mark.promise("The command then ends with a sentence and an exit code")
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions"])
@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_answer_is_refused(server: HostileServer, serve: Serve, path: str, what: str) -> None:
    server.answers[path] = endless(*ENDLESS[what])
    said = serve("--stall", str(PATIENCE_S))  # a busy machine reads chunks of a byte for longer than a stall
    expected = ("not HTTP", "longer than 64 KiB", "larger than", "no final answer came", "an event of more than 64 KiB")
    assert any(words in said for words in expected), said


@pytest.mark.promise("An answer that exceeds a bound is refused before the excess is kept")
@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_answer_takes_bounded_memory(server: HostileServer, what: str) -> None:
    server.answers["/v1/models"] = endless(*ENDLESS[what])
    most = 1 << 20

    tracemalloc.start()
    try:
        with pytest.raises(Broken):
            talk(server, lambda host: host.get("/v1/models", PATIENCE_S, most))
        assert tracemalloc.get_traced_memory()[1] < 8 * most
    finally:
        tracemalloc.stop()


@pytest.mark.promise("list of models; name of a model: 16 MiB")
def test_the_list_of_models_is_bounded(server: HostileServer, serve: Serve) -> None:
    server.answers["/v1/models"] = HEAD + b"Content-Length: %d\r\n\r\n" % (MODELS_BYTES + 1)
    assert "the answer is larger than 16,384 KiB" in serve()


@pytest.mark.promise("event; part of an answer that is not parsed yet: 64 KiB")
@given(st.integers(1, 100), st.binary(min_size=1, max_size=40))
@settings(max_examples=20)
def test_an_unread_stream_is_bounded(repeats: int, piece: bytes) -> None:
    stream = EventStream(10, stamps := [])
    for number in range(100 * repeats):
        try:
            stream.add(float(number), piece)
        except Broken:
            break
        assert stream.pending <= 64 << 10
    assert len(stamps) <= 2 * 10 + 16


# Lies about the shape of an answer

LIES = {
    "a length of 5,000 digits": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "a length of superscripts": HEAD + b"Content-Length: \xb2\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "two lengths in one header": HEAD + b"Content-Length: 2, 3\r\n\r\n{}",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "an unknown encoding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "chunks twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a negative chunk": CHUNKED + b"-5\r\nhello\r\n",
    "a chunk of no size": CHUNKED + b"x\r\n",
    "a chunk in Python's digits": CHUNKED + b"0x1_0\r\n",
    "a chunk of 5,000 digits": CHUNKED + b"f" * 5000 + b"\r\n",
    "a chunk longer than its size": CHUNKED + b"1\r\nhello\r\n",
    "a status of superscripts": b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
    "a status of 5,000 digits": b"HTTP/1.1 " + b"2" * 5000 + b" OK\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a header without a name": HEAD + b": b\r\n\r\n",
    "a header without a colon": HEAD + b"b\r\n\r\n",
    "a change of protocols": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "an end before the end": LONG + b"{",
    "nothing": b"",
}


@pytest.mark.promise("the answer is refused, and its connection is closed.")
@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions"])
@pytest.mark.parametrize("what", LIES)
def test_an_answer_that_contradicts_itself_is_refused(
    server: HostileServer, serve: Serve, path: str, what: str
) -> None:
    server.answers[path] = lambda connection: connection.sendall(LIES[what])
    said = serve()
    words = (
        "not HTTP",
        "no proper length",
        "a length and comes in chunks",
        "unknown transfer encoding",
        "no final answer came",
        "closed the connection",
        "larger than",
        "longer than",
    )
    assert any(each in said for each in words), said


@pytest.mark.parametrize("unasked", [models(["a", "b", "c", "d"]), b""])
def test_an_answer_that_comes_before_the_question_is_not_taken(server: HostileServer, unasked: bytes) -> None:
    def accepts(connection: socket.socket) -> None:
        connection.sendall(unasked)
        connection.shutdown(socket.SHUT_WR)

    server.accepts = accepts

    async def late(host: Host) -> None:
        connection = await host._connect()
        await asyncio.sleep(0.3)
        await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", lambda answer, now, data: None, 1000)

    with pytest.raises(Broken, match="the server closed the connection"):
        talk(server, late)


def test_what_comes_after_an_answer_is_not_the_next_one(server: HostileServer) -> None:
    server.answers["/first"] = plain(b"1") + plain(b"smuggled")
    server.answers["/second"] = plain(b"2")

    async def both(host: Host) -> list[bytes]:
        return [(await host.get(path, 5.0, 1000))[1] for path in ("/first", "/second")]

    assert talk(server, both) == [b"1", b"2"]


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.data())
def test_an_answer_is_the_same_however_it_is_cut(pieces: list[bytes], data: st.DataObject) -> None:
    whole = chunks(*pieces, end=b"0;x=y\r\nTrailer: z\r\n\r\n")
    places = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    answer = Answer()
    reader = AnswerReader(answer, 10_000)
    body = b""
    for begin, end in zip([0, *places], [*places, len(whole)], strict=True):
        assert not reader.complete
        body += b"".join(reader.feed(whole[begin:end]))
    assert reader.complete
    assert reader.reusable
    assert (answer.status, body) == (200, b"".join(pieces))


@given(st.sampled_from([b"", HEAD, LONG, CHUNKED, HEAD + b"\r\n"]), st.lists(st.binary(max_size=300), max_size=20))
def test_any_bytes_are_read_or_refused(begin: bytes, pieces: list[bytes]) -> None:
    reader, taken = AnswerReader(Answer(), 2000), 0
    with suppress(Broken):
        for piece in (begin, *pieces):
            if reader.complete:
                break
            taken += sum(len(part) + PIECE_BYTES for part in reader.feed(piece))
    assert taken <= 2000 + PIECE_BYTES
    reader.close()


# Lies within an answer

NO_MODELS = {
    "5 MB of brackets": b"[" * 5_000_000,
    "deep brackets": b"[" * 900,
    "deep tables": b'{"a":' * 900,
    "no JSON": b"<html>",
    "NaN": b"NaN",
    "a number of 5,000 digits": b'{"data": ' + b"9" * 5000 + b"}",
    "no list": b'{"data": 5}',
    "a list of no models": b'{"data": [1, null]}',
    "a name of none": b'{"data": [{"id": null}]}',
    "a name of 1e400": b'{"data": [{"id": 1e400}]}',
    "a name of escapes": b'{"data": [{"id": "\\u001b[2J"}]}',
    "a name of half a letter": b'{"data": [{"id": "\\ud800"}]}',
    "a name of a megabyte": b'{"data": [{"id": "' + b"a" * 1_000_000 + b'"}]}',
    "half a letter": b'{"data": [{"id": "\xff"}]}',
}


@pytest.mark.promise("list of models; name of a model: 1,024 characters")
@pytest.mark.promise("A list that holds an unprintable name is refused.")
@pytest.mark.parametrize("what", NO_MODELS)
def test_a_list_of_models_that_is_none(server: HostileServer, serve: Serve, what: str) -> None:
    server.answers["/v1/models"] = plain(NO_MODELS[what])
    assert f"--url: no OpenAI-compatible server (got {server.url}/v1/models answers HTTP 200)" in serve(code=2)


@pytest.mark.promise("It goes to the host in `--url` only.")
@pytest.mark.promise("Redirects are not followed.")
def test_a_redirect_is_not_followed(server: HostileServer, serve: Serve) -> None:
    """The key is for this server."""
    server.answers["/v1/models"] = plain(b"", f"Location: {server.url}/elsewhere", status="307 Temporary Redirect")
    serve(code=2)
    assert "/elsewhere" not in server.asked


WORD = b'data: {"choices": [{"text": "w"}]}\n\n'
EVENTS = {
    "1e400 tokens": (event("1e400"), "a number of tokens that is no number"),
    "NaN tokens": (event("NaN"), "a number of tokens that is no number"),
    "true tokens": (event("true"), "a number of tokens that is no number"),
    "text for tokens": (event('"5"'), "a number of tokens that is no number"),
    "a billion tokens": (event(10**9), "more tokens than were asked for"),
    "tokens of 4,000 digits": (event("9" * 4000), "more tokens than were asked for"),
    "tokens of 5,000 digits": (event("9" * 5000), "an event that is not JSON"),
    "tokens that are a list": (b'data: {"usage": [1]}\n\n', "a number of tokens that is no number"),
    "choices that are a table": (b'data: {"choices": {"text": "w"}}\n\n', "an event that is no completion"),
    "choices of nothing": (b'data: {"choices": [null]}\n\n', "an event that is no completion"),
    "deep brackets": (b"data: " + b"[" * 60_000 + b"\n\n", "an event that is not JSON"),
    "a deep error": (b'data: {"error": ' + b"[" * 400 + b"1" + b"]" * 400 + b"}\n\n", "[[[["),
    "an error of escapes": (b'data: {"error": "\\u001b[2Jgone"}\n\n', "\\x1b[2Jgone"),
    "an error of half a letter": (b'data: {"error": "\\ud800"}\n\n', "\\ud800"),
    "an error of a megabyte": (b'data: {"error": "' + b"a" * 60_000 + b'"}\n\n', "a" * 299 + "…"),
    "an endless event": (b"data: " + b" " * 70_000, "an event of more than 64 KiB"),
    "more events than were asked for": (WORD * 1000, "more tokens than were asked for"),
}


@pytest.mark.promise("A token count must be a whole number of at most twice the requested tokens and 16.")
@pytest.mark.promise("Control characters appear as escapes.")
@pytest.mark.promise("what the server says in messages and results: 300 characters, before escapes")
@pytest.mark.parametrize("what", EVENTS)
def test_an_event_that_lies(server: HostileServer, serve: Serve, what: str) -> None:
    answer, words = EVENTS[what]
    server.answers["/v1/completions"] = chunks(answer)
    said = serve()
    assert f"error: {server.url}: adapter-0: " in said
    assert words in said


@pytest.mark.parametrize("what", ["1e400 tokens", "deep brackets", "an error of half a letter", "an endless event"])
def test_lies_in_a_run_are_counted_and_kept(server: HostileServer, serve: Serve, what: str) -> None:
    server.answers["/v1/completions"], server.good_for = chunks(EVENTS[what][0]), 4 + 20
    said = serve("--json", code=0)
    assert "10 requests were not served and are in no metric" in said
    rows = [json.loads(line) for line in Path("runs/serve-short/requests-1.jsonl").read_text().splitlines()]
    assert sum(row["status"] == "broken" for row in rows) == 10
    json.loads(Path("runs/serve-short/comparison.json").read_text())


def test_a_run_in_which_nothing_is_served_is_an_answer_too(server: HostileServer, serve: Serve) -> None:
    server.answers["/v1/completions"], server.good_for = chunks(event("1e400")), 4
    assert "the server completed no request" in serve("--set", "workload.requests=10")


def test_answers_that_come_at_once_cannot_be_fitted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_PASSES", 1), ("_LOADS", 4), ("_STREAMS", 1), ("_REPEATS", 1), ("_JOINS", 2)):
        monkeypatch.setattr(ladder, name, value)
    said = serve("--fit", "--set", "fleet.max_num_seqs=2")
    assert "no step can be timed: the tokens of an answer come all at once; turn off what collects streams" in said


@pytest.mark.promise("answer with an HTTP error: 64 KiB of it are kept")
def test_refusals_are_cut_short(server: HostileServer, serve: Serve) -> None:
    server.answers["/v1/completions"] = plain(b"[" * 500_000, status="503 Busy")
    said = serve()
    assert f"HTTP 503: {'[' * 299}…" in said
    assert refusal(500, b'{"error": {"message": "\\u001b[2J"}}') == "HTTP 500: '\\x1b[2J'"


@pytest.mark.promise("Metrics that are negative, infinite or not numbers are left out")
@pytest.mark.parametrize(
    "value", ["NaN", "Inf", "-Inf", "1e400", "-1", "9" * 5000, "1e300", "five", "\N{SUPERSCRIPT TWO}"]
)
def test_a_metric_that_cannot_be_meant_is_left_out(value: str) -> None:
    page = parse_page(f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 2\n", 0.0)
    assert page.values == {"waiting": 2.0}


@pytest.mark.parametrize("size", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "0", "-16", "1e3", "9999999999"])
def test_a_cache_that_cannot_be_is_not_believed(size: str) -> None:
    page = parse_page(f'vllm:cache_config_info{{block_size="{size}",num_gpu_blocks="4096"}} 1\n', 0.0)
    assert (page.block_size, page.kv_tokens) == (None, None)


def test_metrics_that_lack_a_part(server: HostileServer, serve: Serve) -> None:
    server.answers["/metrics"] = plain(b"vllm:e2e_request_latency_seconds_count 5\nvllm:num_preemptions_total 1e400\n")
    serve(code=0)
    pages = [parse_page(f"vllm:e2e_request_latency_seconds_count {count}\n", count) for count in (1, 2)]
    assert over_run(pages) == {}


@pytest.mark.parametrize(
    "page",
    [
        b"a" * 1_000_000,
        b"vllm:cache_config_info{" + b"a" * 60_000 + b"} 1",
        b"x{" + b"}" * 60_000,
        b"} " * 500_000,
        b"vllm:cache_config_info{" + b'a="' * 20_000 + b"} 1",
        b"\n" * 1_000_000,
        b"x" + b" " * 60_000,
    ],
    ids=["letters", "labels", "braces", "pairs", "quotes", "lines", "blanks"],
)
def test_a_metrics_page_is_read_in_time_that_grows_with_its_length(page: bytes) -> None:
    begun = time.monotonic()
    parse_page(page.decode(), 0.0)
    assert time.monotonic() - begun < 5


@given(
    st.text()
    | st.recursive(st.none() | st.floats() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each))
)
def test_words_of_a_server_fit_a_line(said: object) -> None:
    words = words_of(said)
    assert words.isprintable()
    assert len(words) <= 300 * 10 + 2
    words.encode()


@pytest.mark.promise("metrics page; a line of it: 8 MiB")
def test_a_metrics_page_beyond_its_bounds_is_missing(server: HostileServer) -> None:
    for size, values in ((PAGE_BYTES - (1 << 20), {"waiting": 2.0}), (PAGE_BYTES + 1, None)):
        # Each piece that is received counts a little more.
        server.answers["/metrics"] = plain(b"vllm:num_requests_waiting 2\n".ljust(size, b"\n"))
        page = talk(server, lambda host: read_page(host, PATIENCE_S))
        assert (page and page.values) == values


@pytest.mark.promise("metrics page; a line of it: 64 KiB")
@pytest.mark.parametrize(("letters", "read"), [(LINE_LETTERS, True), (LINE_LETTERS + 1, False)])
def test_a_long_line_of_a_metrics_page_is_left_out(letters: int, read: bool) -> None:
    page = parse_page("vllm:num_requests_waiting 2".ljust(letters) + "\n", 0.0)
    assert (page.values == {"waiting": 2.0}) == read


@pytest.mark.promise("streamed answer: 1 MiB, and 16 KiB for each token that was requested")
def test_a_streamed_answer_is_bounded_by_the_tokens_that_were_requested(server: HostileServer, serve: Serve) -> None:
    blank = b": " + b"a" * 50_000 + b"\n\n"
    server.answers["/v1/completions"] = chunks(blank * ((ANSWER_BYTES + TOKEN_BYTES * 1000) // len(blank)))
    assert "larger than" in serve()


@given(st.binary(max_size=200))
def test_json_is_read_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        parse_json(data)


@pytest.mark.promise("status line and headers; trailers: 64 KiB")
def test_headers_are_bounded_to_the_byte() -> None:
    def head(size: int) -> bytes:
        return HEAD + b"a: " + b"b" * (size - len(HEAD) - 3) + b"\r\n\r\n"

    AnswerReader(Answer(), 0).feed(head(HEAD_BYTES))
    with pytest.raises(Broken, match="longer than 64 KiB"):
        AnswerReader(Answer(), 0).feed(head(HEAD_BYTES + 1))


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://a..b:80", f"http://{'a' * 70}.de", "http://h:99999", "http://h:x"]
)
def test_an_address_that_is_none(serve: Serve, url: str) -> None:
    said = serve(url=url, code=2)
    assert "--url: this is not the URL of a server" in said
