"""A small OpenAI-compatible server of threads and sleeps: well, or ill in one of the ways that servers are."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METRICS = """# HELP vllm:num_requests_running Number of requests.
vllm:num_requests_running{engine="0",model_name="base"} 2.0
vllm:num_requests_waiting{engine="0",model_name="base"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:num_preemptions_total{engine="0"} 3.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="4096"} 1.0
"""


class FakeServer(ThreadingHTTPServer):
    """What it does is set by its attributes.

    :ivar adapters: names it lists and serves; :ivar token_s: seconds a token takes.
    :ivar refuses: HTTP status with which completions are refused, 0: none.
    :ivar good_for: completions that are served before it stalls or dies.
    :ivar then: ``stalls`` or ``dies``.
    :ivar breaks_with: the error that ends every third answer after the first four, None: none.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.adapters = [f"adapter-{index}" for index in range(4)]
        self.token_s = 0.002
        self.refuses = 0
        self.good_for = 10**9
        self.then = ""
        self.breaks_with: Any = None
        self.counts = True
        self.seen: list[dict[str, Any]] = []
        self.authorization = ""
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: dying in the middle of answers is what some of these do."""

    def die(self) -> None:
        """Close everything at once, as a killed process does."""
        self.socket.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def next_number(self, body: dict[str, Any]) -> int:
        with self._lock:
            self.seen.append(body)
            return len(self.seen)


class Handler(BaseHTTPRequestHandler):
    """Models, metrics and streamed completions."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or tokens would wait for acknowledgements
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self._plain(200, METRICS.encode(), "text/plain")
        elif self.path == "/v1/models":
            self.server.authorization = self.headers.get("Authorization", "")
            rows = [{"id": "base", "parent": None}, *({"id": n, "parent": "base"} for n in self.server.adapters)]
            self._plain(200, json.dumps({"object": "list", "data": rows}).encode())
        else:
            self._plain(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = self.server.next_number(body)
        if self.server.refuses:
            self._error(self.server.refuses, "no room for anybody")
        elif body["model"] not in self.server.adapters:
            self._error(404, f"The model `{body['model']}` does not exist.")
        elif number > self.server.good_for and self.server.then == "dies":
            self.server.die()
        else:
            breaks = self.server.breaks_with is not None and number > 4 and number % 3 == 0
            self._stream(body, stalls=number > self.server.good_for, breaks=breaks)

    def _error(self, status: int, words: str) -> None:
        self._plain(status, json.dumps({"error": {"message": words, "code": status}}).encode())

    def _plain(self, status: int, data: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any], *, stalls: bool, breaks: bool = False) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(1, body["max_tokens"] + 1):
            time.sleep(self.server.token_s)
            event: dict[str, Any] = {"choices": [{"index": 0, "text": " w"}]}
            if self.server.counts:
                event["usage"] = {"prompt_tokens": len(body["prompt"]), "completion_tokens": number}
            self._chunk(f"data: {json.dumps(event)}\n\n".encode())
            if stalls:
                time.sleep(60)
            if breaks:
                self._chunk(f"data: {json.dumps({'error': self.server.breaks_with})}\n\n".encode())
                break
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


@contextmanager
def running() -> Iterator[FakeServer]:
    """Run a server while the block runs."""
    server = FakeServer()
    thread = threading.Thread(target=lambda: _serve(server), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        if server.socket.fileno() >= 0:
            server.shutdown()
        server.die()
        thread.join(timeout=5)


def _serve(server: FakeServer) -> None:
    try:
        server.serve_forever(poll_interval=0.05)
    except (OSError, ValueError):
        return  # it died
