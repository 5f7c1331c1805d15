"""What tests share: where the recorded data lie, how hypothesis runs, and what each of them costs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from command_line import CommandLine
from hypothesis import HealthCheck, Phase, settings

from sim.version import build

# For validation/, which is not installed. Last, so that a compiled installation comes before the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1]))

SLOW_S = 3.0
"""CPU time above which a test should be marked as slow."""

# Tests start hundreds of processes. Where container images forbid bytecode, each would compile all sources again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A script that runs tests in the background lets them ignore Ctrl-C, and with them the commands that they interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as cores: threads of each for every core spin while they wait for one another, which took torch
    # nine times the CPU time. Set before numpy and torch are imported; processes that tests start inherit it.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

settings.register_profile(
    "ci",
    deadline=None,  # simulations take what they take; CI machines stall
    derandomize=True,  # a red build stays red, and says why
    print_blob=True,
    suppress_health_check=(HealthCheck.too_slow,),
)
settings.register_profile("night", parent=settings.get_profile("ci"), max_examples=400)  # tests/examples.py
settings.register_profile(
    "no-shrinking",  # for make mutants, which asks only whether a test fails
    parent=settings.get_profile("night"),
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded data beside the repository; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"recorded data are not here: {SHARED}")
    return SHARED


@pytest.fixture
def loraplan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    """The command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capsys)


def cpu_s() -> float:
    """Return the CPU time of this process and of the processes that it has waited for."""
    return sum(os.times()[:4])


_begun_s = pytest.StashKey[float]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note the time, and skip tests that look into the simulator in ways that a compiled build doesn't allow."""
    item.stash[_begun_s] = cpu_s()
    if item.get_closest_marker("interpreted") and build() == "compiled":
        pytest.skip("it replaces methods of the simulator, which can't be replaced where they are compiled")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the last report of a test what it cost, fixtures included."""
    report = yield
    if report.when == "teardown" and _begun_s in item.stash:
        report.user_properties.append(("cpu_s", cpu_s() - item.stash[_begun_s]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the tests cost, and which of them are slow without saying so."""
    costs = [
        (dict(report.user_properties)["cpu_s"], report)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown" and report.user_properties
    ]
    slow = sum(cost for cost, report in costs if "slow" in report.keywords)
    terminalreporter.write_line(f"CPU time: {sum(cost for cost, _ in costs):.0f} s, of slow tests {slow:.0f} s")
    for cost, report in sorted(costs, key=lambda each: -each[0]):
        if cost > SLOW_S and not {"slow", "waits", "nightly"} & {*report.keywords}:
            terminalreporter.write_line(f"slow, and not marked so: {cost:.1f} s {report.nodeid}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every worker begin with its share of the slow tests, so that a run ends with quick ones.

    ``--dist worksteal`` cuts the list into one piece a worker; who has nothing left takes half of the longest queue.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    cuts = [len(quick) * number // workers for number in range(workers + 1)] if workers else []
    pieces = [slow[n::workers] + quick[cuts[n] : cuts[n + 1]] for n in range(workers)]
    items[:] = [item for piece in pieces for item in piece] or items
