"""Kubernetes: a Deployment of the replicas and a Service before them."""

from __future__ import annotations

from typing import Any

from sim.studies.deploying.commented_yaml import Commented, yaml_documents
from sim.studies.deploying.deployment import ADAPTERS_FOLDER, PORT, Deployment

NOT_SIMULATED = "not simulated"
MAY_LOAD = "lets clients load adapters"
_GPU = "nvidia.com/gpu"
_PRODUCT = "nvidia.com/gpu.product"


def deployment_file(found: Deployment, head: list[str]) -> str:
    """Return the Deployment and the Service in one file."""
    return yaml_documents([*head, *deployment_hints(found)], [deployment_object(found), _service(found)])


def deployment_hints(found: Deployment, *, routed: bool = False) -> list[str]:
    """Return lines for the top of a file with its pods.

    :param routed: whether a router distributes the requests as was simulated.
    """
    lines = []
    if not routed and found.replicas > 1 and found.router not in ("random", "round-robin"):
        lines.append(f"A Service spreads connections at random; the run had router.policy {found.router}.")
    if found.adapters:
        lines.append(f"Put the adapters into the volume claim {found.name}-adapters.")
    return lines


def labels_of(found: Deployment) -> dict[str, str]:
    """Return the labels that select its pods."""
    return {"app.kubernetes.io/name": found.name, "app.kubernetes.io/component": found.engine.lower()}


def deployment_object(found: Deployment) -> dict[str, Any]:
    """Return the Deployment."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": found.name, "labels": labels_of(found)},
        "spec": {
            "replicas": Commented(found.replicas, found.run.of("fleet.replicas")),
            "selector": {"matchLabels": labels_of(found)},
            "template": {"metadata": {"labels": labels_of(found)}, "spec": pod_spec(found, found.engine.lower())},
        },
    }


def pod_spec(found: Deployment, container_name: str) -> dict[str, Any]:
    """Return what a pod of one replica runs, on which GPU.

    :param container_name: of its only container.
    """
    spec: dict[str, Any] = {
        "nodeSelector": {_PRODUCT: Commented(found.gpu.replace(" ", "-"), found.run.of("fleet.gpu"))},
        "containers": [_container(found, container_name)],
    }
    volumes = _volumes(found)
    return {**spec, "volumes": volumes} if volumes else spec


def argument_lines(found: Deployment) -> list[Any]:
    """Return the arguments of a container, each option and its value in one, with the run behind it.

    Kubernetes and Compose both read ``$$`` as ``$``.
    """
    lines: list[Any] = list(found.model_words())
    lines[-1] = Commented(_literal(lines[-1]), found.model_note)
    for words, note in found.options(ADAPTERS_FOLDER):
        if len(words) == 2:
            lines.append(Commented(_literal("=".join(words)), note))
        else:
            lines += [Commented(_literal(word), note) for word in words]
    return [*lines, *(Commented(word, NOT_SIMULATED) for word in found.server.listen)]


def _literal(word: str) -> str:
    """Return a word as it is written where ``$(NAME)`` (Kubernetes) or ``${NAME}`` (Compose) would be replaced."""
    return word.replace("$", "$$")


def _container(found: Deployment, name: str) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": Commented(found.image, found.run.of("fleet.engine")),
        "command": list(found.program),
        "args": argument_lines(found),
        "env": [
            *({"name": key, "value": Commented(value, MAY_LOAD)} for key, value in found.environment.items()),
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}},
        ],
        "ports": [{"name": "http", "containerPort": Commented(PORT, found.port_comment)}],
        "resources": {"limits": {_GPU: Commented(found.gpus, found.gpus_comment)}},
        "startupProbe": _probe(found, 10, 60, "not simulated; ten minutes to load the model"),
        "readinessProbe": _probe(found, 5, 3, NOT_SIMULATED),
        "livenessProbe": _probe(found, 10, 6, NOT_SIMULATED),
    }
    mounts: list[dict[str, Any]] = [
        {"name": volume["name"], "mountPath": path, **({"readOnly": True} if path == ADAPTERS_FOLDER else {})}
        for volume, path in zip(_volumes(found), _paths(found), strict=True)
    ]
    return {**container, "volumeMounts": mounts} if mounts else container


def _probe(found: Deployment, period_s: int, failures: int, note: str) -> dict[str, Any]:
    return {
        "httpGet": {"path": found.server.health, "port": "http"},
        "periodSeconds": Commented(period_s, note),
        "failureThreshold": Commented(failures, note),
    }


def _volumes(found: Deployment) -> list[dict[str, Any]]:
    """Return the volumes: shared memory for the processes of several GPUs, and the adapters."""
    volumes: list[dict[str, Any]] = []
    if found.gpus > 1:
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    if found.adapters:
        claim = {"claimName": f"{found.name}-adapters", "readOnly": True}
        volumes.append({"name": "adapters", "persistentVolumeClaim": claim})
    return volumes


def _paths(found: Deployment) -> list[str]:
    return [*(["/dev/shm"] if found.gpus > 1 else []), *([ADAPTERS_FOLDER] if found.adapters else [])]


def _service(found: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": found.name, "labels": labels_of(found)},
        "spec": {
            "selector": labels_of(found),
            "ports": [{"name": "http", "port": Commented(PORT, found.port_comment), "targetPort": "http"}],
        },
    }
