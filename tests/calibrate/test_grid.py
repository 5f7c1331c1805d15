"""The grid: what varies does so independently, and every step says of itself what a fit must know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate.steps.decoder import SequenceGroup
from calibrate.steps.step_grid import CAPTURE_SIZES, FULL, PARTS, QUICK, Extent, StepSpec, heads, make_grid, parts_of

BACKENDS = ("grouped_mm", "bmm", "loop")


def parameters(specs: list[StepSpec], name: str) -> np.ndarray:
    return np.array([float(one.configuration().parameters[name]) for one in specs])


def test_a_step_says_what_it_is_made_of() -> None:
    groups = (SequenceGroup(4, 1, 99), SequenceGroup(1, 64, 0), SequenceGroup(2, 10, 20))
    one = StepSpec("mixed", groups, distinct=3, slots=8, max_rank=32, ranks=(8, 16))
    said = one.configuration().parameters
    assert said["tokens"] == 4 + 64 + 20
    assert said["sequences"] == 7
    assert said["decode_kv_tokens"] == 4 * 100
    assert said["prefill_tokens"] == 84
    assert said["attended"] == 64 * 65 / 2 + 2 * sum(20 + n for n in range(1, 11))
    assert said["rank_sum"] == 8 + 16 + 8
    # sequences 0..6 take adapters 0 1 2 0 | 1 | 2 0, of ranks 8 16 8
    assert said["rank_tokens"] == (8 + 16 + 8 + 8) + 64 * 16 + 10 * 8 + 10 * 8


@pytest.mark.parametrize("extent", [QUICK, FULL])
@pytest.mark.parametrize("graphs", [False, True])
def test_no_step_twice_and_none_too_large(extent: Extent, graphs: bool) -> None:
    specs = make_grid(extent, BACKENDS, graphs=graphs)
    keys = [one.configuration().key for one in specs]
    assert len(set(keys)) == len(keys)
    assert all(one.kv_tokens <= extent.kv_tokens and one.slot_ranks <= extent.slot_ranks for one in specs)
    assert all(one.distinct <= min(one.slots, one.sequences) for one in specs if one.distinct)
    for one in specs:
        used = {slot for group in one.adapters() for slot in group if slot >= 0}
        assert len(used) == one.distinct
    assert any(one.graph for one in specs) is graphs
    assert all(one.sequences in CAPTURE_SIZES and one.kind == "decode" for one in specs if one.graph)


@pytest.mark.parametrize("graphs", [False, True])
def test_every_step_is_in_one_part_and_the_first_parts_are_fitted(graphs: bool) -> None:
    specs = make_grid(QUICK, BACKENDS, graphs=graphs)
    specs += heads(specs)
    parts = parts_of(specs, BACKENDS[0])
    assert list(parts) == list(PARTS)
    keys = [one.configuration().key for steps in parts.values() for one in steps]
    assert sorted(keys) == sorted(one.configuration().key for one in specs)
    assert all(not one.distinct and one.kind in ("decode", "head") for one in parts["base-decode"])
    assert all(one.distinct and one.kind == "decode" and one.backend == BACKENDS[0] for one in parts["lora-decode"])
    assert {one.kind for one in parts["prefill"]} == {"prefill", "mixed"}
    assert {one.distinct > 0 for one in parts["prefill"]} == {True, False}
    assert {one.backend for one in parts["backends"]} == set(BACKENDS[1:])
    assert bool(parts["eager"]) is graphs
    graphed = {one.configuration().key.rsplit(" ", 1)[0] for part in parts.values() for one in part if one.graph}
    assert all(one.configuration().key.rsplit(" ", 1)[0] in graphed for one in parts["eager"])
    decodes = [one for part in ("base-decode", "lora-decode") for one in parts[part] if one.kind == "decode"]
    assert all(one.graph for one in decodes if graphs and one.sequences in CAPTURE_SIZES)


def test_additive_and_multiplicative_cost_can_be_told_apart() -> None:
    # In the LoRA decodes no factor is near a multiple of another, and batch sizes differ for equal adapters.
    decodes = [one for one in make_grid(FULL, ("grouped_mm",), graphs=False) if one.kind == "decode" and one.distinct]
    columns = np.array(
        [parameters(decodes, name) for name in ("sequences", "distinct", "slots", "max_rank", "decode_kv_tokens")]
    )
    correlation = np.corrcoef(np.log(columns))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.7
    eight = {one.sequences for one in decodes if one.distinct == 8}
    assert len(eight) >= 5


def test_everything_the_issue_names_is_there() -> None:
    specs = make_grid(FULL, BACKENDS, graphs=True)
    prompts = {one.groups[0].new for one in specs if one.kind == "prefill" and len(one.groups) == 1}
    assert {16, 8192} <= prompts
    assert {one.kind for one in specs} == {"decode", "prefill", "mixed"}
    assert {one.backend for one in specs if one.distinct} == set(BACKENDS)
    assert any(len(one.ranks) > 1 for one in specs)
    assert all(head.kind == "head" for head in heads(specs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_backend_is_timed_alone(backend: str) -> None:
    specs = make_grid(QUICK, (backend,), graphs=False)
    assert {one.backend for one in specs if one.distinct} == {backend}


def test_a_small_device_gets_a_smaller_grid() -> None:
    small = replace(FULL, kv_tokens=10_000, slot_ranks=64, slots=(8,))
    assert 0 < len(make_grid(small, BACKENDS, graphs=False)) < len(make_grid(FULL, BACKENDS, graphs=False))
