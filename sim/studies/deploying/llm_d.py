"""llm-d and the Gateway API Inference Extension: requests go where their adapter runs.

https://gateway-api-inference-extension.sigs.k8s.io describes the objects, and its guide to the configuration of the
endpoint picker the scorers. The router that was simulated is the LoRA affinity scorer alone
(``sim/policies/routing/affinity.py``), so the configuration has no other.
"""

from __future__ import annotations

from typing import Any

from sim.errors import InputError
from sim.spec.scenario import Scenario
from sim.studies.deploying.commented_yaml import Commented, yaml_documents
from sim.studies.deploying.deployment import PORT, Deployment
from sim.studies.deploying.kubernetes import deployment_hints, deployment_object, labels_of

ROUTER = "affinity-activity"
"""The router whose decisions the scorer makes."""
_PICKER_PORT = 9002
_GROUP = "inference.networking.k8s.io"
_GATEWAY = "inference-gateway"


def check_router(scenario: Scenario) -> None:
    """Refuse a fleet of several replicas behind another router than the LoRA affinity scorer.

    :raises InputError: saying so.
    """
    if scenario.fleet.replicas > 1 and scenario.router.policy != ROUTER:
        raise InputError(
            "llm-d routes by LoRA affinity, and another router was simulated",
            key="--emit",
            got=f"router.policy {scenario.router.policy}",
            allowed=ROUTER,
            hint=f"simulate it: --set router.policy={ROUTER}",
        )


def servers_file(found: Deployment, head: list[str]) -> str:
    """Return the Deployment; requests reach its pods through the pool, so there is no Service."""
    return yaml_documents([*head, *deployment_hints(found, routed=True)], [deployment_object(found)])


def pool_file(found: Deployment, head: list[str]) -> str:
    """Return the InferencePool, the InferenceObjective and the HTTPRoute that sends requests to the pool."""
    pool: dict[str, Any] = {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "InferencePool",
        "metadata": {"name": found.name, "labels": labels_of(found)},
        "spec": {
            "selector": {"matchLabels": labels_of(found)},
            "targetPorts": [{"number": Commented(PORT, found.port_comment)}],
            "endpointPickerRef": {
                "name": f"{found.name}-epp",
                "port": {"number": Commented(_PICKER_PORT, "not simulated; the picker's default")},
            },
        },
    }
    objective: dict[str, Any] = {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferenceObjective",
        "metadata": {"name": found.name, "labels": labels_of(found)},
        "spec": {
            "priority": Commented(0, "not simulated; all requests are served in order"),
            "poolRef": {"name": found.name},
        },
    }
    route: dict[str, Any] = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": found.name, "labels": labels_of(found)},
        "spec": {
            "parentRefs": [{"name": Commented(_GATEWAY, "replace it with the name of your Gateway")}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [{"group": _GROUP, "kind": "InferencePool", "name": found.name}],
                }
            ],
        },
    }
    return yaml_documents(head, [pool, objective, route])


def picker_file(found: Deployment, head: list[str]) -> str:
    """Return the configuration of the endpoint picker, for its --config-file."""
    config: dict[str, Any] = {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            {"type": "single-profile-handler"},
            {"type": "lora-affinity-scorer"},
            {"type": "max-score-picker"},
        ],
        "schedulingProfiles": [
            {
                "name": "default",
                "plugins": [
                    {"pluginRef": "lora-affinity-scorer", "weight": Commented(1, found.run.of("router.policy"))},
                    {"pluginRef": "max-score-picker"},
                ],
            }
        ],
    }
    lines = [
        *head,
        f"For the endpoint picker {found.name}-epp, which its chart installs: --config-file.",
    ]
    return yaml_documents(lines, [config])
