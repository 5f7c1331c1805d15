"""Put mistakes into copies of the program, one at a time, and see whether the tests notice: ``make mutants``.

For each mutant of the catalogue the tests that are most likely to notice run first, until one fails; with ``--whole``
the rest of the suite follows. Before that, the tests run once without a mutant, and those that fail are left out: a
test that fails anyway notices nothing.
What was found is kept in a file, so that an interrupted run resumes, and a second run tries only mutants whose code or
tests have changed since.

Exit codes: 0, every mutant is killed or explained; 1, some survive; 2, tests can't be run, or an entry of the
catalogue doesn't fit the code; 130, interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from validation import ROOT
from validation.mutants.catalogue import MUTANTS, Mutant
from validation.mutants.trial import (
    ALL_CORES,
    BROKEN,
    KILLED,
    SURVIVED,
    TIMEOUT,
    WHOLE,
    Outcome,
    copy_of_tree,
    digest_of,
    digest_of_tree,
    run_tests,
    try_mutant,
)

AREAS = ("sim/results", "sim/policies", "sim/world", "sim/studies", "reports")


class Kept:
    """Outcomes in a file of JSON lines, by the digest of what was run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be torn
        self._found = {row["digest"]: Outcome(row["verdict"], row["seconds"], row["by"]) for row in rows}

    def get(self, digest: str) -> Outcome | None:
        return self._found.get(digest)

    def add(self, digest: str, name: str, outcome: Outcome) -> None:
        self._found[digest] = outcome
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"mutant": name, "digest": digest, **asdict(outcome)}) + "\n")


def failing_without_mutant(mutants: Iterable[Mutant], *, whole: bool, limit_s: float, kept: Kept) -> list[str] | None:
    """Run the tests on the program as it is; return those that fail, or None where they can't be run."""
    tests = ["tests"] if whole else sorted({test for mutant in mutants for test in mutant.tests})
    tests = [test for test in tests if "::" not in test or test.partition("::")[0] not in tests]
    digest = digest_of(digest_of_tree(), tests, tests)
    outcome = kept.get(digest)
    if outcome is None:
        print(f"Running {'all tests' if whole else f'{len(tests)} test files'} without a mutant", flush=True)
        with copy_of_tree() as copy:
            outcome = run_tests(copy, tests, WHOLE * limit_s, *(ALL_CORES if whole else ()))
        if outcome.verdict in (SURVIVED, KILLED):
            kept.add(digest, "", outcome)
    if outcome.verdict == SURVIVED:
        return []
    if outcome.verdict == KILLED and "::" in outcome.by:
        print(f"These tests fail without a mutant and are left out:\n{outcome.by}")
        return outcome.by.splitlines()
    print(f"The tests can't be run without a mutant ({outcome.verdict}):\n{outcome.by}")
    return None


def table(found: dict[str, tuple[Mutant, Outcome]]) -> str:
    """Return how many mutants ended how, by area, and those that survive."""
    verdicts = (KILLED, TIMEOUT, "explained", SURVIVED, BROKEN)
    lines = [f"{'':14}" + "".join(f"{verdict:>11}" for verdict in (*verdicts, "all"))]
    rows: dict[str, Counter[str]] = {area: Counter() for area in AREAS}
    for mutant, outcome in found.values():
        rows[next(area for area in AREAS if mutant.file.startswith(area))][outcome.verdict] += 1
    rows["all"] = sum(rows.values(), Counter[str]())
    for area, counts in rows.items():
        cells = [*(counts[verdict] for verdict in verdicts), counts.total()]
        lines.append(f"{area:14}" + "".join(f"{cell:>11}" for cell in cells))
    for name, (mutant, outcome) in found.items():
        if outcome.verdict in (SURVIVED, BROKEN):
            lines.append(f"{outcome.verdict}: {name} ({mutant.file}): {mutant.why}")
        if outcome.verdict == BROKEN:
            lines.append(outcome.by)
    return "\n".join(lines)


def main() -> int:
    """Try the mutants; return the exit code."""
    names = [mutant.name for mutant in MUTANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="only this mutant; may be given several times")
    parser.add_argument("--whole", action="store_true", help="run the whole suite on what the named tests don't notice")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for the named tests; 10 times that for all")
    parser.add_argument("--results", type=Path, default=ROOT / ".mutants.jsonl", help="where outcomes are kept")
    parser.add_argument("--list", action="store_true", help="print the catalogue and stop")
    given = parser.parse_args()
    if unknown := sorted(set(given.only or ()) - set(names)):
        parser.error(f"no such mutant: {', '.join(unknown)} (--list prints them)")
    mutants = [mutant for mutant in MUTANTS if not given.only or mutant.name in given.only]
    if given.list:
        print("\n".join(f"{mutant.name:36} {mutant.file:34} {mutant.why}" for mutant in mutants))
        return 0
    try:
        for mutant in mutants:
            mutant.source(ROOT)
    except LookupError as error:
        print(error)
        return 2
    kept, tree = Kept(given.results), digest_of_tree()
    failing = failing_without_mutant(mutants, whole=given.whole, limit_s=given.limit, kept=kept)
    if failing is None:
        return 2
    found: dict[str, tuple[Mutant, Outcome]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        begun = {}
        for mutant in mutants:
            tests = (*mutant.tests, *(("tests",) if given.whole else ()))
            digest = digest_of(tree, tests, mutant, failing, given.whole)
            if (outcome := kept.get(digest)) is None:
                future = pool.submit(try_mutant, mutant, whole=given.whole, limit_s=given.limit, failing=failing)
                begun[future] = mutant, digest
            else:
                found[mutant.name] = mutant, outcome
        try:
            for future in as_completed(begun):
                mutant, digest = begun[future]
                found[mutant.name] = mutant, (outcome := future.result())
                print(f"{outcome.verdict:9} {outcome.seconds:6.1f} s  {mutant.name}  {outcome.by[:120]}", flush=True)
                if outcome.verdict != BROKEN:
                    kept.add(digest, mutant.name, outcome)
        except KeyboardInterrupt:
            print("Stopping when the mutants under way are done; the next run resumes here", flush=True)
            pool.shutdown(cancel_futures=True)
            return 130
    print(table({name: found[name] for name in names if name in found}))
    verdicts = {outcome.verdict for _, outcome in found.values()}
    return 2 if BROKEN in verdicts else 1 if SURVIVED in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
