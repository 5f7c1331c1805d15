"""How vLLM's LoRA kernels are called, with doubles of its modules on the CPU. The real ones need a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate.device import lora_backends  # noqa: E402
from calibrate.device.devices import open_device  # noqa: E402
from calibrate.device.lora_backends import (  # noqa: E402
    PACKED,
    TOLERANCE,
    VllmKernels,
    check,
    check_vllm,
    route,
    vllm_kernels,
)
from calibrate.measure import Sampling  # noqa: E402
from calibrate.steps.decoder import Decoder, DecoderSize, Lora, SequenceGroup  # noqa: E402
from calibrate.steps.step_timing import default_backends, time_steps  # noqa: E402
from sim.errors import InputError  # noqa: E402
from sim.traffic.adapters import MODULES, SHAPES  # noqa: E402

CPU = torch.device("cpu")


class Meta:
    """Slots of tokens, tokens sorted by slot, tokens of each slot, where they start, slots in use (-1: no adapter)."""

    def __init__(self, slots: int, tokens: int) -> None:
        self.slots, self.tokens = slots, tokens

    @staticmethod
    def make(max_loras: int, max_num_tokens: int, device: Any) -> Meta:
        return Meta(max_loras, max_num_tokens)

    def prepare_tensors(self, token_lora_mapping: Any) -> None:
        assert token_lora_mapping.shape == (self.tokens,)
        self.mapping = token_lora_mapping
        ids, counts = torch.unique(token_lora_mapping, sorted=True, return_counts=True)
        self.ids = torch.full((self.slots + 1,), -1)
        self.counts, self.starts = torch.zeros(self.slots + 1), torch.zeros(self.slots + 2)
        self.ids[: len(ids)], self.counts[: len(ids)] = ids, counts
        self.starts[1 : 1 + len(ids)] = counts.cumsum(0)
        self.order = torch.sort(token_lora_mapping, stable=True)[1]

    def meta_args(self, token_nums: int) -> tuple[Any, ...]:
        return self.mapping[:token_nums], self.order[:token_nums], self.counts, self.starts, self.ids, torch.zeros(1)


class LaterMeta(Meta):
    """As later versions have it: told whether the grid depends on the adapters in use, one argument more."""

    @staticmethod
    def make(max_loras: int, max_num_tokens: int, device: Any, captured_lora_counts: Any = None) -> Meta:
        return LaterMeta(max_loras, max_num_tokens)

    def meta_args(self, token_nums: int, specialize_active_lora: bool) -> tuple[Any, ...]:  # type: ignore[override]
        assert specialize_active_lora is False
        return (*super().meta_args(token_nums), torch.tensor([self.slots + 1]))


class Double:
    """vLLM's modules, as far as they are called.

    :ivar launches: of each kernel, the modules that it had.
    """

    def __init__(self, later: bool) -> None:
        self.launches: list[tuple[str, int]] = []
        self._args, self._later = 7 if later else 6, later
        self.utils = ModuleType("vllm.lora.ops.triton_ops.utils")
        self.utils._LORA_A_PTR_DICT, self.utils._LORA_B_PTR_DICT = {}, {}  # type: ignore[attr-defined]
        self.ops = ModuleType("vllm.lora.ops.triton_ops")
        self.ops.LoRAKernelMeta = LaterMeta if later else Meta  # type: ignore[attr-defined]
        self.ops.lora_shrink, self.ops.lora_expand = self._shrink, self._expand  # type: ignore[attr-defined]
        self.ops.utils = self.utils  # type: ignore[attr-defined]

    def modules(self) -> dict[str, ModuleType]:
        vllm, lora, ops = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.ops")
        vllm.__version__ = "0.32.0" if self._later else "0.8.5"  # type: ignore[attr-defined]
        ops.triton_ops = self.ops  # type: ignore[attr-defined]
        return {each.__name__: each for each in (vllm, lora, ops, self.ops, self.utils)}

    def _strides(self, notes: dict[Any, Any], weights: Any) -> None:
        """As vLLM does: the first strides that an address was seen with stay."""
        key = tuple(each.data_ptr() for each in weights)
        assert notes.setdefault(key, weights[0].stride()) == weights[0].stride(), "stale notes of another configuration"
        assert len({each.stride() for each in weights}) == 1 or notes is self.utils._LORA_B_PTR_DICT

    def _shrink(self, x: Any, a: Any, out: Any, *more: Any) -> None:
        assert x.is_contiguous()
        assert out.is_contiguous()
        assert out.dtype == torch.float32
        assert len(more) == self._args + 1
        mapping, scale = more[0], more[-1]
        assert mapping.shape == x.shape[:1]
        self._strides(self.utils._LORA_A_PTR_DICT, a)
        self.launches.append(("shrink", len(a)))
        if self._later:
            out.zero_()
        for number, each in enumerate(a):
            for token, slot in enumerate(mapping.tolist()):
                if slot >= 0:
                    out[number, token] += scale * (each[slot].float() @ x[token].float())

    def _expand(self, x: Any, b: Any, y: Any, *more: Any, offset_start: int, add_inputs: bool) -> None:
        assert y.is_contiguous()
        assert add_inputs
        assert len(more) == self._args
        self._strides(self.utils._LORA_B_PTR_DICT, b)
        self.launches.append(("expand", len(b)))
        at = offset_start
        for number, each in enumerate(b):
            for token, slot in enumerate(more[0].tolist()):
                if slot >= 0:
                    y[token, at : at + each.shape[1]] += (each[slot].float() @ x[number, token]).to(y.dtype)
            at += each.shape[1]
        assert at == y.shape[1], "modules of a packed layer fill it"


@pytest.fixture(params=[False, True], ids=["vllm-0.8.5", "vllm-0.32"])
def double(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    made = Double(request.param)
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    vllm_kernels.cache_clear()
    yield made
    vllm_kernels.cache_clear()


def test_both_signatures_agree_with_the_loop(double: Double) -> None:
    assert check(PACKED, CPU, torch.float32, 1) < 1e-5
    assert check(PACKED, CPU, torch.bfloat16, 2) < TOLERANCE
    assert vllm_kernels().version in ("0.8.5", "0.32.0")


def test_a_decoder_packs_modules_as_vllm_does(double: Double) -> None:
    """Four launches of each kernel a layer, whatever is targeted in it; the same tokens as module by module."""
    shape, groups = SHAPES["tiny"], (SequenceGroup(3, 1, 20),)
    decoder = Decoder(DecoderSize(shape, 2, slot_ranks=4 * 16, kv_tokens=3 * 21), torch.float32, CPU)
    routing = route([(3, 1, [2, 0, 2])], {0: 16, 2: 16}, 4, CPU)
    x, turn, last = decoder.inputs(groups)
    kernels = vllm_kernels()
    plain = decoder.step(x, turn, last, groups, Lora("grouped_mm", MODULES, 4, 16, routing))
    packed = Lora(PACKED, MODULES, 4, 16, routing, kernels.prepare(routing, 3))
    decoder.step(x, turn, last, groups, packed)
    double.launches.clear()
    assert decoder.step(x, turn, last, groups, packed).tolist() == plain.tolist()
    assert double.launches == [(kernel, size) for size in (3, 1, 2, 1) for kernel in ("shrink", "expand")] * 2
    double.launches.clear()
    decoder.step(x, turn, last, groups, Lora(PACKED, ("q", "v"), 4, 16, routing, kernels.prepare(routing, 3)))
    assert double.launches == [("shrink", 3), ("expand", 3)] * 2


def test_slots_of_another_rank_at_the_same_address_are_not_mixed_up(double: Double) -> None:
    decoder = Decoder(DecoderSize(SHAPES["tiny"], 1, slot_ranks=64), torch.float32, CPU)
    x = torch.randn(2, SHAPES["tiny"].hidden)
    for slots, rank in ((4, 16), (8, 8), (2, 32)):
        routing = route([(2, 1, [1, 0])], {0: rank, 1: rank}, slots, CPU)
        a, b = decoder.slots(0, "o", slots, rank)
        y = torch.zeros(2, b.shape[1])
        vllm_kernels().apply(y, x, ((a, b),), vllm_kernels().prepare(routing, 2))
        expected = torch.stack([b[slot] @ (a[slot] @ x[token]) for token, slot in enumerate((1, 0))])
        assert torch.allclose(y, expected, atol=1e-5)


def test_another_signature_is_refused(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(double.ops.LoRAKernelMeta, "meta_args", lambda self, batch, layout: ())
    with pytest.raises(InputError) as refused:
        VllmKernels()
    assert str(refused.value) == (
        "--backend: this version of vLLM calls its LoRA kernels in a way that is not supported "
        f"(got vllm {sys.modules['vllm'].__version__}, allowed: vLLM 0.8.5 to 0.32); leave this backend out"
    )
    monkeypatch.delattr(double.ops, "LoRAKernelMeta")
    with pytest.raises(InputError, match="in a way that is not supported"):
        VllmKernels()


def test_without_vllm_or_a_gpu_a_message_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"--backend: vLLM's LoRA kernels can't be imported \(got vllm, allowed: vLLM"):
        VllmKernels()
    with pytest.raises(InputError, match=r"--backend: vLLM's kernels need a GPU with CUDA \(got vllm on cpu\); leave"):
        check_vllm(CPU)
    both = ("grouped_mm", PACKED)
    with pytest.raises(InputError, match="need a GPU with CUDA"):
        time_steps("tiny", open_device("cpu"), tmp_path / "out", Sampling(quick=True), backends=both)
    assert not (tmp_path / "out").exists()
    assert PACKED not in default_backends(open_device("cpu"))
    assert lora_backends.SUPPORTED == "0.8.5 to 0.32"


def test_a_mixture_of_experts_is_not_timed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--model: mixtures of experts can't be timed"):
        time_steps("gpt-oss-120b", open_device("cpu"), tmp_path / "out", Sampling(quick=True))
