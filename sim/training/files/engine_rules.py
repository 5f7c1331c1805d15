"""What each serving engine supports in adapters, each rule with the source file it was read from.

``engine_checks`` uses these rules. Anything not found in a source is ``unknown``, and reported so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from sim.spec.engine_flags.options import VLLM_RANKS

Extra = Literal[
    "DoRA",
    "rsLoRA",
    "saved modules",
    "saved embeddings",
    "LoRA on embeddings",
    "rank pattern",
    "alpha pattern",
    "bias",
    "trained tokens",
    "part of the layers",
]
"""What an adapter may have besides one pair of matrices of one rank for each module."""

EXTRAS: tuple[Extra, ...] = get_args(Extra)

Verdict = Literal["served", "refused", "wrong", "unknown"]
"""``refused``: the engine stops with an error; ``wrong``: it serves, and leaves a part out or scales it wrongly."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What an engine does with one extra.

    :ivar words: in a sentence that follows "the engine"; ``source``: file of its repository.
    """

    verdict: Verdict
    words: str = ""
    source: str = ""


UNKNOWN = Rule("unknown", "was not looked up")


@dataclass(frozen=True, slots=True)
class EngineRules:
    """What an engine supports.

    :ivar rank_choices: values that its largest rank may be set to, rising; empty: any.
    :ivar rank_option: the option that sets it, or "".
    :ivar slots_hold: what a slot is as large as: ``all``: every module at the largest rank; ``targets``: the modules
        that any adapter has, at the largest rank; ``adapter``: the adapter itself; ``unknown``.
    :ivar modules: the modules it can serve, by their last names; empty: all linear layers that its model has.
    :ivar other_modules: what becomes of an adapter that has others.
    :ivar needed_modules: modules without which an adapter is refused.
    :ivar extras: rules by extra; one that is missing is unknown.
    :ivar source: of the ranks, slots and modules.
    """

    rank_choices: tuple[int, ...] = ()
    rank_option: str = ""
    slots_hold: Literal["all", "targets", "adapter", "unknown"] = "unknown"
    modules: tuple[str, ...] = ()
    other_modules: Verdict = "unknown"
    needed_modules: tuple[str, ...] = ()
    extras: Mapping[Extra, Rule] = field(default_factory=dict)
    source: str = ""

    def rule(self, extra: Extra) -> Rule:
        """Return what it does with an extra."""
        return self.extras.get(extra, UNKNOWN)


_HELPER, _MODEL = "vllm/lora/peft_helper.py", "vllm/lora/lora_model.py"
_ONE_SCALE = "scales every module by alpha / r of the configuration"

VLLM_0_8 = EngineRules(
    # vllm/config.py, LoRAConfig: possible_max_ranks
    rank_choices=VLLM_RANKS,
    rank_option="--max-lora-rank",
    # lora/layers.py, create_lora_weights: stacked buffers of max_lora_rank for every layer that can have LoRA
    slots_hold="all",
    extras={
        "DoRA": Rule("refused", "does not yet support DoRA", _HELPER),
        "rsLoRA": Rule("served", "scales by alpha / sqrt(r)", _HELPER),
        "saved modules": Rule("refused", "only supports modules_to_save being None", _HELPER),
        "rank pattern": Rule("wrong", _ONE_SCALE, _HELPER),
        "alpha pattern": Rule("wrong", _ONE_SCALE, _HELPER),
        "bias": Rule("refused", "takes a bias only with --enable-lora-bias", _HELPER),
        "LoRA on embeddings": Rule(
            "served",
            "takes them where its model class has embedding_modules (Llama's has, Qwen2's has not)",
            "vllm/lora/models.py",
        ),
        "part of the layers": Rule("served", "leaves the slot's other layers at zero", "vllm/lora/models.py"),
    },
    source="vllm/config.py, vllm/lora/layers.py",
)

VLLM_0_32 = replace(
    VLLM_0_8,
    rank_choices=(1, *VLLM_RANKS),
    extras={
        **VLLM_0_8.extras,
        "bias": Rule("refused", "does not support an adapter's bias", _HELPER),
        "saved embeddings": Rule(
            "wrong", "leaves them out (is_base_embedding_weights) and keeps the base model's", _MODEL
        ),
        "LoRA on embeddings": Rule("served", "takes them where the vocabulary is the base model's", _MODEL),
        "part of the layers": Rule("served", "leaves the slot's other layers at zero", "vllm/lora/model_manager.py"),
    },
    source="vllm/config/lora.py, vllm/lora/layers/base_linear.py",
)

# What 0.8 and 0.32 have in common; the versions between them were not read for this.
VLLM_BETWEEN = replace(
    VLLM_0_8,
    extras={
        **{extra: rule for extra, rule in VLLM_0_8.extras.items() if rule == VLLM_0_32.extras.get(extra)},
        "bias": Rule("refused", "takes a bias only in older versions, with --enable-lora-bias", _HELPER),
        "LoRA on embeddings": Rule("served", "takes them under a condition that depends on the version"),
        "part of the layers": Rule("served", "leaves the slot's other layers at zero"),
    },
)

_SGLANG_SCALE = Rule("unknown", "reads it in newer versions (lora_config.py); what this one does was not looked up")
SGLANG = EngineRules(
    rank_option="--max-lora-rank",
    # lora/mem_pool.py: buffers of max_lora_rank for the target modules of --lora-target-modules, or of all adapters
    slots_hold="targets",
    # lora/utils.py, get_normalized_target_modules and _KNOWN_LORA_TARGET_MODULES, as far as dense decoders have them
    modules=(
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "out_proj", "gate_proj", "up_proj"),
        *("gate_up_proj", "down_proj", "embed_tokens", "lm_head", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"),
        *("kv_b_proj", "in_proj", "in_proj_qkv", "in_proj_q", "in_proj_k", "in_proj_v", "in_proj_z"),
    ),
    other_modules="refused",
    extras={
        "DoRA": Rule("refused", "doesn't support DoRA adapters", "python/sglang/srt/lora/lora_manager.py"),
        "rsLoRA": Rule("wrong", "reads no use_rslora and scales by alpha / r", "python/sglang/srt/lora/lora.py"),
        "rank pattern": _SGLANG_SCALE,
        "alpha pattern": _SGLANG_SCALE,
        "LoRA on embeddings": Rule("served", "takes embed_tokens and lm_head", "python/sglang/srt/lora/utils.py"),
    },
    source="python/sglang/srt/lora/mem_pool.py, python/sglang/srt/lora/utils.py",
)

_SLORA_LAYER = "slora/models/peft/layer_weights/lora_layer_weight.py"
_SLORA_SCALE = Rule("wrong", _ONE_SCALE, "slora/models/peft/lora_adapter.py")
S_LORA = EngineRules(
    slots_hold="adapter",  # common/mem_allocator.py: pages of one pool, as many as the adapter's rank needs
    modules=("q_proj", "k_proj", "v_proj", "o_proj"),
    other_modules="wrong",
    needed_modules=("q_proj", "k_proj", "v_proj", "o_proj"),  # load_hf_weights_cpu concatenates all four
    extras={
        "DoRA": Rule("wrong", "reads lora_A and lora_B only, so the magnitudes are left out", _SLORA_LAYER),
        "rsLoRA": Rule("wrong", "scales by alpha / r", "slora/models/peft/lora_adapter.py"),
        "saved modules": Rule("wrong", "leaves them out", _SLORA_LAYER),
        "saved embeddings": Rule("wrong", "leaves them out", _SLORA_LAYER),
        "LoRA on embeddings": Rule("wrong", "leaves them out", _SLORA_LAYER),
        "rank pattern": _SLORA_SCALE,
        "alpha pattern": _SLORA_SCALE,
        "bias": Rule("wrong", "leaves it out", _SLORA_LAYER),
        "part of the layers": Rule("refused", "needs all four matrices in every layer", _SLORA_LAYER),
    },
    source=_SLORA_LAYER,
)

_LORAX_LORA = "server/lorax_server/adapters/lora.py"
_LORAX_SCALE = Rule("wrong", _ONE_SCALE, _LORAX_LORA)
LORAX = EngineRules(
    slots_hold="adapter",  # utils/sgmv.py, pad_rank: each adapter padded to 8 or a multiple of 16 of its own rank
    modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    other_modules="wrong",
    extras={
        "DoRA": Rule("wrong", "maps lora_A and lora_B only, so the magnitudes are left out", _LORAX_LORA),
        "rsLoRA": Rule("served", "scales by alpha / sqrt(r)", _LORAX_LORA),
        "saved modules": Rule("wrong", "leaves them out", _LORAX_LORA),
        "saved embeddings": Rule("wrong", "leaves them out", _LORAX_LORA),
        "rank pattern": _LORAX_SCALE,
        "alpha pattern": _LORAX_SCALE,
        "bias": Rule("wrong", "leaves it out", _LORAX_LORA),
        "part of the layers": Rule("wrong", "leaves a module out altogether unless every layer has it", _LORAX_LORA),
    },
    source="server/lorax_server/models/flash_llama.py, server/lorax_server/utils/sgmv.py",
)

_TRT = "tensorrt_llm/lora_manager.py"
TENSORRT_LLM = EngineRules(
    rank_option="max_lora_rank",
    slots_hold="adapter",  # cpp/tensorrt_llm/runtime/loraCache.cpp: pages by the adapter's own module sizes
    # get_default_trtllm_modules_to_hf_modules; keys of embed_tokens and lm_head are passed over
    modules=(
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1"),
        *("w2", "w3", "gate", "embed_tokens", "lm_head"),
    ),
    other_modules="refused",
    extras={
        "DoRA": Rule("served", "takes magnitudes, but not with experts", _TRT),
        "rsLoRA": Rule("served", "scales by alpha / sqrt(rank)", _TRT),
        "rank pattern": Rule("served", "takes each module's own rank", _TRT),
        "alpha pattern": Rule("wrong", "reads lora_alpha only", _TRT),
        "LoRA on embeddings": Rule("wrong", "passes them over", _TRT),
        "saved modules": Rule(
            "unknown", "reads embed_tokens and lm_head of the first adapter alone; others were not looked up", _TRT
        ),
        "saved embeddings": Rule("wrong", "passes them over", _TRT),
        "bias": Rule("refused", "stops at keys it doesn't know", _TRT),
        "part of the layers": Rule("served", "keeps ranks layer by layer", _TRT),
    },
    source=_TRT,
)

# No real engine: the simulator's own slots hold every module at the largest rank.
CONTINUOUS = EngineRules(slots_hold="all", source="docs/model.md")
FIXED = EngineRules(slots_hold="adapter", source="docs/model.md")
