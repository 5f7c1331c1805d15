"""The GPUs that there are kernel tables for, and those that differ from one in their memory alone, under the names that
people use."""

from __future__ import annotations

from dataclasses import dataclass

from sim.errors import InputError, did_you_mean
from sim.spec.gpus import gpu_named

MIB = 1 << 20
DATA_SHEETS = "the maker's data sheets; memory as nvidia-smi shows it"


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU.

    :ivar name: as in ``--gpu`` and in the names of profiles.
    :ivar system: its name in the kernel tables.
    :ivar label: as its maker calls it.
    :ivar memory_bytes: what the driver reports, with ECC.
    :ivar bandwidth_bytes_per_s: of its memory, from the data sheet.
    :ivar multiprocessors: streaming multiprocessors, from the data sheet.
    :ivar batch_sequences: most sequences of a batch that vLLM allows unless told otherwise (``max_num_seqs``).
    :ivar kernels_of: the card that its kernels were measured on; unset: itself.
    :ivar architecture: of its multiprocessors: ``hopper``, ``blackwell``, ``ampere`` or ``ada``.
    :ivar caution: where its kernel tables are off, against measured servers; goes on after a semicolon.
    """

    name: str
    system: str
    label: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    multiprocessors: int
    batch_sequences: int = 1024
    kernels_of: Card | None = None
    architecture: str = ""
    caution: str = ""


CARDS = {
    card.name: card
    for card in (
        Card(
            "a100-80gb",
            "a100_sxm",
            "NVIDIA A100-SXM4-80GB",
            81920 * MIB,
            2.039e12,
            108,
            256,
            architecture="ampere",
            caution="; the A100's tables are 9 to 14 % slow at batch 1 and too fast above 40",
        ),
        Card("b200", "b200_sxm", "NVIDIA B200", 183359 * MIB, 8.0e12, 148, architecture="blackwell"),
        Card("h100-80gb", "h100_sxm", "NVIDIA H100 80GB HBM3", 81559 * MIB, 3.35e12, 132, architecture="hopper"),
        Card("h200", "h200_sxm", "NVIDIA H200", 143771 * MIB, 4.8e12, 132, architecture="hopper"),
        Card("l40s", "l40s", "NVIDIA L40S", 46068 * MIB, 0.864e12, 142, 256, architecture="ada"),
    )
}
"""Cards with kernel tables of their own."""
SCALED = {
    card.name: card
    for card in (
        Card(
            "a100-40gb",
            "a100_sxm",
            "NVIDIA A100-SXM4-40GB",
            40960 * MIB,
            1.555e12,
            108,
            256,
            architecture="ampere",
            kernels_of=CARDS["a100-80gb"],
        ),
        Card(
            "h100-64gb",
            "h100_sxm",
            "NVIDIA H100 64GB",
            65247 * MIB,
            2.0e12,
            132,
            256,
            architecture="hopper",
            kernels_of=CARDS["h100-80gb"],
        ),
    )
}
"""Cards that compute like one of these and have a slower memory."""


def card_of(name: str) -> Card:
    """Return the card that a user names.

    :raises InputError: for any other; lists those that there are.
    """
    gpu, known = gpu_named(name), CARDS | SCALED
    if gpu is not None and gpu.name in known:
        return known[gpu.name]
    raise InputError(
        "there are no kernel tables for this GPU",
        key="--gpu",
        got=name,
        allowed=", ".join(known),
        hint=did_you_mean(name, known) or "measure it: loraplan calibrate all",
    )
