"""``--timing``: where the time of a command went, here and in its workers; and the time left that the bar shows."""

from __future__ import annotations

import builtins
import heapq
import itertools
import re
from types import SimpleNamespace

import pytest
from command_line import CommandLine

from sim import timing
from sim.cli.output import TimeLeft

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


# The time left that the bar shows, on a clock that the test sets


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def estimates(durations: list[float], workers: int, start_s: float) -> list[tuple[int, float, float]]:
    """Return (done, estimate, truth) after each task, if workers take the tasks in order after they started."""
    clock = Clock()
    left = TimeLeft(workers, clock)
    clock.now += start_s
    left.report(0, len(durations))
    free, ends = [clock.now] * workers, []
    for duration in durations:
        end = heapq.heappop(free) + duration
        heapq.heappush(free, end)
        ends.append(end)
    found = []
    for done, end in enumerate(sorted(ends), 1):
        clock.now = end
        left.report(done, len(durations))
        seconds = left.seconds()
        assert seconds is not None
        found.append((done, seconds, max(ends) - end))
    return found


@pytest.mark.parametrize("workers", [1, 2, 8, 16])
@pytest.mark.parametrize("total", [13, 40, 200])
def test_equal_tasks_give_an_estimate_within_a_factor_of_two(workers: int, total: int) -> None:
    jitter = [2.0 + 0.1 * (7 * i % 5) for i in range(total)]
    for done, estimate, truth in estimates(jitter, workers, start_s=7.0):
        if done >= total / 10 and total - done > workers:  # tasks of the last round are all under way
            assert truth / 2 <= estimate <= 2 * truth, (done, estimate, truth)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("steepest", [1 / 3, 3.0])
def test_tasks_that_become_three_times_as_long_or_short_do_too(workers: int, steepest: float) -> None:
    """As in a sweep of the arrival rate, whose last points are busy. From a tenth of the work to three quarters."""
    durations = [1 + (steepest - 1) * i / 39 for i in range(40)]
    for done, estimate, truth in estimates(durations, workers, start_s=1.0):
        if sum(durations[:done]) >= sum(durations) / 10 and done <= 30:
            assert truth / 2 <= estimate <= 2 * truth, (done, estimate, truth)


def test_the_time_in_which_workers_start_does_not_count() -> None:
    assert estimates([2.0] * 10, 1, start_s=0.0) == estimates([2.0] * 10, 1, start_s=60.0)


def test_it_counts_down_between_reports_and_never_below_zero() -> None:
    clock = Clock()
    left = TimeLeft(clock=clock)
    assert left.seconds() is None
    left.report(0, 4)
    assert left.seconds() is None
    clock.now += 10
    left.report(1, 4)
    assert left.seconds() == 30
    clock.now += 12
    assert left.seconds() == 18
    clock.now += 100
    assert left.seconds() == 0
