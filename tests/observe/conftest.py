"""Samples of metrics and of benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

SAMPLES = Path(__file__).with_name("samples")


@pytest.fixture
def samples() -> Path:
    return SAMPLES
