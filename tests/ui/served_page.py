"""A page of ``loraplan ui`` in a process of its own, and ways to ask it without a browser."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[2]
TINY = """\
extends: quickstart
name: tiny
description: Is a small page quick?
workload:
  requests: 1500
  tokens:
    prompt: {law: fixed, value: 64}
    output: {law: fixed, value: 8}
fleet: {max_num_seqs: 16}
run: {replications: 2}
"""
"""A scenario whose full run takes a second."""


@dataclass
class ServedPage:
    """A running page.

    :ivar process: to be stopped; ``folder``: the chosen one.
    """

    process: subprocess.Popen[str]
    address: str
    folder: Path

    @property
    def port(self) -> int:
        return urlsplit(self.address).port or 0

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def headers(self) -> dict[str, str]:
        """Return what the page's own script sends."""
        return {"Origin": self.origin, "X-Loraplan-Token": self.token, "Content-Type": "application/json"}

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | str | None = None
    ) -> tuple[int, str, http.client.HTTPMessage]:
        """Send a request with these headers alone; return status, text and headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), answer.headers
        finally:
            connection.close()

    def post(self, path: str, asked: dict[str, Any]) -> tuple[int, str]:
        status, text, _ = self.request("POST", path, self.headers(), json.dumps(asked))
        return status, text

    def events(self, asked: dict[str, Any], path: str = "/api/follow") -> Iterator[dict[str, Any]]:
        """Yield events as they come; leaving the loop closes the connection, as the page does when something moves."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, json.dumps(asked), self.headers())
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            while line := answer.readline():
                yield json.loads(line)
        finally:
            connection.close()

    def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Stop the page; return its exit code and what it said on stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, err


def serve_page(folder: Path, scenario: str = "tiny.yaml", *options: str) -> ServedPage:
    """Start a page over a folder and wait for its address."""
    (folder / "tiny.yaml").write_text(TINY)
    process = subprocess.Popen(
        [sys.executable, "-m", "sim.cli", "ui", scenario, "--no-open", "--folder", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    if not address:
        _, err = process.communicate(timeout=20)
        raise AssertionError(f"no page: {err}")
    return ServedPage(process, address, folder)
