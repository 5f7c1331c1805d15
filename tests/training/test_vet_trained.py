"""Real training: adapters that fail and their healthy twins, as logs recorded before and as trained right here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sim.training.vet_adapters import vet_path

FIXTURES = Path(__file__).resolve().parent / "fixtures"
RECORDED = sorted(file.parent for file in FIXTURES.glob("*/made.json"))
FAILING = ("rank-1-cosine", "explodes-late", "100-examples", "unknown-words")
HEALTHY = ("cosine", "early-stop", "high-rank", "four-bit")
"""A twin of each failing one; the recorded runs have all of them."""
STEPS = {
    "rank-1-cosine": 400,
    "unknown-words": 150,
    "cosine": 200,
    "high-rank": 200,
    "four-bit": 200,
}
"""Those that show it sooner than their recipes train; the recorded runs have whole lengths."""


def mode_of(folder: Path) -> str | None:
    mode = json.loads((folder / "made.json").read_text())["mode"]
    assert mode is None or isinstance(mode, str)
    return mode


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_a_recorded_run_is_named_for_what_it_is(folder: Path) -> None:
    (one,) = vet_path(folder)
    mode = mode_of(folder)
    assert [finding.mode for finding in one.findings] == ([mode] if mode else [])


def test_the_fixtures_hold_each_mode_and_enough_healthy_runs() -> None:
    modes = [mode_of(folder) for folder in RECORDED]
    assert modes.count(None) >= 8
    assert {mode for mode in modes if mode} == {"underfitting", "divergence", "overfitting", "domain-shift"}


def test_all_recorded_runs_vetted_together_are_named_the_same() -> None:
    for one in vet_path(FIXTURES):
        mode = mode_of(one.path)
        assert [finding.mode for finding in one.findings] == ([mode] if mode else []), one.path.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch and transformers warn of their own future
@pytest.mark.parametrize("pairs", [slice(0, 1), pytest.param(slice(1, None), marks=pytest.mark.nightly)])
def test_adapters_trained_right_here_are_named_for_what_they_are(tmp_path: Path, pairs: slice) -> None:
    from make_logs import RECIPES
    from tiny_lab import Base, train

    base = Base.made(seed=11)  # one for all: it takes as long to train as two adapters
    recipes = {recipe.name: recipe for recipe in RECIPES}
    said = {}
    names = (*FAILING[pairs], *HEALTHY[pairs])
    for name in names:
        recipe = replace(recipes[name], steps=STEPS.get(name, recipes[name].steps))
        folder = train(base, recipe, 11, tmp_path / name)
        (one,) = vet_path(folder, base_bits=recipe.base_bits)
        assert one.adapter.rank == recipe.rank
        said[name] = [finding.mode for finding in one.findings]
    assert said == {name: [mode] if (mode := recipes[name].mode) else [] for name in names}
