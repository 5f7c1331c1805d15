"""``loraplan mcp``: what agents get over stdin and stdout, with the official client, and what they don't."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from served_page import ROOT, TINY

from sim.api import plan
from sim.ui.mcp_server import _TOOLS, _trimmed
from sim.ui.simulating.broker import ANSWER_S, PLAN_S

pytestmark = pytest.mark.waits

SERVER = ["-m", "sim.cli", "mcp"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
Call = tuple[str, dict[str, Any]]


def answers(folder: Path, calls: Sequence[Call], server: list[str] = SERVER, *, at_once: bool = False) -> list[Any]:
    """Return what a server over a folder answers to calls of tools, one after the other."""

    async def ask() -> list[Any]:
        started = StdioServerParameters(command=sys.executable, args=server, env=ENVIRONMENT, cwd=folder)
        async with Client(stdio_client(started)) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {tool.__name__ for tool in _TOOLS}
            if not at_once:
                return [await client.call_tool(name, given) for name, given in calls]
            return await asyncio.gather(*(client.call_tool(name, given) for name, given in calls))

    return asyncio.run(ask())


@pytest.mark.slow
def test_an_agent_plans_a_fleet_as_the_command_does(tmp_path: Path) -> None:
    asked = {"scenario": TINY, "minimize": {"cache.gpu.slots": [16, 32, 8]}}
    calls = [
        ("check", {"scenario": TINY}),
        ("plan", asked),
        ("plan", {**asked, "full": True}),
        ("run", {"scenario": TINY, "set": {"cache.gpu.slots": 24, "name": "chosen"}}),
        ("run", {"scenario": TINY, "set": {"cache.gpu.slots": "16", "name": "less"}}),
        ("compare", {"one": "runs/chosen", "other": "runs/less"}),
        ("profiles", {"words": ["h100", "qwen"]}),
    ]
    found = answers(tmp_path, calls)
    assert not [answer.content[0].text for answer in found if answer.is_error]
    data = [answer.structured_content for answer in found]
    checked, planned, whole, chosen, _, compared, profiles = data
    (tmp_path / "tiny.yaml").write_text(TINY)
    by_hand = plan(str(tmp_path / "tiny.yaml"), minimize={"cache.gpu.slots": (16, 32, 8)}, jobs=1)
    assert planned["sentences"][0] == f"tiny: {by_hand.answer.headline}"
    assert whole["metrics"]["miss_ratio"]["value"] == by_hand.value("miss_ratio")
    assert planned["metrics"]["miss_ratio"]["value"] == float(f"{by_hand.value('miss_ratio'):.4g}")
    for answer, each in zip(found, data, strict=True):
        assert answer.content[0].text.split("\n") == each["sentences"]
        assert {"sentences": each["sentences"], **json.loads(answer.content[1].text)} == each
    drawn = [[part.data for part in answer.content if part.type == "image"] for answer in found]
    assert [len(each) for each in drawn] == [0, 2, 2, 2, 2, 2, 0]
    assert all(base64.b64decode(each).startswith(b"\x89PNG") for each in itertools.chain(*drawn))
    assert "GPU memory: weights 16.1 GB" in " ".join(checked["sentences"])
    assert (tmp_path / chosen["report"]).is_file()
    assert compared["one"]["path"] == "runs/chosen"
    assert any(row["model"].startswith("qwen") for row in profiles["profiles"])


OUTSIDE = "outside"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefg")
)
HOSTILE: dict[tuple[str, str], str] = {
    ("check", "../secret.yaml"): "no such scenario",
    ("check", "extends: ../secret.yaml\n"): f"scenario.yaml:1: extends: this file lies {OUTSIDE}",
    ("check", "extends: quickstart\nfleet: {profile: /etc/passwd}\n"): "yaml:2: fleet.profile: this file lies out",
    ("check", "a: " + "x" * 1_000_000): "at most 1000000 characters",
    ("check", BOMB): "too many values",
    ("check", "a: " + "[" * 500): "nested too deeply",
    ("check", "a: !!python/object/apply:os.system [id]\n"): "YAML tags are not supported",
    ("set", '{"workload.trace.file": "../secret.csv"}'): OUTSIDE,
    ("set", '{"workload": {"trace": {"file": "../secret.csv"}}}'): OUTSIDE,
    ("set", '{"name": "../../x"}'): "not a usable name",
    ("set", '{"workload.requests": 5000000}'): "more than 3,000,000 requests",
    ("set", json.dumps(dict.fromkeys(map(str, range(101))))): "at most 100 items",
    ("set", '{"nmae": "x\\nforged"}'): "--set: nmae: unknown key",
    ("set", "[1]"): "valid dictionary",
    ("trace", "../secret.csv"): OUTSIDE,
    ("trace", "link.csv"): OUTSIDE,
    ("trace", "/dev/zero"): OUTSIDE,
    ("trace", "a\0b"): OUTSIDE,
    ("compare", "runs/../.."): OUTSIDE,
    ("plan", "quickstart"): "the scenario has no plan",
    ("nothing", ""): "Unknown tool",
    ("misspelt", "sets"): "sets\n  Extra inputs are not permitted",
}  # fmt: skip


def call_of(tool: str, text: str) -> Call:
    if tool == "set":
        return "run", {"scenario": "mine.yaml", "set": json.loads(text)}
    if tool == "misspelt":
        return "check", {"scenario": "mine.yaml", text: {"cache.gpu.slots": 8}}
    given = {"trace": {"file": text}, "compare": {"one": text, "other": "."}}
    return tool, given.get(tool, {"scenario": text})


@pytest.mark.slow
@pytest.mark.promise("An agent gets no further than a visitor of the page.", "reads and writes in its folder only")
@pytest.mark.promise("Links that lead out are refused", "a run simulates at most 3 million requests")
def test_hostile_calls_meet_the_limits_of_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "secret.csv").write_text("timestamp_s,adapter,prompt_tokens,output_tokens\n0,hidden,1,1\n")
    (tmp_path / "secret.yaml").write_text("hidden: 1\n")
    (folder / "mine.yaml").write_text(TINY)
    (folder / "link.csv").symlink_to(tmp_path / "secret.csv")
    calls = [call_of(*call) for call in HOSTILE]
    for (call, said), answer in zip(HOSTILE.items(), answers(folder, calls), strict=True):
        text = answer.content[0].text
        assert answer.is_error, call
        assert said in text, call
        assert "hidden" not in text
        assert "\nforged" not in text
    assert sorted(file.name for file in folder.iterdir()) == ["link.csv", "mine.yaml"]
    (folder / "runs").symlink_to(tmp_path)
    (answer,) = answers(folder, [("run", {"scenario": "mine.yaml"})])
    assert OUTSIDE in answer.content[0].text


@pytest.mark.slow
@pytest.mark.promise("A call computes for at most two minutes, a run or a plan for ten", "12 calls wait at a time")
def test_a_call_that_takes_too_long_is_stopped_and_the_next_one_answered(tmp_path: Path) -> None:
    limits = {tool.__name__: limit for tool, limit in _TOOLS.items()}
    assert limits == {**dict.fromkeys(limits, ANSWER_S), "run": PLAN_S, "plan": PLAN_S}
    hurried = "import sim.ui.mcp_server as m\nif __name__ == '__main__': m._TOOLS[m.run] = 0.5; m.serve()"
    long = ("run", {"scenario": "quickstart", "set": {"workload.requests": 90_000}})
    stopped, checked = answers(tmp_path, [long, ("check", {"scenario": TINY})], ["-c", hurried])
    assert "the most that this server computes for a call" in stopped.content[0].text
    assert not checked.is_error
    assert not (tmp_path / "runs").exists()
    crowd = answers(tmp_path, [("check", {"scenario": TINY})] * 14, at_once=True)
    refused = [answer.content[0].text for answer in crowd if answer.is_error]
    assert len(refused) == 2
    assert "12 calls are under way" in refused[0]


@pytest.mark.slow
@pytest.mark.promise("A longer message than 4 MiB ends the server.")
def test_the_server_ends_with_its_client(tmp_path: Path) -> None:
    def ended(sent: bytes, number: signal.Signals | None = None) -> tuple[int, bytes, str]:
        command, pipe = [sys.executable, *SERVER, "--folder", str(tmp_path)], subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT)
        if number is not None:
            process.stdin.write(sent)
            process.stdin.flush()
            assert process.stdout.readline() == pong
            process.send_signal(number)
            process.wait(20)
        out, err = process.communicate(None if number else sent, timeout=30)
        return process.returncode, out, err.decode()

    ping, pong = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n', b'{"jsonrpc":"2.0","id":1,"result":{}}\n'
    assert ended(b"") == (0, b"", "")
    assert ended(b"x" * 5_000_000) == (2, b"", "error: a message of the client is too long (allowed: up to 4 MiB)\n")
    assert ended(b"junk\n\n[]\n\xff\n" + ping, signal.SIGTERM) == (130, b"", "The server has stopped. Runs are kept.\n")


def test_a_large_result_is_cut_to_what_fits_a_context() -> None:
    huge = {str(number): "x" * 99 for number in range(999)}
    data = {"kept": {"value": 1.23456, "none": None}, "long": list(range(100)), "huge": huge}
    assert _trimmed(data, full=True) == data
    found = _trimmed(data, full=False)
    assert found["huge"].startswith("left out: 1")
    assert found == {"kept": {"value": 1.235}, "long": [*range(20), "and 80 more"], "huge": found["huge"]}
    rows = _trimmed({"rows": [{"name": "x" * 900}] * 48}, full=False)["rows"]
    assert rows == [*[{"name": "x" * 900}] * 13, "and 35 more; full=true returns them"]
