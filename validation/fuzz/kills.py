"""Kill sweeps, plans and calibrations at random moments: ``python validation/fuzz/kills.py --kills 100``.

Each round starts a command, kills it with all its workers one to three times, looks at what is left after each kill,
and lets the last start finish. Its tables must be those of a run that nobody killed, byte for byte; what was finished
before a kill must be there after it, and untouched. The seed says after how much of the work, or of the
time that an undisturbed run takes, a kill comes; the moment itself is the machine's.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from validation import ROOT

SCENARIO = """\
schema_version: 1
name: killed
workload:
  requests: 300
  arrivals: {process: poisson, rate: 8/s}
  popularity: {law: zipf, exponent: 0.9}
  tokens: {prompt: {law: fixed, value: 50}, output: {law: fixed, value: 10}}
adapters: {count: 20, rank: 8}
fleet: {profile: h100-64gb/llama-3.1-8b/assumed} # has no draws: points are quick
cache: {gpu: {slots: 2}}
slo: {ttft_mean: 300 ms}
run: {replications: 2}
sweep: {cache.gpu.slots: [1, 2, 3, 4], workload.arrivals.rate: [4/s, 8/s, 12/s]}
"""
COMMANDS = {
    "sweep": ("sweep", "s.yaml", "--out", "out", "--jobs", "1"),
    "workers": ("sweep", "s.yaml", "--out", "out", "--jobs", "2"),
    "plan": ("plan", "s.yaml", "--out", "out", "--minimize", "cache.gpu.slots=1..12", "--jobs", "1"),
    "calibrate": (
        "calibrate",
        "steps",
        "--device",
        "cpu",
        "--model",
        "tiny",
        "--quick",
        "--layers",
        "1",
        "--backend",
        "loop",
        "--out",
        "out",
    ),
}
"""``workers``: a sweep whose points are simulated by worker processes, however small they are."""
CANARY = "canary"
TABLES = ("points.csv", "summary.json", "requests.parquet", "recommended.yaml")


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run left.

    :ivar tables: bytes by name; ``kept``: names of points, or the visits of a calibration.
    """

    seconds: float
    tables: dict[str, bytes]
    kept: set[str]


def start(kind: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command as a process group of its own."""
    small = "0" if kind == "workers" else "sweep.SMALL_RUN"
    code = f"import sim.studies.sweep as sweep; sweep.SMALL_RUN = {small}; from sim.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *COMMANDS[kind]],
        cwd=folder,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def reference(kind: str, folder: Path) -> Reference:
    """Run a command that nobody disturbs."""
    folder.mkdir()
    (folder / "s.yaml").write_text(SCENARIO)
    started = time.monotonic()
    process = start(kind, folder)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    names = {name for name in kept(kind, folder) if not name.startswith(CANARY)}
    return Reference(time.monotonic() - started, tables(folder), names)


def tables(folder: Path) -> dict[str, bytes]:
    """Return the tables of a run directory."""
    return {name: (folder / "out" / name).read_bytes() for name in TABLES if (folder / "out" / name).exists()}


def kept(kind: str, folder: Path) -> dict[str, object]:
    """Return what is finished: points by name with the time they were written, or the lines of visits."""
    if kind != "calibrate":
        return {file.name: file.stat().st_mtime_ns for file in (folder / "out" / "points").glob("*.json")}
    file = folder / "out" / "steps.jsonl"
    raw = file.read_bytes() if file.exists() else b""
    found: dict[str, object] = {}
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines()):
        visit = json.loads(line)
        name = f"{visit['configuration']['key']} {visit['round']}"
        if name.startswith(CANARY):
            name = f"{CANARY} in line {number}"  # timed again and again, to see the device drift
        assert name not in found, f"measured twice: {name}"
        found[name] = line
    return found


def check_whole(folder: Path) -> None:
    """Fail if any file is torn; drafts, which nobody reads, may be."""
    from pyarrow import parquet

    for file in (folder / "out").rglob("*"):
        if file.suffix == ".json" and not file.name.startswith("."):
            json.loads(file.read_bytes())
        elif file.suffix == ".parquet":
            parquet.read_table(file)
        elif file.suffix == ".csv":
            assert len({len(row) for row in csv.reader(file.open())}) == 1, f"{file} is torn"
        elif file.suffix == ".html":
            assert file.read_text().rstrip().endswith("</html>"), f"{file} is torn"


def round_of(kind: str, seed: int, most: int, folder: Path, undisturbed: Reference) -> tuple[int, int]:
    """Kill one command a few times and let it finish; return how often it was killed, and how often in its work.

    :raises AssertionError: if something was lost, done twice or torn.
    """
    luck = random.Random(f"{kind} {seed}")
    folder.mkdir()
    (folder / "s.yaml").write_text(SCENARIO)
    before: dict[str, object] = {}
    kills = midway = 0
    for _ in range(min(most, luck.randint(1, 3))):
        process = start(kind, folder)
        _wait(kind, folder, process, luck, undisturbed)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate(timeout=60)
        if (folder / "out").exists():
            check_whole(folder)
        now = kept(kind, folder)
        assert {name: now.get(name) for name in before} == before, "what was finished is gone or was done again"
        midway += 0 < len(now) < len(undisturbed.kept)
        before = now
    process = start(kind, folder)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    check_whole(folder)
    now = kept(kind, folder)
    assert {name: now.get(name) for name in before} == before, "what was finished is gone or was done again"
    assert {name for name in now if not name.startswith(CANARY)} == undisturbed.kept, (
        "another set of points than without kills"
    )
    assert tables(folder) == undisturbed.tables, "other tables than without kills"
    return kills, midway


def _wait(kind: str, folder: Path, process: subprocess.Popen[str], luck: random.Random, undisturbed: Reference) -> None:
    """Wait for the moment of a kill: any one of the run, or one soon after so much of it was finished."""
    if luck.random() < 0.3:
        time.sleep(luck.uniform(0.1, 1.0) * undisturbed.seconds)
        return
    enough, end = luck.randrange(len(undisturbed.kept)), time.monotonic() + 3 * undisturbed.seconds
    while process.poll() is None and len(kept(kind, folder)) < enough and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(luck.uniform(0, 0.05))


def main() -> int:
    """Kill as often as asked for; exit with 1 at the first loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--kind", choices=sorted(COMMANDS), help="only this command")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    asked = parser.parse_args()
    kinds = [asked.kind] if asked.kind else ["sweep", "workers", "plan", "sweep", "workers", "plan", "calibrate"]
    undisturbed: dict[str, Reference] = {}
    kills, midway, seed = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0), asked.seed
    with tempfile.TemporaryDirectory() as name:
        while (left := asked.kills - sum(kills.values())) > 0:
            kind = kinds[seed % len(kinds)]
            if kind not in undisturbed:
                undisturbed[kind] = reference(kind, Path(name) / kind)
            try:
                more, of_these = round_of(kind, seed, left, Path(name) / f"{kind}-{seed}", undisturbed[kind])
            except AssertionError as error:
                print(f"FAILED python validation/fuzz/kills.py --kind {kind} --seed {seed}\n  {error}")
                return 1
            kills[kind] += more
            midway[kind] += of_these
            seed += 1
    print(", ".join(f"{kind} {count} ({midway[kind]} with work half done)" for kind, count in kills.items()))
    print(f"{sum(kills.values())} kills in {seed - asked.seed} rounds: nothing lost, done twice or torn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
