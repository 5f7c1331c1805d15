"""What surrounds the kernels of a built profile: cards, models, memory, LoRA, loads. None needs the tables."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from calibrate.kernels.base_models import BaseModel, base_model_of
from calibrate.kernels.cards import CARDS, MIB, Card, card_of
from calibrate.kernels.engine_overhead import EngineOverhead
from calibrate.kernels.kernel_tables import Deployment, check_parallel, engine_of
from calibrate.kernels.load_law import load_cost
from calibrate.kernels.lora_terms import KINDS, MEASURED, lora_cost
from calibrate.kernels.memory_model import memory_of
from calibrate.kernels.surrogate import StepEnvelope, fit_surrogate, predict
from sim.errors import InputError
from sim.policies.kv.kv_memory import kv_tokens_left
from sim.policies.slot_memory import slots_bytes
from sim.spec.gpus import GPUS
from sim.spec.profile import StepCost, load_profile
from sim.studies.fidelity.measured_runs import MODELS
from sim.traffic.adapters import SHAPES

H100_64 = Card("h100-64gb", "", "NVIDIA H100 64GB", 65536 * MIB, 2.0e12, 132)
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


@pytest.mark.parametrize("name", ["h100", "H100-80GB", "h100_sxm", "NVIDIA H100-80GB", "h200", "b200", "a100", "l40s"])
def test_cards_have_the_names_that_people_use(name: str) -> None:
    assert card_of(name).name in CARDS


def test_an_unknown_card_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError) as refused:
        card_of("h100-90gb")
    assert str(refused.value) == (
        "--gpu: there are no kernel tables for this GPU "
        "(got h100-90gb, allowed: a100-80gb, b200, h100-80gb, h200, l40s); did you mean 'h100-80gb'?"
    )


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
    ],
)
def test_a_config_that_describes_no_dense_decoder_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = config(tmp_path, **changes)
    with pytest.raises(InputError) as refused:
        base_model_of(str(path))
    assert str(refused.value).startswith(f"{path}: {message}")


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    path = config(tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(InputError, match=r"this config\.json is damaged"):
        base_model_of(str(path))
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match=r"not the config\.json of a model"):
        base_model_of(str(path))
    with pytest.raises(InputError, match=r"can't read this file .*No such file"):
        base_model_of(str(tmp_path / "nowhere" / "config.json"))


def test_an_unknown_model_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"unknown base model \(got llama-3.1-8bb.*did you mean 'llama-3.1-8b'"):
        base_model_of("llama-3.1-8bb")


@pytest.mark.parametrize(("model", "gpus"), [("llama-3.1-8b", 3), ("qwen2.5-7b", 8), ("llama-3.1-8b", 64)])
def test_gpus_that_do_not_divide_the_heads_are_refused(model: str, gpus: int) -> None:
    with pytest.raises(InputError, match=f"--tp: {model} can't be split over so many GPUs: it has .* heads"):
        check_parallel(base_model_of(model), gpus)


def test_engines_are_named_as_in_scenarios() -> None:
    assert [engine_of(name) for name in ("vllm", "vllm-0.32", "SGLang", "sglang-0.5", "tensorrt-llm", "trtllm")] == [
        "vllm",
        "vllm",
        "sglang",
        "sglang",
        "trtllm",
        "trtllm",
    ]
    with pytest.raises(InputError, match=r"--engine: there are no kernel tables for this engine \(got tgi"):
        engine_of("tgi")


def test_the_memory_model_meets_every_measured_kv_cache_within_5_percent(shared: Path) -> None:
    with open(shared / "vllm_h100" / "kv_capacity.csv", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["status"] == "ok"]
    errors = []
    for row in rows:
        model = base_model_of(MODELS[row["model"]])
        slots, rank = int(row["max_loras"]), int(row["max_lora_rank"]) or 8
        tokens = kv_tokens_left(memory_of(Deployment(H100_64, model)), slots_bytes(model.shape, slots, rank))
        errors.append(tokens / float(row["kv_cache_tokens"]) - 1)
    assert len(errors) >= 65
    assert np.abs(errors).max() < 0.05


def test_memory_of_several_gpus_is_the_sum() -> None:
    model = base_model_of("llama-3.1-70b")
    memory = memory_of(Deployment(card_of("h100"), model, tensor_parallel=4))
    assert memory.total_bytes == 4 * card_of("h100").memory_bytes
    assert memory.kv_bytes_per_token == 2 * 80 * 8 * 128 * 2
    assert memory.weights_bytes == 2 * sum(model.parameters())
    # Beyond the model's 8 KV heads every GPU still holds one: copies take memory too.
    wide = memory_of(Deployment(card_of("h100"), model, tensor_parallel=16))
    assert wide.kv_bytes_per_token == 2 * memory.kv_bytes_per_token


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError) as refused:
        memory_of(Deployment(card_of("h100"), base_model_of("llama-3.1-70b")))
    text = str(refused.value)
    assert text.startswith("--tp: 1 x NVIDIA H100 80GB HBM3 can't hold llama-3.1-70b in bf16: weights take 141 GB")
    assert text.endswith("a larger --tp, a larger --gpu, or --weights fp8")


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
    twice = Card("", "", "", card.memory_bytes, 2 * card.bandwidth_bytes_per_s, 2 * card.multiprocessors)
    base, fast = lora_cost(model, card), lora_cost(model, twice)
    deep = BaseModel("", SHAPES["llama-3.1-70b"], "LlamaForCausalLM", 8192)
    for term, kind in KINDS.items():
        assert getattr(fast, term) == pytest.approx(getattr(base, term) / (1 if kind == "launches" else 2), rel=1e-5)
        assert getattr(lora_cost(deep, card), term) > getattr(base, term)
    assert lora_cost(model, card, gpus=2).per_adapter_max_rank_s < base.per_adapter_max_rank_s
    assert lora_cost(model, card, gpus=2).per_adapter_s == base.per_adapter_s


def test_the_load_law_of_a_measured_model_is_the_measured_one() -> None:
    measured = load_profile(MEASURED["llama-3.1-8b"])[0].load
    derived = load_cost(base_model_of("llama-3.1-8b"))
    assert derived.host.open_s == pytest.approx(measured.host.open_s, rel=1e-5)
    assert derived.storage.bandwidth_bytes_per_s == measured.storage.bandwidth_bytes_per_s
    assert derived.storage.residual[0] == pytest.approx(measured.storage.residual[0], rel=1e-3)
    assert derived.storage.residual[-1] == pytest.approx(measured.storage.residual[-1], rel=1e-3)
    assert load_cost(base_model_of("llama-3.1-70b")).host.open_s > 2 * derived.host.open_s


def test_a_surrogate_finds_costs_that_have_its_form() -> None:
    true = StepCost(
        fixed_s=0.006,
        tokens=((1, 0), (64, 0.0002), (256, 0.002), (8192, 0.16), (16384, 0.32)),
        per_sequence_s=4e-6,
        per_kv_token_s=4e-8,
        per_attended_token_s=8e-10,
        prefill_step_s=0.0006,
    )
    envelope = StepEnvelope(sequences=512, tokens=8192, context=16384, kv_tokens=400_000)
    found = fit_surrogate(lambda *step: predict(true, [step], 8192)[0], envelope)
    assert found.quantile(1.0) < 0.002
    assert found.step.per_kv_token_s == pytest.approx(true.per_kv_token_s, rel=0.01)
    assert found.step.per_attended_token_s == pytest.approx(true.per_attended_token_s, rel=0.01)
    assert found.step.prefill_step_s == pytest.approx(true.prefill_step_s, rel=0.1)


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


def test_cards_have_the_names_and_labels_that_scenarios_know() -> None:
    """A profile's device is its card's label; a scenario finds it by ``fleet.gpu``."""
    assert {name: card.label for name, card in CARDS.items()} == {
        gpu.name: gpu.label for gpu in GPUS.values() if gpu.tables
    }
