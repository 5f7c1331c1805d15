"""Run tests on copies of the tree: as it is, or with a mutant in it."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from validation import ROOT
from validation.mutants.catalogue import Mutant

KILLED, SURVIVED, TIMEOUT, EXPLAINED, BROKEN = "killed", "survived", "timeout", "explained", "not run"
OWN_TESTS = "tests/validation/test_mutants.py"
"""They look for the old text of every mutant, so in a mutant they always fail."""
WHOLE = 10
"""How many times as long as the named tests of a mutant the whole suite may take."""
ALL_CORES = ("-n", "auto", "--dist", "worksteal")
MEMORY_BYTES = 12 * 2**30
"""Address space of a test run: a mutant that never stops allocating must not take the machine with it."""
_LEFT_OUT = (
    ".venv",
    ".fast-venv",
    ".vllm-venv",
    ".git",
    "node_modules",
    "runs",
    ".hypothesis",
    ".mypy_cache",
    ".ruff_cache",
    ".mutants*",
)
_PACKAGES = ("sim", "reports", "calibrate", "scenarios", "docs")
_PASSED, _FAILED, _STOPPED = 0, 1, 2  # exit codes of pytest; 2: an error while it collected tests


@dataclass(frozen=True)
class Outcome:
    """How a test run ended.

    :ivar verdict: ``KILLED``, ``SURVIVED``, ``TIMEOUT``, or ``BROKEN`` where pytest could not run the tests.
    :ivar by: the tests that failed, one a line, or what pytest printed last.
    """

    verdict: str
    seconds: float
    by: str = ""


@contextmanager
def copy_of_tree() -> Iterator[Path]:
    """Give a copy of the repository that is removed at the end, with the recorded data beside it where they are here.

    :raises RuntimeError: where Python would import the packages from somewhere else.
    """
    with tempfile.TemporaryDirectory(prefix="loraplan-mutant-") as name:
        tree = Path(name) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
        shared = ROOT.parent / "shared"
        if shared.is_dir():
            (tree.parent / "shared").symlink_to(shared.resolve(), target_is_directory=True)
        check_imports(tree)
        yield tree


def environment(tree: Path) -> dict[str, str]:
    """Return the environment of a test run; the programs that tests start inherit it."""
    return {**os.environ, "PYTHONPATH": str(tree)}


def check_imports(tree: Path) -> None:
    """Check that Python, started anywhere, imports the packages of a copy, and not those of an installed tree.

    :raises RuntimeError: where it doesn't.
    """
    code = "import sim, reports, calibrate; print(sim.__file__, reports.__file__, calibrate.__file__, sep='\\n')"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tree.parent, env=environment(tree), capture_output=True, text=True, check=True)
    for file in found.stdout.splitlines():
        if not Path(file).resolve().is_relative_to(tree.resolve()):
            raise RuntimeError(f"a copy at {tree} imports {file}")


def run_tests(tree: Path, tests: Sequence[str], limit_s: float, *options: str) -> Outcome:
    """Run tests in a copy of the tree until the time is up; with option ``-x`` until one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=no-shrinking"]
    command += [f"--ignore={OWN_TESTS}", *options, *tests]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment(tree),
        text=True,
        errors="replace",
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if hasattr(resource, "prlimit"):  # Linux
        resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        printed, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        return Outcome(TIMEOUT, time.monotonic() - started)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    seconds = time.monotonic() - started
    lines = printed.splitlines()
    if process.returncode == _PASSED:
        return Outcome(SURVIVED, seconds)
    if process.returncode in (_FAILED, _STOPPED):
        failed = [
            line.partition(" ")[2].partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))
        ]
        return Outcome(KILLED, seconds, "\n".join(failed or lines[-3:]))
    return Outcome(BROKEN, seconds, "\n".join(lines[-20:]))


def try_mutant(mutant: Mutant, *, whole: bool, limit_s: float, failing: Sequence[str] = ()) -> Outcome:
    """Run the tests that are most likely to notice a mutant, then (``whole``) all others.

    :param failing: tests that fail without a mutant too, and are left out.
    :raises LookupError: where the entry doesn't fit the code any more.
    """
    left_out = [f"--deselect={test}" for test in failing]
    with copy_of_tree() as tree:
        mutant.apply(tree)
        outcome = run_tests(tree, mutant.tests, limit_s, "-x", *left_out)
        if outcome.verdict == SURVIVED and whole:
            left_out += [f"--deselect={test}" for test in mutant.tests]
            rest = run_tests(tree, ["tests"], WHOLE * limit_s, "-x", *ALL_CORES, *left_out)
            outcome = Outcome(rest.verdict, outcome.seconds + rest.seconds, rest.by)
    if outcome.verdict == SURVIVED and mutant.explained:
        return Outcome(EXPLAINED, outcome.seconds, mutant.explained)
    return outcome


def digest_of_tree() -> str:
    """Return a digest of all that decides how a test run ends, but for the tests themselves."""
    files = [file for package in _PACKAGES for file in (ROOT / package).rglob("*")]
    files += [file for file in (ROOT / "tests").rglob("*.py") if not file.name.startswith("test_")]
    files += [file for file in (ROOT / "validation").rglob("*.py") if file.parent.name != "mutants"]
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file() and file.suffix != ".pyc":
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def digest_of(tree: str, tests: Sequence[str], *more: object) -> str:
    """Return a digest of a test run: what was found for the same one need not be found again.

    :param tree: of ``digest_of_tree``; ``more``: the mutant, and how thoroughly it was tried.
    """
    digest = hashlib.sha256(repr((tree, *more)).encode())
    for test in tests:
        where = ROOT / test.partition("::")[0]
        for file in sorted(where.rglob("test_*.py")) if where.is_dir() else [where]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
