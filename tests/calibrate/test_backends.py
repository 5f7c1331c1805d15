"""Backends compute the same as one adapter after the other in float32, and the check that says so can fail."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate.device import lora_backends  # noqa: E402
from calibrate.device.lora_backends import BACKENDS, TOLERANCE, Routing, check, route  # noqa: E402

CPU = torch.device("cpu")
ON_CPU = [name for name in BACKENDS if name not in ("triton", "vllm")]


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("seed", [1, 2])
def test_agree_with_float32(name: str, seed: int) -> None:
    assert check(name, CPU, torch.float32, seed) < 1e-5
    assert 1e-4 < check(name, CPU, torch.bfloat16, seed) < TOLERANCE  # bf16 can't be exact: the check compares


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="needs triton, and TRITON_INTERPRET=1 without a GPU")
def test_triton_kernels_agree_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    assert check("triton", CPU, torch.float32, 3) < 1e-5


@pytest.mark.parametrize("break_it", ["scale", "leave out", "wrong slot", "nan", "overwrite"])
def test_a_wrong_backend_is_found(break_it: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, routing: Routing) -> None:
        before = y.clone()
        lora_backends.apply_loop(y, x, a.roll(1, 0) if break_it == "wrong slot" else a, b, routing)
        if break_it == "scale":
            y += 0.05 * (y - before)
        elif break_it == "leave out":
            y[routing.order[-1]] = before[routing.order[-1]]
        elif break_it == "nan":
            y[0, 0] = float("nan")
        elif break_it == "overwrite":
            y -= before

    monkeypatch.setitem(BACKENDS, "wrong", wrong)
    assert not check("wrong", CPU, torch.float32, 4) <= TOLERANCE


def test_routing_lays_tokens_out_by_slot() -> None:
    routing = route([(3, 1, [4, 0, 4]), (1, 20, [2]), (2, 1, [-1, -1])], {0: 8, 2: 16, 4: 8}, 6, CPU)
    assert routing.order.tolist() == [1, *range(3, 23), 0, 2]
    assert routing.ends.tolist() == [1, 1, 21, 21, 23, 23]
    assert routing.segments == ((0, 0, 1, 8), (2, 1, 21, 16), (4, 21, 23, 8))
    assert routing.tiles.tolist() == [[0, 0, 1], [2, 1, 17], [2, 17, 21], [4, 21, 23]]
    assert [(first, count, new) for first, count, new, _ in routing.sequences] == [(0, 3, 1), (3, 1, 20)]
