"""Check that a refactoring changed no number and no sentence: run what is bundled, and compare what comes of it.

    make same                                   compare with tools/same.json and tools/same/
    python tools/same.py --record               write these, after a deliberate change of numbers
    python tools/same.py --record --only text   the sentences alone, after a deliberate change of one

Every bundled scenario is run, swept, planned and compared with seeds 1 to 3 and reduced requests. Digests cover
``points.csv``, the metrics in ``summary.json``, the columns of ``requests.parquet``, and what ``plan --json`` and
``compare --json`` print. Wall times, versions and paths are left out. So are the sentences that the two commands print
(the keys in ``PROSE``), because better wording changes no number; names and states such as ``"binding"`` and
``"answer"`` count. ``--keep DIR`` keeps the run directories, so that two trees can be compared file by file.

Sentences are recorded as such: ``tools/same/*.txt`` holds what some forty commands print, what their reports and
manifests say, and what the functions of ``import loraplan`` return (``transcripts.py``). ``--only text/plan`` compares
one of these files. ``tools/same/long`` holds the short answer of every bundled scenario at its own size, to be read;
that takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transcripts

ROOT = Path(__file__).resolve().parents[1]
BASELINE = Path(__file__).with_name("same.json")
SEEDS = (1, 2, 3)
REQUESTS = 1200
"""Enough for evictions, sections and intervals; far too few for a settled p99, which does not matter here."""
VOLATILE = frozenset({"wall_s", "path", "out", "command", "code", "versions", "started_at", "scenario_hash", "setup"})
"""JSON keys whose values differ from run to run, depend on the code or on the folder of the checkout, or are names."""

PROSE = frozenset({"headline", "details", "cautions", "reason", "why", "note", "no_flags"})
"""Keys of ``plan --json`` and ``compare --json`` whose values are sentences for people."""


@dataclass(frozen=True)
class Job:
    """One command: ``name`` in the baseline, arguments of ``loraplan``, and the run it writes (None: stdout counts)."""

    name: str
    arguments: tuple[str, ...]
    out: str | None
    needs: tuple[str, ...] = ()


def jobs() -> list[list[Job]]:
    """Return chains of jobs; those of a chain run one after the other, because later ones read earlier results."""
    from sim.spec.scenario_file import bundled_scenarios, load_scenario

    chains = []
    for name in bundled_scenarios():
        scenario = load_scenario(name).scenario
        smaller = ["--set", "run.replications=2"]
        if scenario.workload.requests is not None:
            smaller += ["--set", f"workload.requests={min(scenario.workload.requests, REQUESTS)}"]
        else:
            smaller = ["--set", "run.replications=1"]
        for seed in SEEDS:
            common = (name, *smaller, "--seed", str(seed), "--quiet")
            run, sweep = f"{name}-{seed}", f"{name}-{seed}-sweep"
            chain = [Job(run, ("run", *common), run)]
            if scenario.sweep:
                chain.append(Job(sweep, ("sweep", *common), sweep))
            if scenario.plan is not None:
                chain.append(Job(f"{run}-plan", ("plan", *common, "--json"), f"{run}-plan"))
            if seed > 1:
                pair = (f"{name}-1", run)
                chain = [Job(pair[0], ("run", name, *smaller, "--seed", "1", "--quiet"), pair[0]), *chain]
                chain.append(Job(f"{run}-compare", ("compare", *pair, "--json"), None))
            chains.append(chain)
    return chains


def run_chain(chain: list[Job], keep: str | None) -> dict[str, dict[str, str]]:
    """Run jobs in a folder of their own; return digests by job and file."""
    os.environ["COLUMNS"] = "120"
    with workspace(keep) as folder, contextlib.chdir(folder):
        return {job.name: run_job(job) for job in chain}


def run_transcript(name: str, keep: str | None) -> str:
    """Do what a transcript says in a folder of its own; return the transcript of that."""
    with workspace(keep) as folder:
        return transcripts.replay(transcripts.file_of(name).read_text(encoding="utf-8"), folder)


@contextlib.contextmanager
def workspace(keep: str | None) -> Iterator[Path]:
    """Give an empty folder: one to keep, or one that is gone afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(keep) if keep else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="same-")))
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def run_job(job: Job) -> dict[str, str]:
    """Run one command in this process and digest what it left."""
    from sim.cli import app

    place = [] if job.out is None else ["--out", job.out, "--jobs", "1"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        code = app([*job.arguments, *place], standalone_mode=False)
    digests = {"exit": str(code or 0)}
    if "--json" in job.arguments:
        digests["json"] = digest(without(json.loads(said.getvalue()), VOLATILE | PROSE))
    if job.out is not None:
        digests |= digest_run(Path(job.out))
    return digests


def digest_run(folder: Path) -> dict[str, str]:
    """Return digests of the tables of a run directory."""
    import pyarrow.parquet as pq

    digests = {"points.csv": hashlib.sha256((folder / "points.csv").read_bytes()).hexdigest()[:16]}
    digests["summary.json"] = digest(
        without(json.loads((folder / "summary.json").read_text(encoding="utf-8")), VOLATILE | PROSE)
    )
    if (folder / "requests.parquet").exists():
        table = pq.read_table(folder / "requests.parquet")
        columns = hashlib.sha256()
        for name in table.column_names:
            columns.update(name.encode())
            columns.update(repr(table.column(name).to_pylist()).encode())
        digests["requests.parquet"] = columns.hexdigest()[:16]
    return digests


def without(data: Any, keys: frozenset[str]) -> Any:
    """Return JSON data without these keys, at any depth."""
    if isinstance(data, dict):
        return {key: without(value, keys) for key, value in data.items() if key not in keys}
    return [without(value, keys) for value in data] if isinstance(data, list) else data


def digest(data: Any) -> str:
    """Return a short digest of JSON data, whatever folder the checkout is in.

    The order of keys counts, because scripts may print them in order.
    """
    return hashlib.sha256(json.dumps(data).replace(str(ROOT), "").encode()).hexdigest()[:16]


def differences(wanted: dict[str, dict[str, str]], found: dict[str, dict[str, str]]) -> list[str]:
    """Return one line for every digest that is missing, new or different."""
    lines = []
    for name in sorted({*wanted, *found}):
        one, other = wanted.get(name), found.get(name)
        if one is None or other is None:
            lines.append(f"{name}: {'not in the baseline' if one is None else 'no longer there'}")
            continue
        lines += [f"{name}: {file} differs" for file in sorted({*one, *other}) if one.get(file) != other.get(file)]
    return lines


def main() -> int:
    """Run everything; return 1 where something differs."""
    parser = argparse.ArgumentParser(description="Check that no number and no sentence changed.")
    parser.add_argument("--record", action="store_true", help="write the baseline instead of comparing with it")
    parser.add_argument("--keep", metavar="DIR", help="keep the run directories here")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only scenarios and transcripts whose name contains this"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    started = time.perf_counter()
    chains = [chain for chain in jobs() if options.only in chain[0].name]
    texts = transcripts.names(options.only, long=True)
    keep = Path(options.keep).resolve() if options.keep else None
    with ProcessPoolExecutor(options.jobs) as pool:
        said = pool.map(run_transcript, texts, [keep and str(keep / name) for name in texts])
        ran = pool.map(run_chain, chains, [keep and str(keep / chain[-1].name) for chain in chains])
        now = dict(zip(texts, said, strict=True))
        found = {name: files for digests in ran for name, files in digests.items()}
    wanted = json.loads(BASELINE.read_text(encoding="utf-8"))["digests"]
    mine = tuple(f"{chain[0].name}-" for chain in chains)
    others = {name: files for name, files in wanted.items() if not name.startswith(mine)}
    results = f"{len(found)} results and {len(now)} transcripts in {time.perf_counter() - started:.0f} s"
    if options.record:
        record({**others, **found})
        for name, text in now.items():
            transcripts.file_of(name).write_text(text, encoding="utf-8")
        print(f"recorded {results}")
        return 0
    lines = differences(wanted, {**others, **found})
    lines += [line for name, text in now.items() for line in transcripts.difference(name, text)]
    print("\n".join(lines) if lines else f"the same: {results}")
    return 1 if lines else 0


def record(digests: dict[str, dict[str, str]]) -> None:
    """Write the baseline."""
    made_with = {"python": platform.python_version(), "machine": platform.machine()}
    text = json.dumps({"made_with": made_with, "digests": dict(sorted(digests.items()))}, indent=1)
    BASELINE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
