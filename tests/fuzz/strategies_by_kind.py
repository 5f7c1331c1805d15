"""The strategy of each kind of case."""

from __future__ import annotations

from cases import Case
from hypothesis import strategies as st
from of_adapters import adapter_cases
from of_lines import line_cases
from of_profiles import profile_cases
from of_runs import run_cases
from of_scenarios import scenario_cases
from of_traces import trace_cases

STRATEGIES: dict[str, st.SearchStrategy[Case]] = {
    "scenario": scenario_cases(),
    "adapter": adapter_cases(),
    "line": line_cases(),
    "run": run_cases(),
    "profile": profile_cases(),
    "trace": trace_cases(),
}
