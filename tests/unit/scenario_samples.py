"""A valid scenario and how to spoil it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.errors import InputError
from sim.spec.scenario_file import load_scenario

BASE = """\
schema_version: 1
name: base
description: A base.
workload:
  requests: 1000
  arrivals: {process: poisson, rate: 12/s}
  popularity:
    law: zipf
    exponent: 0.9
adapters:
  count: 100
  targets: [q, v]
cache:
  gpu: {slots: 8}
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(source: object, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_scenario(str(source), overrides)
    return str(caught.value)


def edited(base: Path, old: str, new: str) -> Path:
    assert BASE.count(old) == 1, "the edit must hit exactly one place"
    return write(base.parent / "edited.yaml", BASE.replace(old, new))


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid scenario, in the folder the test stands in."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "base.yaml", BASE)
