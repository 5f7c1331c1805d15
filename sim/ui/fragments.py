"""Parts of the page as HTML, from the report's own sentences, tiles, tables and charts.

An estimate, which needs no simulation, is made here as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reports.document import Report
from reports.formatting import key_words, listed, money, number, percent
from reports.render.html import environment, page_script
from reports.table import Table
from reports.tables.metric_tables import make_tiles
from reports.tables.slice_tables import tenants_table
from reports.text.headroom_text import headroom_words
from reports.text.setup_text import setup_line
from sim.results.fleet_costs import HOURS_PER_MONTH
from sim.results.point import Point
from sim.results.run_directory.store import RunData
from sim.results.run_directory.study_records import FormulaRecord
from sim.results.slo_terms import all_terms
from sim.results.verdict import NOT_MET
from sim.spec.engine_flags.command_lines import as_started, engine_flags, why_no_flags
from sim.spec.profile_choice import prices_of
from sim.spec.scenario_file import LoadedScenario, bundled_scenarios
from sim.studies.compare.findings import headline
from sim.studies.compare.report import key_table
from sim.studies.compare.study import Comparison, compare_runs
from sim.studies.design import build
from sim.studies.plan.screen import screen
from sim.studies.run.report import answer_box, further_findings, slo_words, verdict_badge
from sim.ui.controls import Control
from sim.ui.library import SAVED, ChosenDesign, Library, Opened
from sim.ui.simulating.tasks import PointAnswer
from sim.world.memory.gpu_memory import host_kv_bytes


@dataclass(frozen=True)
class Estimate:
    """The formulas' numbers, and what else is known of a design without a simulation.

    :ivar usd_per_month: of all GPUs; None without a price, or where an autoscaler changes their number.
    :ivar flags: the command line that starts one replica, by engine; ``no_flags``: why there is none.
    """

    screened: FormulaRecord
    usd_per_month: float | None
    flags: dict[str, str]
    no_flags: str

    @property
    def headroom(self) -> float | None:
        """At what multiple of the traffic queues grow without limit, at most: bursts and the SLO come on top."""
        busiest = max(self.screened.loader_load or 0.0, self.screened.gpu_load or 0.0)
        return 1 / busiest if busiest > 0 else None


def estimate(design: ChosenDesign) -> Estimate:
    """Return the estimate of a design.

    :raises InputError: if it can't be simulated; with its place.
    """
    scenario = design.loaded.scenario
    world, price = build(scenario), prices_of(scenario).gpu
    monthly = None
    if price is not None and scenario.fleet.autoscale is None:
        monthly = world.gpus * price * HOURS_PER_MONTH
    started = as_started(scenario, host_kv_bytes(world.pools[0]))
    return Estimate(screen(world), monthly, engine_flags(started, world.pools[0].kv_tokens), why_no_flags(started))


_PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class ComparedPin:
    """A pinned design next to the present one.

    :ivar name: what it differs in from the scenario; ``sentence``: how the present one compares.
    :ivar table: None where there is nothing to compare yet.
    """

    name: str
    sentence: str
    table: Table | None


def whole_page(library: Library, opened: Opened, token: str) -> str:
    """Return the page, before anything is simulated."""
    html: str = _template("page.html.j2").render(
        opened=opened,
        heading=heading(opened),
        controls=control_panel(opened),
        bundled=bundled_scenarios(),
        files=library.files(),
        folder=str(library.folder),
        token=token,
        script=page_script(_PAGE / "page.js"),
    )
    return html


def page_policy() -> str:
    """Return the Content-Security-Policy of the page: nothing but its own script may run, and nothing be fetched but
    from where it came from."""
    return f"{_policy(page_script(_PAGE / 'page.js').hash)}; connect-src 'self'"


def report_policy() -> str:
    """Return the policy of reports, whose one script sorts tables, copies commands and follows the pointer."""
    return _policy(page_script().hash)


def _policy(script: str) -> str:
    return (
        f"default-src 'none'; script-src '{script}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def heading(opened: Opened) -> str:
    """Return the name and question of a scenario."""
    return part("heading", opened.loaded.scenario.name, opened.loaded.scenario.description)


def control_panel(opened: Opened) -> str:
    """Return all controls of a scenario, by group."""
    groups: dict[str, list[Control]] = {}
    for control in opened.controls:
        groups.setdefault(control.group, []).append(control)
    return part("panel", groups)


def estimate_box(estimate: Estimate) -> str:
    """Return the formulas' numbers."""
    screened = estimate.screened
    rows = [("miss ratio", percent(screened.miss_ratio))]
    if screened.gpu_load is not None:
        rows.append(("GPU load", _load(screened.gpu_load)))
    if screened.loader_load is not None:
        rows.append(("load of the loaders", _load(screened.loader_load)))
    if estimate.headroom:
        rows.append(
            ("upper limit of the traffic", f"{number(estimate.headroom)} × this traffic; bursts and the SLO allow less")
        )
    if estimate.usd_per_month is not None:
        rows.append(("cost per month", money(estimate.usd_per_month)))
    return part("estimates", rows)


def _load(load: float) -> str:
    return "overloaded" if math.isinf(load) else percent(load)


def answer_parts(judged: PointAnswer, loaded: LoadedScenario) -> dict[str, str]:
    """Return the answer, its key numbers, tenants and first line, by the id of their place."""
    if at_its_largest(judged, loaded):
        return _largest_parts(judged.point, loaded)
    point, terms = judged.point, loaded.scenario.slo.terms()
    slo = slo_words(terms, [point])
    badge = verdict_badge([point], terms, judged.answer.verdict)
    tiles, tenants = make_tiles(point, terms), tenants_table([point])
    headroom = headroom_words(judged.headroom, missed_today=judged.answer.verdict == NOT_MET)
    return {
        "answer": part("answer_body", Report("ui", "", None, (), **answer_box(judged.answer, badge, slo))),
        "tiles": part("key_numbers", tiles, "") if tiles else "",
        "tenants": "" if tenants is None else part("data_table", tenants),
        "notes": part("notes", [*further_findings(judged.answer), *dict.fromkeys(point.warnings)]),
        "setup": part("plain", setup_line([point])),
        "glance": part("glance", badge, tiles[:2], headroom),
    }


def at_its_largest(judged: PointAnswer, loaded: LoadedScenario) -> bool:
    """Return whether an answer is about an autoscaled fleet with all its replicas: a short run has no autoscaler."""
    return loaded.scenario.fleet.autoscale is not None and judged.short


def largest_words(loaded: LoadedScenario) -> str:
    """Return what the short run of an autoscaled fleet says and what it leaves to the full run."""
    scaler = loaded.scenario.fleet.autoscale
    assert scaler is not None, "only an autoscaled fleet has a largest size"
    replicas = "its only replica serves" if scaler.max == 1 else f"all {scaler.max} replicas serve"
    asked = ["whether the SLO is met"] if all_terms(loaded.scenario) else []
    asked += [] if prices_of(loaded.scenario).gpu is None else ["what the fleet costs"]
    return (
        f"This short run is of the fleet at its largest: {replicas} from the start. "
        f"The full run, in which the autoscaler works, {f'says {listed(asked)}' if asked else 'follows'}."
    )


def _largest_parts(point: Point, loaded: LoadedScenario) -> dict[str, str]:
    """Return the parts of a short run without the autoscaler: no verdict, no cost, which are another fleet's."""
    free = {name: metric for name, metric in point.metrics.items() if metric.unit != "USD"}
    tiles = make_tiles(replace(point, metrics=free), {})
    return {
        "answer": part("largest_answer", largest_words(loaded)),
        "tiles": part("key_numbers", tiles, " of the fleet at its largest") if tiles else "",
        "tenants": "",
        "notes": part("notes", list(dict.fromkeys(point.warnings))),
        "setup": part("plain", setup_line([point])),
        "glance": part("largest_glance", tiles[:2]),
    }


def commands(design: ChosenDesign, estimate: Estimate) -> str:
    """Return the command lines that simulate and that start this design."""
    note = "" if design.opened.path else f"Save {SAVED} first."
    return part("commands", design.command(), note, estimate.flags, estimate.no_flags)


def compare(pin: tuple[ChosenDesign, PointAnswer | None], present: tuple[ChosenDesign, PointAnswer]) -> ComparedPin:
    """Compare the present design with a pinned one."""
    design, judged = pin
    name = design_words(design)
    if design.loaded.data == present[0].loaded.data:
        return ComparedPin(name, "This is the present design.", None)
    if judged is None:
        return ComparedPin(name, "It is being simulated.", None)
    largest = at_its_largest(judged, design.loaded) or at_its_largest(present[1], present[0].loaded)
    if largest or judged.final != present[1].final:
        return ComparedPin(name, "The comparison follows when both full runs are done.", None)
    found: Comparison = compare_runs(_run("pin", design, judged), _run("present", *present))
    kind = "" if judged.final else " These are short runs; full runs follow."
    return ComparedPin(name, f"{headline(found)}{kind}", key_table(found))


def design_words(design: ChosenDesign) -> str:
    """Return what a design differs in from its scenario, in words."""
    moved = {control.key for control in design.opened.controls}
    pairs = (setting.split("=", 1) for setting in design.settings)
    said = [f"{key_words(key)} {value}" for key, value in pairs if key in moved]  # others are only unset with these
    return ", ".join(said) or f"{design.opened.loaded.scenario.name} as it is"


def _run(name: str, design: ChosenDesign, judged: PointAnswer) -> RunData:
    """Return a point as a run, which comparisons are made from."""
    manifest = {
        "kind": "run",
        "status": "finished",
        "scenario": design.loaded.data,
        "seed": design.loaded.scenario.run.seed,
        "replications": judged.replications,
    }
    return RunData(Path(name), manifest, [judged.point])


def part(macro: str, *values: Any) -> str:
    """Return what a macro of the page, or of reports, makes of values."""
    own, reports = (_template(name).module for name in ("parts.html.j2", "macros.html.j2"))
    return str(getattr(own if hasattr(own, macro) else reports, macro)(*values))


def _template(name: str) -> Any:
    return environment(_PAGE).get_template(name)
