"""GPUs under the names that people use: what ``fleet.gpu`` and ``loraplan profiles build --gpu`` take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sim.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    :ivar name: as in ``fleet.gpu`` and in the names of profiles.
    :ivar label: as its maker and driver call it; profiles have it as their device.
    :ivar aliases: other names, in the spelling of ``_bare``.
    """

    name: str
    label: str
    aliases: tuple[str, ...] = ()


DEFAULT_GPU = "h100-80gb"
"""What a scenario is simulated on that names neither a GPU nor a profile."""
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a10", "NVIDIA A10", ("a10-24gb",)),
        Gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", ("a100-sxm-40gb",)),
        Gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", ("a100", "a100-sxm", "a100-sxm-80gb", "a100-sxm4")),
        Gpu("a10g", "NVIDIA A10G", ("a10g-24gb",)),
        Gpu("a40", "NVIDIA A40", ("a40-48gb",)),
        Gpu("b200", "NVIDIA B200", ("b200-sxm", "b200-180gb", "b200-192gb")),
        Gpu("h100-64gb", "NVIDIA H100 64GB", ("h100-64gb-hbm2e",)),
        Gpu("h100-80gb", "NVIDIA H100 80GB HBM3", ("h100", "h100-sxm", "h100-sxm5", "h100-sxm-80gb", "h100-sxm5-80gb")),
        Gpu("h100-nvl", "NVIDIA H100 NVL", ("h100-nvl-94gb",)),
        Gpu("h100-pcie", "NVIDIA H100 PCIe", ("h100-pcie-80gb",)),
        Gpu("h20", "NVIDIA H20", ("h20-96gb",)),
        Gpu("h200", "NVIDIA H200", ("h200-sxm", "h200-141gb")),
        Gpu("l4", "NVIDIA L4", ("l4-24gb",)),
        Gpu("l40s", "NVIDIA L40S", ("l40s-48gb",)),
        Gpu("mi300x", "AMD Instinct MI300X", ("instinct-mi300x", "mi300x-192gb")),
        Gpu("rtx-4090", "NVIDIA GeForce RTX 4090", ("rtx4090", "4090", "rtx-4090-24gb")),
    )
}


def gpu_named(name: str) -> Gpu | None:
    """Return the GPU that a user, a driver or a profile names; None: it is none of ours.

    Other cards of the same family are others: an H100 PCIe has slower memory than the H100 SXM of that size.
    """
    wanted = _bare(name)
    return next((gpu for gpu in GPUS.values() if wanted in (gpu.name, _bare(gpu.label), *gpu.aliases)), None)


def unknown_gpu_hint(name: str) -> str:
    """Return what to do with a GPU that is none of ours."""
    return did_you_mean(_bare(name), GPUS) or (
        "build another one's profile from its data sheet (loraplan profiles build --help), or measure it (loraplan "
        "calibrate all), and give fleet.profile"
    )


def _bare(name: str) -> str:
    """Return a name in lower case, with one dash between its parts and without its maker or its number."""
    return re.sub(r"^(\d+-x-)?(nvidia-|amd-)?(geforce-)?", "", re.sub(r"[\s_-]+", "-", name.strip().lower()))
