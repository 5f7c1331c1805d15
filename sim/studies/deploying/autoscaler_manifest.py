"""Kubernetes: what scales the Deployment of a run with ``fleet.autoscale``, as an HPA or as a ScaledObject of KEDA."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from sim.studies.deploying.commented_yaml import Commented, yaml_documents
from sim.studies.deploying.deployment import Deployment
from sim.studies.deploying.kubernetes import NOT_SIMULATED, labels_of

if TYPE_CHECKING:
    from sim.spec.sections.autoscaling import Autoscale

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
        document = _scaled_object(found, spec, " + ".join(f"sum({gauge}{_selector(found)})" for gauge in gauges))
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


def _selector(found: Deployment) -> str:
    """Return the label by which Prometheus finds the pods of the Deployment, if it is scraped by pod."""
    return f'{{pod=~"{found.name}-.*"}}'


def _quantity(value: float) -> str:
    """Return a number as Kubernetes writes one: ``0.75`` → ``750m``."""
    return str(int(value)) if value == int(value) else f"{round(value * 1000)}m"


def _horizontal_pod_autoscaler(found: Deployment, spec: Autoscale) -> dict[str, Any]:
    assert spec.target is not None, "policy hpa has a target"
    target = {"type": "AverageValue", "averageValue": Commented(_quantity(spec.target), _of(found, "target"))}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": found.name, "labels": labels_of(found)},
        "spec": {
            "scaleTargetRef": _target_object(found),
            "minReplicas": Commented(spec.min, _of(found, "min")),
            "maxReplicas": Commented(spec.max, _of(found, "max")),
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": _metric_name(spec)}, "target": target}}],
            "behavior": _behavior(found, spec),
        },
    }


def _scaled_object(found: Deployment, spec: Autoscale, query: str) -> dict[str, Any]:
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": found.name, "labels": labels_of(found)},
        "spec": {
            "scaleTargetRef": _target_object(found),
            "pollingInterval": Commented(max(1, ceil(spec.interval)), _of(found, "interval")),
            "cooldownPeriod": Commented(ceil(spec.cooldown), _of(found, "cooldown")),
            "minReplicaCount": Commented(spec.min, _of(found, "min")),
            "maxReplicaCount": Commented(spec.max, _of(found, "max")),
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(found, spec)}},
            "triggers": [
                {
                    "type": "prometheus",
                    "metadata": {
                        "serverAddress": Commented(_PROMETHEUS, NOT_SIMULATED),
                        "query": query,
                        "threshold": Commented(f"{spec.target:g}", _of(found, "target")),
                    },
                }
            ],
        },
    }


def _behavior(found: Deployment, spec: Autoscale) -> dict[str, Any]:
    up = _policies(found, spec, "up", spec.up_replicas, spec.up_share)
    down = _policies(found, spec, "down", spec.down_replicas, spec.down_share)
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": Commented(ceil(spec.stabilization_up), _of(found, "stabilization_up")),
            **_selected(up),
        },
        "scaleDown": {
            "stabilizationWindowSeconds": Commented(ceil(spec.stabilization_down), _of(found, "stabilization_down")),
            **_selected(down),
        },
    }


def _selected(policies: list[dict[str, Any]]) -> dict[str, Any]:
    return {"selectPolicy": "Max", "policies": policies} if policies else {"selectPolicy": "Disabled"}


def _policies(
    found: Deployment, spec: Autoscale, direction: str, replicas: int | None, share: float
) -> list[dict[str, Any]]:
    """Return the limits of one direction; a share below 1 % is none, as Kubernetes takes whole per cents above 0."""
    period = Commented(max(1, round(spec.period)), _of(found, "period"))
    found_policies: list[dict[str, Any]] = []
    percents = round(share * 100)
    if percents:
        value = Commented(percents, _of(found, f"{direction}_share"))
        found_policies.append({"type": "Percent", "value": value, "periodSeconds": period})
    if replicas is not None:
        value = Commented(replicas, _of(found, f"{direction}_replicas"))
        found_policies.append({"type": "Pods", "value": value, "periodSeconds": period})
    return found_policies
