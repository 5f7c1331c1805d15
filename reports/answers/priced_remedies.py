"""Whether a run directory holds priced remedies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def is_priced(manifest: Mapping[str, Any]) -> bool:
    """Return whether a run directory holds finished prices of remedies."""
    return manifest.get("kind") == "cures" and "rows" in (manifest.get("cures") or {})
