"""The device that is measured: the same calls for ``cpu`` and ``cuda``.

``CudaDevice`` has everything that needs CUDA: events, graphs, page-locked memory, streams. The rest of ``calibrate``
calls a ``Device``; sizes and the queries of nvidia-smi in ``hardware`` depend on its ``kind``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from calibrate.device import host_memory
from sim.errors import InputError

Call = Callable[[], object]

_FLUSH_LIMIT = {"cpu": 32 << 20, "cuda": 128 << 20}
"""Bytes written to push data out of the caches, at most: some servers' shared caches of half a GB take longer to write
than a step takes, and hold other machines' data too."""


class UnavailableError(Exception):
    """A device can't do what a configuration asks for; its message says why."""


class Device(Protocol):
    """Where steps and loads are timed.

    :ivar kind: ``cpu`` or ``cuda``.
    :ivar torch_device: what tensors are put on.
    :ivar graphs: whether ``capture`` makes a replay that skips launches.
    :ivar flush_bytes: written before every timed call.
    :ivar room: share of the free memory that may be filled; the rest is for activations, and on a CPU for others.
    """

    kind: str
    torch_device: torch.device
    graphs: bool
    flush_bytes: int
    room: float

    def time(self, call: Call) -> tuple[float, float]:
        """Run a call once; return its seconds on the device's clock and on the wall clock."""
        ...

    def flush(self) -> None:
        """Push what the last call left out of the caches; waits until that is done."""
        ...

    def synchronize(self) -> None:
        """Wait until everything handed to the device is done."""
        ...

    def capture(self, call: Call) -> Call:
        """Return a call that replays another as one graph, or the call itself where there are no graphs.

        :raises UnavailableError: where the call can't be captured.
        """
        ...

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor in page-locked host memory, or a copy of it where there is none."""
        ...

    def free_bytes(self) -> int:
        """Return the memory that can still be allocated."""
        ...

    def total_bytes(self) -> int:
        """Return the memory of the device."""
        ...

    def release(self) -> None:
        """Give cached memory back."""
        ...

    def run_concurrently(self, call: Call) -> Call:
        """Return a call that starts another on the side (in a stream of its own), and does not wait for it."""
        ...

    def lane(self) -> AbstractContextManager[None]:
        """Run the block's work in a queue of its own, and wait for that queue alone at its end."""
        ...


class CpuDevice:
    """The host's processor: the reference that everything is tested on."""

    kind = "cpu"
    graphs = False
    room = 0.6

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        self.flush_bytes = min(2 * _last_level_cache(), _FLUSH_LIMIT["cpu"])
        self._scratch = torch.ones(self.flush_bytes // 4, dtype=torch.float32)
        self._concurrent: list[Future[object]] = []

    def time(self, call: Call) -> tuple[float, float]:
        started = time.perf_counter()
        call()
        took = time.perf_counter() - started
        return took, took

    def flush(self) -> None:
        self._scratch.add_(1.0)

    def synchronize(self) -> None:
        """Wait for calls of ``run_concurrently``, and raise their errors; other calls have ended already."""
        while self._concurrent:
            self._concurrent.pop().result()

    def capture(self, call: Call) -> Call:
        return call

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def free_bytes(self) -> int:
        return host_memory.free_bytes()

    def total_bytes(self) -> int:
        return host_memory.total_bytes()

    def release(self) -> None:
        """Do nothing: the allocator gives memory back by itself."""

    def run_concurrently(self, call: Call) -> Call:
        pool = ThreadPoolExecutor(1)
        return lambda: self._concurrent.append(pool.submit(call))

    def lane(self) -> AbstractContextManager[None]:
        return nullcontext()


class CudaDevice:
    """One CUDA GPU: the first that ``CUDA_VISIBLE_DEVICES`` leaves visible."""

    kind = "cuda"
    graphs = True
    room = 0.9

    def __init__(self) -> None:
        self.torch_device = torch.device("cuda", 0)
        torch.cuda.set_device(self.torch_device)
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
        self.flush_bytes = min(2 * int(cache), _FLUSH_LIMIT["cuda"])
        self._scratch = torch.ones(self.flush_bytes // 4, dtype=torch.float32, device=self.torch_device)
        self._side = torch.cuda.Stream()

    def time(self, call: Call) -> tuple[float, float]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        began = time.perf_counter()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000, time.perf_counter() - began

    def flush(self) -> None:
        self._scratch.add_(1.0)
        torch.cuda.synchronize()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def capture(self, call: Call) -> Call:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what allocates or compiles at its first call may not do so in a graph
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError as error:  # such as a kernel that needs the host; full memory has an error of its own
            if out_of_memory(error):
                raise
            raise UnavailableError(f"can't be captured as a CUDA graph: {str(error).splitlines()[0]}") from None
        return graph.replay

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory()

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info()[0]) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def total_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(0).total_memory)

    def release(self) -> None:
        torch.cuda.empty_cache()

    def run_concurrently(self, call: Call) -> Call:
        def started() -> object:
            with torch.cuda.stream(self._side):
                return call()

        return started

    @contextmanager
    def lane(self) -> Iterator[None]:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()


DEVICES: dict[str, Callable[[], Device]] = {"cpu": CpuDevice, "cuda": CudaDevice}


def open_device(name: str) -> Device:
    """Return the device of a name in ``DEVICES``.

    :raises InputError: where there is no such device on this machine; key ``--device``.
    """
    if name not in DEVICES:
        raise InputError("unknown device", key="--device", got=name, allowed=", ".join(DEVICES))
    if name == "cuda" and not torch.cuda.is_available():
        built = "this PyTorch was built without CUDA" if torch.version.cuda is None else "PyTorch finds no CUDA GPU"
        raise InputError(built, key="--device", got=name, hint="--device cpu measures this machine's processor")
    return DEVICES[name]()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the device's memory is full."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def _last_level_cache() -> int:
    """Return the bytes of the processor's largest cache, 32 MB where Linux doesn't say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        scale = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * scale)
    return max(sizes, default=32 << 20)
