"""Where results are printed: pipes that close, disks that are full, narrow encodings, streams that are not there."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.cli.output import say_json

ROOT = Path(__file__).parents[2]
SCENARIO = """\
schema_version: 1
name: small
workload: {requests: 300, arrivals: {process: poisson, rate: 5/s}}
adapters: {count: 20}
cache: {gpu: {slots: 4}}
fleet: {engine: continuous}
slo: {ttft_mean: TTFT}
run: {replications: 3}
"""
PLAN = ("plan", "s.yaml", "--out", "out", "--minimize", "cache.gpu.slots=2..8", "--jobs", "1")
RUN = ("run", "s.yaml", "--out", "out", "--jobs", "1")
COMMANDS = {
    "--version": ("--version",),
    "--help": ("run", "--help"),
    "schema": ("schema",),
    "resolved": ("check", "s.yaml", "--resolved"),
    "run": RUN,
    "plan": PLAN,
    "trace": ("trace", "t.csv", "--out", "traced"),
    "cache": ("cache", "t.csv", "--slots", "1", "--json"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "s.yaml").write_text(SCENARIO.replace("TTFT", "100 s"))
    rows = "".join(f"{i},a{i % 3},10,5\n" for i in range(60))
    (tmp_path / "t.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n" + rows)
    return tmp_path


def shell(folder: Path, line: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which ``"$@"`` is loraplan with these arguments."""
    loraplan = [sys.executable, "-m", "sim.cli", *arguments]
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "bash", *loraplan],
        cwd=folder,
        capture_output=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_seen_enough_is_no_failure(folder: Path, name: str) -> None:
    """The reader ends before anything is printed, so that every write fails."""
    ended = shell(folder, '{ sleep 0.2; exec "$@"; } | true', *COMMANDS[name])
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"rror" not in ended.stderr


def test_head_gets_its_line_and_the_exit_code_still_says_whether_the_slo_is_met(folder: Path) -> None:
    first = shell(folder, '"$@" | head -1', *RUN, "--check")
    assert (first.returncode, first.stdout.count(b"\n")) == (0, 1)
    (folder / "s.yaml").write_text(SCENARIO.replace("TTFT", "1 ns"))
    assert shell(folder, '"$@"', *RUN, "--check", "--overwrite").returncode == 1
    assert shell(folder, '"$@" | true', *RUN, "--check").returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["--version", "schema", "run", "plan"])
def test_a_full_disk_is_named(folder: Path, name: str) -> None:
    ended = shell(folder, '"$@" >/dev/full', *COMMANDS[name])
    assert ended.returncode == 2
    assert ended.stderr.decode().splitlines()[-1] == (
        "error: standard output: can't be written: No space left on device"
    )


def test_a_full_disk_is_named_by_a_command_that_prints_unbuffered(folder: Path) -> None:
    ended = shell(folder, '"$@" >/dev/full', *RUN, PYTHONUNBUFFERED="1")
    assert ended.returncode == 2
    assert ended.stderr == b"error: standard output: can't be written: No space left on device\n"


def test_a_message_is_there_before_what_follows_it(folder: Path) -> None:
    (folder / "s.yaml").write_text(SCENARIO.replace("TTFT", "1 s") + "storage: {loaders: 2}\n")
    ended = shell(folder, '"$@" 2>&1', "check", "s.yaml")
    lines = ended.stdout.decode().splitlines()
    assert lines[0].startswith("note: ")
    assert "s.yaml: ok" in lines[1:]


@pytest.mark.parametrize("name", ["--help", "run", "trace"])
def test_a_closed_stdout_is_named_before_anything_is_done(folder: Path, name: str) -> None:
    before = sorted(folder.rglob("*"))
    ended = shell(folder, '"$@" >&-', *COMMANDS[name])
    assert ended.returncode == 2
    assert ended.stderr == b"error: standard output: is closed; to see no results, add >/dev/null\n"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "<&- 2>&-"])
def test_messages_that_nobody_can_get_change_nothing(folder: Path, closed: str) -> None:
    good = shell(folder, f'"$@" {closed}', *RUN)
    assert (good.returncode, good.stderr) == (0, b"")
    assert good.stdout.startswith(b"small: ")
    assert shell(folder, f'"$@" {closed}', "run", "none.yaml").returncode == 2
    assert shell(folder, f'"$@" {closed} >&-', *RUN).returncode == 2


@pytest.mark.parametrize("name", ["--version", "run", "cache"])
def test_a_working_folder_that_is_gone_is_named(folder: Path, name: str) -> None:
    ended = shell(folder, 'mkdir gone; cd gone; rmdir ../gone; "$@"', *COMMANDS[name])
    assert ended.returncode == 2
    assert ended.stderr.decode() == "error: the working folder: no longer exists; change to another one\n"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_characters_that_stdout_lacks_are_replaced(folder: Path, encoding: str) -> None:
    with (folder / "s.yaml").open("a", encoding="utf-8") as out:
        out.write("description: größer→5\n")
    ended = shell(folder, '"$@"', *COMMANDS["resolved"], PYTHONIOENCODING=encoding)
    assert ended.returncode == 0, ended.stderr
    assert "größer→5".encode(encoding, "replace") in ended.stdout


@pytest.mark.parametrize("name", ["run", "trace"])
def test_tables_and_answers_can_be_printed_in_cp1252(folder: Path, name: str) -> None:
    ended = shell(folder, '"$@"', *COMMANDS[name], PYTHONIOENCODING="cp1252")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_is_whole_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """A question mark in place of a letter would be another adapter's name."""
    data = {"name": "größer→\U0001f600\x85\u202e\x1b[31m\n\ud800"}
    binary = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(binary, encoding=encoding, errors="replace"))
    say_json(data)
    sys.stdout.flush()
    text = binary.getvalue().decode(encoding)
    assert json.loads(text) == data
    assert "".join(text.split("\n")).isprintable()
    assert ("größer" in text) == (encoding != "ascii")


@pytest.mark.promise("Whatever is printed on a terminal has control characters as escapes")
def test_only_one_place_prints() -> None:
    """What is printed elsewhere would not be escaped: names, notes and paths of strangers would reach the terminal."""
    words = {"echo", "secho", "print", "write", "writelines", "Console"}
    found = set()
    for file in (file for folder in ("sim", "reports", "calibrate") for file in (ROOT / folder).rglob("*.py")):
        if "observer" in file.parts or file.name in ("output.py", "streams.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            to_stream = called.startswith(("sys.stdout", "sys.stderr", "typer.", "click."))
            if called in ("print", "Console") or (to_stream and called.rpartition(".")[2] in words):
                found.add(f"{file.parent.name}/{file.name}: {called}")
    assert found == set()
