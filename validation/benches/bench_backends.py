"""Hold one sweep on every backend against the same on this machine, with a worker killed midway, too.

``python validation/benches/bench_backends.py [--points 200] [--requests 10000] [--out FOLDER] [NAME ...]``: a
row for every run: the time it took, and whether its tables are those of ``local``, byte for byte. Needs
``pip install -e '.[dask,ray]'``; what is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from process_tree import workers

BIN = Path(sys.executable).parent
TABLES = ("points.csv", "summary.json", "requests.parquet")
DASK_PORT, RAY_PORT, RAY_CLIENT_PORT = 18786, 6399, 10001
WORKERS = 2
# A token that some Ray left in the home folder would otherwise decide whether the two find each other.
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}

RUNS = {
    "local": (),
    "dask": ("--backend", "dask"),
    "dask, address": ("--address", f"tcp://127.0.0.1:{DASK_PORT}"),
    "ray": ("--backend", "ray"),
    "ray, address": ("--address", f"ray://127.0.0.1:{RAY_CLIENT_PORT}"),
}


def main() -> int:
    """Print the table; exit with 1 if any run failed or has other tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; all, if none is given")
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="keep the run directories here")
    asked = parser.parse_args()
    rates = ",".join(f"{20 + place * 12 / asked.points:g}/s" for place in range(asked.points))
    sweep = [
        "sweep",
        "cache-thrash",
        "--set",
        f"workload.requests={asked.requests}",
        "--set",
        "run.replications=1",
        "--over",
        f"workload.arrivals.rate={rates}",
        "--quiet",
        "--jobs",
        str(WORKERS),
    ]
    wrong = 0
    print(f"{asked.points} points of {asked.requests:,} requests, {WORKERS} workers")
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        _, expected = one(sweep, "local", folder, kill=False)
        for name in asked.names or RUNS:
            package = {"dask": "distributed", "ray": "ray"}.get(name.partition(",")[0])
            if package is not None and find_spec(package) is None:
                print(f"{name:<14} not run: {package} is not installed")
                continue
            for kill in (False, True) if package else ():
                _, found = one(sweep, name, folder, kill=kill, expected=expected)
                wrong += found != expected
    return 1 if wrong else 0


def one(
    sweep: list[str], name: str, folder: Path, *, kill: bool, expected: dict[str, str] | None = None
) -> tuple[float, dict[str, str]]:
    """Run the sweep once; return its seconds and the digests of its tables."""
    out = folder / (name.replace(", ", "-") + ("-killed" if kill else ""))
    with cluster(name) as server:
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(BIN / "loraplan"), *sweep, *RUNS[name], "--out", str(out)], stdout=subprocess.DEVNULL, env=ENVIRONMENT
        )
        killed = kill_midway(process, server or process.pid, out, sweep) if kill else 0
        code = process.wait()
        took_s = time.perf_counter() - started
    found = {table: hashlib.sha256((out / table).read_bytes()).hexdigest() for table in TABLES} if code == 0 else {}
    same = (
        "" if expected is None else "  tables the same" if found == expected else f"  TABLES DIFFER (exit code {code})"
    )
    after = f"  worker killed after {killed} points" if kill else ""
    print(f"{name:<14} {took_s:6.1f} s{same}{after}", flush=True)
    return took_s, found


def kill_midway(process: subprocess.Popen[bytes], root: int, out: Path, sweep: list[str]) -> int:
    """Kill -9 one worker once half of the points are there; return how many there were."""
    half = len(sweep[sweep.index("--over") + 1].split(",")) // 2
    while (done := len(list((out / "points").glob("*.json")))) < half:
        if process.poll() is not None:
            raise SystemExit(f"the sweep ended with {process.returncode} before a worker could be killed")
        time.sleep(0.02)
    os.kill(workers(root)[0], signal.SIGKILL)
    return done


@contextlib.contextmanager
def cluster(name: str) -> Iterator[int | None]:
    """Start the cluster that an address needs; give the process below which its workers are."""
    commands: list[list[str]] = []
    if name == "dask, address":
        commands = [
            ["dask", "scheduler", "--host", "127.0.0.1", "--port", str(DASK_PORT), "--no-dashboard"],
            [
                "dask",
                "worker",
                f"tcp://127.0.0.1:{DASK_PORT}",
                "--nworkers",
                str(WORKERS),
                "--nthreads",
                "1",
                "--no-dashboard",
            ],
        ]
    elif name == "ray, address":
        commands = [
            [
                "ray",
                "start",
                "--head",
                "--block",
                "--node-ip-address",
                "127.0.0.1",
                "--port",
                str(RAY_PORT),
                "--ray-client-server-port",
                str(RAY_CLIENT_PORT),
                "--num-cpus",
                str(WORKERS),
                "--include-dashboard=false",
            ]
        ]
    if not commands:
        yield None
        return
    servers = []
    try:
        for command in commands:
            servers.append(
                subprocess.Popen(
                    [str(BIN / command[0]), *command[1:]],
                    env=ENVIRONMENT,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            time.sleep(10 if command[0] == "ray" else 3)
        yield servers[-1].pid
        if any(server.poll() is not None for server in servers):
            raise SystemExit(f"{name}: a cluster that was there has ended")
    finally:
        for server in reversed(servers):
            server.terminate()
            server.wait()


if __name__ == "__main__":
    sys.exit(main())
