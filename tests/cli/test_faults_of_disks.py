"""Disks that are full or read-only, clocks that jump, folders in use, workers that die: said, and gone on from."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from sim.errors import LoraplanError
from sim.studies.backends.pool import unordered

FEW = ("--set", "workload.requests=300", "--set", "run.replications=1", "--jobs", "1", "--quiet")
SWEEP = ("sweep", "cache-thrash", "--out", "out", *FEW, "--over", "cache.gpu.slots=4,8,12", "--json")


def refusing(number: int, after: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a system call that fails from the call ``after`` on, as on a full or read-only disk."""
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    return call


def whole(folder: Path) -> None:
    for file in folder.rglob("*.json"):
        json.loads(file.read_bytes())
    assert not list(folder.rglob(".*.tmp")), "a draft was left on a disk that is full"


@pytest.mark.parametrize(
    ("name", "number", "words"), [("fsync", errno.ENOSPC, "No space left"), ("replace", errno.EROFS, "Read-only file")]
)
@pytest.mark.parametrize("after", [0, 1, 2, 4, 7])
def test_a_disk_that_fails_at_any_write_is_named_and_the_sweep_goes_on_later(
    loraplan: CommandLine, tmp_path: Path, name: str, number: int, words: str, after: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, refusing(number, after, getattr(os, name)))
        ended = loraplan(*SWEEP)
    assert ended.code == 2
    assert ended.err.startswith("error: out/")
    assert words in ended.err
    whole(tmp_path / "out")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out/points").glob("*.json")}
    loraplan.succeeds(*SWEEP)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_real_disk_that_is_full_is_named(loraplan: CommandLine, tmp_path: Path) -> None:
    """Every file may grow to 4 kB: a limit that the kernel keeps, whoever runs the test."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        ended = loraplan(*SWEEP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.code == 2
    assert "File too large" in ended.err
    whole(tmp_path / "out")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root can't write")
@pytest.mark.parametrize("line", [("run", "quickstart"), ("plan", "plan-cache-size"), ("compare", "run", "run")])
def test_a_folder_that_cannot_be_written_is_named(loraplan: CommandLine, tmp_path: Path, line: tuple[str, ...]) -> None:
    if line[0] == "compare":
        loraplan.succeeds("run", "cache-thrash", *FEW, "--out", "run")
    assert "/proc" in loraplan.refused(*line, "--out", "/proc/loraplan", "--quiet")


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_changes_nothing(loraplan: CommandLine, tmp_path: Path, jump_s: int) -> None:
    first = loraplan(*SWEEP)
    now = time.time()
    for file in (tmp_path / "out").rglob("*"):
        os.utime(file, (now + jump_s, now + jump_s))
    again = loraplan(*(word for word in SWEEP if word != "--quiet"))
    assert "3 of 3 points come" in again.err
    assert (first.code, first.out) == (again.code, again.out)


def test_a_clock_that_jumps_while_it_runs_changes_nothing(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loraplan(*SWEEP)
    jumps = iter(range(0, 10**9, 86400))
    monkeypatch.setattr(time, "time", lambda: -next(jumps))
    monkeypatch.setattr(time, "perf_counter", lambda: -float(next(jumps)))
    again = loraplan(*SWEEP, "--overwrite")
    assert (first.code, first.out) == (again.code, again.out)


def test_a_folder_in_use_is_refused_and_left_alone(loraplan: CommandLine, tmp_path: Path) -> None:
    from sim.results.run_directory.store import RunStore

    loraplan.succeeds(*SWEEP)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    with RunStore.create(tmp_path / "out", manifest):
        before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.json")}
        assert "another loraplan works in this folder" in loraplan.refused(*SWEEP, "--overwrite")
        assert {file: file.read_bytes() for file in before} == before


def dies(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does where memory runs out
    return number


def test_a_worker_that_is_killed_for_memory_is_one_error() -> None:
    with pytest.raises(LoraplanError, match="perhaps out of memory; finished results are kept"):
        list(unordered(dies, [(number,) for number in range(4)], 2))


@pytest.mark.parametrize("command", [("report", "out"), ("compare", "out", "out"), SWEEP])
def test_a_run_directory_that_was_changed_is_named(
    loraplan: CommandLine, tmp_path: Path, command: tuple[str, ...]
) -> None:
    loraplan.succeeds(*SWEEP)
    for file in (tmp_path / "out/points").glob("*.json"):
        data = json.loads(file.read_text())
        data["point"]["metrics"] = {}
        file.write_text(json.dumps(data))
    assert "out: something in this run directory is not what loraplan writes" in loraplan.refused(*command).replace(
        "out or out", "out"
    )


@pytest.mark.parametrize(("name", "value"), [("unit", True), ("value", "x"), ("lo", [1]), ("state", 1)])
def test_a_value_of_a_wrong_type_is_simulated_again(
    loraplan: CommandLine, tmp_path: Path, name: str, value: object
) -> None:
    first = loraplan(*SWEEP)
    file = next((tmp_path / "out/points").glob("*.json"))
    data = json.loads(file.read_text())
    data["point"]["metrics"]["miss_ratio"][name] = value
    file.write_text(json.dumps(data))
    assert f"{file.name}: this point is missing or damaged" in loraplan.refused("report", "out")
    assert loraplan(*SWEEP).out == first.out
    loraplan.succeeds("report", "out")


def test_an_error_that_quotes_control_characters_is_one_printable_line(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text('schema_version: 1\nfleet: {replicas: "x\\0\\e[31m\\ny"}\n')
    said = loraplan.refused("check", "s.yaml")
    assert all(line.startswith("error: ") and line.isprintable() for line in said.splitlines())
    assert "x\\x00\\x1b[31m\\ny" in said
    asked = loraplan("adapters", ".", "--base-model", "x\x1b[31m")
    assert asked.err == "error: --base-model: not a model's name (got x\\x1b[31m)\n"


def test_a_plan_that_goes_on_in_a_changed_folder_names_it(loraplan: CommandLine, tmp_path: Path) -> None:
    question = ("--set", "slo={ttft_mean: 1 ms}", "--minimize", "cache.gpu.slots=4..5")
    line = ("plan", "cache-thrash", "--out", "out", *FEW, *question)
    assert loraplan(*line).code == 1, "nothing meets such an SLO"
    for file in (tmp_path / "out/points").glob("*.json"):
        data = json.loads(file.read_text())
        data["point"]["timeline"]["t_s"].pop()
        file.write_text(json.dumps(data))
    ended = loraplan(*line)
    assert ended.code == 2
    assert ended.err.startswith("error: out: something in this run directory is not what loraplan writes")
