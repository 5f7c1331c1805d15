"""What the measured machine is, its best bandwidth and arithmetic rate, and whether other work disturbed it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from calibrate.device.devices import Device

_NVIDIA = {
    "driver": "driver_version",
    "clock, MHz": "clocks.sm",
    "highest clock, MHz": "clocks.max.sm",
    "memory clock, MHz": "clocks.mem",
    "power cap, W": "power.limit",
    "temperature, C": "temperature.gpu",
    "PCIe generation": "pcie.link.gen.current",
    "PCIe width": "pcie.link.width.current",
    "ECC": "ecc.mode.current",
}
"""Queried from nvidia-smi: no serial numbers, no addresses."""

_THROTTLED = ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "sw_power_cap")
_REASONS = ("clocks_event_reasons", "clocks_throttle_reasons")
"""What drivers call them since 535, and before."""
_CHECK_EVERY_S = 5.0
"""A call of nvidia-smi takes a good part of a second: between two checks the last answer is used."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best rates that the device was measured at.

    :ivar bytes_per_s: a large copy within its memory, bytes read plus bytes written.
    :ivar flops_per_s: a large matrix product in the weights' number format.
    """

    bytes_per_s: float
    flops_per_s: float

    def floor_s(self, moved_bytes: float, operations: float) -> float:
        """Return the seconds below which no version of a computation gets."""
        return max(moved_bytes / self.bytes_per_s, operations / self.flops_per_s)


def measure_ceilings(device: Device, dtype: torch.dtype, repeats: int = 7) -> Ceilings:
    """Time a large copy and a large matrix product; the best of ``repeats`` each."""
    size, side = (256 << 20, 8192) if device.kind == "cuda" else (64 << 20, 1024)
    source = torch.randn(size // 4, device=device.torch_device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, device=device.torch_device).to(dtype)
    right = torch.randn(side, side, device=device.torch_device).to(dtype)
    out = torch.empty_like(left)

    def best(call: object) -> float:
        assert callable(call)
        call()
        return min(device.time(call)[0] for _ in range(repeats))

    copy_s = best(lambda: target.copy_(source))
    product_s = best(lambda: torch.mm(left, right, out=out))
    return Ceilings(2 * size / copy_s, 2 * side**3 / product_s)


def describe(device: Device) -> dict[str, str]:
    """Return the facts to keep with every number measured on a device; no serial numbers."""
    facts = {
        "name": device_name(device),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in ("torch", "safetensors", "triton", "numpy", "loraplan"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["flushed before every sample, bytes"] = str(device.flush_bytes)
    if device.kind == "cuda":
        facts["cuda"] = str(torch.version.cuda)
        facts.update(_nvidia(_NVIDIA))
    else:
        facts["cores"] = str(os.cpu_count())
        facts["torch threads"] = str(torch.get_num_threads())
    return {name: value for name, value in facts.items() if value}


def device_name(device: Device) -> str:
    """Return the name that the maker gives the device."""
    if device.kind == "cuda":
        return torch.cuda.get_device_name(0)
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What may have disturbed a measurement.

    :ivar throttled: the device ran slower than it can (heat, power, a CPU quota).
    :ivar busy: other processes used it.
    """

    throttled: bool
    busy: bool
    what: str


class DisturbanceMonitor:
    """Notice between visits that the device is throttled, or busy with other work."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._quota = _quota_hits()
        self._seen, self._checked = Disturbance(False, False, ""), float("-inf")

    def check(self) -> Disturbance:
        """Return what has happened since the last check."""
        if self._device.kind == "cuda":
            if time.monotonic() - self._checked >= _CHECK_EVERY_S:
                self._seen, self._checked = _check_cuda(), time.monotonic()
            return self._seen
        before, self._quota = self._quota, _quota_hits()
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        words = []
        if self._quota > before:
            words.append("the CPU quota was used up")
        if load > cores + 0.5:
            words.append(f"load {load:.1f} on {cores} cores")
        return Disturbance(self._quota > before, load > cores + 0.5, "; ".join(words))


def _check_cuda() -> Disturbance:
    reasons: list[str] = []
    for prefix in _REASONS:
        answer = _nvidia({name: f"{prefix}.{name}" for name in _THROTTLED})
        if answer:
            reasons = [name for name, value in answer.items() if value == "Active"]
            break
    # One of them is this process; inside a container its number there is another than here.
    others = len([line for line in _smi("--query-compute-apps=pid") if line.strip()]) - 1
    words = [*reasons, *([f"{others} other processes compute on this GPU"] if others > 0 else [])]
    return Disturbance(bool(reasons), others > 0, "; ".join(words))


def _nvidia(fields: dict[str, str]) -> dict[str, str]:
    lines = _smi(f"--query-gpu={','.join(fields.values())}")
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    return dict(zip(fields, values, strict=False)) if len(values) == len(fields) else {}


def _smi(query: str) -> list[str]:
    if shutil.which("nvidia-smi") is None or not torch.cuda.is_available():
        return []
    # Its own numbers for GPUs don't heed CUDA_VISIBLE_DEVICES.
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    command = [
        "nvidia-smi",
        f"--id=GPU-{uuid}" if uuid is not None else "--id=0",
        query,
        "--format=csv,noheader,nounits",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # if a driver does not answer, only its facts are missing
        return []
    return answer.stdout.splitlines() if answer.returncode == 0 else []


def _quota_hits() -> int:
    for line in _lines(Path("/sys/fs/cgroup/cpu.stat")):
        if line.startswith("nr_throttled "):
            return int(line.split()[1])
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
