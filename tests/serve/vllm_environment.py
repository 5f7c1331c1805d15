"""Where make vllm-env puts a real vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / ".vllm-venv"
PYTHON = FOLDER / "bin" / "python"

# make writes the mark at the end: CI installs while other tests run.
needs_vllm = pytest.mark.skipif(
    not (FOLDER / ".installed").exists(), reason="no vLLM here: 'make vllm-env' installs its CPU build"
)
