"""Profiles built from the real kernel tables."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("aiconfigurator_core", reason="needs the kernels extra: pip install -e '.[kernels]'")

from calibrate.kernels import kernel_tables
from calibrate.kernels.around_kernels import overhead_of
from calibrate.kernels.base_models import WEIGHTS, base_model_of
from calibrate.kernels.cards import card_of
from calibrate.kernels.kernel_tables import Deployment, KernelTables
from calibrate.kernels.profile_from_kernels import build_command, build_profile, check_faster
from sim.errors import InputError
from sim.spec.profile import Profile, bundled_profiles, load_profile
from sim.spec.profile_choice import ANCHOR_STEP

CACHES = (kernel_tables._package, kernel_tables._slots, kernel_tables.table_of)


@pytest.fixture(autouse=True)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Read one package of tables: that of the bundled profiles, unless a test says another."""
    name: str = getattr(request, "param", "aiconfigurator-core")
    monkeypatch.setattr(kernel_tables, "PACKAGES", {name: kernel_tables.PACKAGES[name]})
    for cached in CACHES:
        cached.cache_clear()
    yield name
    for cached in CACHES:
        cached.cache_clear()


NEWEST = pytest.param(
    "aisimulate",
    marks=pytest.mark.skipif(importlib.util.find_spec("aisimulate") is None, reason="needs the package aisimulate"),
)
EACH_PACKAGE = pytest.mark.parametrize("package", ["aiconfigurator-core", NEWEST], indirect=True)


def deployment(gpu: str, model: str, **more: object) -> Deployment:
    return Deployment(card_of(gpu), base_model_of(model), **more)  # type: ignore[arg-type]


def test_steps_are_the_sums_of_the_package() -> None:
    from aiconfigurator_core.sdk.engine import EngineHandle

    tables = KernelTables(deployment("h100", "llama-3.1-8b"))
    handle = EngineHandle.compile("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", "vllm", tp_size=1)
    for batch, context in ((1, 800), (32, 800), (256, 1024)):
        assert tables.step_s(batch, context) * 1000 == pytest.approx(handle.decode_step_latency(batch, context, 2))
    for tokens in (128, 2048):
        whole = handle.predict_prefill_latency(1, tokens)
        assert tables.step_s(0, 0, 1, tokens) * 1000 == pytest.approx(whole)
    # Whole prompts of the decoding sequences' length: the one case in which the package has a mixed step.
    assert tables.step_s(32, 1024, 4, 1024) * 1000 == pytest.approx(handle.mixed_step_latency(4096, 32, 1024, 2))
    # The second half of a prompt attends to the first.
    assert tables.step_s(0, 0, 1, 1024, 1024) * 1000 == pytest.approx(handle.predict_prefill_latency(1, 2048, 1024))


@EACH_PACKAGE
def test_norms_of_queries_and_keys_take_no_time_of_their_own_in_decode_steps(package: str) -> None:
    """Decode steps of Qwen3-14B were measured on an H100: 11.2 ms with 1 sequence, 11.8 ms with 8, engine included."""
    qwen = base_model_of("qwen3-8b")
    tables, plain = (
        KernelTables(Deployment(card_of("h100"), replace(qwen, architecture=name)))
        for name in (qwen.architecture, "LlamaForCausalLM")
    )
    assert tables.step_s(8, 500) == plain.step_s(8, 500)
    assert tables.step_s(8, 500, 1, 512) - plain.step_s(8, 500, 1, 512) == pytest.approx(
        tables.step_s(0, 0, 1, 512) - plain.step_s(0, 0, 1, 512)
    )


@EACH_PACKAGE
def test_a_profile_says_which_tables_it_was_built_from(package: str) -> None:
    profile = build_profile(deployment("h100-80gb", "llama-3.1-8b"), "command").profile
    assert (tables := profile.provenance.device["tables"]).startswith(f"{package} 0.")
    step = profile.sources["step"]
    assert f"under vLLM {profile.name.rpartition('-')[2]} ({tables}, NVIDIA" in step


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose current tables are of 0.24; newer are those of some cards, and none is as new as its next."""
    for card, versions in {"a": ("0.24.0", "0.25.0", "0.31.0"), "b": ("0.22.0", "0.24.0"), "c": ("0.14.0",)}.items():
        for version in versions:
            (tmp_path / f"systems/data/{card}/gemm/vllm/{version}").mkdir(parents=True)
    (tmp_path / "systems/data/a/gemm/vllm/dev-1aa0e9").mkdir()
    for folder, version in (("a", "0.24.0"), ("a", "0.25.0"), ("b", "0.24.0"), ("b", "0.30.0")):
        (tmp_path / f"systems/data/{folder}/attention/vllm/{version}").mkdir(parents=True)
    slots = {"a": {"next": "0.33.0"}, "b": {"next": "0.33.0"}, "c": {"current": "0.14.0"}}

    def resolve(system: str, engine: str, slot: str) -> str:
        found = {"current": "0.24.0", **slots[system]}
        if slot not in found:
            raise ValueError(slot)
        return found[slot]

    core, database = ModuleType("made_up_core"), ModuleType("database")
    core.__file__ = str(tmp_path / "__init__.py")
    database.resolve_query_version = resolve  # type: ignore[attr-defined]
    monkeypatch.setattr(kernel_tables, "_package", lambda: ("made_up_core", "made-up 1"))
    monkeypatch.setitem(sys.modules, "made_up_core", core)
    monkeypatch.setitem(sys.modules, "made_up_core.sdk.perf_database", database)
    kernel_tables._slots.cache_clear()


@pytest.mark.usefixtures("made_up")
def test_newer_tables_are_read_where_matrix_products_were_measured() -> None:
    assert [kernel_tables.asked_version(card, "vllm") for card in "abc"] == ["0.33.0", "0.24.0", "0.14.0"]
    assert kernel_tables.measured_versions("a", "vllm", "gemm", "0.33.0") == ["0.31.0", "0.25.0", "0.24.0"]
    assert kernel_tables.measured_versions("a", "vllm", "attention", "0.33.0") == ["0.25.0", "0.24.0"]
    assert kernel_tables.measured_versions("b", "vllm", "attention", "0.24.0") == ["0.24.0"]


def built(wanted: Deployment) -> Profile:
    """Return a profile whose step costs meet their target."""
    found = build_profile(wanted, "command")
    assert found.surrogate.quantile(0.5) <= 0.02
    assert found.surrogate.quantile(0.95) <= 0.06
    return found.profile


def test_the_profile_of_an_h100_says_what_it_is() -> None:
    profile = built(deployment("h100-80gb", "llama-3.1-8b"))
    assert (profile.name, profile.status) == ("h100-80gb/llama-3.1-8b/vllm-0.24.0", "derived")
    assert len(profile.draws) == 8
    assert "LoRA terms scaled from H100-64GB" in profile.description
    for section in ("step", "load", "memory", "envelope"):
        assert section in profile.sources or f"{section}.total_bytes" in profile.sources


def test_a_model_over_two_cards() -> None:
    profile = built(deployment("l40s", "qwen2.5-14b", tensor_parallel=2))
    assert profile.name == "l40s/qwen2.5-14b-tp2/vllm-0.24.0"
    assert (profile.tensor_parallel, profile.device) == (2, "2 x NVIDIA L40S")


def test_fp8_weights_are_smaller_and_decode_faster() -> None:
    bf16 = KernelTables(deployment("h100", "llama-3.1-8b"))
    fp8 = KernelTables(deployment("h100", "llama-3.1-8b", weights="fp8"))
    assert fp8.step_s(8, 500) < 0.8 * bf16.step_s(8, 500)


@pytest.mark.parametrize(
    ("gpu", "model", "more", "message"),
    [
        (
            "h100",
            "llama-2-7b",
            {},
            "--model: the kernel tables of NVIDIA H100 80GB HBM3 under vLLM 0.24.0 have no 32 attention heads over 32 "
            "KV heads on a GPU; sums from other shapes were off by half and more (got llama-2-7b, --tp 1, allowed: KV "
            "heads on a GPU: 1, 2, 4, 8); another --tp may fit, or measure it: loraplan calibrate steps",
        ),
        ("h100", "llama-3.1-8b", {"weights": "nvfp4"}, "--weights: the kernel tables of NVIDIA H100 80GB HBM3 under"),
        (
            "a100",
            "llama-3.1-8b",
            {"weights": "fp8"},
            "--weights: the kernel tables of NVIDIA A100-SXM4-80GB under vLLM 0.14.0 have no matrix products with such "
            "weights (got fp8, allowed: bf16)",
        ),
        (
            "h100",
            "llama-3.1-8b",
            {"weights": "mxfp4"},
            "--weights: a format of experts, and this model has none (got mxfp4, allowed: bf16, fp8, fp8-block, int8, "
            "int4, nvfp4)",
        ),
        (
            "h200",
            "gpt-oss-120b",
            {},
            "--weights: the kernel tables of NVIDIA H200 under vLLM 0.24.0 have no experts of this model with such "
            "weights over so many GPUs (got bf16, --tp 1, allowed: mxfp4)",
        ),
        (
            "h100-64gb",
            "gpt-oss-120b",
            {"weights": "mxfp4"},
            "--gpu: how experts go with the memory's bandwidth is not known (got h100-64gb); a card with tables of its "
            "own, such as h100-80gb",
        ),
    ],
)
def test_gaps_of_the_tables_are_refused(gpu: str, model: str, more: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        KernelTables(deployment(gpu, model, **more))
    assert str(refused.value).startswith(message)


def test_no_format_is_offered_that_a_quantised_checkpoint_is_not_in() -> None:
    quantised = replace(base_model_of("llama-3.1-8b"), formats=("int4",))
    with pytest.raises(InputError) as refused:
        KernelTables(Deployment(card_of("h100"), quantised, weights="int4"))
    assert str(refused.value).endswith(f"(got int4); {ANCHOR_STEP}")


OFFERED = {
    "a100-80gb": {"bf16"},
    "b200": {"bf16", "fp8", "nvfp4"},
    "h100-80gb": {"bf16", "fp8"},
    "h200": {"bf16", "fp8"},
    "l40s": {"bf16", "fp8"},
}
"""Formats of dense models under vLLM. Its kernels for fp8 in blocks are slower than 16 bits in the tables."""


@pytest.mark.parametrize("gpu", OFFERED)
def test_each_format_is_built_or_refused(gpu: str) -> None:
    whole = KernelTables(deployment(gpu, "llama-3.1-8b")).step_s(8, 500)
    for weights in WEIGHTS:
        wanted = deployment(gpu, "llama-3.1-8b", weights=weights)
        if weights in OFFERED[gpu]:
            check_faster(KernelTables(wanted))
            assert KernelTables(wanted).step_s(8, 500) <= whole
        else:
            with pytest.raises(InputError, match="--weights: "):
                check_faster(KernelTables(wanted))


def test_a_mixture_of_experts() -> None:
    """117 billion parameters, 5.1 active without the embedding (arXiv 2508.10925, table 1)."""
    model = base_model_of("gpt-oss-120b")
    assert sum(model.parameters()) == pytest.approx(116.83e9, rel=1e-3)
    embedding = model.shape.vocab * model.shape.hidden
    assert model.active_parameters() - embedding == pytest.approx(5.13e9, rel=5e-3)
    profile = built(deployment("h200", "gpt-oss-120b", weights="mxfp4"))
    assert profile.memory.weights_bytes == pytest.approx(65.2e9, rel=0.01)  # the published files
    assert profile.memory.kv_bytes_per_token == 2 * 18 * 8 * 64 * 2, "every other layer keeps the last 128 tokens"
    assert "75 measured loads on h200" in profile.error
    assert profile.status_note == "LoRA terms scaled from H100-64GB, on attention alone"
    assert "116.8 billion parameters in memory, 5.7 active; adapters on attention alone" in profile.description


def test_a_class_that_is_off_too_far_is_flagged() -> None:
    profile = build_profile(deployment("h100", "gpt-oss-120b", weights="mxfp4", tensor_parallel=2), "command").profile
    assert profile.stated.endswith("steps of this class are off by more than 30% in the median: don't plan with them")


def test_the_whole_shelf_meets_its_target() -> None:
    found = [
        (name, *map(float, re.findall(r"([0-9.]+)% \((?:median|95 % of steps)\)", profile.error)[:2]))
        for name in bundled_profiles()
        if (profile := load_profile(name)[0]).error.startswith("step costs reproduce the kernel tables")
    ]
    assert len(found) >= 37
    assert [each for each in found if each[1] > 2 or each[2] > 6] == []


def test_a_gap_closes_where_tensor_parallelism_leaves_fewer_heads() -> None:
    assert KernelTables(deployment("h100", "llama-2-7b", tensor_parallel=4)).step_s(8, 500) > 0


def test_a_measured_server_that_did_not_calibrate_is_met() -> None:
    """Llama-3.1-70B in fp8 over two H200 under vLLM: one deployment of the table in validation/overheads/judged.md."""
    from validation.overheads.overhead_fit import predict_points
    from validation.overheads.serving_points import serving_points

    points, others = serving_points()
    assert (len(points), others) == (1425, 3796)
    assert {point.deployment.weights for point in points if point.deployment.model.shape.experts} == {"mxfp4"}
    wanted = ("vllm", "h200", "llama-3.1-70b", "fp8", 2)
    found = predict_points([point for point in points if point.group == wanted and point.loop.answer < 2000])
    assert len(found) == 10
    errors = []
    for each in found:
        overhead = overhead_of(each.point.deployment)
        terms = (overhead.factor, overhead.step_s, overhead.per_sequence_s, overhead.prefill_step_s)
        errors.append(abs(each.steps.token @ terms / each.point.token_s - 1))
    assert sorted(errors)[5] < 0.06


def test_the_simulator_meets_points_that_did_not_calibrate() -> None:
    from validation.overheads.replayed_points import replay_points
    from validation.overheads.serving_points import serving_points

    wanted = ("vllm", "h200", "llama-3.1-70b", "fp8", 2), ("trtllm", "h200", "llama-3.1-70b", "fp8", 2)
    found = replay_points(point for point in serving_points()[0] if point.group in wanted)
    assert len(found) == 33
    token = [abs(each.token_s / each.point.token_s - 1) for each in found]
    first = [abs(each.first_s / each.point.first_s - 1) for each in found if each.point.loop.wait_steps == 0]
    assert sorted(token)[16] < 0.06
    assert sorted(first)[len(first) // 2] < 0.2, "where prompts don't wait for each other, which is not simulated"


def test_the_simulator_knows_waits_for_kv_blocks() -> None:
    from validation.overheads.replayed_points import replay_points
    from validation.overheads.serving_points import serving_points

    crowded = ("trtllm", "h200", "llama-3.1-70b", "fp8", 1)
    found = replay_points(point for point in serving_points()[0] if point.group == crowded and not point.fits)
    assert [round(each.point.first_s) for each in found] == [369, 80, 30, 128]
    assert [each.first_s / each.point.first_s for each in found] == pytest.approx([1, 1, 1, 1], abs=0.5)


def test_the_bundled_shelf_is_what_would_be_built() -> None:
    for each in (deployment("h100-80gb", "llama-3.1-8b"), deployment("h200", "qwen3-32b", tensor_parallel=2)):
        profile = build_profile(each, shlex.join(build_command(each))).profile
        assert load_profile(profile.name)[0] == profile, "run python tools/profile_shelf.py"
