"""The stages of a load, each as work that can be timed: from a file to a slot, and out of it again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from calibrate.device import host_memory
from calibrate.device.devices import Call, Device
from calibrate.device.host_memory import make_cold
from calibrate.loads.synthetic_adapters import tensor_shapes
from calibrate.measure import Prepared
from sim.spec.units import human_bytes
from sim.traffic.adapters import ModelShape

Stage = Literal[
    "open",
    "read cold",
    "read warm",
    "pin",
    "copy per tensor",
    "copy one buffer",
    "slot write",
    "slot write padded",
    "evict",
    "load storage",
    "load host",
]

COLD = ("read cold", "load storage")
"""Stages that start with a file that is not in the page cache."""

IN_SLOTS = ("slot write", "slot write padded", "evict", "load storage", "load host")
"""Stages that write into slot buffers."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}

_RESIDENT_LIMIT = 0.01

Tensors = dict[str, torch.Tensor]


class Slots:
    """GPU buffers for adapters as vLLM lays them out: all linear modules, padded to the largest rank.

    A is (slots, max_rank, d_in), B is (slots, d_out, max_rank), one pair for every module of every layer.
    """

    def __init__(self, shape: ModelShape, count: int, max_rank: int, dtype: torch.dtype, device: torch.device) -> None:
        self._slots: list[Tensors] = [{} for _ in range(count)]
        for name, size in tensor_shapes(shape, max_rank, "all-linear").items():
            stacked = torch.zeros((count, *size), dtype=dtype, device=device)
            for index, slot in enumerate(self._slots):
                slot[name] = stacked[index]

    def __getitem__(self, slot: int) -> Mapping[str, torch.Tensor]:
        return self._slots[slot]

    def clear(self, slot: int) -> None:
        """Zero all buffers of a slot."""
        for buffer in self._slots[slot].values():
            buffer.zero_()

    def write(self, slot: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put an adapter into a slot: every buffer is zeroed, then A fills its first rows and B its first columns.

        As vLLM's ``set_lora`` (0.8 to 0.11) does for every module it supports, targeted or not.
        """
        for name, buffer in self._slots[slot].items():
            buffer.zero_()
            tensor = tensors.get(name)
            if tensor is not None:
                buffer[: tensor.shape[0], : tensor.shape[1]].copy_(tensor, non_blocking=True)


Work = tuple[Sequence[Call], Call | None]
"""A stage for some adapters: a call for each of them, and what puts things back before every sample."""


@dataclass(slots=True)
class Bench:
    """Where stages are set up.

    :ivar resident: by stage, the largest share of a file that was still in the page cache when a cold read began.
    """

    device: Device
    shape: ModelShape
    resident: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def open(self, stage: Stage, files: Sequence[Path], max_rank: int, dtype: str, size: int) -> Iterator[Prepared]:
        """Set a stage up for these adapters at the same time, one thread each; ``seconds`` of a sample are the mean
        of one load, ``wall_s`` those of all, both by the wall clock, both from the start of all.

        :param size: bytes of one adapter.
        :raises MemoryError: if the stage would not fit into the memory that is free.
        """
        self.require_memory(*self.needs(stage, len(files), max_rank, dtype, size))
        calls, before = self._work(stage, files, max_rank, dtype)
        self.device.synchronize()
        with one_thread(), together(calls, self.device) as seconds:
            yield Prepared(call=lambda: seconds(), before=before, seconds=seconds)
        self.device.synchronize()

    def needs(self, stage: Stage, count: int, max_rank: int, dtype: str, size: int) -> tuple[int, int]:
        """Return the bytes that a stage takes on the host and on the device."""
        slot = 0
        if stage in IN_SLOTS:
            shapes = tensor_shapes(self.shape, max_rank, "all-linear").values()
            slot = sum(rows * columns for rows, columns in shapes) * DTYPES[dtype].itemsize
        host = 0 if stage in ("open", "evict") else 2 * size
        device = size if stage.startswith(("copy", "slot write")) else 0
        return count * host, count * (device + slot)

    def require_memory(self, host: int, device: int) -> None:
        """Raise MemoryError if so many bytes aren't free: a Linux host would kill the process instead."""
        if self.device.kind == "cpu":
            host, device = host + device, 0
        for needed, free, where in (
            (host, host_memory.free_bytes(), "host memory"),
            (device, self.device.free_bytes(), "device memory"),
        ):
            if needed > free:
                raise MemoryError(f"{human_bytes(needed)} of {where} needed, {human_bytes(free)} free")

    def _work(self, stage: Stage, files: Sequence[Path], max_rank: int, dtype: str) -> Work:
        if stage == "open":
            return [partial(_open, path) for path in files], None
        if stage in ("read cold", "read warm"):
            return [partial(read_tensors, path) for path in files], self._cooling(stage, files)
        if stage in ("pin", "copy per tensor", "copy one buffer"):
            return self._transfer(stage, files), None
        slots = Slots(self.shape, len(files), max_rank, DTYPES[dtype], self.device.torch_device)
        if stage == "evict":
            return [partial(slots.clear, slot) for slot in range(len(files))], None
        if stage == "load storage":

            def load(slot: int, path: Path) -> None:
                slots.write(slot, self._pinned(load_file(path)))

            return [partial(load, *each) for each in enumerate(files)], self._cooling(stage, files)
        sources = [self._pinned(load_file(path)) for path in files]
        if stage != "load host":  # a slot write is the part that is left when the tensors are on the device
            sources = [{n: t.to(self.device.torch_device) for n, t in tensors.items()} for tensors in sources]
        return [partial(slots.write, slot, source) for slot, source in enumerate(sources)], None

    def _transfer(self, stage: Stage, files: Sequence[Path]) -> Sequence[Call]:
        hosts = [read_tensors(path) for path in files]
        if stage == "pin":
            return [partial(self._pinned, host) for host in hosts]
        if stage == "copy one buffer":
            flats = [torch.cat([tensor.flatten().view(torch.uint8) for tensor in host.values()]) for host in hosts]
            hosts = [{"all": flat} for flat in flats]
        sources = [list(self._pinned(host).values()) for host in hosts]
        targets = [[torch.empty_like(tensor, device=self.device.torch_device) for tensor in s] for s in sources]
        return [partial(_copy, *each) for each in zip(sources, targets, strict=True)]

    def _pinned(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        return {name: self.device.pin(tensor) for name, tensor in tensors.items()}

    def _cooling(self, stage: Stage, files: Sequence[Path]) -> Call:
        if stage not in COLD:
            for path in files:
                path.read_bytes()
            return lambda: None

        def cool() -> None:
            share = max(make_cold(path) for path in files)
            self.resident[stage] = max(share, self.resident.get(stage, 0.0))

        return cool

    def warm_flags(self) -> list[str]:
        """Return a sentence for every stage that was to be cold and wasn't quite."""
        return [
            f"not cold: up to {share:.0%} of a file was in the page cache when {stage!r} began"
            for stage, share in self.resident.items()
            if share > _RESIDENT_LIMIT
        ]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch copy with the calling thread alone, as vLLM sets it for its workers.

    With several, copies on a busy machine wait for the slowest of them: up to ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def together(calls: Sequence[Call], device: Device) -> Iterator[Callable[[], tuple[float, float]]]:
    """Give a function that runs all calls at the same time, each in a thread and a lane of its own.

    It returns the mean time until one has ended and the time until all have, both since the first began.
    """
    if len(calls) == 1:

        def alone() -> tuple[float, float]:
            began, ended = _in_lane(calls[0], device)
            return ended - began, ended - began

        yield alone
        return
    barrier = threading.Barrier(len(calls))

    def one(call: Call) -> tuple[float, float]:
        barrier.wait()
        return _in_lane(call, device)

    with ThreadPoolExecutor(len(calls)) as pool:

        def at_once() -> tuple[float, float]:
            spans = list(pool.map(one, calls))
            began = min(start for start, _ in spans)
            ends = [end - began for _, end in spans]
            return sum(ends) / len(ends), max(ends)

        yield at_once


def read_tensors(path: Path) -> Tensors:
    """Read a file into memory of its own: ``load_file`` alone maps it, and what it reads of it is up to its version."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _open(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        file.keys()


def _copy(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)


def _in_lane(call: Call, device: Device) -> tuple[float, float]:
    began = time.perf_counter()
    with device.lane():
        call()
    return began, time.perf_counter()
