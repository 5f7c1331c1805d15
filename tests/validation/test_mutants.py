"""The catalogue of mutants fits the code, and the tool knows which mutants tests notice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from validation import ROOT
from validation.mutants.catalogue import MUTANTS, Mutant
from validation.mutants.trial import BROKEN, KILLED, SURVIVED, TIMEOUT, check_imports, run_tests


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_entry_applies_and_is_python(mutant: Mutant) -> None:
    source = mutant.source(ROOT)
    assert source != (ROOT / mutant.file).read_text(encoding="utf-8"), "it changes nothing"
    compile(source, mutant.file, "exec")
    assert mutant.tests, "it names the tests that should notice"
    for test in mutant.tests:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name.partition('[')[0]}(" in text, f"{test} is no test"


def test_names_are_unique_and_the_catalogue_is_spread() -> None:
    names = Counter(mutant.name for mutant in MUTANTS)
    assert [name for name, count in names.items() if count > 1] == []
    areas = Counter("/".join(mutant.file.split("/")[:2]) for mutant in MUTANTS)
    assert areas["sim/results"] >= 25
    assert areas["sim/policies"] >= 20
    assert areas["sim/world"] >= 20


def test_an_entry_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\nb = 1\n")
    with pytest.raises(LookupError, match="twice: its old text occurs 2 times"):
        Mutant("twice", "code.py", "= 1", "= 2", "", ()).source(tmp_path)
    with pytest.raises(LookupError, match="occurs 0 times"):
        Mutant("gone", "code.py", "c = 1", "c = 2", "", ()).apply(tmp_path)
    Mutant("fits", "code.py", "b = 1", "b = 2", "", ()).apply(tmp_path)
    assert (tmp_path / "code.py").read_text() == "a = 1\nb = 2\n"


CONFTEST = "from hypothesis import settings\nsettings.register_profile('no-shrinking')\n"
TESTS = """
import time
from code_of import one

def test_one() -> None:
    assert one() == 1

def test_that_it_ends() -> None:
    while one() == 3:
        time.sleep(0.01)
"""


@pytest.mark.parametrize(
    ("returned", "test", "verdict"),
    [(1, "", SURVIVED), (2, "", KILLED), (3, "::test_that_it_ends", TIMEOUT), (1, "::test_that_is_not_there", BROKEN)],
)
def test_a_trial_tells_how_tests_end(returned: int, test: str, verdict: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "code_of.py").write_text(f"def one(): return {returned}\n")
    (tmp_path / "test_code.py").write_text(TESTS)
    outcome = run_tests(tmp_path, [f"test_code.py{test}"], 3.0 if verdict == TIMEOUT else 60.0, "-x")
    assert outcome.verdict == verdict
    assert (outcome.by == "test_code.py::test_one") == (verdict == KILLED)


def test_a_copy_that_is_not_imported_is_refused(tmp_path: Path) -> None:
    check_imports(ROOT)
    (tmp_path / "sim.py").write_text("")
    for name in ("reports", "calibrate"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "copy").mkdir()
    with pytest.raises(RuntimeError, match="imports"):
        check_imports(tmp_path / "copy")
