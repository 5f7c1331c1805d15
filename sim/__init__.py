"""loraplan's simulator: scenarios in, run directories out; and the verbs for notebooks and scripts.

What may live here: the layers of docs/design.md, each in its own folder, importing downwards only.
What may not: charts and HTML (``reports``), measuring devices (``calibrate``), and torch anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.api import PlanResults, Results, load_scenario, plan, run, sweep

__version__ = "0.1.0"
__all__ = ["PlanResults", "Results", "__version__", "load_scenario", "plan", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Import the verbs when they are first asked for: ``loraplan --help`` needs none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sim import api

    return getattr(api, name)
