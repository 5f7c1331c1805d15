"""What formulas say at once: the same numbers as where plans and results have them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from sim.studies.design import make_design
from sim.studies.evaluate import EvaluationOptions, evaluate
from sim.studies.plan.screen import screen
from sim.ui.fragments import commands, estimate, estimate_box
from sim.ui.library import Library


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("quickstart", {"fleet.replicas": "3"}),
        ("two-cards", {"fleet.pools.small.replicas": "2"}),
        ("plan-70b-tensor-parallel", {"fleet.tensor_parallel": "4"}),
    ],
)
def test_the_cost_is_that_of_the_results(name: str, values: dict[str, str]) -> None:
    opened = Library(Path()).open(name)
    design = opened.design(values)
    if name != "two-cards":
        loaded = design.loaded.with_values({"fleet.price": "2.50 USD/h"})
        design = type(design)(opened, design.settings, loaded)
    short = design.loaded.with_values({"workload.requests": 200, "run.replications": 1})
    options = EvaluationOptions(draws=False)
    point = evaluate(make_design(short.scenario), options).point
    assert estimate(design).usd_per_month == pytest.approx(point.metrics["usd_per_month"].value)


def test_without_a_price_or_with_an_autoscaler_there_is_no_cost() -> None:
    library = Library(Path())
    assert estimate(library.open("quickstart").design({})).usd_per_month is None
    assert estimate(library.open("day-and-night").design({})).usd_per_month is None
    assert "cost" not in estimate_box(estimate(library.open("quickstart").design({})))


def test_the_numbers_are_those_that_plans_start_from() -> None:
    design = Library(Path()).open("quickstart").design({"cache.gpu.slots": "16"})
    found = estimate(design)
    assert found.screened == screen(make_design(design.loaded.scenario).world)
    assert found.headroom == pytest.approx(1 / max(found.screened.gpu_load or 0, found.screened.loader_load or 0))


@pytest.mark.parametrize(
    ("load", "shown", "multiple"),
    [(math.inf, "overloaded", ""), (1 / 120, "0.833 %", "120 × this traffic"), (4.0, "400 %", "0.25 × this traffic")],
)
def test_loads_and_their_multiple_read_as_numbers_do_elsewhere(load: float, shown: str, multiple: str) -> None:
    found = estimate(Library(Path()).open("quickstart").design({}))
    box = estimate_box(replace(found, screened=replace(found.screened, gpu_load=load, loader_load=0.0)))
    assert shown in box
    assert multiple in box
    assert ("this traffic" in box) == bool(multiple)
    assert "inf" not in box
    assert "e+" not in box


def test_flags_are_printed_for_the_simulated_engine_only() -> None:
    library = Library(Path())
    real = library.open("quickstart").design({"cache.gpu.slots": "16"})
    assert "vllm serve MODEL --enable-lora --max-loras 16" in commands(real, estimate(real))
    ideal = library.open("quickstart").design({"fleet.engine": "continuous"})
    shown = commands(ideal, estimate(ideal))
    assert "vllm serve" not in shown
    assert "No command line is given" in shown


def test_hostile_text_of_a_scenario_is_escaped(tmp_path: Path) -> None:
    from sim.ui.fragments import heading, whole_page

    (tmp_path / "<b>.yaml").write_text("extends: quickstart\nname: x\ndescription: <script>alert(1)</script>\n")
    library = Library(tmp_path)
    opened = library.open("<b>.yaml")
    assert "<script>alert" not in heading(opened)
    page = whole_page(library, opened, "token")
    assert "<script>alert" not in page
    assert "<b>.yaml" not in page
