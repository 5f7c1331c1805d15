"""``loraplan calibrate loads``: what is timed of loads, and the run that times it."""

from __future__ import annotations

import datetime
import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from calibrate.device.devices import Device
from calibrate.device.hardware import describe
from calibrate.device.host_memory import SCOPE, why_not_cold
from calibrate.loads.load_stages import COLD, Bench, Stage, one_thread
from calibrate.loads.synthetic_adapters import SyntheticAdapter, adapter_bytes, group_name, synthesize
from calibrate.measure import Prepared, Sampling, TimedWork, measure
from calibrate.samples import Configuration, SampleLog, Value, Visit
from calibrate.steps.step_timing import decode_step
from sim.errors import InputError, OutputError
from sim.spec.scenario import Targets
from sim.spec.units import human_bytes
from sim.traffic.adapters import SHAPES, ModelShape, tensor_count
from sim.training.files.adapter_folder import only_dtype, read_adapter

# Time a step while copies to the device run at the same time.

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


_MARGIN = 1.05  # of disk space: headers, configurations, blocks
_LOADS: tuple[Stage, ...] = ("load storage", "load host")
PARTS = {
    "whole": "whole loads, one at a time: what the profile is fitted to",
    "concurrent": "whole loads at the same time, and a decode step during copies",
    "stages": "the stages of a load, one by one",
}
"""Parts of the loads, the most telling first."""
_FILE_STAGES: tuple[Stage, ...] = ("open", "read cold", "read warm", "pin", "copy per tensor", "copy one buffer")


@dataclass(frozen=True, slots=True)
class LoadGrid:
    """Which adapters loads are timed with.

    :ivar concurrency: loads at the same time. Above 1 only the smallest and the largest rank are timed.
    """

    ranks: tuple[int, ...] = (8, 16, 32, 64)
    targets: tuple[Targets, ...] = (("q", "v"), ("q", "k", "v", "o"), "all-linear")
    dtypes: tuple[str, ...] = ("bf16",)
    concurrency: tuple[int, ...] = (1, 2, 4, 8)


QUICK = LoadGrid(ranks=(8, 32), targets=(("q", "v"), "all-linear"), concurrency=(1, 4))


def time_loads(
    model: str,
    device: Device,
    out: Path,
    sampling: Sampling,
    *,
    grid: LoadGrid | None = None,
    step: Prepared | None = None,
    keep: bool = False,
    command: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SampleLog:
    """Time loads stage by stage, or the rest of an interrupted run in ``out``; the log's manifest says how it went.

    Adapters of noise are written to ``out/adapters`` and removed at the end; an interrupted run leaves them to the
    next, and so does one that ran out of time. The manifest holds ``slow_down``, the factor on a step while copies run
    at the same time; None if that was not timed.

    :param model: a key of ``SHAPES``.
    :param grid: in place of that of a quick or of a full run.
    :param step: what copies may slow down; by default a decode step of the model's first layers.
    :param keep: leave the adapters on disk.
    :raises InputError: for an unknown model or part, too little disk or memory, or samples of another run in ``out``.
    :raises OutputError: if the disk fills up; samples so far stay.
    """
    if model not in SHAPES or SHAPES[model].experts:
        raise InputError("unknown model", key="--model", got=model, allowed=", ".join(SHAPES))
    for part in sampling.parts:
        if part not in PARTS:
            raise InputError("unknown part of the loads", key="PART", got=part, allowed=", ".join(PARTS))
    grid = grid or (QUICK if sampling.quick else LoadGrid())
    bench = Bench(device, SHAPES[model])
    facts = describe(device)
    plan = {
        "model": model,
        "seed": sampling.seed,
        "device": facts["name"],
        "torch": facts["torch"],
        "grid": asdict(grid),
        "step": "given" if step else "decode",
        **asdict(sampling.how),
    }
    configurations = [*load_configurations(bench.shape, grid), *interference_configurations(device)]
    _require_memory(bench, configurations)
    log = SampleLog.open(out, "loads", plan, overwrite=sampling.overwrite)
    log.once(command=command, date=f"{datetime.date.today()}", device=facts)
    done, rounds = log.done, range(sampling.how.rounds)
    scratch = _ScratchAdapters(out / "adapters", model, sampling.seed, configurations)
    try:
        left = [one for one in configurations if any((one.key, turn) not in done for turn in rounds)]
        scratch.write([one for one in left if one.kind != INTERFERENCE and _part_of(one) in (sampling.parts or PARTS)])
        why = scratch.why_not_cold()
        timed = [one for one in configurations if why is None or one.kind not in COLD]
        flags = [] if why is None else [f"no cold reads: {why}"]
        opens = _opener(bench, scratch, device, step or decode_step(model, device))
        parts = [[one for one in timed if _part_of(one) == part] for part in sampling.parts]
        flags += measure(TimedWork(timed, opens, _canary(device), parts), device, log, sampling, progress)
        keep = keep or log.cut_short
    except KeyboardInterrupt:
        keep = True  # the same command resumes with them
        raise
    finally:
        if not keep:
            scratch.remove()
        resident = {**log.manifest.get("page_cache", {}).get("still resident, at most", {}), **bench.resident}
        with suppress(OutputError):  # a full disk: the error being raised says more
            log.note(page_cache={"scope": SCOPE, "still resident, at most": resident})
    slow_down = slow_down_of(log.visits)
    log.note(flags=[*flags, *bench.warm_flags()], slow_down=None if math.isnan(slow_down) else slow_down)
    log.finish()
    return log


def load_configurations(shape: ModelShape, grid: LoadGrid) -> list[Configuration]:
    """Return the stages of every adapter of a grid, at every concurrency."""
    top, ends = max(grid.ranks), {min(grid.ranks), max(grid.ranks)}
    found = []
    for count, dtype in itertools.product(grid.concurrency, grid.dtypes):
        ranks = [rank for rank in grid.ranks if count == 1 or rank in ends]
        everywhere = [SyntheticAdapter(shape, "", rank, "all-linear", dtype) for rank in ranks]
        found += [_configuration("evict", adapter, adapter.rank, count) for adapter in everywhere]
        for rank, targets in itertools.product(ranks, grid.targets):
            adapter = SyntheticAdapter(shape, "", rank, targets, dtype)
            found += [_configuration(stage, adapter, rank, count) for stage in _FILE_STAGES]
            for max_rank in sorted({rank, top}):
                write: Stage = "slot write padded" if rank < max_rank else "slot write"
                found += [_configuration(stage, adapter, max_rank, count) for stage in (write, *_LOADS)]
    return found


def _part_of(one: Configuration) -> str:
    if one.kind == INTERFERENCE or (one.kind in _LOADS and one.parameters["concurrency"] != 1):
        return "concurrent"
    return "whole" if one.kind in _LOADS else "stages"


def _configuration(stage: Stage, adapter: SyntheticAdapter, max_rank: int, count: int) -> Configuration:
    shape, rank, targets, dtype = adapter.shape, adapter.rank, adapter.targets, adapter.dtype
    named = targets if isinstance(targets, str) else ",".join(targets)
    tensors = tensor_count(shape, targets)
    parameters: dict[str, Value] = {
        "stage": stage,
        "tier": "storage" if stage in ("open", "read cold", "read warm", "load storage") else "host",
        "rank": rank,
        "max_rank": max_rank,
        "targets": named,
        "dtype": dtype,
        "tensors": tensors,
        "padded_tensors": tensors // 2 if rank < max_rank else 0,
        "bytes": adapter_bytes(shape, rank, targets, dtype),
        "concurrency": count,
    }
    return Configuration(f"{stage} r{rank}/{max_rank} {named} {dtype} x{count}", stage, parameters)


class _ScratchAdapters:
    """Adapters on disk for the time of the run; ``remove`` deletes only folders named as a run names its adapters."""

    def __init__(self, folder: Path, model: str, seed: int, configurations: Sequence[Configuration]) -> None:
        self._folder, self._model, self._seed, self._all = folder, model, seed, configurations
        self._groups: dict[tuple[Value, ...], list[Path]] = {}

    def write(self, configurations: Sequence[Configuration]) -> None:
        """Write the adapters that these need.

        :raises InputError: if the disk has too little room.
        """
        wanted: dict[tuple[Value, ...], Mapping[str, Value]] = {}
        for one in configurations:
            key = _group(one)
            if int(one.parameters["concurrency"]) > int(wanted.get(key, {}).get("concurrency", 0)):
                wanted[key] = one.parameters
        if self._folder.is_symlink():
            raise OutputError(
                "a symbolic link is in the place of the adapters' folder", file=str(self._folder), hint="remove it"
            )
        needed = sum(int(p["bytes"]) * int(p["concurrency"]) for p in wanted.values()) * _MARGIN
        free = shutil.disk_usage(self._folder.parent).free + sum(
            file.stat().st_size for file in self._folder.glob("*/*.safetensors")
        )
        if needed > free:
            raise InputError(
                "too little disk space for the adapters that are timed",
                key="--out",
                got=f"{human_bytes(free)} free",
                allowed=f"at least {human_bytes(needed)}",
                hint="give another --out or a smaller --model, or add --quick",
            )
        for key, p in wanted.items():
            targets, dtype = _targets(str(p["targets"])), str(p["dtype"])
            adapter = SyntheticAdapter(SHAPES[self._model], self._model, int(p["rank"]), targets, dtype)
            self._groups[key] = synthesize(self._folder, adapter, int(p["concurrency"]), self._seed)

    def files(self, one: Configuration) -> list[Path]:
        """Return the checked files of a configuration's adapters."""
        places = self._groups[_group(one)][: int(one.parameters["concurrency"])]
        adapters = [read_adapter(place, self._folder) for place in places]
        for adapter in adapters:
            only_dtype(adapter)
        return [adapter.path for adapter in adapters]

    def why_not_cold(self) -> str | None:
        """Return why files can't be made cold here, in words; None where they can, or nothing was written."""
        return next((why_not_cold(read_adapter(places[0]).path) for places in self._groups.values()), None)

    def remove(self) -> None:
        """Remove all adapters of this run and of those that broke off, and the folder if nothing else is in it."""
        if self._folder.is_symlink():
            return
        for rank, targets, dtype in {_group(one) for one in self._all if one.kind != INTERFERENCE}:
            name = group_name(int(rank), _targets(str(targets)), str(dtype), self._seed)
            for place in self._folder.glob(f"{name}-[0-9][0-9][0-9][0-9]"):
                if not place.is_symlink():
                    shutil.rmtree(place, ignore_errors=True)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()


def _group(one: Configuration) -> tuple[Value, ...]:
    return tuple(one.parameters[name] for name in ("rank", "targets", "dtype"))


def _targets(named: str) -> Targets:
    return "all-linear" if named == "all-linear" else cast(Targets, tuple(named.split(",")))


def _require_memory(bench: Bench, configurations: Sequence[Configuration]) -> None:
    """Refuse a model of which not even the smallest load fits; others that don't fit are skipped and reported."""
    smallest = min(
        (one for one in configurations if one.kind == "load storage"), key=lambda one: sum(_needs(bench, one))
    )
    host, on_device = _needs(bench, smallest)
    try:
        bench.require_memory(host, on_device)
    except MemoryError as error:
        raise InputError(
            "not even the smallest load fits into memory",
            key="--model",
            got=str(error),
            hint="free some memory, or time a smaller model",
        ) from None


def _needs(bench: Bench, one: Configuration) -> tuple[int, int]:
    p: Mapping[str, Any] = one.parameters
    return bench.needs(p["stage"], p["concurrency"], p["max_rank"], p["dtype"], p["bytes"])


def _opener(
    bench: Bench, scratch: _ScratchAdapters, device: Device, step: Prepared
) -> Callable[[Configuration], AbstractContextManager[Prepared]]:
    def opens(one: Configuration) -> AbstractContextManager[Prepared]:
        p: Mapping[str, Any] = one.parameters
        if one.kind == INTERFERENCE:
            return interference(device, step, p["bytes"], copying=one.key == DURING_COPIES)
        return bench.open(p["stage"], scratch.files(one), p["max_rank"], p["dtype"], p["bytes"])

    return opens


def _canary(device: Device) -> Prepared:
    source = device.pin(torch.ones(COPY_BYTES[device.kind], dtype=torch.uint8))
    target = torch.empty_like(source, device=device.torch_device)

    def copy() -> object:
        return target.copy_(source)

    def seconds() -> tuple[float, float]:
        with one_thread():
            return device.time(copy)

    return Prepared(copy, seconds=seconds)
