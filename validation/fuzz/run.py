"""Fuzz the command line: ``python validation/fuzz/run.py --cases 10000``.

A failure again: ``--kind scenario --seed 17``.

Cases run in worker processes, a hundred or so each, with a limit of memory for the process and of time for each line.
What a case is follows from its kind and seed alone.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

KINDS = {"scenario": 36, "adapter": 20, "line": 18, "run": 6, "profile": 10, "trace": 10}
"""Kinds of cases, and how many of a hundred."""
TIME_LIMIT_S = 60
"""For one command: the slowest ones here need seconds."""
MEMORY_LIMIT = 6 << 30
"""Address space of a worker, not what it fills: shared libraries alone take over one GB of it."""
CHUNK = 100


class TooSlow(BaseException):
    """A line took longer than it may; no ``except Exception`` on the way must catch it."""


def strategy_of(kind: str) -> Any:
    """Return the strategy for cases of a kind."""
    return getattr(import_module(f"validation.fuzz.of_{kind}s"), f"{kind}_cases")()


def check(kind: str, number: int) -> dict[str, Any]:
    """Run one case and return what came of it: ``codes`` and ``faults``, with all that reproduces it."""
    from validation.fuzz.cases import drawn
    from validation.fuzz.lines import faults_of, run_line

    if kind == "run":
        from validation.fuzz.of_runs import template

        template()  # here, because what simulates seeds a generator of its own, which Hypothesis wants to know of
    case = drawn(strategy_of(kind), number)
    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-{number}-"))
    codes: list[int] = []
    faults: list[str] = []
    started = time.perf_counter()
    try:
        case.write(folder)
        for line in case.lines:
            signal.alarm(TIME_LIMIT_S)
            try:
                ended = run_line(line, folder)
            except TooSlow:
                faults.append(f"{line}: longer than {TIME_LIMIT_S} s")
                break
            finally:
                signal.alarm(0)
            codes.append(ended.code)
            faults += [f"{line}: {fault}" for fault in faults_of(line, ended, folder, lawful=case.lawful)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"kind": kind, "seed": number, "codes": codes, "faults": faults, "seconds": time.perf_counter() - started}


def work(kind: str, first: int, count: int) -> None:
    """Run cases one after the other and print one JSON line each; the work of a worker process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    for number in range(first, first + count):
        # Where no Python code runs that could be stopped, the process ends, and the parent counts it.
        faulthandler.dump_traceback_later(3 * TIME_LIMIT_S, exit=True)
        print(json.dumps(check(kind, number)), flush=True)
        faulthandler.cancel_dump_traceback_later()


def results(kind: str, first: int, count: int) -> list[dict[str, Any]]:
    """Return what came of a range of cases; a worker that dies costs the case it was at, and the rest goes on."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        at = first + len(found)
        command = [sys.executable, __file__, "--work", kind, str(at), str(count - len(found))]
        ended = subprocess.run(command, capture_output=True, text=True)
        found += [json.loads(text) for text in ended.stdout.splitlines()]
        if len(found) < count:
            died = f"the process died with {ended.returncode}: {ended.stderr[-3000:]}"
            found.append({"kind": kind, "seed": first + len(found), "codes": [], "faults": [died], "seconds": 0.0})
    return found


def main() -> int:
    """Run the cases that are asked for; exit with 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500, help="how many, over the kinds")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--kind", choices=sorted(KINDS), help="only this one")
    parser.add_argument("--seed", type=int, help="only this case, of --kind")
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--show", action="store_true", help="with --seed: print the case, don't run it")
    parser.add_argument("--work", nargs=3, metavar=("KIND", "FIRST", "COUNT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work[0], int(asked.work[1]), int(asked.work[2]))
        return 0
    if asked.seed is not None:
        if asked.kind is None:
            parser.error("--seed needs --kind")
        return _one(asked.kind, asked.seed, asked.show)
    shares = {asked.kind: 100} if asked.kind else KINDS
    chunks = []
    for kind, share in shares.items():
        count = round(asked.cases * share / 100)
        chunks += [(kind, asked.first + at, min(CHUNK, count - at)) for at in range(0, count, CHUNK)]
    with ThreadPoolExecutor(asked.jobs) as pool:
        return _report(pool.map(lambda chunk: results(*chunk), chunks))


def _one(kind: str, number: int, show: bool) -> int:
    if show:
        from validation.fuzz.cases import drawn

        case = drawn(strategy_of(kind), number)
        for name, content in case.files.items():
            print(
                f"--- {name}\n{'(a folder)' if content is None else content[:5000].decode(errors='backslashreplace')}"
            )
        for step in case.prepare:
            print(f"--- {str(step)[:1000]}")
        print(*case.lines, sep="\n")
        return 0
    return _report([results(kind, number, 1)])


def _report(chunks: Any) -> int:
    codes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    slowest: list[tuple[float, str, int]] = []
    failed = 0
    for chunk in chunks:
        for each in chunk:
            codes[each["kind"]].update(str(code) for code in each["codes"] or ["none"])
            slowest.append((each["seconds"], each["kind"], each["seed"]))
            if each["faults"]:
                failed += 1
                again = f"python validation/fuzz/run.py --kind {each['kind']} --seed {each['seed']}"
                print(f"\nFAILED {again}\n" + "\n".join(f"  {fault}" for fault in each["faults"]), flush=True)
    print(f"\n{len(slowest)} cases, {failed} failed")
    for kind, counted in sorted(codes.items()):
        print(f"  {kind}: " + ", ".join(f"exit {code}: {count}" for code, count in sorted(counted.items())))
    print(
        "  slowest: " + ", ".join(f"{kind} {number} {seconds:.1f} s" for seconds, kind, number in sorted(slowest)[-3:])
    )
    print(f"  {sum(seconds for seconds, _, _ in slowest):.0f} s in all")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
