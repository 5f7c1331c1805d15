"""``--emit k8s`` of a fleet with an autoscaler: the HPA or the ScaledObject says what was simulated."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import CommandLine
from test_emit import QUICK, documents, problems, uncommented

SCALED = ("run", "quickstart", *QUICK, "--set", "workload.arrivals.rate=1/s", "--no-headroom")
HPA = "fleet.autoscale={target: 7.5, min: 1, max: 6, up_replicas: 2, down_share: 50%, stabilization_down: 90 s}"
KEDA = "fleet.autoscale={policy: keda, metric: waiting, target: 4, min: 0, max: 3, cooldown: 120 s, interval: 30 s}"


def emitted(loraplan: CommandLine, folder: Path, *more: str) -> list[Path]:
    loraplan.succeeds(*SCALED, "--emit", "k8s=k8s", *(part for text in more for part in ("--set", text)))
    return sorted((folder / "k8s").iterdir())


@pytest.mark.parametrize("autoscale", [HPA, KEDA])
def test_it_is_valid_and_every_number_has_a_comment(loraplan: CommandLine, tmp_path: Path, autoscale: str) -> None:
    files = emitted(loraplan, tmp_path, autoscale)
    assert [file.name for file in files] == ["autoscaler.yaml", "deployment.yaml"]
    found = documents(tmp_path / "k8s")
    assert [problem for document in found for problem in problems(document)] == []
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# Written by loraplan --emit k8s ")
        assert uncommented(text) == []


def test_an_hpa_says_what_was_simulated(loraplan: CommandLine, tmp_path: Path) -> None:
    emitted(loraplan, tmp_path, HPA)
    hpa, deployment, _ = documents(tmp_path / "k8s")
    spec = hpa["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 6)
    assert spec["metrics"] == [
        {
            "type": "Pods",
            "pods": {
                "metric": {"name": "loraplan_in_flight"},
                "target": {"type": "AverageValue", "averageValue": "7500m"},
            },
        }
    ]
    assert spec["behavior"] == {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 15},
                {"type": "Pods", "value": 2, "periodSeconds": 15},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 90,
            "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 50, "periodSeconds": 15}],
        },
    }


def test_keda_scales_to_zero(loraplan: CommandLine, tmp_path: Path) -> None:
    (file, _) = emitted(loraplan, tmp_path, KEDA)
    scaled, *_ = documents(tmp_path / "k8s")
    spec = scaled["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 3)
    assert (spec["pollingInterval"], spec["cooldownPeriod"]) == (30, 120)
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["threshold"] == "4"
    assert trigger["metadata"]["query"] == 'sum(vllm:num_requests_waiting{pod=~"quickstart-.*"})'
    assert "Add what waits in your gateway to the query" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("autoscale", "said"),
    [
        ("{policy: step, max: 3, steps: [{above: 20, add: 1}]}", "neither an HPA nor KEDA has policy step"),
        ("{metric: adapter_waiting, target: 2, max: 3}", "vLLM has no metric for fleet.autoscale.metric"),
    ],
)
def test_what_no_manifest_can_say_is_said(loraplan: CommandLine, tmp_path: Path, autoscale: str, said: str) -> None:
    (deployment,) = emitted(loraplan, tmp_path, f"fleet.autoscale={autoscale}")
    assert f"# Not in this file: the autoscaler: {said}" in deployment.read_text(encoding="utf-8")


def test_a_fixed_fleet_removes_the_autoscaler_of_before(loraplan: CommandLine, tmp_path: Path) -> None:
    assert len(emitted(loraplan, tmp_path, HPA)) == 2
    (deployment,) = emitted(loraplan, tmp_path)
    assert deployment.name == "deployment.yaml"


def test_a_script_says_that_it_lacks_it_and_kinds_of_a_fixed_size_are_refused(
    loraplan: CommandLine, tmp_path: Path
) -> None:
    loraplan.succeeds(*SCALED, "--set", HPA, "--emit", "vllm=local")
    text = (tmp_path / "local/serve.sh").read_text(encoding="utf-8")
    assert "# Not in this file: the autoscaler (fleet.autoscale)." in text
    assert "# It starts one of 1 to 6 replicas behind a router with policy " in text
    for kind in ("compose", "kserve", "llm-d"):
        err = loraplan.refused(*SCALED, "--set", HPA, "--emit", f"{kind}={kind}")
        assert f"an autoscaler was simulated, and these manifests have none (got {kind}, allowed: vllm, k8s)" in err


def test_a_slow_start_is_given_its_time(loraplan: CommandLine, tmp_path: Path) -> None:
    slow = "fleet.autoscale.cold_start={engine: {law: fixed, value: 15 min}}"
    for more, seconds in (((), 600), ((slow,), 1800)):
        emitted(loraplan, tmp_path, HPA, "workload.arrivals.rate=0.1/s", *more)
        (probe,) = (
            container["startupProbe"]
            for document in documents(tmp_path / "k8s")
            if document["kind"] == "Deployment"
            for container in document["spec"]["template"]["spec"]["containers"]
        )
        assert probe["periodSeconds"] * probe["failureThreshold"] == seconds
