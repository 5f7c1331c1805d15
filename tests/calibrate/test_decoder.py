"""The decoder stack: what it computes, and what it is said to need."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate.device.lora_backends import route  # noqa: E402
from calibrate.steps.decoder import Decoder, DecoderSize, Lora, SequenceGroup  # noqa: E402
from calibrate.steps.step_grid import StepSpec  # noqa: E402
from sim.traffic.adapters import MODULES, SHAPES, ModelShape, parameters_per_rank  # noqa: E402

CPU = torch.device("cpu")
TINY = SHAPES["tiny"]
GROUPS = (SequenceGroup(5, 1, 30), SequenceGroup(1, 33, 0), SequenceGroup(2, 10, 20))


def decoder(shape: ModelShape = TINY, layers: int = 2, **sizes: int) -> Decoder:
    size = DecoderSize(shape, layers, **{"slot_ranks": 8 * 16, "kv_tokens": 400, **sizes})
    return Decoder(size, torch.float32, CPU)


def lora(backend: str, targets: tuple[str, ...] = MODULES) -> Lora:
    routing = route([(5, 1, [0, 2, 5, 2, 0]), (1, 33, [1]), (2, 10, [-1, -1])], dict.fromkeys((0, 1, 2, 5), 16), 8, CPU)
    return Lora(backend, targets, 8, 16, routing)


def hidden_after(one: Decoder, adapters: Lora | None) -> torch.Tensor:
    """Return what goes into the output head."""
    seen = []
    one.head = lambda x, last: seen.append(x[last])  # type: ignore[method-assign, return-value]
    x, turn, last = torch.randn(58, TINY.hidden, generator=torch.Generator().manual_seed(7)), *one.inputs(GROUPS)[1:]
    one.step(x, turn, last, GROUPS, adapters)
    return seen[0]


@pytest.mark.parametrize("backend", ["grouped_mm", "bmm"])
@pytest.mark.parametrize("targets", [MODULES, ("q", "v"), ("k", "o", "up")])
def test_backends_give_the_same_step(backend: str, targets: tuple[str, ...]) -> None:
    one = decoder()
    reference = hidden_after(one, lora("loop", targets))
    out = hidden_after(one, lora(backend, targets))
    assert (out - reference).norm() / reference.norm() < 1e-4


def test_adapters_change_their_own_sequences_only() -> None:
    one = decoder()
    base, adapted = hidden_after(one, None), hidden_after(one, lora("loop"))
    changed = ((base - adapted).norm(dim=1) / base.norm(dim=1) > 1e-3).tolist()
    assert changed == [True] * 6 + [False] * 2


def test_attention_is_causal_and_reads_the_cache() -> None:
    # A prompt in one step leaves its last token where chunk after chunk over the cache does.
    one = decoder(kv_tokens=64)
    whole, chunk = (SequenceGroup(1, 40, 0),), (SequenceGroup(1, 10, 30),)
    x = torch.randn(40, TINY.hidden)
    seen = []
    one.head = lambda h, last: seen.append(h[last])  # type: ignore[method-assign, return-value]
    one.step(x, *one.inputs(whole)[1:], whole, None)
    for pool in one._kv:  # the first 30 tokens stay; what the chunk must write again is spoilt
        used = pool[:, : 40 * TINY.kv_heads * TINY.head_dim]
        used.view(2, TINY.kv_heads, 40, TINY.head_dim)[:, :, 30:] = float("nan")
    one.step(x[30:], *one.inputs(chunk)[1:], chunk, None)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "qwen2.5-0.5b"])
def test_needs_what_it_allocates(name: str) -> None:
    shape = SHAPES[name]
    one = decoder(shape, layers=1, slot_ranks=16, kv_tokens=100)
    weights = [*one._qkv, *one._o, *one._gate_up, *one._down, one._head]
    slots = [tensor for layer in one._lora for pair in layer.values() for tensor in pair]
    need = DecoderSize(shape, 1, slot_ranks=16, kv_tokens=100).needed_bytes(4)
    assert sum(tensor.nbytes for tensor in weights) == need["weights"]
    assert sum(tensor.nbytes for tensor in slots) == need["slots"]
    assert sum(tensor.nbytes for tensor in one._kv) == need["KV cache"]
    assert need["slots"] == 4 * 16 * parameters_per_rank(shape, "all-linear") // shape.layers


def test_floor_counts_weights_adapters_and_kv_once() -> None:
    shape, groups = SHAPES["llama-3.1-8b"], (SequenceGroup(8, 1, 999),)
    base_bytes, base_operations = StepSpec("decode", groups).work(shape, 32, 2)
    parameters = 32 * 218_103_808 + 128256 * 4096  # linear layers of one layer; output head
    assert base_bytes == 2 * parameters + 8 * 1000 * 131_072  # 128 KiB of KV a token
    assert base_operations == 2 * 8 * parameters + 4 * 32 * 8 * 1000 * 4096
    more_bytes, more_operations = StepSpec("decode", groups, distinct=2, slots=4, max_rank=16, ranks=(16, 8)).work(
        shape, 32, 2
    )
    assert more_bytes - base_bytes == 2 * (16 + 8) * parameters_per_rank(shape, MODULES)
    assert more_operations - base_operations == 2 * (4 * 16 + 4 * 8) * parameters_per_rank(shape, MODULES)
