"""The base model of a profile: a name that loraplan knows, or the ``config.json`` of any dense decoder.

One mixture of experts is known by its name, gpt-oss-120b: the only one that servers were measured with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.errors import InputError, did_you_mean
from sim.reading import MANIFEST_BYTES, brackets_fit, read_regular
from sim.spec.profile_choice import BASE_MODELS, is_model, plain_name
from sim.traffic.adapters import SHAPES, ModelShape

# Formats of weights, and which of them a quantised checkpoint has: ``quantization_config`` in its ``config.json``.

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


FAMILIES = {
    "LlamaForCausalLM": ModelShape(1, 1, 1, 1, 1, lora_embeddings=True),
    "MistralForCausalLM": ModelShape(1, 1, 1, 1, 1, lora_embeddings=True),
    "Qwen2ForCausalLM": ModelShape(1, 1, 1, 1, 1, qkv_bias=True),
    "Qwen3ForCausalLM": ModelShape(1, 1, 1, 1, 1),
}
"""Architectures whose layers are those of ``ModelShape``, and what else their shape says."""
_LARGEST = 10_000_000
_CONTEXT = 32_768
_LONGEST = {"llama-3-8b": 8192, "llama-3-70b": 8192}
"""Longest sequences of models that a later one, of the same shape, goes beyond."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A decoder.

    :ivar name: as in ``adapters.base_model``.
    :ivar context: longest sequence, in tokens.
    :ivar tied: whether the output head is the embedding.
    :ivar window: tokens that every other layer attends to; 0: all layers attend to all tokens.
    :ivar formats: formats of weights that its files may have; empty: any.
    """

    name: str
    shape: ModelShape
    architecture: str
    context: int
    tied: bool = False
    window: int = 0
    formats: tuple[str, ...] = ()

    @property
    def kv_layers(self) -> int:
        """Layers whose KV cache grows with a sequence."""
        return self.shape.layers // 2 if self.window else self.shape.layers

    def active_parameters(self) -> int:
        """Return the parameters that one token passes."""
        linear, rest = replace(self, shape=replace(self.shape, experts=self.shape.active_experts)).parameters()
        return linear + rest

    def config(self) -> dict[str, Any]:
        """Return its ``config.json``, as far as kernel tables need it."""
        shape, kinds = self.shape, ("sliding_attention", "full_attention")
        mixture = {
            "num_local_experts": shape.experts,
            "num_experts_per_tok": shape.active_experts,
            "experts_per_token": shape.active_experts,
            "sliding_window": self.window,
            "layer_types": [kinds[layer % 2] for layer in range(shape.layers)],
        }
        return {
            # Mistral's layers are Llama's; the kernel tables know the latter.
            "architectures": [self.architecture.replace("Mistral", "Llama")],
            "num_hidden_layers": shape.layers,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "vocab_size": shape.vocab,
            "max_position_embeddings": self.context,
            "torch_dtype": "bfloat16",
            **(mixture if shape.experts else {}),
        }

    def parameters(self) -> tuple[int, int]:
        """Return the parameters of the decoder's linear layers, and all others."""
        shape = self.shape
        linear = shape.layers * shape.linear_parameters()
        norms = shape.hidden * (2 * shape.layers + 1)
        biases = shape.layers * shape.qkv_bias * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        embeddings = shape.vocab * shape.hidden * (1 if self.tied else 2)
        return linear, norms + biases + embeddings


def base_model_of(given: str, name: str | None = None) -> BaseModel:
    """Return the base model that a user names: ``llama-3.1-8b``, a ``config.json``, or a folder that has one.

    Names on Hugging Face are understood as scenarios understand them: ``Qwen/Qwen2.5-32B-Instruct``.

    :param name: what to call a model of a ``config.json``; unset: the known model of the same shape, or the
        folder's name.
    :raises InputError: for an unknown name, or a file that describes no dense decoder; key ``--model``; a known
        model with a ``name``; key ``--name``.
    """
    file = config_file(given)
    if file is not None:
        return _from_file(file, name)
    found = next((each for each in BASE_MODELS if is_model(given.strip(), each)), None)
    if found is None:
        raise InputError(
            "neither a known base model, nor a file or folder" if "/" in given else "unknown base model",
            key="--model",
            got=given,
            allowed=", ".join(BASE_MODELS),
            hint=did_you_mean(plain_name(given.strip()), BASE_MODELS)
            or "or give its config.json, or the folder of its weights",
        )
    if name is not None:
        raise InputError(
            f"{found} has its name already; only the model of a config.json is given one",
            key="--name",
            got=name,
            hint="remove it, or give a config.json as --model",
        )
    return _known(found)


def config_file(given: str) -> Path | None:
    """Return the ``config.json`` that a user gives as a base model, also by its folder; None: it is a name."""
    path = Path(given)
    if path.is_dir():
        return path / "config.json"
    return path if path.suffix == ".json" or path.exists() else None


def _known(name: str) -> BaseModel:
    shape = SHAPES[name]
    if shape.experts:
        return BaseModel(name, shape, "GptOssForCausalLM", _CONTEXT, window=128)
    family = "Qwen3" if name.startswith("qwen3") else "Qwen2" if name.startswith("qwen") else "Llama"
    return BaseModel(name, shape, f"{family}ForCausalLM", _CONTEXT)


def _from_file(path: Path, name: str | None) -> BaseModel:
    data = _read(path)
    architecture = _architecture(data, path)
    _check_dense(data, path)
    heads = _count(data, "num_attention_heads", path)
    hidden = _count(data, "hidden_size", path)
    shape = replace(
        FAMILIES[architecture],
        hidden=hidden,
        intermediate=_count(data, "intermediate_size", path),
        layers=_count(data, "num_hidden_layers", path),
        heads=heads,
        kv_heads=_count(data, "num_key_value_heads", path, heads),
        head_dim=_count(data, "head_dim", path, hidden // heads),
        vocab=_count(data, "vocab_size", path),
    )
    if shape.heads % shape.kv_heads:
        raise InputError(
            "the heads can't be shared out over the KV heads",
            key="num_key_value_heads",
            got=shape.kv_heads,
            allowed=f"a divisor of num_attention_heads ({shape.heads})",
            file=str(path),
        )
    context = _count(data, "max_position_embeddings", path, _CONTEXT)
    called = name or _name_of(shape, context, path)
    return BaseModel(
        called, shape, architecture, context, data.get("tie_word_embeddings") is True, formats=formats_of(data)
    )


def _name_of(shape: ModelShape, context: int, path: Path) -> str:
    folder = path.resolve().parent.name.lower()
    alike = [known for known, other in SHAPES.items() if other == shape]
    named = [known for known in alike if is_model(folder, known)]
    long_enough = [known for known in alike if context <= _LONGEST.get(known, context)]
    return (named or long_enough or [folder])[0]


def _check_dense(data: Mapping[str, Any], path: Path) -> None:
    """Refuse what a supported architecture's name hides: experts, and layers that attend to a window."""
    for key in ("num_local_experts", "num_experts"):
        if isinstance(data.get(key), int) and data[key] > 1:
            raise InputError(
                "mixtures of experts from a file are not supported",
                key=key,
                got=data[key],
                file=str(path),
                hint="one is known by its name: --model gpt-oss-120b",
            )
    if data.get("use_sliding_window") is True and data.get("sliding_window"):
        raise InputError(
            "layers that attend to a sliding window are not supported: kernel tables would count all tokens",
            key="use_sliding_window",
            got="true",
            allowed="false",
            file=str(path),
            hint="if the server turns the window off, set it to false in a copy of this file",
        )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        raw = read_regular(path, MANIFEST_BYTES)
    except OSError as error:
        raise InputError("can't read this file", key="--model", got=str(path), hint=error.strerror) from None
    try:
        data = json.loads(raw) if brackets_fit(raw) else None
    except (ValueError, RecursionError) as error:
        where = f": {error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"this config.json is not JSON{where}", key="--model", file=str(path)) from None
    if not isinstance(data, dict):
        raise InputError("not the config.json of a model", key="--model", got=str(path), allowed="a JSON object")
    return data


def _architecture(data: Mapping[str, Any], path: Path) -> str:
    given = data.get("architectures")
    first = given[0] if isinstance(given, list) and given else None
    if isinstance(first, str) and first in FAMILIES:
        return first
    raise InputError(
        "this architecture is not supported",
        key="architectures",
        got=first,
        allowed=", ".join(FAMILIES),
        file=str(path),
        hint="profiles are built for dense decoders, and for one mixture of experts: --model gpt-oss-120b",
    )


def _count(data: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = data.get(key, default)
    if value is None:
        value = default
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST:
        return value
    raise InputError(
        "not a size of a model", key=key, got=value, allowed=f"a whole number up to {_LARGEST:,}", file=str(path)
    )
