"""KServe: an InferenceService whose predictor runs the engine's container (https://kserve.github.io)."""

from __future__ import annotations

from typing import Any

from sim.studies.deploying.commented_yaml import Commented, yaml_documents
from sim.studies.deploying.deployment import Deployment
from sim.studies.deploying.kubernetes import deployment_hints, labels_of, pod_spec

_CONTAINER = "kserve-container"
"""KServe sends requests to the container of this name."""


def inference_service_file(found: Deployment, head: list[str]) -> str:
    """Return the InferenceService; it has as many replicas as were simulated, and does not scale."""
    replicas = Commented(found.replicas, found.run.of("fleet.replicas"))
    service: dict[str, Any] = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": found.name,
            "labels": labels_of(found),
            "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
        },
        "spec": {
            "predictor": {"minReplicas": replicas, "maxReplicas": replicas, **pod_spec(found, _CONTAINER)},
        },
    }
    return yaml_documents([*head, *deployment_hints(found)], [service])
