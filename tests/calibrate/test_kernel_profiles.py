"""What surrounds the kernels of a built profile: cards, models, memory, LoRA, loads. None needs the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.kernels.around_kernels import (
    KINDS,
    MEASURED,
    SPREAD,
    SPREAD_ALIKE,
    EngineOverhead,
    load_cost,
    lora_cost,
    overhead_of,
    spread_on,
)
from calibrate.kernels.base_models import BaseModel, base_model_of
from calibrate.kernels.cards import ALL, CARDS, SCALED, OtherMemory, card_of
from calibrate.kernels.kernel_tables import Deployment, check_parallel, check_weights, engine_of, other_version
from calibrate.kernels.memory_model import DRIVER_BYTES, SOURCES, memory_of, sources_of
from calibrate.kernels.profile_from_kernels import cost_draws
from calibrate.kernels.surrogate import StepEnvelope, fit_surrogate, predict
from sim.errors import InputError, ScenarioError
from sim.policies.replica_memory import slots_bytes
from sim.spec.gpus import GPUS
from sim.spec.profile import StepCost, load_profile
from sim.studies.design import MAX_DRAWS
from sim.traffic.adapters import SHAPES, parameters_per_rank, tensor_count

H100_64 = replace(SCALED["h100-64gb"], batch_sequences=1024)
"""The card that LoRA was measured on."""
QWEN_14B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}


def config(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({key: value for key, value in {**QWEN_14B, **changes}.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    "name",
    ["h100", "H100-80GB", "h100_sxm", "NVIDIA H100-80GB", "h200", "b200", "a100", "l40s", "a100-40gb", "h100-64gb"],
)
def test_cards_have_the_names_that_people_use(name: str) -> None:
    assert card_of(name).name in CARDS | SCALED


CARDS_THERE = "a100-80gb, b200, h100-80gb, h200, l40s, a100-40gb, h100-64gb, a10, a10g, a40, h100-nvl, h100-pcie, h20, "
CARDS_THERE += "l4, rtx-4090, mi300x"
SHEET = r"give its data sheet: --memory 24GB --bandwidth 600GB/s --flops 70T \(dense, 16 bits\)"
FOLDER = r"neither a known base model, nor a file or folder \(got Qwen/Qwen2.5-32-Instruct, allowed: .*qwen2.5-32b"
SPLITS = [("llama-3.1-8b", 3), ("qwen2.5-7b", 8), ("llama-3.1-8b", 64)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            partial(card_of, "h100-90gb"),
            rf"^--gpu: unknown GPU \(got h100-90gb, allowed: {CARDS_THERE}\); did you mean 'h100-80gb'\? Or {SHEET}$",
        ),
        (partial(engine_of, "tgi"), r"--engine: there are no kernel tables for this engine \(got tgi"),
        (
            partial(base_model_of, "llama-3.1-8bb"),
            r"unknown base model \(got llama-3.1-8bb.*did you mean 'llama-3.1-8b'",
        ),
        (partial(base_model_of, "Qwen/Qwen2.5-32-Instruct"), rf"{FOLDER}.*did you mean 'qwen2.5-32b'"),
        (partial(base_model_of, "llama-3.1-8b", "mine"), r"--name: llama-3.1-8b has its name already.*\(got mine\)"),
        *(
            (
                partial(check_parallel, base_model_of(name), gpus),
                f"--tp: {name} can't be split over so many GPUs: it has",
            )
            for name, gpus in SPLITS
        ),
    ],
)
def test_what_there_is_nothing_for_is_refused(asked: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        asked()


def test_a_config_is_recognised_by_its_shape(tmp_path: Path) -> None:
    model = base_model_of(str(config(tmp_path)))
    assert (model.name, model.shape) == ("qwen2.5-14b", SHAPES["qwen2.5-14b"])
    assert base_model_of(str(tmp_path)) == model, "the folder of a config.json says the same"
    assert base_model_of(str(tmp_path), "mine").name == "mine"


def test_models_have_the_published_numbers_of_parameters() -> None:
    published = {
        "llama-3.1-8b": 8_030_261_248,
        "llama-3.1-70b": 70_553_706_496,
        "qwen2.5-7b": 7_615_616_512,
        "qwen2.5-14b": 14_770_033_664,
        "mistral-7b": 7_241_732_096,
        # A head each for queries and keys is normed too, which we leave out: 256 numbers a layer.
        "qwen3-8b": 8_190_735_360 - 36 * 256,
        "qwen3-32b": 32_762_123_264 - 64 * 256,
    }
    assert {name: sum(base_model_of(name).parameters()) for name in published} == published


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": None},
            "hidden_size: not a size of a model (allowed: a whole number up to 10,000,000)",
        ),
        ({"num_hidden_layers": -1}, "num_hidden_layers: not a size of a model (got -1"),
        ({"vocab_size": "many"}, "vocab_size: not a size of a model (got many"),
        ({"num_key_value_heads": 7}, "num_key_value_heads: the heads can't be shared out over the KV heads (got 7"),
        ({"architectures": ["MixtralForCausalLM"]}, "architectures: this architecture is not supported (got Mixtral"),
        ({"architectures": None}, "architectures: this architecture is not supported (allowed: Llama"),
        ({"num_local_experts": 8}, "num_local_experts: mixtures of experts from a file are not supported (got 8); one"),
        ({"num_experts": 64}, "num_experts: mixtures of experts from a file are not supported (got 64)"),
        (
            {"use_sliding_window": True, "sliding_window": 4096},
            "use_sliding_window: layers that attend to a sliding window are not supported",
        ),
    ],
)
def test_a_config_that_describes_no_dense_decoder_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = config(tmp_path, **changes)
    with pytest.raises(InputError) as refused:
        base_model_of(str(path))
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_window_that_is_turned_off_and_no_experts_are_dense(tmp_path: Path) -> None:
    off = config(tmp_path, use_sliding_window=False, sliding_window=131072, num_local_experts=0)
    assert base_model_of(str(off)).name == "qwen2.5-14b"


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
"""Of a checkpoint by llm-compressor."""


@pytest.mark.parametrize(
    ("quantization", "formats"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": GROUP}}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "new", "bits": [3]}, "fp8, fp8-block, int8, int4, nvfp4, mxfp4"),
        ({"quant_method": "gptq", "bits": [3]}, "fp8, fp8-block, int8, int4, nvfp4, mxfp4"),
    ],
)
def test_a_quantised_checkpoint_is_not_built_as_16_bits(
    tmp_path: Path, quantization: dict[str, object], formats: str
) -> None:
    model = base_model_of(str(config(tmp_path, quantization_config=quantization)))
    with pytest.raises(InputError) as refused:
        check_weights(model, "bf16")
    assert str(refused.value) == (
        "--weights: the config.json of qwen2.5-14b is that of a quantised checkpoint (quantization_config) (got bf16, "
        f"allowed: {formats}); or give the config.json of the checkpoint that isn't quantised"
    )
    check_weights(model, formats.partition(",")[0])


@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_a_checkpoint_of_16_bits_may_be_quantised_when_it_is_loaded(tmp_path: Path, weights: str) -> None:
    check_weights(base_model_of(str(config(tmp_path))), weights)


LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 128256,
}


@pytest.mark.parametrize(
    ("folder", "context", "name"),
    [
        ("snapshot", 131_072, "llama-3.1-8b"),
        ("snapshot", 8192, "llama-3-8b"),
        ("Meta-Llama-3.1-8B-Instruct", 8192, "llama-3.1-8b"),
    ],
)
def test_models_of_one_shape_are_told_apart(tmp_path: Path, folder: str, context: int, name: str) -> None:
    (tmp_path / folder).mkdir()
    file = config(tmp_path / folder, **LLAMA_8B, max_position_embeddings=context)
    assert base_model_of(str(file)).name == name


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    path = config(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r"config\.json: --model: this config\.json is not JSON: .*, line 1$"):
        base_model_of(str(path))
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match=r"not the config\.json of a model"):
        base_model_of(str(path))
    with pytest.raises(InputError, match=r"can't read this file .*No such file"):
        base_model_of(str(tmp_path / "nowhere" / "config.json"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Qwen/Qwen2.5-32B-Instruct", "qwen2.5-32b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Llama-3.1-8B", "llama-3.1-8b"),
    ],
)
def test_models_are_named_as_in_scenarios(given: str, name: str) -> None:
    assert base_model_of(given) == base_model_of(name)


def test_engines_are_named_as_in_scenarios() -> None:
    assert [engine_of(name) for name in ("vllm", "vllm-0.32", "SGLang", "sglang-0.5", "tensorrt-llm", "trtllm")] == [
        "vllm",
        "vllm",
        "sglang",
        "sglang",
        "trtllm",
        "trtllm",
    ]


@pytest.mark.parametrize(
    ("name", "measured", "other"),
    [
        ("vllm-0.12", "vLLM 0.24.0", True),
        ("vllm-0.2", "vLLM 0.24.0", True),
        ("tensorrt-llm-1.0", "TensorRT-LLM 1.2.0", True),
        ("vllm-0.24", "vLLM 0.24.0", False),
        ("vLLM-0.24.0", "vLLM 0.24.0", False),
        ("tensorrt-llm", "TensorRT-LLM 1.2.0", False),
        ("vllm", "vLLM 0.24.0", False),
    ],
)
def test_another_version_than_that_of_the_tables_is_said(name: str, measured: str, other: bool) -> None:
    note = f"the kernel tables have no {name}: this profile is of {measured}, the version that they were measured with"
    assert other_version(name, measured) == (note if other else None)


def test_memory_of_several_gpus_is_the_sum() -> None:
    model = base_model_of("llama-3.1-70b")
    memory = memory_of(Deployment(card_of("h100"), model, tensor_parallel=4))
    assert memory.total_bytes == 4 * (card_of("h100").memory_bytes - DRIVER_BYTES)
    assert memory.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2
    assert memory.weights_bytes == 2 * sum(model.parameters())
    # Beyond the model's 8 KV heads every GPU still holds one: copies take memory too.
    wide = memory_of(Deployment(card_of("h100"), model, tensor_parallel=16))
    assert wide.kv_bytes_per_token == 2 * memory.kv_bytes_per_token
    assert wide.weights_bytes - memory.weights_bytes == 2 * 80 * 2 * (8 * 128) * 8192, "k and v once more"


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError) as refused:
        memory_of(Deployment(card_of("h100"), base_model_of("llama-3.1-70b")))
    text = str(refused.value)
    assert text.startswith("--tp: 1 x NVIDIA H100 80GB HBM3 can't hold llama-3.1-70b in bf16: weights take 141 GB")
    assert text.endswith("a larger --tp, a larger --gpu, or --weights fp8")


@pytest.mark.parametrize(
    ("gpu", "weights", "gpus", "hint"),
    [
        ("l40s", "fp8", 1, "; a larger --tp, or a larger --gpu"),
        ("l40s", "bf16", 2, "; a larger --tp, a larger --gpu, or --weights fp8"),
    ],
)
def test_a_hint_does_not_repeat_what_was_tried(gpu: str, weights: str, gpus: int, hint: str) -> None:
    model = base_model_of("llama-3.1-70b")
    with pytest.raises(InputError) as refused:
        memory_of(Deployment(card_of(gpu), model, weights=weights, tensor_parallel=gpus))
    assert str(refused.value).endswith(f"of memory){hint}")


def test_what_is_said_of_memory_is_true_of_the_engine() -> None:
    assert sources_of("vllm") == SOURCES
    for engine, called in (("sglang", "SGLang"), ("trtllm", "TensorRT-LLM")):
        said = sources_of(engine)
        assert said.keys() == SOURCES.keys()
        assert said["memory.slot_layout"] == (
            f"assumed: every adapter takes its exact size; the buffers of {called} were not modelled"
        )
        assert said["memory.utilization"].startswith(f"assumed: vLLM's default; {called} sizes its share")


def test_lora_terms_of_a_measured_model_follow_from_the_other() -> None:
    """Leave one model out: launches and bytes explain what a distinct adapter costs, within a tenth."""
    for name in MEASURED:
        measured = load_profile(MEASURED[name])[0].step.lora
        (other,) = (each for each in MEASURED if each != name)
        predicted = lora_cost(base_model_of(name), H100_64, measured=(other,))
        for rank in (8, 16, 32):
            each = measured.per_adapter_s + rank * measured.per_adapter_max_rank_s
            guess = predicted.per_adapter_s + rank * predicted.per_adapter_max_rank_s
            assert guess == pytest.approx(each, rel=0.1)


def test_lora_terms_scale_by_what_bounds_them() -> None:
    model, card = base_model_of("llama-3.1-8b"), card_of("h100")
    twice = replace(
        card, bandwidth_bytes_per_s=2 * card.bandwidth_bytes_per_s, multiprocessors=2 * card.multiprocessors
    )
    base, fast = lora_cost(model, card), lora_cost(model, twice)
    deep = BaseModel("", SHAPES["llama-3.1-70b"], "LlamaForCausalLM", 8192)
    for term, kind in KINDS.items():
        assert getattr(fast, term) == pytest.approx(
            getattr(base, term) / (1 if kind in ("on", "launches") else 2), rel=1e-5
        )
        assert getattr(lora_cost(deep, card), term) > getattr(base, term)
    assert lora_cost(model, card, gpus=2).per_adapter_max_rank_s < base.per_adapter_max_rank_s
    assert lora_cost(model, card, gpus=2).per_adapter_s == base.per_adapter_s


def test_spreads_cover_what_the_two_measured_models_show() -> None:
    """Two numbers a factor f apart have a standard deviation of ln f over the root of two."""
    for name in MEASURED:
        measured = load_profile(MEASURED[name])[0].step.lora
        (other,) = (each for each in MEASURED if each != name)
        predicted = lora_cost(base_model_of(name), H100_64, measured=(other,))
        for term, kind in KINDS.items():
            apart = abs(math.log(getattr(measured, term) / getattr(predicted, term)))
            assert apart / math.sqrt(2) < math.log(SPREAD_ALIKE[kind]), term
    assert spread_on(card_of("h200")) is SPREAD_ALIKE
    assert spread_on(card_of("b200")) is SPREAD
    assert all(SPREAD[kind] >= SPREAD_ALIKE[kind] for kind in SPREAD)


@pytest.mark.parametrize("name", ["h200", "b200"])
def test_draws_have_the_spreads_of_the_engine_and_of_lora(name: str) -> None:
    card, model = card_of(name), base_model_of("llama-3.1-8b")
    overhead = overhead_of(Deployment(card, model))
    kernels = StepCost(fixed_s=0.006, tokens=((1, 0), (64, 0.0002)), per_kv_token_s=4e-8)
    draws = cost_draws(kernels, overhead, lora_cost(model, card), load_cost(model, card), card)
    steps = [draw.step for draw in draws]
    kv = np.log([step.per_kv_token_s for step in steps])
    # Eight evenly spaced quantiles of a normal distribution have 93 % of its standard deviation.
    assert len(draws) == MAX_DRAWS, "a run simulates all of them"
    assert kv.std() == pytest.approx(overhead.spread, rel=0.1)
    for term, kind in KINDS.items():
        lora = np.log([getattr(step.lora, term) for step in steps])
        assert lora.std() == pytest.approx(math.log(spread_on(card)[kind]), rel=0.1), term
        assert abs(np.corrcoef(kv, lora)[0, 1]) < 0.3, "what is off in one part says nothing about another"


class TwoOps:
    """A double of the package's engine: a matrix product bound by its weights up to 256 tokens, norms, an all-reduce,
    attention of 1 us a sequence and 2 ns a KV token."""

    def mixed_step_breakdown_per_op(self, prompt_tokens: int, decoding: int, context: int, _: int) -> Any:
        tokens = prompt_tokens + decoding
        shared = [
            ("context_qkv_gemm", max(1.0, tokens / 256), 0.0, ""),
            ("context_add_norm_1", tokens * 1e-3, 0.0, ""),
            ("context_ar_1", tokens * 1e-3, 0.0, ""),
        ]
        attention = decoding * 1e-3 + decoding * context * 2e-6
        return shared, [("context_attention", 5.0, 0.0, "")], [("generation_attention", attention, 0.0, "")]


def test_a_slower_memory_slows_down_what_it_bounds() -> None:
    half = OtherMemory(TwoOps(), 2.0)
    norms = 100 * 1e-3
    assert half.extra_ms(100, 0, 0) == pytest.approx(1.0 + norms), "a product that reads weights takes twice as long"
    assert half.extra_ms(384, 0, 0) == pytest.approx(0.5 + 0.384), "one of 384 tokens has less to wait for"
    assert half.extra_ms(1000, 0, 0) == pytest.approx(1.0), "a product of 1,000 tokens is bound by arithmetic"
    assert half.extra_ms(100, 100, 499) == pytest.approx(1.0 + norms + 100 * 500 * 2e-6), "sequences cost no more"
    assert OtherMemory(TwoOps(), 1.0).extra_ms(300, 100, 499) == 0


def test_adapters_of_a_mixture_of_experts_change_its_attention() -> None:
    shape = SHAPES["gpt-oss-120b"]
    attention = 36 * (2880 * 4 + 2 * 4096 + 2 * 512)
    assert parameters_per_rank(shape, "all-linear") == parameters_per_rank(shape, ("q", "k", "v", "o")) == attention
    assert tensor_count(shape, "all-linear") == 2 * 4 * 36
    with pytest.raises(ScenarioError) as refused:
        parameters_per_rank(shape, ("q", "up"))
    assert str(refused.value) == (
        "adapters.targets: gate, up and down of a mixture of experts are its experts (got q, up, allowed: q, k, v, o, "
        "experts, experts-shared-outer, or all-linear for all but the experts)"
    )
    card = card_of("h200")
    dense = BaseModel("", replace(shape, experts=0, active_experts=0), "LlamaForCausalLM", 8192)
    whole, attention_alone = lora_cost(dense, card), lora_cost(base_model_of("gpt-oss-120b"), card)
    assert attention_alone.per_adapter_s == pytest.approx(whole.per_adapter_s / 2, rel=1e-5), "half the kernels"
    per_slot = slots_bytes(shape, 64, 16) / 64
    assert per_slot == pytest.approx(2 * 16 * attention, rel=0.06), "and what the allocator rounds up"


def test_the_load_law_of_a_measured_model_is_the_measured_one() -> None:
    measured = load_profile(MEASURED["llama-3.1-8b"])[0].load
    derived = load_cost(base_model_of("llama-3.1-8b"), ALL["h100-64gb"])
    assert derived.host.bus_bytes_per_s is None
    assert derived.host.open_s == pytest.approx(measured.host.open_s, rel=1e-5)
    assert derived.storage.bandwidth_bytes_per_s == measured.storage.bandwidth_bytes_per_s
    assert derived.storage.residual[0] == pytest.approx(measured.storage.residual[0], rel=1e-3)
    assert derived.storage.residual[-1] == pytest.approx(measured.storage.residual[-1], rel=1e-3)
    assert load_cost(base_model_of("llama-3.1-70b"), ALL["h100-64gb"]).host.open_s > 2 * derived.host.open_s
    buses = {name: load_cost(base_model_of("llama-3.1-8b"), card_of(name)).host.bus_bytes_per_s for name in ALL}
    behind_pcie_4 = {"a100-80gb", "a100-40gb", "a10", "a10g", "a40", "l4", "l40s", "rtx-4090"}
    assert {name for name, bus in buses.items() if bus is not None} == behind_pcie_4


def test_a_surrogate_finds_costs_that_have_its_form() -> None:
    true = StepCost(
        fixed_s=0.006,
        tokens=((1, 0), (64, 0.0002), (256, 0.002), (8192, 0.16), (16384, 0.32)),
        per_sequence_s=4e-6,
        per_kv_token_s=4e-8,
        per_attended_token_s=8e-10,
        prefill_step_s=0.0006,
        decode_step_s=0.0004,
    )
    envelope = StepEnvelope(sequences=512, tokens=8192, context=16384, kv_tokens=400_000)
    found = fit_surrogate(lambda *step: predict(true, [step], 8192)[0], envelope)
    assert found.quantile(1.0) < 0.002
    assert found.step.per_kv_token_s == pytest.approx(true.per_kv_token_s, rel=0.01)
    assert found.step.per_attended_token_s == pytest.approx(true.per_attended_token_s, rel=0.01)
    assert found.step.prefill_step_s == pytest.approx(true.prefill_step_s, rel=0.1)
    assert found.step.decode_step_s == pytest.approx(true.decode_step_s, rel=0.1)
    # A server may be given a larger budget than the one that was fitted: its steps go on growing.
    larger = (0, 0, 1, 12_000, 0)
    assert predict(found.step, [larger], 16_384)[0] == pytest.approx(predict(true, [larger], 16_384)[0], rel=0.01)


def test_engine_overhead_is_added_to_every_term() -> None:
    kernels = StepCost(
        fixed_s=0.006, tokens=((1, 0), (100, 0.01)), per_sequence_s=1e-6, per_kv_token_s=1e-8, prefill_step_s=0.001
    )
    overhead = EngineOverhead(factor=1.1, step_s=0.002, per_sequence_s=2e-5, prefill_step_s=0.003)
    whole = overhead.added_to(kernels)
    for step in ((8, 500, 0, 0, 0), (0, 0, 1, 90, 0), (5, 100, 2, 20, 10)):
        expected = 1.1 * predict(kernels, [step], 200)[0] + 0.002 + 2e-5 * (step[0] + step[2]) + 0.003 * (step[2] > 0)
        assert predict(whole, [step], 200)[0] == pytest.approx(expected, rel=1e-6)
    assert EngineOverhead().added_to(kernels) == kernels
    twice = predict(overhead.added_to(kernels, 2.0), [(8, 500, 0, 0, 0)], 200)[0]
    assert math.isclose(twice, 2 * predict(whole, [(8, 500, 0, 0, 0)], 200)[0], rel_tol=1e-6)


def test_cards_are_those_that_scenarios_know() -> None:
    """A profile's device is its card's label; a scenario finds it by ``fleet.gpu``."""
    sheets = {name for name, card in ALL.items() if not card.system}
    assert CARDS.keys() | SCALED.keys() | sheets == ALL.keys() == GPUS.keys()
