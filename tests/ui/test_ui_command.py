"""``loraplan ui`` as a command: it starts, says where, and ends without a trace."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import process_tree
import pytest
from command_line import CommandLine
from served_page import ROOT, ServedPage, serve_page

from sim.errors import InputError
from sim.ui.http_server import _listening

pytestmark = pytest.mark.waits


@pytest.fixture
def page(tmp_path: Path) -> Iterator[ServedPage]:
    """A page of its own, which no failing test leaves behind."""
    served = serve_page(tmp_path)
    yield served
    if served.process.poll() is None:
        served.process.kill()
        served.process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page_with_its_workers_and_open_answers(page: ServedPage, number: signal.Signals) -> None:
    started = process_tree.below(page.process.pid) if process_tree.THERE else {}
    events = page.events({"name": "two-gpus"})
    assert next(events)["stage"] == "estimate"
    os.killpg(page.process.pid, number)  # as a terminal does: to every process of the group
    list(events)  # the open answer ends
    _, err = page.process.communicate(timeout=20)
    assert page.process.returncode == 130
    assert err.splitlines()[-1] == "The page has stopped. Saved reports are kept."
    assert "Traceback" not in err
    assert not process_tree.left_after(10, started)
    assert [file.name for file in page.folder.iterdir()] == ["tiny.yaml"]


@pytest.mark.slow
@pytest.mark.skipif(not process_tree.THERE, reason="needs /proc")
def test_workers_end_with_a_page_that_was_killed(page: ServedPage) -> None:
    started = process_tree.below(page.process.pid)
    assert len(started) >= 2
    page.stop(signal.SIGKILL)
    assert not process_tree.left_after(10, started)


@pytest.mark.parametrize(("command", "package"), [("ui", "uvicorn"), ("mcp", "mcp")])
def test_a_missing_extra_is_named_with_how_to_install_it(
    command: str, package: str, loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    missing: Any = lambda name, *rest: None if name == package else found(name, *rest)  # noqa: E731
    monkeypatch.setattr("sim.cli.commands.ui_command.find_spec", missing)
    said = loraplan.refused(command)
    assert f" needs {package}, which isn't installed" in said
    assert f"pip install -e '.[{command}]'" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-such",), "no bundled scenario is called 'no-such'"),
        (("bad.yaml",), "bad.yaml:2: nmae: unknown key"),
        (("--port", "PORT"), "--port"),
    ],
)
def test_what_cannot_be_opened_ends_the_command_at_once(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "bad.yaml").write_text("extends: quickstart\nnmae: x\n")
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        given = [port if each == "PORT" else each for each in arguments]
        command = [sys.executable, "-m", "sim.cli", "ui", "--no-open", *given]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EACCES, "ports below 1024 need root; use a port from 1024 up"), (errno.EADDRINUSE, "another program")],
)
def test_a_port_that_cannot_be_had_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, number: int, hint: str
) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sim.ui.http_server.socket.socket", Refusing)
    with pytest.raises(InputError, match=hint) as caught:
        _listening(80)
    assert caught.value.key == "--port"


def test_nothing_of_the_page_is_imported_before_it_is_wanted() -> None:
    unwanted = ("sim.ui", "starlette", "uvicorn", "mcp")
    code = f"import sys, sim.cli; print([m for m in sys.modules if m.startswith({unwanted})])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
