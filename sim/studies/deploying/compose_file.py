"""A Compose file: one service for each replica, all on one machine (https://github.com/compose-spec/compose-spec)."""

from __future__ import annotations

from typing import Any

from sim.studies.deploying.commented_yaml import Commented, yaml_documents
from sim.studies.deploying.deployment import ADAPTERS_FOLDER, PORT, Deployment
from sim.studies.deploying.kubernetes import MAY_LOAD, NOT_SIMULATED, argument_lines


def compose_file(found: Deployment, head: list[str]) -> str:
    """Return the Compose file; replicas take the GPUs of the machine in order, and ports from 8000 on."""
    services = {
        found.name if found.replicas == 1 else f"{found.name}-{number}": _service(found, number)
        for number in range(found.replicas)
    }
    lines = [*head, _need(found)]
    if found.replicas > 1:
        lines.append(f"{found.replicas} services; put a router with policy {found.router} in front, as was simulated.")
    return yaml_documents(lines, [{"name": found.name, "services": services}])


def _need(found: Deployment) -> str:
    count = found.replicas * found.gpus
    return f"It needs {count} GPU{'s' if count > 1 else ''} in this machine."


def _service(found: Deployment, number: int) -> dict[str, Any]:
    server = found.server
    first = number * found.gpus
    devices = [Commented(str(first + place), found.gpus_comment) for place in range(found.gpus)]
    service: dict[str, Any] = {
        "image": Commented(found.image, found.run.of("fleet.engine")),
        "entrypoint": list(found.program),
        "command": argument_lines(found),
        "ports": [Commented(f"{PORT + number}:{PORT}", NOT_SIMULATED)],
        "ipc": "host",
        "volumes": ["${HOME}/.cache/huggingface:/root/.cache/huggingface"],
        "healthcheck": {
            "test": ["CMD", "curl", "-f", Commented(f"http://localhost:{PORT}{server.health}", NOT_SIMULATED)],
            "interval": Commented("10s", NOT_SIMULATED),
            "start_period": Commented("10m", "not simulated; time to load the model"),
        },
        "deploy": {
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", "device_ids": devices, "capabilities": ["gpu"]}]}
            }
        },
    }
    environment: dict[str, Any] = {"HF_TOKEN": "${HF_TOKEN:-}"}
    environment |= {key: Commented(value, MAY_LOAD) for key, value in found.environment.items()}
    service["environment"] = environment
    if found.adapters:
        service["volumes"].append(f"./adapters:{ADAPTERS_FOLDER}:ro")
    return service
