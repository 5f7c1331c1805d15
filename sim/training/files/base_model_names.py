"""Base models by their names in configurations: ``meta-llama/Llama-3.1-8B-Instruct`` is our ``llama-3.1-8b``."""

from __future__ import annotations

from collections.abc import Sequence

from sim.traffic.adapters import DENSE, parameters_per_rank

_PREFIXES = ("meta-",)
_NO_FAMILY = ("tiny",)
"""Our names that many other names begin with."""


def known_model(name: str) -> str | None:
    """Return our name of a base model, or None.

    A name counts if its last part begins with ours: fine-tuned and quantised versions have the same layers. ``fits``
    tells whether an adapter's matrices match.
    """
    last = name.rstrip("/").rpartition("/")[2].lower().replace("_", "-")
    for prefix in _PREFIXES:
        last = last.removeprefix(prefix)
    found = [ours for ours in DENSE if last == ours or (ours not in _NO_FAMILY and last.startswith(f"{ours}-"))]
    return max(found, key=len, default=None)


def fits(model: str, rank: int, modules: Sequence[str], parameters: int) -> bool:
    """Return whether LoRA of one rank on these modules of every layer of our ``model`` has so many parameters."""
    return parameters == rank * parameters_per_rank(DENSE[model], tuple(modules))  # type: ignore[arg-type]
