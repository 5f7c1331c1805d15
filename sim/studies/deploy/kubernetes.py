"""Manifests of Kubernetes: a Deployment and a Service, what scales them, KServe, and llm-d with the Gateway API."""

from __future__ import annotations

from math import ceil
from typing import Any

from sim.errors import InputError
from sim.spec.scenario import Scenario
from sim.spec.sections.control_plane import Autoscale
from sim.studies.deploy.deployment import ADAPTERS_FOLDER, PORT, Commented, Deployment, yaml_documents
from sim.studies.deploy.picker import plugins_of, releases_of

# Kubernetes: a Deployment of the replicas and a Service before them.

NOT_SIMULATED = "not simulated"
MAY_LOAD = "lets clients load adapters"
_GPU = "nvidia.com/gpu"
_LOAD_S = 600
"""What a probe leaves a model to load, at least."""
_PRODUCT = "nvidia.com/gpu.product"


def deployment_file(found: Deployment, head: list[str]) -> str:
    """Return the Deployment and the Service in one file."""
    ports = [{"name": "http", "port": Commented(PORT, found.port_comment), "targetPort": "http"}]
    service = _object(found, "v1", "Service", {"selector": labels_of(found), "ports": ports})
    return yaml_documents([*head, *deployment_hints(found)], [deployment_object(found), service])


def deployment_hints(found: Deployment, *, routed: bool = False) -> list[str]:
    """Return lines for the top of a file with its pods.

    :param routed: whether a router distributes the requests as was simulated.
    """
    lines = []
    if not routed and found.several and found.router.policy not in ("random", "round-robin"):
        lines.append(f"A Service spreads connections at random; the run had router.policy {found.router.policy}.")
    if found.adapters:
        lines.append(f"Put the adapters into the volume claim {found.name}-adapters.")
    return lines


def labels_of(found: Deployment) -> dict[str, str]:
    """Return the labels that select its pods."""
    return {"app.kubernetes.io/name": found.name, "app.kubernetes.io/component": found.engine.lower()}


def deployment_object(found: Deployment) -> dict[str, Any]:
    """Return the Deployment."""
    spec = {
        "replicas": Commented(found.replicas, found.run.of("fleet.replicas")),
        "selector": {"matchLabels": labels_of(found)},
        "template": {"metadata": {"labels": labels_of(found)}, "spec": pod_spec(found, found.engine.lower())},
    }
    return _object(found, "apps/v1", "Deployment", spec)


def _object(found: Deployment, version: str, kind: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """Return an object of the Kubernetes API with the deployment's name and labels."""
    metadata = {"name": found.name, "labels": labels_of(found), **metadata}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def pod_spec(found: Deployment, container_name: str) -> dict[str, Any]:
    """Return what a pod of one replica runs, on which GPU.

    :param container_name: of its only container.
    """
    spec: dict[str, Any] = {
        "nodeSelector": {_PRODUCT: Commented(found.gpu.replace(" ", "-"), found.run.of("fleet.gpu"))},
        "containers": [_container(found, container_name)],
    }
    volumes = _volumes(found)
    return {**spec, "volumes": list(volumes.values())} if volumes else spec


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
        "resources": {"limits": {_GPU: Commented(found.gpus, found.run.of(found.gpus_key))}},
        "startupProbe": _startup_probe(found),
        "readinessProbe": _probe(found, 5, 3, NOT_SIMULATED),
        "livenessProbe": _probe(found, 10, 6, NOT_SIMULATED),
    }
    mounts: list[dict[str, Any]] = [
        {"name": volume["name"], "mountPath": path, **({"readOnly": True} if path == ADAPTERS_FOLDER else {})}
        for path, volume in _volumes(found).items()
    ]
    return {**container, "volumeMounts": mounts} if mounts else container


def _startup_probe(found: Deployment) -> dict[str, Any]:
    """Return a probe that waits ten minutes for the model, or twice as long as the cold starts of the run took."""
    starts = found.autoscale.cold_start if found.autoscale else None
    laws = [law for law in (starts.weights, starts.engine) if law is not None] if starts else []
    seconds = 2 * sum(law.mean() for law in laws)
    if seconds <= _LOAD_S:
        return _probe(found, 10, _LOAD_S // 10, "not simulated; ten minutes to load the model")
    return _probe(found, 10, ceil(seconds / 10), "twice what weights and engine take in fleet.autoscale.cold_start")


def _probe(found: Deployment, period_s: int, failures: int, note: str) -> dict[str, Any]:
    return {
        "httpGet": {"path": found.server.health, "port": "http"},
        "periodSeconds": Commented(period_s, note),
        "failureThreshold": Commented(failures, note),
    }


def _volumes(found: Deployment) -> dict[str, dict[str, Any]]:
    """Return the volumes by path: shared memory for the processes of several GPUs, and the adapters."""
    volumes: dict[str, dict[str, Any]] = {}
    if found.gpus > 1:
        volumes["/dev/shm"] = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    if found.adapters:
        claim = {"claimName": f"{found.name}-adapters", "readOnly": True}
        volumes[ADAPTERS_FOLDER] = {"name": "adapters", "persistentVolumeClaim": claim}
    return volumes


# Kubernetes: what scales the Deployment of a run with ``fleet.autoscale``, as an HPA or as a ScaledObject of KEDA.

FILE = "autoscaler.yaml"
POLICIES = ("hpa", "keda")
"""Those that a manifest can say."""
GAUGES = {
    "vLLM": {
        "in_flight": ("vllm:num_requests_running", "vllm:num_requests_waiting"),
        "waiting": ("vllm:num_requests_waiting",),
        "kv_usage": ("vllm:kv_cache_usage_perc",),
    },
    "SGLang": {
        "in_flight": ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
        "waiting": ("sglang:num_queue_reqs",),
        "kv_usage": ("sglang:token_usage",),
    },
}
"""By engine and metric of a scenario: the gauges of its ``/metrics`` that add up to it."""
_PROMETHEUS = "http://PROMETHEUS:9090"


def why_no_autoscaler(found: Deployment) -> str:
    """Return why no manifest says how the fleet scales; empty where one does, or where it does not scale."""
    spec = found.autoscale
    if spec is None:
        return ""
    if spec.policy not in POLICIES:
        return f"the autoscaler: neither an HPA nor KEDA has policy {spec.policy}"
    if spec.metric not in GAUGES[found.engine]:
        return f"the autoscaler: {found.engine} has no metric for fleet.autoscale.metric {spec.metric}"
    return ""


def autoscaler_file(found: Deployment, head: list[str]) -> str:
    """Return the manifest of the autoscaler; empty where there is none to write."""
    spec = found.autoscale
    if spec is None or why_no_autoscaler(found):
        return ""
    gauges = GAUGES[found.engine][spec.metric]
    if spec.policy == "keda":
        lines = [f"Put the address of your Prometheus in place of {_PROMETHEUS}; KEDA must run in the cluster."]
        if spec.min == 0:
            lines.append(
                "Without any replica these gauges say nothing. Add what waits in your gateway to the query: the "
                "simulation counts it."
            )
        pods = f'{{pod=~"{found.name}-.*"}}'  # how Prometheus labels them, if it scrapes by pod
        document = _scaled_object(found, spec, " + ".join(f"sum({gauge}{pods})" for gauge in gauges))
    else:
        lines = [
            f"The metric {_metric_name(spec)} is {' + '.join(gauges)} of each pod. An adapter must serve it, such as a "
            "rule of prometheus-adapter."
        ]
        document = _horizontal_pod_autoscaler(found, spec)
    if spec.tolerance != 0.1:
        lines.append(f"Not in this file: a tolerance of {spec.tolerance:g}; the cluster's default is 0.1.")
    if spec.interval != 15:
        lines.append(f"Not in this file: decisions every {spec.interval:g} s; the cluster's default is 15 s.")
    if spec.policy == "hpa" or spec.min > 0:
        lines.append("Remove spec.replicas from deployment.yaml before you apply it again: it would reset the fleet.")
    return yaml_documents([*head, *lines], [document])


def _of(found: Deployment, key: str) -> str:
    return found.run.of(f"fleet.autoscale.{key}")


def _target_object(found: Deployment) -> dict[str, Any]:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": found.name}


def _metric_name(spec: Autoscale) -> str:
    return f"loraplan_{spec.metric}"


def _quantity(value: float) -> str:
    """Return a number as Kubernetes writes one: ``0.75`` → ``750m``."""
    return str(int(value)) if value == int(value) else f"{round(value * 1000)}m"


def _horizontal_pod_autoscaler(found: Deployment, spec: Autoscale) -> dict[str, Any]:
    assert spec.target is not None, "policy hpa has a target"
    target = {"type": "AverageValue", "averageValue": Commented(_quantity(spec.target), _of(found, "target"))}
    scaling = {
        "scaleTargetRef": _target_object(found),
        "minReplicas": Commented(spec.min, _of(found, "min")),
        "maxReplicas": Commented(spec.max, _of(found, "max")),
        "metrics": [{"type": "Pods", "pods": {"metric": {"name": _metric_name(spec)}, "target": target}}],
        "behavior": _behavior(found, spec),
    }
    return _object(found, "autoscaling/v2", "HorizontalPodAutoscaler", scaling)


def _scaled_object(found: Deployment, spec: Autoscale, query: str) -> dict[str, Any]:
    trigger = {
        "serverAddress": Commented(_PROMETHEUS, NOT_SIMULATED),
        "query": query,
        "threshold": Commented(f"{spec.target:g}", _of(found, "target")),
    }
    scaling = {
        "scaleTargetRef": _target_object(found),
        "pollingInterval": Commented(max(1, ceil(spec.interval)), _of(found, "interval")),
        "cooldownPeriod": Commented(ceil(spec.cooldown), _of(found, "cooldown")),
        "minReplicaCount": Commented(spec.min, _of(found, "min")),
        "maxReplicaCount": Commented(spec.max, _of(found, "max")),
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(found, spec)}},
        "triggers": [{"type": "prometheus", "metadata": trigger}],
    }
    return _object(found, "keda.sh/v1alpha1", "ScaledObject", scaling)


def _behavior(found: Deployment, spec: Autoscale) -> dict[str, Any]:
    return {
        "scaleUp": _limits(found, spec, "up", spec.stabilization_up, spec.up_replicas, spec.up_share),
        "scaleDown": _limits(found, spec, "down", spec.stabilization_down, spec.down_replicas, spec.down_share),
    }


def _limits(
    found: Deployment, spec: Autoscale, direction: str, window_s: float, replicas: int | None, share: float
) -> dict[str, Any]:
    """Return the limits of one direction; a share below 1 % is none, as Kubernetes takes whole per cents above 0."""
    period = Commented(max(1, round(spec.period)), _of(found, "period"))
    policies = [
        {"type": kind, "value": Commented(value, _of(found, f"{direction}_{key}")), "periodSeconds": period}
        for kind, key, value in (("Percent", "share", round(share * 100) or None), ("Pods", "replicas", replicas))
        if value is not None
    ]
    window = Commented(ceil(window_s), _of(found, f"stabilization_{direction}"))
    selected = {"selectPolicy": "Max", "policies": policies} if policies else {"selectPolicy": "Disabled"}
    return {"stabilizationWindowSeconds": window, **selected}


# KServe: an InferenceService whose predictor runs the engine's container (https://kserve.github.io).

_CONTAINER = "kserve-container"
"""KServe sends requests to the container of this name."""


def inference_service_file(found: Deployment, head: list[str]) -> str:
    """Return the InferenceService; it has as many replicas as were simulated, and does not scale."""
    replicas = Commented(found.replicas, found.run.of("fleet.replicas"))
    predictor = {"minReplicas": replicas, "maxReplicas": replicas, **pod_spec(found, _CONTAINER)}
    mode = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    version, kind = "serving.kserve.io/v1beta1", "InferenceService"
    service = _object(found, version, kind, {"predictor": predictor}, annotations=mode)
    return yaml_documents([*head, *deployment_hints(found)], [service])


# llm-d and the Gateway API Inference Extension: requests go where their adapter runs.
#
# https://gateway-api-inference-extension.sigs.k8s.io describes the objects, and its guide to the configuration of the
# endpoint picker the scorers. The router ``affinity-activity`` is the LoRA affinity scorer alone.

ROUTERS = ("scorers", "affinity-activity")
"""The routers whose decisions the endpoint picker makes."""
_PICKER_PORT = 9002
_GROUP = "inference.networking.k8s.io"
_GATEWAY = "inference-gateway"


def check_router(scenario: Scenario) -> None:
    """Refuse a fleet of several replicas behind a router that is no endpoint picker.

    :raises InputError: saying so.
    """
    if scenario.fleet.replicas > 1 and scenario.router.policy not in ROUTERS:
        raise InputError(
            "llm-d routes by scorers, and another router was simulated",
            key="--emit",
            got=f"router.policy {scenario.router.policy}",
            allowed=" or ".join(ROUTERS),
            hint=f"simulate it: --set router.policy={ROUTERS[0]}",
        )


def servers_file(found: Deployment, head: list[str]) -> str:
    """Return the Deployment; requests reach its pods through the pool, so there is no Service."""
    return yaml_documents([*head, *deployment_hints(found, routed=True)], [deployment_object(found)])


def pool_file(found: Deployment, head: list[str]) -> str:
    """Return the InferencePool, the InferenceObjective and the HTTPRoute that sends requests to the pool."""
    picker_port = Commented(_PICKER_PORT, "not simulated; the picker's default")
    pool = {
        "selector": {"matchLabels": labels_of(found)},
        "targetPorts": [{"number": Commented(PORT, found.port_comment)}],
        "endpointPickerRef": {"name": f"{found.name}-epp", "port": {"number": picker_port}},
    }
    objective = {
        "priority": Commented(0, "not simulated; all requests are served in order"),
        "poolRef": {"name": found.name},
    }
    rule = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [{"group": _GROUP, "kind": "InferencePool", "name": found.name}],
    }
    gateway = Commented(_GATEWAY, "replace it with the name of your Gateway")
    objects = [
        _object(found, f"{_GROUP}/v1", "InferencePool", pool),
        _object(found, "inference.networking.x-k8s.io/v1alpha2", "InferenceObjective", objective),
        _object(
            found, "gateway.networking.k8s.io/v1", "HTTPRoute", {"parentRefs": [{"name": gateway}], "rules": [rule]}
        ),
    ]
    return yaml_documents(head, objects)


def picker_file(found: Deployment, head: list[str]) -> str:
    """Return the configuration of the endpoint picker, for its --config-file."""
    plugins = plugins_of(found.router)
    source = found.run.of("router.scorers" if found.router.scorers else "router.policy")
    config: dict[str, Any] = {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            {"type": "single-profile-handler"},
            *({"type": kind, **({"parameters": given} if given else {})} for kind, _, given in plugins),
        ],
        "schedulingProfiles": [
            {
                "name": "default",
                "plugins": [
                    {"pluginRef": kind, **({} if weight is None else {"weight": Commented(_whole(weight), source)})}
                    for kind, weight, _ in plugins
                ],
            }
        ],
    }
    lines = [
        *head,
        f"For the endpoint picker {found.name}-epp, which its chart installs: --config-file.",
        *releases_of(found.router),
    ]
    return yaml_documents(lines, [config])


def _whole(weight: float) -> int | float:
    return int(weight) if weight == int(weight) else weight
