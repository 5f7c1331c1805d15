"""Formats of weights, and which of them a quantised checkpoint has: ``quantization_config`` in its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WEIGHTS = {
    "bf16": "bfloat16",
    "fp8": "fp8",
    "fp8-block": "fp8_block",
    "int8": "int8_wo",
    "int4": "int4_wo",
    "nvfp4": "nvfp4",
    "mxfp4": "bfloat16",
}
"""Formats of the linear layers' weights, by loraplan's name: the name in the tables of matrix products."""
_QUANTISED = tuple(name for name in WEIGHTS if name != "bf16")
_BY_METHOD = {"fbgemm_fp8": "fp8", "mxfp4": "mxfp4"}
_BY_ALGORITHM = {"fp8": "fp8", "nvfp4": "nvfp4"}
_BY_TYPE = {("float", 8): "fp8", ("float", 4): "nvfp4", ("int", 8): "int8", ("int", 4): "int4"}


def formats_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the formats of weights that a model's files may have; empty: they are not quantised.

    A way of quantising that is not known may be any format but 16 bits.
    """
    given = config.get("quantization_config")
    if not isinstance(given, Mapping) or not given:
        return ()
    found = _format_of(given)
    return _QUANTISED if found is None else (found,)


def _format_of(given: Mapping[str, Any]) -> str | None:
    method = str(given.get("quant_method")).lower()
    if method in ("awq", "gptq"):
        return _by_type("int", given.get("bits", given.get("w_bit", 4)))
    if method == "fp8":
        return "fp8-block" if given.get("weight_block_size") else "fp8"
    if method == "compressed-tensors":
        return _compressed(given.get("config_groups"))
    return _BY_METHOD.get(method) or _BY_ALGORITHM.get(str(given.get("quant_algo")).lower())


def _compressed(groups: object) -> str | None:
    """Return the one format of the groups of layers of a checkpoint by llm-compressor."""
    listed = groups.values() if isinstance(groups, Mapping) else ()
    weights = [each.get("weights") if isinstance(each, Mapping) else None for each in listed]
    found = {
        "fp8-block" if each.get("strategy") == "block" else _by_type(each.get("type"), each.get("num_bits"))
        for each in weights
        if isinstance(each, Mapping)
    }
    return found.pop() if len(found) == 1 else None


def _by_type(kind: object, bits: object) -> str | None:
    return _BY_TYPE.get((str(kind), bits if isinstance(bits, int) else 0))
