"""Engines by name. A preset is nothing but values of scenario fields: it fills in those that the scenario leaves out.

The differences between engines, and between versions of one, are these fields and not branches in the code; each rule
was read from the source named beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Preset = Mapping[str, Mapping[str, Any]]
"""Values by section and key, such as ``{"fleet": {"admission": "skip"}}``."""

_VLLM: Preset = {
    # v1/core/sched/scheduler.py: a waiting request whose adapter would be one too many is passed by later ones.
    # lora/worker_manager.py, _apply_adapters: adapters are loaded in the step, one after the other, and the slot of the
    # least recently touched one is taken even if the batch uses it.
    # v1/core/kv_cache_utils.py: block 0 is the null block.
    "fleet": {"admission": "skip", "load_at": "admission", "kv_check": "first-chunk", "reserved_kv_blocks": 1},
    "cache": {"eviction": "vllm-lru"},
    "storage": {"mode": "blocking"},
}


def _changed(preset: Preset, **sections: Mapping[str, Any]) -> Preset:
    """Return a preset with some fields changed."""
    return {name: {**preset.get(name, {}), **sections.get(name, {})} for name in (*preset, *sections)}


PRESETS: dict[str, Preset] = {
    # The plain one, and the defaults of all fields: protected LRU, loads that overlap with steps, skip-over admission.
    "continuous": {},
    # vLLM 0.8.3 to 0.8.5, V1 engine: KV blocks for the first chunk of a prompt suffice to join.
    "vllm-0.8": _VLLM,
    # vLLM 0.32: the whole prompt must fit (scheduler_reserve_full_isl).
    "vllm-0.32": _changed(_VLLM, fleet={"kv_check": "whole-prompt"}),
    # One request at a time with a given service time.
    "fixed": {},
}


def fill(data: Any) -> Any:
    """Return a scenario's plain data with what its engine's preset says of fields that it leaves out.

    Data that is no valid scenario comes back as it is: checking it is another's work.
    """
    if not isinstance(data, dict):
        return data
    fleet = data.get("fleet", {})
    engine = fleet.get("engine") if isinstance(fleet, dict) else None
    preset = PRESETS.get(engine, {}) if isinstance(engine, str) else {}
    filled = dict(data)
    for section, values in preset.items():
        given = data.get(section, {})
        if isinstance(given, dict):
            filled[section] = {**values, **given}
    return filled


def preset_value(engine: str, key: str) -> Any:
    """Return what an engine's preset says of a dotted key, or None."""
    section, _, name = key.partition(".")
    return PRESETS[engine].get(section, {}).get(name)
