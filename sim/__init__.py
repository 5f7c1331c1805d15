"""The simulator of loraplan: scenarios in, run directories out.

The layers of docs/design.md live here, each in its own folder, and import downwards only. Charts and HTML (``reports``)
and measuring devices (``calibrate``) do not, and nothing here imports torch. Scripts and notebooks ``import loraplan``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.version import __version__

if TYPE_CHECKING:
    from sim.api import PlanResults, Results, load_scenario, plan, run, sweep

__all__ = ["PlanResults", "Results", "__version__", "load_scenario", "plan", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Import the verbs on first use, for scripts written before ``loraplan`` could be imported."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sim import api

    return getattr(api, name)
