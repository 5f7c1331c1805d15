"""The GPUs that profiles are built for, under the names that people use: ``cards.toml`` has their data sheets.

Some have kernel tables, some differ from one of these in their memory alone, and of some there is only the data sheet.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from sim.errors import InputError, did_you_mean
from sim.spec.gpus import GPUS, gpu_named
from sim.spec.units import BYTES

MIB = 1 << 20
_LARGE_BYTES = 70 << 30
"""Memory from which vLLM allows batches of 1,024 sequences unless told otherwise (``max_num_seqs``), except on an A100;
else 256 (``EngineArgs._set_default_max_num_seqs_and_batched_tokens_args``)."""
_MULTIPROCESSORS = 108
"""Of a card that is only known by its data sheet's key figures: an assumption, on which LoRA's grid terms depend."""

_LARGE = {"G": 10**9, "T": 10**12, "P": 10**15}


@dataclass(frozen=True, slots=True)
class Card:
    """One kind of GPU.

    :ivar name: as in ``--gpu`` and in the names of profiles.
    :ivar system: its name in the kernel tables; empty: there are none, or they are not to be used.
    :ivar memory_bytes: what the driver reports, with ECC.
    :ivar flops: dense, with 16 bits, on matrix units.
    :ivar link_bytes_per_s: to other GPUs, both directions together.
    :ivar batch_sequences: most sequences of a batch that vLLM allows unless told otherwise (``max_num_seqs``).
    :ivar kernels_of: the card that its kernels were measured on; unset: itself.
    :ivar caution: where its kernel tables are off, against measured servers; goes on after a semicolon.
    :ivar source: of bandwidth, FLOP/s and memory.
    """

    name: str
    system: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    multiprocessors: int
    architecture: str
    flops: float
    link_bytes_per_s: float
    batch_sequences: int
    kernels_of: Card | None = None
    caution: str = ""
    source: str = ""

    @property
    def label(self) -> str:
        """As its maker calls it."""
        return GPUS[self.name].label if self.name in GPUS else self.name


def _read() -> dict[str, Card]:
    found: dict[str, Card] = {}
    for name, row in tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8")).items():
        of = found.get(row.get("kernels_of", ""))
        memory, bandwidth = row["memory_mib"] * MIB, row["bandwidth_gb_s"] * 1e9
        large = memory >= _LARGE_BYTES and not name.startswith("a100")
        own: dict[str, Any] = {
            "name": name,
            "memory_bytes": memory,
            "bandwidth_bytes_per_s": bandwidth,
            "batch_sequences": 1024 if large else 256,
            "source": row["source"],
        }
        if of is not None:
            found[name] = replace(of, kernels_of=of, **own)
            continue
        found[name] = Card(
            system=row.get("system", ""),
            multiprocessors=row["multiprocessors"],
            architecture=row["architecture"],
            flops=row["tflops"] * 1e12,
            link_bytes_per_s=row["link_gb_s"] * 1e9,
            caution=row.get("caution", ""),
            **own,
        )
    return found


ALL = _read()
CARDS = {name: card for name, card in ALL.items() if card.system and card.kernels_of is None}
"""Cards with kernel tables of their own."""
SCALED = {name: card for name, card in ALL.items() if card.kernels_of is not None}
"""Cards that compute like one of these and have a slower memory."""


def card_of(
    name: str, memory_bytes: int | None = None, bandwidth_bytes_per_s: float | None = None, flops: float | None = None
) -> Card:
    """Return the card that a user names; one of which figures are given is known by its data sheet alone.

    :raises InputError: for an unknown one without all three figures; lists those that there are.
    """
    gpu = gpu_named(name)
    card = None if gpu is None else ALL.get(gpu.name)
    keys = {"memory_bytes": memory_bytes, "bandwidth_bytes_per_s": bandwidth_bytes_per_s, "flops": flops}
    given: dict[str, Any] = {key: value for key, value in keys.items() if value is not None}
    if card is not None:
        source = f"{card.source}; {' and '.join(map(_word, given))} as given"
        return replace(card, system="", kernels_of=None, caution="", source=source, **given) if given else card
    missing = [f"--{_word(key)}" for key in keys if key not in given]
    if given and missing:
        raise InputError(
            "a GPU that loraplan doesn't know needs all three figures of its data sheet",
            key=missing[0],
            got="nothing",
            allowed="--memory 24GB, --bandwidth 600GB/s and --flops 70T",
        )
    if missing:
        near = did_you_mean(name, ALL)
        sheet = "give its data sheet: --memory 24GB --bandwidth 600GB/s --flops 70T (dense, 16 bits)"
        raise InputError(
            "unknown GPU",
            key="--gpu",
            got=name,
            allowed=", ".join(ALL),
            hint=f"{near} Or {sheet}" if near else f"{sheet}; or measure it: loraplan calibrate all",
        )
    return Card(
        name=re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") or "gpu",
        system="",
        multiprocessors=_MULTIPROCESSORS,
        architecture="",
        link_bytes_per_s=64e9,
        batch_sequences=1024 if given["memory_bytes"] >= _LARGE_BYTES else 256,
        source=f"figures as given; {_MULTIPROCESSORS} multiprocessors and a link of PCIe 4.0 are assumed",
        **given,
    )


def figures_of(memory: str | None, bandwidth: str | None, flops: str | None) -> dict[str, Any]:
    """Return the figures of a data sheet that a user gives, as ``card_of`` takes them.

    :raises InputError: for what is no such figure, or no card's; key ``--memory``, ``--bandwidth`` or ``--flops``.
    """
    found: dict[str, Any] = {}
    if memory is not None:
        found["memory_bytes"] = round(_figure("--memory", memory, BYTES, (1e9, 1e13), "24GB or 23028MiB"))
    if bandwidth is not None:
        plain = re.sub(r"\s*/\s*s$", "", bandwidth.strip())
        found["bandwidth_bytes_per_s"] = _figure("--bandwidth", plain, BYTES, (1e10, 1e14), "600GB/s")
    if flops is not None:
        plain = re.sub(r"(?i)\s*flop(s|/s)?$", "", flops.strip())
        found["flops"] = _figure("--flops", plain, _LARGE, (1e12, 1e17), "70T, dense and with 16 bits")
    return found


def _figure(key: str, given: str, units: dict[str, int], limits: tuple[float, float], example: str) -> float:
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]+)", given.strip())
    try:
        value = float(match[1]) * units[match[2]] if match else 0.0
    except (KeyError, ValueError):
        value = 0.0
    if not limits[0] <= value <= limits[1]:
        raise InputError("not a figure of a GPU's data sheet", key=key, got=given, allowed=f"such as {example}")
    return value


def _word(key: str) -> str:
    return key.partition("_")[0]


# Kernels on a card that differs from a measured one in its memory alone.
#
# An H100 with 64 GB computes like one with 80 GB, but reads its memory at 2.0 instead of 3.35 TB/s. What a kernel takes
# there follows from what bounds it, and nothing is fitted:
#
# - *matrix products* read their weights at least once. A product of one token does nothing else, so its time times the
#   ratio of the bandwidths is the least that one of more tokens takes;
# - *attention of decoding sequences* takes a time for every sequence, which stays, and one for every KV token, which
#   goes with the bandwidth; contexts of 2,048 and 4,096 tokens tell it apart;
# - *norms, activations, embeddings* move bytes and go with the bandwidth;
# - *attention of prompts* is bound by arithmetic, and messages between GPUs by their links: both stay.

_SHORT, _LONG = 2048, 4096
_ONE = 1
_LINKS = ("_ar", "_ar_1", "_ar_2", "_p2p")


class OtherMemory:
    """What a step takes longer with a slower memory.

    :param handle: the package's engine of a model on the card that kernels were measured on.
    :param ratio: that card's bandwidth over the wanted one's, above 1.
    """

    def __init__(self, handle: Any, ratio: float) -> None:
        self._handle, self._ratio = handle, ratio
        self._of_one = dict(self._shared(_ONE))
        self._shared_extra_ms = lru_cache(maxsize=None)(self._uncached_shared_extra_ms)
        self._kv_token_ms = lru_cache(maxsize=None)(self._uncached_kv_token_ms)

    def extra_ms(self, tokens: int, decoding: int, context: int) -> float:
        """Return the additional milliseconds of a step with so many tokens, of which some decode with a context."""
        extra = self._shared_extra_ms(tokens)
        if decoding:
            extra += (self._ratio - 1) * self._kv_token_ms(decoding) * decoding * (context + 1)
        return extra

    def _shared(self, tokens: int) -> list[tuple[str, float]]:
        shared, _, _ = self._handle.mixed_step_breakdown_per_op(tokens, 0, tokens, 2)
        return [(name, ms) for name, ms, *_ in shared]

    def _uncached_shared_extra_ms(self, tokens: int) -> float:
        extra = 0.0
        for name, ms in self._shared(tokens):
            if name.endswith("_gemm"):
                extra += max(self._ratio * self._of_one[name] - ms, 0.0)
            elif not name.endswith(_LINKS):
                extra += (self._ratio - 1) * ms
        return extra

    def _uncached_kv_token_ms(self, decoding: int) -> float:
        attention = (self._handle.mixed_step_breakdown_per_op(_ONE, decoding, n, 2)[2] for n in (_SHORT, _LONG))
        short, long = (float(sum(ms for _, ms, *_ in each)) for each in attention)
        return max(long - short, 0.0) / (decoding * (_LONG - _SHORT))
