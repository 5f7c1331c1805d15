"""What engines make of a census: every rule has its source, and every check finds what it is for and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import InputError
from sim.spec.engines import ENGINES
from sim.spec.units import human_bytes
from sim.traffic.adapters import DTYPE_BYTES, MODULES, SHAPES, parameters_per_rank
from sim.training.files.census import Census, Copies, Entry, kinds_of
from sim.training.files.engine_checks import (
    Concern,
    ServingTarget,
    check_census,
    check_serving_target,
    is_served,
    needed_rank,
    rules_of,
    served_base,
)
from sim.training.files.engine_rules import EXTRAS, Extra

BASE = "meta-llama/Llama-3.1-8B-Instruct"
SERVED_BY = {"s-lora": ("q", "k", "v", "o")}  # all modules that this engine has
REAL = ("vllm-0.8", "vllm-0.32", "sglang", "s-lora", "lorax", "tensorrt-llm")


def entry(
    folder: str = "a",
    rank: int = 8,
    modules: tuple[str, ...] = MODULES,
    dtype: str = "bf16",
    base: str | None = BASE,
    model: str | None = "llama-3.1-8b",
    extras: tuple[Extra, ...] = (),
    targets: tuple[str, ...] | None = None,
    parameters: int | None = None,
    dtypes: tuple[str, ...] | None = None,
) -> Entry:
    count = rank * parameters_per_rank(SHAPES["llama-3.1-8b"], modules) if parameters is None else parameters  # type: ignore[arg-type]
    size = count * DTYPE_BYTES[dtype]
    return Entry(
        folder=folder,
        path=Path(folder),
        ranks=(rank,),
        alpha=16,
        targets=targets or tuple(sorted(f"{name}_proj" for name in modules)),
        dtypes=dtypes or (dtype,),
        tensors=448,
        parameters=count,
        lora_parameters=count,
        bytes=size,
        file_bytes=size + 1000,
        layers=32,
        base_model=base,
        model=model,
        extras=extras,
        digest=folder,
    )


def concerns(entries: list[Entry], copies: Copies | None = None, **target: object) -> list[Concern]:
    census = Census(Path("x"), tuple(entries), ())
    return check_census(census, ServingTarget(**target), copies or Copies((), 0))  # type: ignore[arg-type]


def test_every_preset_has_rules_and_every_rule_its_source() -> None:
    for name in REAL:
        rules = rules_of(name)
        assert rules.source
        for extra, rule in rules.extras.items():
            assert extra in EXTRAS
            assert rule.words
            assert rule.source or rule.verdict == "unknown", (name, extra)


def test_a_plain_fleet_gives_no_concern() -> None:
    for engine in (None, *ENGINES.names):
        modules = SERVED_BY.get(engine or "", MODULES)
        assert concerns([entry("a", modules=modules), entry("b", modules=modules)], engine=engine) == []


@pytest.mark.parametrize("engine", REAL)
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_judged_by_its_rule(engine: str, extra: Extra) -> None:
    rule = rules_of(engine).rule(extra)
    modules = SERVED_BY.get(engine, MODULES)
    found = concerns([entry("odd", extras=(extra,), modules=modules), entry("plain", modules=modules)], engine=engine)
    if rule.verdict == "served":
        assert found == []
    else:
        (one,) = found
        assert (one.level, one.count, one.folders, one.source) == (rule.verdict, 1, ("odd",), rule.source)
        assert extra in one.words


def test_without_an_engine_extras_are_only_mentioned() -> None:
    (one,) = concerns([entry(extras=("DoRA",))])
    assert (one.check, one.level) == ("extras", "note")
    assert one.words == "DoRA: engines differ; give --engine, such as vllm-0.32"


def test_what_vllm_says_of_strangers() -> None:
    entries = [
        entry("dora", extras=("DoRA",)),
        entry("saved", extras=("saved modules",)),
        entry("rs", extras=("rsLoRA",)),
    ]
    assert [(c.level, c.folders) for c in concerns(entries, engine="vllm-0.32")] == [
        ("refused", ("dora",)),
        ("refused", ("saved",)),
    ]


def test_ranks_above_the_largest_are_refused() -> None:
    entries = [entry("small"), entry("large", 64), entry("huge", 1024)]
    (one, *_) = concerns(entries, engine="vllm-0.8")
    assert (one.check, one.level, one.folders) == ("rank", "refused", ("huge",))
    assert "rank up to 1024, above 512" in one.words
    (one, *_) = concerns(entries, engine="sglang", max_rank=32)
    assert (one.folders, one.level) == (("large", "huge"), "refused")
    assert needed_rank(entries[:2], ServingTarget("vllm-0.8")) == 64
    assert needed_rank([entry(rank=20)], ServingTarget("vllm-0.8")) == 32
    assert needed_rank([entry(rank=20)], ServingTarget("sglang")) == 20
    assert needed_rank([entry(rank=1024)], ServingTarget("vllm-0.8")) == 512


def test_modules_that_an_engine_lacks() -> None:
    odd = entry("odd", targets=("o_proj", "query_key_value"), base=None, model=None)
    assert next((c.check, c.level) for c in concerns([odd], engine="sglang")) == ("modules", "refused")
    assert ("modules", "wrong") in [(c.check, c.level) for c in concerns([odd], engine="lorax")]
    (one,) = concerns([entry("qv", modules=("q", "v"))], engine="s-lora")
    assert (one.check, one.level, one.folders) == ("modules", "refused", ("qv",))


def test_base_models_that_differ() -> None:
    entries = [entry("a"), entry("b"), entry("c", base="meta-llama/Llama-3.1-8B"), entry("d", base=None, model=None)]
    found = concerns(entries)
    assert [(c.level, c.folders) for c in found if c.check == "base-model"] == [("wrong", ("c",)), ("unknown", ("d",))]
    assert served_base(entries, ServingTarget()) == BASE
    assert [(c.level, c.folders) for c in concerns(entries, base_model="llama-3.1-8b")] == [("unknown", ("d",))]
    assert is_served(entries[0], f"{BASE}/")
    assert not is_served(entries[0], "qwen2.5-7b")
    assert served_base([entry(base="b"), entry(base="a")], ServingTarget()) == "a", "of equals, the first by name"


def test_matrices_that_do_not_fit_the_model_named() -> None:
    (one,) = concerns([entry("liar", parameters=1000), entry("b")])
    assert (one.check, one.level, one.folders) == ("shape", "wrong", ("liar",))


def test_padding_is_priced() -> None:
    entries = [entry(f"a{n}", 8, ("q", "v")) for n in range(9)] + [entry("big", 64)]
    (one,) = [c for c in concerns(entries, engine="vllm-0.32") if c.check == "padding"]
    per_rank = 2 * parameters_per_rank(SHAPES["llama-3.1-8b"], "all-linear")
    assert human_bytes(64 * per_rank) == "336 MB"
    assert one.words.startswith("a slot takes 336 MB, every linear module at rank 64")
    assert f"without the one adapter of rank 64 it would take {human_bytes(8 * per_rank)}" in one.words
    (one,) = concerns([*entries[:9], *[entry("c", 16, ("q",))] * 9], engine="sglang")
    qv = 2 * parameters_per_rank(SHAPES["llama-3.1-8b"], ("q", "v"))
    assert f"a slot takes {human_bytes(16 * qv)}, every module that any of them has" in one.words
    assert [c for c in concerns(entries, engine="lorax") if c.check == "padding"] == []


def test_number_formats() -> None:
    entries = [entry("a"), entry("b"), entry("wide", dtype="fp32"), entry("mixed", dtypes=("bf16", "fp32"))]
    found = {(c.level, c.folders) for c in concerns(entries) if c.check == "dtype"}
    assert found == {("note", ("mixed",)), ("note", ("wide",)), ("waste", ("wide",))}


def test_copies_and_checkpoints() -> None:
    entries = [entry("a"), entry("b"), entry("run/checkpoint-500")]
    found = {c.check: c for c in concerns(entries, Copies((("a", "b"),), 3))}
    assert found["copies"].count == 3, "the unread come after the found"
    assert found["checkpoints"].folders == ("run/checkpoint-500",)


def test_what_is_asked_is_checked() -> None:
    with pytest.raises(InputError, match="unknown engine") as caught:
        check_serving_target(ServingTarget("vllm-0.7"))
    assert "the nearest preset is vllm-0.8" in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'sglang'"):
        check_serving_target(ServingTarget("sglag"))
    with pytest.raises(InputError, match="no such largest rank"):
        check_serving_target(ServingTarget("vllm-0.8", 48))
    check_serving_target(ServingTarget("sglang", 48))


modules = st.sets(st.sampled_from(MODULES), min_size=1).map(lambda names: tuple(n for n in MODULES if n in names))


@given(
    st.lists(st.tuples(st.integers(1, 300), modules, st.integers(1, 10**9)), min_size=1, max_size=120),
    st.integers(1, 16),
)
def test_kinds_keep_counts_bytes_and_the_largest_rank(drawn: list[tuple[int, tuple[str, ...], int]], most: int) -> None:
    entries = [entry(rank=rank, modules=names, parameters=size, dtype="fp8") for rank, names, size in drawn]
    kinds = kinds_of(entries, most)
    assert len(kinds) <= most
    assert sum(kind.count for kind in kinds) == len(entries)
    assert max(kind.rank for kind in kinds) == max(e.rank for e in entries)
    total = sum(e.bytes for e in entries)
    assert abs(sum(kind.count * kind.size for kind in kinds) - total) <= 10 * len(entries), "rounded to a byte a merge"
    exact = sum(kind.count * kind.size for kind in kinds if kind.exact)
    assert exact <= total
    if len({(e.rank, e.target_words, e.bytes) for e in entries}) <= most:
        assert all(kind.exact for kind in kinds)
