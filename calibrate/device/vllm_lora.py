"""The LoRA kernels of an installed vLLM, called as its ``PunicaWrapperGPU`` calls them.

Written against ``vllm.lora.ops.triton_ops`` of vLLM 0.8.5 to 0.32, which have it under one name with two signatures:
``LoRAKernelMeta.meta_args(tokens)`` and, later, ``meta_args(tokens, specialize_active_lora)``. What it returns goes to
both kernels as it is. Any other signature is refused.

Modules that vLLM packs (q, k and v; gate and up) are one launch, whichever of them adapters target: the others' slots
hold zeros.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch

from calibrate.device.lora_backends import Routing
from sim.errors import InputError

SUPPORTED = "0.8.5 to 0.32"
_MAKE = ("max_loras", "max_num_tokens", "device")
_META_ARGS = (("self", "token_nums"), ("self", "token_nums", "specialize_active_lora"))
_POINTERS = ("_LORA_A_PTR_DICT", "_LORA_B_PTR_DICT")
_SCALE = 1.0

Slots = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""A (slots, max rank, d_in) and B (slots, d_out, max rank) of modules that are packed into one layer."""


class VllmKernels:
    """Shrink and expand of an installed vLLM.

    :ivar version: of vLLM.
    """

    def __init__(self) -> None:
        """Import vLLM.

        :raises InputError: where it is missing, or its kernels have another signature.
        """
        try:
            vllm = import_module("vllm")
            triton_ops = import_module("vllm.lora.ops.triton_ops")
            utils = import_module("vllm.lora.ops.triton_ops.utils")
        except ImportError as error:
            raise InputError(
                "vLLM's LoRA kernels can't be imported",
                key="--backend",
                got="vllm",
                allowed=f"vLLM {SUPPORTED} in this environment",
                hint=f"{str(error).splitlines()[0]}; or leave this backend out",
            ) from None
        self.version = str(getattr(vllm, "__version__", "unknown"))
        self._utils = utils
        try:
            self._shrink, self._expand = triton_ops.lora_shrink, triton_ops.lora_expand
            self._meta = triton_ops.LoRAKernelMeta
            made = tuple(inspect.signature(self._meta.make).parameters)[: len(_MAKE)]
            args = tuple(inspect.signature(self._meta.meta_args).parameters)
            known = made == _MAKE and args in _META_ARGS and all(hasattr(utils, name) for name in _POINTERS)
        except (AttributeError, TypeError, ValueError):
            known, args = False, ()
        if not known:
            raise InputError(
                "this version of vLLM calls its LoRA kernels in a way that is not supported",
                key="--backend",
                got=f"vllm {self.version}",
                allowed=f"vLLM {SUPPORTED}",
                hint="leave this backend out",
            )
        self._more: tuple[Any, ...] = (False,) if len(args) == len(_META_ARGS[1]) else ()
        self._kept: list[dict[Any, Any]] = []
        self._zeroes: bool | None = None

    def prepare(self, routing: Routing, tokens: int) -> tuple[Any, ...]:
        """Return what both kernels need to know of a batch: vLLM computes it once a step, outside of CUDA graphs.

        vLLM keeps strides by the address of a layer's slots. Ours lie at one address whatever their number and rank,
        so its notes are put aside; they stay alive, since a captured graph may still read them.
        """
        for name in _POINTERS:
            notes = getattr(self._utils, name)
            self._kept.append(dict(notes))
            notes.clear()
        device = routing.order.device
        slot_of_token = torch.full((tokens,), -1, dtype=torch.int64, device=device)
        slot_of_token[routing.order] = routing.slots
        meta = self._meta.make(len(routing.ends), tokens, device=device)
        meta.prepare_tensors(slot_of_token)
        return tuple(meta.meta_args(tokens, *self._more))

    def apply(self, y: torch.Tensor, x: torch.Tensor, slots: Slots, prepared: tuple[Any, ...]) -> None:
        """Add the adapters' part of one packed layer into ``y``, in place.

        :param y: (tokens, d_out of all modules together), contiguous.
        """
        a, b = tuple(a for a, _ in slots), tuple(b for _, b in slots)
        shape = (len(slots), x.shape[0], a[0].shape[1])
        empty = torch.empty if self._zeroed_by_kernel(x, a, prepared) else torch.zeros
        hidden = empty(shape, dtype=torch.float32, device=x.device)
        self._shrink(x, a, hidden, *prepared, _SCALE)
        self._expand(hidden, b, y, *prepared, offset_start=0, add_inputs=True)

    def _zeroed_by_kernel(self, x: torch.Tensor, a: tuple[torch.Tensor, ...], prepared: tuple[Any, ...]) -> bool:
        """Return whether shrink clears its output itself, as later versions do; older ones add to what is there."""
        if self._zeroes is None:
            hidden = torch.ones(len(a), x.shape[0], a[0].shape[1], dtype=torch.float32, device=x.device)
            self._shrink(torch.zeros_like(x), a, hidden, *prepared, _SCALE)
            routed = prepared[0] >= 0
            self._zeroes = bool((hidden[:, routed] == 0).all())
        return self._zeroes


@lru_cache(maxsize=1)
def vllm_kernels() -> VllmKernels:
    """Return the kernels of the installed vLLM.

    :raises InputError: where it is missing, or its kernels have another signature.
    """
    return VllmKernels()


def check_vllm(device: torch.device) -> str:
    """Check that vLLM's kernels can run; return its version.

    :raises InputError: where they can't.
    """
    if device.type != "cuda":
        raise InputError(
            "vLLM's kernels need a GPU with CUDA",
            key="--backend",
            got=f"vllm on {device.type}",
            hint="leave this backend out, or give --device cuda",
        )
    return vllm_kernels().version
