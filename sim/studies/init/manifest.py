"""Finds engines in manifests: their command lines, replicas, GPUs and router.

Of Kubernetes, Compose, KServe, and values of the vLLM production stack's chart.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.spec.engine_flags.command_lines import engine_words_of, script_of_shell, starts_engine
from sim.spec.gpus import gpu_named
from sim.studies.deploy.picker import documents_of

_DEEPEST = 40
_GPU_COUNTS = ("nvidia.com/gpu", "amd.com/gpu", "requestGPU")


@dataclass(frozen=True, slots=True)
class FoundEngine:
    """What a manifest says of an engine.

    :ivar words: its command line.
    :ivar replicas: how many there are, or the fewest; None: it doesn't say.
    :ivar most: to how many it scales; None: it doesn't say.
    :ivar gpu: the GPU that it asks for, as ``fleet.gpu`` has it; None: it doesn't say, or none of ours.
    :ivar gpus: how many it asks for; None: it doesn't say.
    :ivar routing: the logic of the production stack's router before it, such as ``session``; empty: there is none.
    :ivar prefill: whether engines for prefill alone stand before it.
    """

    words: tuple[str, ...]
    replicas: int | None
    most: int | None
    gpu: str | None
    gpus: int | None
    routing: str = ""
    prefill: bool = False


def read_manifest(file: Path) -> list[FoundEngine]:
    """Return every engine that a manifest starts.

    :raises InputError: if it is no YAML, or starts none.
    """
    documents = [*documents_of(file)]
    scaled = dict(scales for document in documents if (scales := _autoscaler(document)) is not None)
    routing = next((logic for document in documents if (logic := _routing(document, 0))), "")
    found = []
    for document in documents:
        least, most = scaled.get(_text_at(document, "metadata", "name"), (None, None))
        found += [
            replace(each, replicas=least or each.replicas, most=most or each.most, routing=routing)
            for each in _engines_in(document, None, None, _gpu(document), 0)
        ]
    if not found:
        raise InputError(
            "no container starts vLLM or SGLang",
            file=str(file),
            allowed="command and args of a container, vllmConfig of the vLLM production stack's values, or a model of "
            "KServe with the format huggingface or vLLM",
        )
    return found


def _autoscaler(document: Any) -> tuple[str, tuple[int | None, int | None]] | None:
    """Return the name of what an autoscaler of Kubernetes or KEDA scales, and from how many to how many replicas."""
    target = _text_at(document, "spec", "scaleTargetRef", "name")
    if not target:
        return None
    spec = document["spec"]
    least, most = _count(spec, "minReplicas", "minReplicaCount"), _count(spec, "maxReplicas", "maxReplicaCount")
    return target, (least, most)


def _text_at(value: Any, *keys: str) -> str:
    """Return the text at a path of keys; empty where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def _engines_in(
    value: Any, replicas: int | None, most: int | None, gpu: str | None, depth: int
) -> Iterator[FoundEngine]:
    if depth > _DEEPEST:
        return
    if isinstance(value, list):
        for each in value:
            yield from _engines_in(each, replicas, most, gpu, depth + 1)
    if not isinstance(value, Mapping):
        return
    replicas = _count(value, "replicas", "replicaCount", "minReplicas") or replicas
    if "image" in value:  # a service of Compose
        deploy = value.get("deploy")
        counts = {**(deploy if isinstance(deploy, Mapping) else {}), **value}
        replicas = _count(counts, "replicas", "scale") or replicas
    most = _count(value, "maxReplicas") or most
    pod: Mapping[str, Any] = value
    if "modelURL" in value or isinstance(value.get("vllmConfig"), Mapping):
        words = _chart_words(value)
    elif _text_at(value, "modelFormat", "name").lower() in ("huggingface", "vllm"):
        words = _kserve_words(value)
    elif uri := _text_at(value, "model", "uri"):
        pod = next(iter(_containers(value.get("template"))), {})
        words = _llm_service_words(uri, value["model"], pod)
    else:
        words = _container_words(value)
    if starts_engine(words):
        prefill = pod is not value and isinstance(value.get("prefill"), Mapping)
        yield FoundEngine(tuple(words), replicas, most, _gpu(pod) or gpu, _gpu_count(pod), prefill=prefill)
        return
    for each in value.values():
        yield from _engines_in(each, replicas, most, gpu, depth + 1)


def _count(value: Mapping[str, Any], *keys: str) -> int | None:
    counts = (value.get(key) for key in keys)
    return next((each for each in counts if isinstance(each, int) and not isinstance(each, bool) and each > 0), None)


def _containers(template: Any) -> list[Mapping[str, Any]]:
    listed = template.get("containers") if isinstance(template, Mapping) else None
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def _container_words(container: Mapping[str, Any]) -> list[str]:
    if not ("command" in container or "args" in container):
        return []
    words = _words_of(container, [container["image"]] if isinstance(container.get("image"), str) else [])
    try:
        return engine_words_of(words)
    except ValueError:  # a script that no shell would take
        return words


def _words_of(container: Mapping[str, Any], before: list[str]) -> list[str]:
    """Return the words of a container's command behind others, with the values that it gives its variables."""
    words, variables = [*before], _variables(container)
    for key in ("command", "args"):
        part = container.get(key)
        for word in [part] if isinstance(part, str) else part if isinstance(part, list) else []:
            text = _VARIABLE.sub(lambda found: variables.get(found[1] or found[2] or found[3], found[0]), str(word))
            shell = script_of_shell([*words, text])
            is_script = shell is not None and shell[1] == len(words)
            words += _split(text) if re.search(r"\s", text) and "--" in text and not is_script else [text]
    return words


_VARIABLE = re.compile(r"\$(?:\((\w+)\)|\{(\w+)\}|([A-Za-z_]\w*))")


def _variables(container: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that a container's words may name, with the values that it gives."""
    given = container.get("env")
    pairs = [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    return {str(pair.get("name")): str(pair["value"]) for pair in pairs if "value" in pair}


def _kserve_words(model: Mapping[str, Any]) -> list[str]:
    """Return the command line that KServe's runtime makes of a model of an ``InferenceService``.

    Source: ``python/huggingfaceserver`` of kserve: vLLM is its backend for models that generate, and takes its options.
    """
    names = {"--model_id": "--model", "--model_dir": "--model", "--model_name": "--served-model-name"}
    words = [re.sub("^--model_(id|dir|name)", lambda found: names[found[0]], word) for word in _words_of(model, [])]
    if "--backend=huggingface" in words:
        return []
    if stored := _text_at(model, "storageUri"):
        words.append(f"--model={stored.removeprefix('hf://')}")
    return ["vllm", "serve", *(word for word in words if not re.match("--backend=(auto|vllm)$", word))]


def _llm_service_words(uri: str, model: Mapping[str, Any], container: Mapping[str, Any]) -> list[str]:
    """Return the command line that KServe makes of an ``LLMInferenceService``, whose template starts vLLM."""
    adapters = isinstance(model.get("lora"), Mapping)
    words = [word for word in _words_of(container, []) if word not in ("vllm", "serve")]
    more = _split(_variables(container).get("VLLM_ADDITIONAL_ARGS", ""))
    return ["vllm", "serve", uri.removeprefix("hf://"), *(["--enable-lora"] if adapters else []), *words, *more]


def _routing(value: Any, depth: int) -> str:
    """Return the logic of the production stack's router, from values of its chart or from its command line."""
    if depth > _DEEPEST or not isinstance(value, (Mapping, list)):
        return ""
    if isinstance(value, Mapping):
        if logic := _text_at(value, "routerSpec", "routingLogic"):
            return logic
        given = re.search(r"--routing-logic[= ](\S+)", " ".join(_container_words(value)))
        if given is not None:
            return given[1]
    parts = value.values() if isinstance(value, Mapping) else value
    return next((found for each in parts if (found := _routing(each, depth + 1))), "")


def _chart_words(spec: Mapping[str, Any]) -> list[str]:
    """Return the command line that the chart of the vLLM production stack makes of a model's values.

    Source: ``helm/templates/deployment-vllm-multi.yaml`` of vllm-project/production-stack. Unless the values enable it,
    it turns prefix caching off.
    """
    image = [f"{spec['repository']}:{spec['tag']}"] if "repository" in spec and "tag" in spec else []
    words = [*image, "vllm", "serve", str(spec.get("modelURL", ""))]
    if spec.get("enableLoRA") is True:
        words.append("--enable-lora")
    cache = spec.get("lmcacheConfig")
    if isinstance(cache, Mapping) and cache.get("enabled") is True:
        words.append(f"--kv-transfer-config={json.dumps({'kv_connector': 'LMCacheConnectorV1'})}")
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


def _gpu_count(value: Mapping[str, Any]) -> int | None:
    """Return how many GPUs a container, or a chart's model, asks for."""
    resources = value.get("resources")
    tables = [*(resources.values() if isinstance(resources, Mapping) else ()), value]
    asked = (str(table.get(key)) for table in tables if isinstance(table, Mapping) for key in _GPU_COUNTS)
    return next((int(count) for count in asked if re.fullmatch(r"[1-9][0-9]{0,2}", count)), None)
