"""What CI fuzzes: 60 cases over the kinds and the readers' harnesses; make nightly tries 10,000, and kills."""

from __future__ import annotations

import subprocess
import sys

import pytest

from validation import ROOT
from validation.fuzz import run as fuzz

HARNESSES = ROOT / "validation" / "fuzz"
CASES = 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(fuzz.KINDS))
def test_every_case_ends_as_promised(kind: str) -> None:
    found = fuzz.results(kind, 0, CASES * fuzz.KINDS[kind] // 100)
    failed = [f"--kind {kind} --seed {each['seed']}: {fault}" for each in found for fault in each["faults"]]
    assert not failed, "python validation/fuzz/run.py " + "\n".join(failed)


@pytest.mark.parametrize("reader", ["traces", "weights"])
def test_harnesses_run_on_their_corpus_without_atheris(reader: str) -> None:
    command = [sys.executable, str(HARNESSES / "atheris_readers.py"), reader, "--corpus"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[0]) > 20
