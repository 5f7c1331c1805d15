"""Finds the command line of an engine in a Kubernetes manifest, or in values of the vLLM production stack's chart."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.reading import read_regular
from sim.spec.engine_flags.command_lines import starts_engine
from sim.spec.gpus import gpu_named

MANIFEST_BYTES = 4 << 20
"""Bytes of a manifest, at most."""
_DEEPEST = 40


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a manifest says of an engine.

    :ivar words: its command line.
    :ivar replicas: how many there are; None: it doesn't say.
    :ivar gpu: the GPU that it asks for, as ``fleet.gpu`` has it; None: it doesn't say, or none of ours.
    """

    words: tuple[str, ...]
    replicas: int | None
    gpu: str | None


def read_manifest(file: Path) -> list[Deployment]:
    """Return every engine that a manifest starts.

    :raises InputError: if it is no YAML, or starts none.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = read_regular(file, MANIFEST_BYTES).decode("utf-8")
        documents = list(YAML(typ="safe", pure=True).load_all(text))
    except OSError as error:
        raise InputError("the manifest can't be read", file=str(file), got=error.strerror or str(error)) from None
    except (YAMLError, ValueError, RecursionError) as error:
        hint = "a chart's templates are no YAML: give its values, or what helm template prints"
        raise InputError("not YAML", file=str(file), got=str(error).split("\n")[0], hint=hint) from None
    found = [each for document in documents for each in _deployments(document, None, _gpu(document), 0)]
    if not found:
        raise InputError(
            "no container starts vLLM or SGLang",
            file=str(file),
            allowed="command and args of a container, or vllmConfig of the vLLM production stack's values",
        )
    return found


def _deployments(value: Any, replicas: int | None, gpu: str | None, depth: int) -> Iterator[Deployment]:
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for each in value:
            yield from _deployments(each, replicas, gpu, depth + 1)
    if not isinstance(value, Mapping):
        return
    count = value.get("replicas", value.get("replicaCount"))
    replicas = count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else replicas
    is_chart = "modelURL" in value or isinstance(value.get("vllmConfig"), Mapping)
    words = _chart_words(value) if is_chart else _container_words(value)
    if starts_engine(words):
        yield Deployment(tuple(words), replicas, _gpu(value) or gpu)
        return
    for each in value.values():
        yield from _deployments(each, replicas, gpu, depth + 1)


def _container_words(container: Mapping[str, Any]) -> list[str]:
    """Return the image, the command and the arguments of a container; a script of a shell is split."""
    if not ("command" in container or "args" in container):
        return []
    words = [container["image"]] if isinstance(container.get("image"), str) else []
    for key in ("command", "args"):
        part = container.get(key)
        for word in [part] if isinstance(part, str) else part if isinstance(part, list) else []:
            text = str(word)
            words += _split(text) if re.search(r"\s", text) and "--" in text else [text]
    return words


def _chart_words(spec: Mapping[str, Any]) -> list[str]:
    """Return the command line that the chart of the vLLM production stack makes of a model's values.

    Source: ``helm/templates/deployment-vllm-multi.yaml`` of vllm-project/production-stack. Unless the values enable it,
    it turns prefix caching off.
    """
    image = [f"{spec['repository']}:{spec['tag']}"] if "repository" in spec and "tag" in spec else []
    words = [*image, "vllm", "serve", str(spec.get("modelURL", ""))]
    if spec.get("enableLoRA") is True:
        words.append("--enable-lora")
    config = spec.get("vllmConfig")
    if not isinstance(config, Mapping):
        return words
    for key, value in {"enablePrefixCaching": False, **config}.items():
        if key == "extraArgs" and isinstance(value, list):
            words += [str(word) for word in value]
        elif value is True or value is False:
            words.append(f"--{'' if value else 'no-'}{_dashed(str(key))}")
        elif isinstance(value, (str, int, float)) and key not in ("v0", "v1", "hf_token"):
            words.append(f"--{_dashed(str(key))}={value}")
    return words


def _dashed(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", key).lower()


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError:
        return text.split()


def _gpu(value: Any, depth: int = 0) -> str | None:
    """Return the first GPU of ours that a node selector, an affinity or a chart's value names."""
    if isinstance(value, str):
        known = gpu_named(value)
        return None if known is None else known.name
    if depth > _DEEPEST or not isinstance(value, (Mapping, list)):
        return None
    parts = value.values() if isinstance(value, Mapping) else value
    return next((found for each in parts if (found := _gpu(each, depth + 1))), None)
