"""``--timing``: where the time of a command went, in this process and in its workers."""

import builtins
import itertools
import re
from types import SimpleNamespace

import pytest
from command_line import CommandLine

from sim import timing

FEW = ("--set", "workload.requests=300", "--set", "run.replications=2", "--quiet")


def table(err: str) -> dict[str, list[float]]:
    """Return the rows of the stage table by name."""
    rows = re.findall(r"(?m)^([a-z ]+?) +([\d.]+) +([\d.]+) +([\d.]+)$", err)
    return {name: list(map(float, cells)) for name, *cells in rows}


def test_timing_names_the_stages_of_a_run_and_changes_nothing_else(loraplan: CommandLine) -> None:
    importing = builtins.__import__
    plain = loraplan("run", "quickstart", *FEW, "--json", "--out", "plain")
    timed = loraplan("run", "quickstart", *FEW, "--json", "--timing")
    assert (timed.code, timed.out) == (plain.code, plain.out)
    stages = table(timed.err)
    assert {"simulation", "statistics", "charts", "files", "report", "scenario", "worlds", "imports"} < set(stages)
    assert stages["simulation"][1] > 0
    rest = [cells for name, cells in stages.items() if name != "all"]
    assert stages["all"] == pytest.approx([sum(each) for each in zip(*rest, strict=True)], abs=0.02)
    assert stages["all"][2] == 0  # no worker process for so little
    assert builtins.__import__ is importing
    assert "stage" not in plain.err


def test_timing_knows_what_workers_spent(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.studies.sweep.SMALL_RUN", 0)
    few = ("sweep", "quickstart", *FEW, "--over", "cache.gpu.slots=16,32", "--jobs", "2", "--timing")
    stages = table(loraplan(*few).err)
    (_, here, there), (waited, _, _) = stages["simulation"], stages["wait for workers"]
    assert here == 0
    assert there > 0
    assert waited > 0


def test_a_stage_inside_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)), process_time=lambda: 0.0)
    monkeypatch.setattr(timing, "time", clock)
    timing.begin()
    with timing.stage("outer"), timing.stage("inner"):
        pass
    seconds = {name: cells[0] for name, cells in timing.end().items() if name != "start"}
    assert seconds == {"rest": 2, "outer": 2, "inner": 1}
    assert timing.end() == {}
