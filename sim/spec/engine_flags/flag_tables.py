"""The tables of options by engine."""

from __future__ import annotations

from sim.spec.engine_flags.other_flags import LORAX, S_LORA, TENSORRT_LLM
from sim.spec.engine_flags.sglang_flags import SGLANG
from sim.spec.engine_flags.vllm_flags import VLLM
from sim.spec.registry import Registry

FLAGS = Registry("engine with options", (VLLM, SGLANG, S_LORA, LORAX, TENSORRT_LLM))
