"""Time a step while copies to the device run at the same time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from calibrate.device.devices import Device
from calibrate.measure import Prepared
from calibrate.samples import Configuration, Value, Visit

INTERFERENCE = "interference"
ALONE, DURING_COPIES = "step alone", "step beside copies"

COPY_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Of one copy, by kind of device."""

_LONGER = 3
"""Copies last so many times as long as the step alone."""


def interference_configurations(device: Device) -> list[Configuration]:
    """Return the configurations of a step alone and with copies at the same time."""
    parameters: dict[str, Value] = {
        "stage": INTERFERENCE,
        "tier": "host",
        "concurrency": 1,
        "bytes": COPY_BYTES[device.kind],
    }
    return [Configuration(key, INTERFERENCE, parameters) for key in (ALONE, DURING_COPIES)]


def slow_down_of(visits: Sequence[Visit]) -> float:
    """Return the median of a step with copies over that of the step alone; NaN where one wasn't timed."""
    samples: dict[str, list[float]] = {ALONE: [], DURING_COPIES: []}
    for visit in visits:
        if visit.configuration.kind == INTERFERENCE:
            samples[visit.configuration.key] += visit.seconds
    if not all(samples.values()):
        return math.nan
    return float(np.median(samples[DURING_COPIES]) / np.median(samples[ALONE]))


@contextmanager
def interference(device: Device, step: Prepared, copied: int, *, copying: bool) -> Iterator[Prepared]:
    """Set a step up, alone or with copies of ``copied`` bytes that outlast it."""
    source = device.pin(torch.ones(copied, dtype=torch.uint8))
    target = torch.empty_like(source, device=device.torch_device)
    copy_s, step_s = (min(device.time(call)[1] for _ in range(4)) for call in (lambda: target.copy_(source), step.call))
    times = math.ceil(_LONGER * step_s / copy_s) if copying else 0

    def copies() -> None:
        for _ in range(times):
            target.copy_(source, non_blocking=True)

    start, call = device.run_concurrently(copies), step.call

    def both() -> object:
        if copying:
            start()
        return call()

    def seconds() -> tuple[float, float]:
        took = device.time(both)  # the copies are started first: a device's clock starts when all else is done
        device.synchronize()
        return took

    yield Prepared(call=both, before=step.before, seconds=seconds)
    device.synchronize()
