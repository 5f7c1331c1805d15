"""What tests share: where the recorded data lie, and how hypothesis runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

settings.register_profile(
    "ci",
    deadline=None,  # simulations take what they take; CI machines stall
    derandomize=True,  # a red build stays red, and says why
    print_blob=True,
    suppress_health_check=(HealthCheck.too_slow,),
)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded data beside the repository; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"recorded data are not here: {SHARED}")
    return SHARED
