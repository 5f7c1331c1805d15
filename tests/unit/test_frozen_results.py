"""Results are frozen: what a point or a run directory says can't be changed in passing."""

from __future__ import annotations

import dataclasses
import inspect
from types import ModuleType

import pytest

from sim.results import calibration, metric_state, model, point
from sim.results.run_directory import headroom_record, study_records


def types_of(module: ModuleType) -> list[type]:
    return [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and dataclasses.is_dataclass(kind)
    ]


@pytest.mark.parametrize(
    "module", [model, headroom_record, study_records, point, metric_state, calibration], ids=lambda m: m.__name__
)
def test_every_result_is_frozen(module: ModuleType) -> None:
    kinds = types_of(module)
    assert kinds, "the module has results"
    for kind in kinds:
        assert kind.__dataclass_params__.frozen, kind.__name__  # type: ignore[attr-defined]
