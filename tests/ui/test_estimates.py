"""What the page says without a server: formulas as in plans and results, fragments, the report, a question to plan."""

from __future__ import annotations

import math
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from served_page import TINY

from sim.spec.scenario_file import load_scenario
from sim.studies.design import make_design
from sim.studies.evaluate import EvaluationOptions, evaluate
from sim.studies.plan.candidates import variables
from sim.studies.plan.screen import screen
from sim.ui.following import _judged_event
from sim.ui.fragments import answer_parts, commands, compare, estimate, estimate_box
from sim.ui.library import Library
from sim.ui.simulating import tasks
from sim.ui.simulating.tasks import Evaluation, Memory, Report, ShortRun, plan_from_here


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


TENANTS = """\
adapters: {count: 100}
tenants:
  - {name: chat, adapters: 60, share: 70%, slo: {ttft_p99: CHAT}}
  - {name: batch, adapters: 40, share: 30%}
slo: null
"""


def short_parts(text: str) -> dict[str, str]:
    """Return the parts of a short run's answer."""
    design = Library(Path()).open("mine.yaml", text).design({})
    (judged,) = ShortRun(design.loaded, design.traffic_key).run(Memory())
    return answer_parts(judged, design.loaded)


@pytest.mark.parametrize(("target", "style", "words"), [("1 ms", "not-met", "not met"), ("1000 s", "met", "met")])
def test_the_slos_of_tenants_are_judged_where_the_fleet_has_none(target: str, style: str, words: str) -> None:
    parts = short_parts(TINY + TENANTS.replace("CHAT", target))
    assert f'v-{style}"' in parts["glance"]
    assert f"SLOs of tenants {words}" in parts["answer"]
    assert "<caption>Tenants</caption>" in parts["tenants"]
    assert f">{words}" in parts["tenants"]


def test_without_tenants_there_is_no_table_of_them() -> None:
    parts = short_parts(TINY + "slo: null\n")
    assert parts["tenants"] == ""
    assert "No SLO given" in parts["answer"]


AUTOSCALED = """\
fleet: {max_num_seqs: 16, price: 2.50 USD/h, autoscale: {min: 1, max: 3, target: 20}}
slo: {ttft_p99: 1000 s}
"""


def test_a_short_run_of_an_autoscaled_fleet_has_neither_verdict_nor_cost() -> None:
    text = TINY.replace("fleet: {max_num_seqs: 16}\n", AUTOSCALED)
    design = Library(Path()).open("mine.yaml", text).design({})
    (judged,) = ShortRun(design.loaded, design.traffic_key).run(Memory())
    parts = answer_parts(judged, design.loaded)
    said = "This short run is of the fleet at its largest: all 3 replicas serve from the start."
    assert said in parts["answer"]
    assert "says whether the SLO is met and what the fleet costs." in parts["answer"]
    assert said in _judged_event(judged, design, "short", "")["said"]
    shown = "".join(parts.values())
    for other in ("SLO met", "v-met", "$", "cost per", "cost a"):
        assert other not in shown, other
    assert "p99 TTFT" in parts["tiles"]
    pinned = compare(
        (design, judged), (Library(Path()).open("mine.yaml", text).design({"cache.gpu.slots": "9"}), judged)
    )
    assert (pinned.sentence, pinned.table) == ("The comparison follows when both full runs are done.", None)
    final = answer_parts(replace(judged, final=True), design.loaded)
    assert "SLO met" in final["answer"]
    assert "$" in final["tiles"]


def test_a_report_that_was_stopped_while_it_was_copied_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "scratch"
    run.mkdir()
    (run / "summary.json").write_text("{}")
    page = run / "report.html"
    page.write_text("the report")
    monkeypatch.setattr(tasks, "read_run", lambda folder: folder)
    monkeypatch.setattr(tasks, "run_report", lambda data: data)
    monkeypatch.setattr(tasks, "write", lambda report, folder: page)
    design = Library(tmp_path).open("quickstart").design({})
    destination = tmp_path / "runs" / "mine"
    report = Report(Evaluation(design.loaded, design.traffic_key, run, design.command()), destination)

    def stopped(source: str, target: str) -> None:
        shutil.copy2(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        real = shutil.copytree
        stopping.setattr(shutil, "copytree", partial(real, copy_function=stopped))
        with pytest.raises(KeyboardInterrupt):
            list(report.run(Memory()))
    assert not list(destination.parent.iterdir())
    assert list(report.run(Memory())) == [destination / "report.html"]
    assert sorted(file.name for file in destination.iterdir()) == ["report.html", "summary.json"]
    assert [folder.name for folder in destination.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("name", "moved", "words", "values"),
    [
        ("quickstart", "fleet.tensor_parallel", "smallest value of “GPUs per replica (TP)” from 1 to 8", (1, 2, 4, 8)),
        ("quickstart", "adapters.rank", "smallest value of “GPU slots” from 4 to 256", None),
        ("quickstart", "fleet.replicas", "smallest value of “replicas” from 1 to 8", (1, 2, 3, 4, 5, 6, 7, 8)),
        ("quickstart", "slo.ttft_p99", "smallest value of “GPU slots” from 4 to 256", None),
        ("tenants-trace", "workload.trace.time_scale", "“times the recorded traffic” from 0.125 to 8 that", None),
    ],
)
def test_a_plan_asks_for_what_can_be_had(
    name: str, moved: str, words: str, values: tuple[int, ...] | None, tmp_path: Path
) -> None:
    task, said = plan_from_here(Library(tmp_path).open(name).design({}), moved, tmp_path)
    assert words in said
    question = task.loaded.scenario.plan
    (variable,) = variables(question)
    if values is not None:
        assert variable.values == values
    words_of_command = shlex.split(task.command)
    assert words_of_command[:3] == ["loraplan", "plan", name]
    option, text = words_of_command[3:]
    if option == "--set":
        assert load_scenario(name, [text]).scenario.plan == question
    else:
        assert option == f"--{question.direction}"
        ends = text.partition("=")[2].split("..")
        assert [str(end) for end in question.range or ()] == ends
