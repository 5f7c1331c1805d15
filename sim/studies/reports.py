"""The report of a run directory, whatever it holds."""

from __future__ import annotations

from reports.document import Report
from sim.results.run_directory.store import RunData
from sim.studies.plan.findings import is_plan
from sim.studies.plan.report import plan_report
from sim.studies.run.report import run_report
from sim.studies.vet.remedy_report import is_priced, remedies_report


def report_of(run: RunData) -> Report:
    """Return the report of a run, a sweep, a plan, or the price of remedies; unfinished ones say so."""
    if run.points and is_plan(run.manifest):
        return plan_report(run)
    return remedies_report(run) if run.points and is_priced(run.manifest) else run_report(run)
