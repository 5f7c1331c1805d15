"""Capacity planning for multi-LoRA LLM serving, for notebooks and scripts.

::

    import loraplan

    result = loraplan.run("quickstart", {"cache.gpu.slots": 64})
    result.value("ttft_p99_s"), result.meets_slo
    loraplan.sweep("quickstart", {"cache.gpu.slots": [16, 32, 64]}).table("ttft_p99_s")
    loraplan.plan("quickstart", minimize={"cache.gpu.slots": (8, 128)}).found
    loraplan.compare(result, loraplan.run("quickstart", {"cache.gpu.slots": 128})).answer

Everything public stands in ``__all__``. Importing this module imports nothing heavy: the verbs load what they need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.errors import InputError, LoraplanError, OutputError, ScenarioError, SeveralErrors, TraceError
from sim.version import __version__

if TYPE_CHECKING:
    from sim.api import ComparisonResults, PlanResults, Results, compare, load_scenario, plan, run, sweep
    from sim.results.point import Metric, Point
    from sim.spec.scenario_file import LoadedScenario
    from sim.studies.run.answer import Answer

__all__ = [
    "Answer",
    "ComparisonResults",
    "InputError",
    "LoadedScenario",
    "LoraplanError",
    "Metric",
    "OutputError",
    "PlanResults",
    "Point",
    "Results",
    "ScenarioError",
    "SeveralErrors",
    "TraceError",
    "__version__",
    "compare",
    "load_scenario",
    "plan",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Import verbs and result types on first use."""
    if name == "Answer":
        from sim.studies.run.answer import Answer

        return Answer
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sim import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__


if __name__ == "__main__":  # python -m loraplan
    from sim.cli import start

    start()
