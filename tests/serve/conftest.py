"""A fake server, and a short scenario that fits it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from command_line import CommandLine
from fake_server import FakeServer, running
from serve_samples import write_samples


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as server:
        yield server


@pytest.fixture
def loraplan(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line, in a folder with ``short.yaml`` and ``profile.json``."""
    for name in ("LORAPLAN_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    write_samples()
    return loraplan
