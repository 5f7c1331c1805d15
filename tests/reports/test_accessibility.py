"""Reports of every kind in a real browser, light and dark: axe-core, the keyboard, sorting, contrast in charts.

Needs node, a Chromium and the packages of ``tests/a11y``; ``make a11y`` installs these and lets no test be skipped.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import samples
from test_cache_page import sessions, study
from test_compare_page import ALL as COMPARED
from test_size import one_axis, three_axes, vary
from test_trace_page import FACTS, page_of

import loraplan
from calibrate.serve.report import METRICS as SERVED
from calibrate.serve.report import serve_report
from reports.render.html import page, template
from reports.table import Table
from sim.studies.cache.report import cache_report
from sim.studies.compare.report import compare_report
from sim.studies.fidelity.report import METRIC_WORDS as METRICS
from sim.studies.fidelity.report import fidelity_report

A11Y = Path(__file__).parents[1] / "a11y"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
REGIMES = ("unsaturated", "slot-limited", "kv-or-compute-limited")


def cache(file: Path) -> None:
    result = study(sessions(), ("lru", "sieve", "lfu", "belady"), (200_000_000, 500_000_000, 1_000_000_000))
    file.write_text(page(cache_report(result, "t.csv", "t", ["a note"], "loraplan cache t")), encoding="utf-8")


def fidelity(file: Path) -> None:
    luck = random.Random(1)
    runs = []
    for i in range(40):
        measured = {name: luck.uniform(2, 500) for name in METRICS}
        predicted = {name: value * luck.uniform(0.7, 1.3) for name, value in measured.items()}
        label, regime, slots = f"workload {i // 4}", REGIMES[i % 3], 8 * 2 ** (i % 4)
        run = SimpleNamespace(group=label, label=label, gpu_slots=slots, regime=regime, measured=measured)
        runs.append(SimpleNamespace(run=run, calibrated=False, predicted=predicted))
        predicted["ttft_p50_ms"] *= i % 4 > 0  # with the fewest slots no request finishes
    error = {"runs": 40, "ape_p50": 0.1, "ape_p90": 0.3, "log10_abs_p50": 0.04, "log10_abs_p90": 0.1}
    every = dict.fromkeys(METRICS, error)
    errors = {
        "runs": 40,
        "calibration_runs": 3,
        "metrics": every,
        "by_regime": dict.fromkeys(REGIMES, every),
        "slot_choice": {"groups": 10, "right": 0.5, "within_10pct": 0.8},
    }
    peer = [("p99 TTFT", 12, 0.2, 0.1)]
    found = fidelity_report(runs, errors, peer, [("Runs", "40")], "loraplan fidelity runs.csv")
    file.write_text(page(found), encoding="utf-8")


def serve(file: Path) -> None:
    luck = random.Random(1)
    times = [(luck.lognormvariate(-2, 0.5), luck.lognormvariate(0, 0.5)) for _ in range(200)]
    row = {"measured": 0.2, "predicted": 0.21, "error": 0.05, "noise": 0.01, "wanted": 0.1}
    summary = {
        "metrics": dict.fromkeys(SERVED, row),
        "repeat": 2,
        "loads_from": "an observer in the server",
        "failed": [1, 0],
        "requests": 200,
        "problems": ["HTTP 500 once"],
        "late_p99_s": 0.02,
        "notes": ["a note"],
        "scenario": "tiny",
        "engine": "vllm",
        "server": [{"running_mean": 2.0}] * 2,
        "kv": None,
        "profile": {"name": "p", "fitted": True, "sha256": "ab" * 32, "front_end_s": 0.001},
    }
    found, again = {}, {}
    for name, seconds in zip(("ttft_s", "e2e_s"), zip(*times, strict=True), strict=True):
        found[name] = [(i, value, value * luck.uniform(0.8, 1.3)) for i, value in enumerate(seconds)]
        again[name] = [[value * 1.02 for value in seconds]]
    report = serve_report(summary, "Tiny.", found, again, "loraplan calibrate serve")
    file.write_text(page(report), encoding="utf-8")


def compare(file: Path) -> None:
    file.write_text(page(compare_report(COMPARED["swept"], "loraplan compare a b")), encoding="utf-8")


def plan(file: Path) -> None:
    values = {"workload.requests": 800, "run.replications": 2}
    found = loraplan.plan("quickstart", values, minimize={"cache.gpu.slots": (16, 64, 16)}, what_if=True, jobs=1)
    shutil.copy(found.report(), file)


def thousand(make: Callable[[], object]) -> samples.RunData:
    luck = random.Random(1)
    points = [vary(swept, i / 1000, luck) for i, swept in enumerate(make())]  # type: ignore[arg-type, var-annotated]
    run = samples.RunData(Path("x"), samples.manifest(kind="sweep"), points)
    run.manifest["scenario"]["slo"] = {"ttft_p99": "1 s"}
    return run


def report(make: Callable[[], samples.RunData]) -> Callable[[Path], None]:
    return lambda file: file.write_text(samples.build_report(make()), encoding="utf-8") and None


PAGES: dict[str, Callable[[Path], None]] = {
    **{name: report(make) for name, make in samples.ALL.items()},
    "thousand-1": report(lambda: thousand(one_axis)),
    "thousand-3": report(lambda: thousand(three_axes)),
    "trace": lambda file: file.write_text(page_of(FACTS), encoding="utf-8") and None,
    "cache": cache,
    "fidelity": fidelity,
    "serve": serve,
    "compare": compare,
    "plan": plan,
}


def lacking() -> str:
    """What is not here that a browser's judgement needs; empty where all is."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not os.environ.get("CHROMIUM") and not any(map(shutil.which, BROWSERS)):
        return "no Chromium is installed, and $CHROMIUM names none"
    if not (A11Y / "node_modules" / "axe-core").is_dir():
        return "axe-core is not installed; make a11y does that"
    return ""


@pytest.fixture
def browser() -> None:
    """Skip a test that a browser is to judge where there is none, before its page is made."""
    reason = lacking()
    if reason and os.environ.get("LORAPLAN_A11Y"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def run_node(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of ``tests/a11y`` on ``report.html`` in a folder."""
    return subprocess.run(
        ["node", A11Y / script, "report.html"], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.mark.nightly
@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("name", PAGES)
def test_anyone_can_read_and_use_the_page(name: str, tmp_path: Path) -> None:
    PAGES[name](tmp_path / "report.html")
    done = run_node("check.mjs", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.nightly
@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (("--muted: #5d6570", "--muted: #c8c8c8"), "color-contrast"),
        (('<html lang="en">', "<html>"), "html-has-lang"),
        ((":focus-visible { outline: 2px", ":focus-visible { outline: 0px"), "no visible focus"),
        (("max-width: 1200px", "min-width: 1200px"), "wider than a phone"),
        (("fill: currentColor", "fill: var(--grid)"), "contrast 1."),
        ((".values { position: fixed", ".values { visibility: hidden; position: fixed"), "shows no values"),
        (("\n(() => {", "\n;(() => {"), "content security policy"),
    ],
)
def test_the_check_finds_what_is_wrong(spoil: tuple[str, str], said: str, tmp_path: Path) -> None:
    text = samples.build_report(samples.rates())
    assert spoil[0] in text
    (tmp_path / "report.html").write_text(text.replace(*spoil), encoding="utf-8")
    done = run_node("check.mjs", tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout.lower()


@pytest.mark.nightly
@pytest.mark.usefixtures("browser")
def test_columns_sort_by_what_their_cells_mean(tmp_path: Path) -> None:
    cells = {
        "time": ("1.2 s (1.1 to 1.3) unsettled", "350 ms", "not enough data", "2 min", "90 µs"),
        "count": ("12,345", "950 (940 to 960)", "–", "1.17e-05", "−3"),
        "share": ("3.4 %", "11 %", "not enough data (too few)", "0", "0.05 %"),
        "bytes": ("1.5 GB", "800 MB", "", "2 TB", "12 kB"),
        "rate": ("30/s [29 to 31]", "2,100/s", "–", "4/s", "0.5/s"),
        "words": ("slots 10", "slots 9", "–", "Adapters", "zipf"),
        "mixed": ("1 s", "3 %", "2 GB", "4", "5/s"),
        "same": ("1 s",) * 5,
    }
    table = Table("t", ["row", *cells], [list(row) for row in zip("abcde", *cells.values(), strict=True)])
    macros = template("macros.html.j2").module
    text = samples.build_report(samples.single())
    first = text.index('<div class="scroll')
    (tmp_path / "report.html").write_text(text[:first] + str(macros.data_table(table)) + text[first:], encoding="utf-8")
    done = run_node("sort.mjs", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["copied"] in ("Copied", "Selected")
    assert found["sorted"] == {
        "row": ["abcde", "edcba"],
        "time": ["ebadc", "dabec"],
        "count": ["edbac", "abdec"],
        "share": ["deabc", "baedc"],
        "bytes": ["ebadc", "dabec"],
        "rate": ["edabc", "badec"],
        "words": ["dbaec", "eabdc"],
    }
