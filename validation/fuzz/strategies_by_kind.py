"""The strategy of each kind of case."""

from __future__ import annotations

from hypothesis import strategies as st

from validation.fuzz.cases import Case
from validation.fuzz.of_adapters import adapter_cases
from validation.fuzz.of_lines import line_cases
from validation.fuzz.of_profiles import profile_cases
from validation.fuzz.of_runs import run_cases
from validation.fuzz.of_scenarios import scenario_cases
from validation.fuzz.of_traces import trace_cases

STRATEGIES: dict[str, st.SearchStrategy[Case]] = {
    "scenario": scenario_cases(),
    "adapter": adapter_cases(),
    "line": line_cases(),
    "run": run_cases(),
    "profile": profile_cases(),
    "trace": trace_cases(),
}
