"""``--emit``: manifests are valid, say where their numbers come from, and start and scale what was simulated."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from calibrate.loads.synthetic_adapters import BASE, MODEL, adapter_config, header_of, write_sparse
from sim.spec.engine_flags.command_lines import engine_commands, engine_flags
from sim.spec.scenario_file import load_scenario
from sim.studies.deploy.deployment import Deployment, RunReference, comment_lines
from sim.studies.deploy.emission import KINDS

SCHEMAS = Path(__file__).with_name("manifest_schemas")
QUICK = (
    *("--set", "workload.requests=300", "--set", "run.replications=1", "--set", "run.warmup=0"),
    *("--jobs", "1", "--quiet"),
)
ROUTED = ("--set", "fleet.replicas=2", "--set", "router.policy=affinity-activity")


def add_adapters(folder: Path, count: int = 3, rank: int = 8) -> None:
    for number in range(count):
        start, size = header_of(MODEL, rank, ("q", "v"), "bf16")
        write_sparse(folder / f"tone-{number}", start, size, adapter_config(BASE, rank, ("q", "v")), number)


def documents(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.yaml"))
    return [each for file in files for each in YAML(typ="safe").load_all(file.read_text(encoding="utf-8"))]


def problems(document: dict[str, Any]) -> list[str]:
    schema = json.loads((SCHEMAS / f"{document.get('kind', 'compose').lower()}.json").read_text())
    return [f"{'.'.join(map(str, e.path))}: {e.message}" for e in Draft202012Validator(schema).iter_errors(document)]


def uncommented(text: str) -> list[str]:
    """Return the lines in which a number stands without a comment: as a value, or behind an option."""
    numbers = re.compile(r"(^|[\s=:'\"])\d[\d.]*[smhMG]?i?['\"]?\s*$")
    bodies = [line for line in text.splitlines() if not line.startswith("#")]
    return [line for line in bodies if numbers.search(line)]


@pytest.fixture(params=["plain", "two replicas and adapters", "two GPUs"])
def emitted(request: pytest.FixtureRequest, loraplan: CommandLine, tmp_path: Path) -> Path:
    kinds = [part for kind in KINDS if kind != "sglang" for part in ("--emit", f"{kind}={kind}")]
    run = ("run", "quickstart", *QUICK)
    if request.param == "two replicas and adapters":
        add_adapters(tmp_path / "adapters")
        run = (*run, *ROUTED, "--set", "adapters.count=3", "--adapters", "adapters")
    elif request.param == "two GPUs":
        gpus = ("--set", "fleet.replicas=1", "--set", "fleet.tensor_parallel=2")
        run = ("run", "plan-70b-tensor-parallel", *QUICK, *gpus)
    loraplan.succeeds(*run, *kinds)
    return tmp_path


def test_every_manifest_is_valid_and_every_number_has_a_comment(emitted: Path) -> None:
    for kind in ("compose", "k8s", "kserve", "llm-d"):
        found = documents(emitted / kind)
        assert found
        assert [problem for document in found for problem in problems(document)] == []
        for file in (emitted / kind).iterdir():
            text = file.read_text(encoding="utf-8")
            assert text.startswith(f"# Written by loraplan --emit {kind} ")
            assert uncommented(text) == []
    assert uncommented((emitted / "vllm" / "serve.sh").read_text(encoding="utf-8")) == []


def test_a_wrong_manifest_is_noticed(loraplan: CommandLine, tmp_path: Path) -> None:
    loraplan.succeeds("run", "quickstart", *QUICK, "--emit", "k8s=k8s")
    deployment, _ = documents(tmp_path / "k8s")
    deployment["spec"]["replicas"] = "two"
    deployment["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert len(problems(deployment)) == 2
    assert uncommented("a:\n  replicas: 2\n- '0'\nset -- --max-loras 32\nok: 3 # why") == [
        "  replicas: 2",
        "- '0'",
        "set -- --max-loras 32",
    ]


def started_by_script(script: Path, folder: Path) -> list[str]:
    """Return the words with which a script starts its server."""
    fake = folder / "bin" / "vllm"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def test_every_kind_starts_what_plan_prints(emitted: Path) -> None:
    (run,) = (emitted / "runs").iterdir()
    scenario = load_scenario("quickstart").with_values({}).scenario
    if "70b" in run.name:
        scenario = load_scenario("plan-70b-tensor-parallel", ["fleet.tensor_parallel=2", "plan="]).scenario
    wanted = engine_flags(scenario, None)["vLLM"].split()[3:]
    script = started_by_script(emitted / "vllm" / "serve.sh", emitted)
    assert script[:2] == ["serve", "MODEL"] or script[1].startswith("meta-llama/")
    assert script[2 : 2 + len(wanted)] == wanted
    container = documents(emitted / "k8s")[0]["spec"]["template"]["spec"]["containers"][0]
    assert [word for each in container["args"][1:] for word in each.split("=", 1)][: len(wanted)] == wanted
    compose = next(iter(documents(emitted / "compose")[0]["services"].values()))
    assert compose["command"] == container["args"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == (2 if "70b" in run.name else 1)
    listed = [word for word in container["args"] if word.startswith("tone-")]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert (env.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "True") == (not listed)
    assert listed in ([], [f"tone-{n}=/adapters/tone-{n}" for n in range(3)])


def test_no_name_of_a_stranger_ends_a_comment() -> None:
    assert comment_lines(["a profile\nrm -rf /\r# x"]).count("\n") == 1
    assert "\r" not in comment_lines(["a\rb"])


def test_sglang_has_manifests_of_its_own(loraplan: CommandLine, tmp_path: Path) -> None:
    add_adapters(tmp_path / "adapters")
    engine = ("--set", "fleet.engine=sglang", "--set", "cache.host=", "--set", "adapters.count=3")
    emits = [part for kind in ("sglang", "compose", "k8s", "kserve") for part in ("--emit", f"{kind}={kind}")]
    loraplan.succeeds("run", "quickstart", *QUICK, *engine, "--adapters", "adapters", *emits)
    for kind in ("compose", "k8s", "kserve"):
        found = documents(tmp_path / kind)
        assert [problem for document in found for problem in problems(document)] == []
        assert [line for file in (tmp_path / kind).iterdir() for line in uncommented(file.read_text())] == []
    container = documents(tmp_path / "k8s")[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "lmsysorg/sglang:v0.5.23"
    assert container["command"] == ["python3", "-m", "sglang.launch_server"]
    assert container["args"][:2] == ["--model-path", "MODEL"]
    text = (tmp_path / "k8s/deployment.yaml").read_text()
    assert text.count("8000 # not simulated; SGLang listens on 30000 by default") == 2
    assert container["args"][-2:] == ["--host=0.0.0.0", "--port=8000"], "it listens on 127.0.0.1 by itself"
    place = container["args"].index("--lora-paths")
    assert container["args"][place + 1 : place + 4] == [f"tone-{n}=/adapters/tone-{n}" for n in range(3)]
    script = (tmp_path / "sglang/serve.sh").read_text()
    assert "--max-loras-per-batch 32 # cache.gpu.slots; run quickstart " in script


def test_init_reads_its_own_manifest_back(loraplan: CommandLine, tmp_path: Path) -> None:
    loraplan.succeeds("run", "quickstart", *QUICK, "--emit", "k8s=k8s")
    loraplan.succeeds("init", "--out", "back.yaml", "--from-manifest", "k8s/deployment.yaml", "--gpu", "h100-64gb")
    back, given = load_scenario("back.yaml").scenario, load_scenario("quickstart").scenario
    assert (back.cache.gpu.slots, back.cache.host.slots) == (given.cache.gpu.slots, given.cache.host.slots)  # type: ignore[union-attr]
    assert back.fleet.max_num_seqs == given.fleet.max_num_seqs


def test_a_plan_emits_its_answer_and_says_so(loraplan: CommandLine, tmp_path: Path) -> None:
    question = ("plan", "quickstart", *QUICK, "--minimize", "cache.gpu.slots=48..128:40")
    loose = ("--set", "slo.ttft_p99=60 s", "--set", "slo.e2e_p99=300 s", "--set", "slo.miss_ratio=100%")
    loraplan.succeeds(*question, *loose, "--emit", "k8s=k8s")
    digest = json.loads((tmp_path / "runs/quickstart-plan/manifest.json").read_text())["scenario_hash"]
    answer = f"--max-loras=48 # cache.gpu.slots; plan quickstart {digest}, SLO met"
    assert answer in (tmp_path / "k8s/deployment.yaml").read_text()
    tight = ("--set", "slo.ttft_p99=1 ms", "--emit", "k8s=other")
    none = loraplan(*[word for word in question if word != "--quiet"], *tight)
    assert (none.code, (tmp_path / "other").exists()) == (1, False)
    assert "nothing is emitted" in none.err


def test_a_second_emit_overwrites_its_own_files_only(loraplan: CommandLine, tmp_path: Path) -> None:
    loraplan.succeeds("run", "quickstart", *QUICK, "--emit", "k8s=out")
    loraplan.succeeds("run", "quickstart", *QUICK, "--emit", "k8s=out", "--set", "cache.gpu.slots=16")
    assert "--max-loras=16" in (tmp_path / "out/deployment.yaml").read_text()
    kept = (tmp_path / "out/deployment.yaml").read_text()
    for name, kind in (("notes.txt", "k8s"), ("deployment.yaml", "k8s"), ("deployment.yaml", "llm-d")):
        (tmp_path / "out" / name).write_text("mine" if kind == "k8s" else kept)
        assert f"this folder holds a file that --emit {kind} did not write (got {name})" in loraplan.refused(
            "run", "quickstart", *QUICK, "--emit", f"{kind}=out"
        )
        (tmp_path / "out/notes.txt").unlink(missing_ok=True)
        (tmp_path / "out/deployment.yaml").write_text(kept)


def test_a_folder_that_is_a_link_is_refused_as_one(loraplan: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert "link: is a link; give the folder itself, or another DIR" in loraplan.refused(
        "run", "quickstart", *QUICK, "--emit", "k8s=link"
    )


def test_paths_of_models_are_written_as_they_are(loraplan: CommandLine, tmp_path: Path) -> None:
    paths = ("./models/Llama-3.1-8B", "/root/.cache/hub/Llama-3.1-8B/", "meta-llama/Llama-3.1-8B")
    for number, path in enumerate(paths):
        loraplan.succeeds(
            "run", "quickstart", *QUICK, "--set", f"adapters.base_model={path}", "--emit", f"k8s=k{number}"
        )
        assert documents(tmp_path / f"k{number}")[0]["spec"]["template"]["spec"]["containers"][0]["args"][0] == path


def deployment_of(**changed: Any) -> Deployment:
    scenario = load_scenario("quickstart").scenario
    (command,) = engine_commands(scenario, None)
    run = RunReference("run", "quickstart", "0" * 16, "no SLO", "")
    made = Deployment(
        "quickstart",
        "vLLM",
        "0.32.0",
        command,
        "a/b",
        replicas=1,
        gpus=1,
        gpus_key="fleet.tensor_parallel",
        gpu="NVIDIA H100",
        router="random",
        lora=True,
        adapters={},
        run=run,
        remarks=(),
    )
    return replace(made, **changed)


@pytest.mark.parametrize("kind", ["compose", "k8s", "kserve", "llm-d"])
def test_a_dollar_in_an_argument_is_never_replaced(kind: str) -> None:
    name = next(iter(KINDS[kind].files))
    text = KINDS[kind].files[name](deployment_of(model="a/$(HF_TOKEN)/${HOME}"), [])
    assert "a/$$(HF_TOKEN)/$${HOME}" in text


def test_the_script_finds_the_adapters_beside_itself(loraplan: CommandLine, tmp_path: Path) -> None:
    add_adapters(tmp_path / "adapters")
    run = ("run", "quickstart", *QUICK, "--set", "adapters.count=3", "--adapters", "adapters", "--emit", "vllm=local")
    loraplan.succeeds(*run)
    (tmp_path / "adapters").rename(tmp_path / "local/adapters")
    words = started_by_script(tmp_path / "local/serve.sh", tmp_path)
    folders = [Path(word.partition("=")[2]) for word in words if word.startswith("tone-")]
    assert folders == [tmp_path / f"local/adapters/tone-{n}" for n in range(3)]
    assert all(folder.is_dir() for folder in folders)


def test_a_replica_of_more_gpus_than_its_profile_asks_for_all_of_them(loraplan: CommandLine, tmp_path: Path) -> None:
    loraplan.succeeds("run", "quickstart", *QUICK, "--set", "fleet.gpus_per_replica=4", "--emit", "k8s=k8s")
    text = (tmp_path / "k8s/deployment.yaml").read_text()
    assert "nvidia.com/gpu: 4 # fleet.gpus_per_replica; run quickstart " in text
    assert "# Not in this file: the options that spread a replica over its 4 GPUs." in text


def test_the_manifest_on_the_page_is_what_is_emitted(loraplan: CommandLine, tmp_path: Path) -> None:
    page = (SCHEMAS.parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    shown = re.findall(r"```yaml\n( +image:.*?)```", page, re.DOTALL)[0].splitlines()
    model = "adapters.base_model=meta-llama/Llama-3.1-8B-Instruct"
    run = ("run", "quickstart", *QUICK, "--set", model, "--set", "cache.gpu.slots=24", "--set", "name=tone-adapters")
    loraplan.succeeds(*run, "--emit", "k8s=deploy")
    emitted = (tmp_path / "deploy/deployment.yaml").read_text(encoding="utf-8").splitlines()

    def without_run(line: str) -> str:
        return re.sub(r"; (plan|run) tone-adapters [0-9a-f]{16}, .*$", "", line)

    known = [without_run(line) for line in emitted]
    assert len(shown) > 5
    assert [line for line in shown if without_run(line) not in known] == []


# With an autoscaler, the HPA or the ScaledObject says what was simulated


SCALED = ("run", "quickstart", *QUICK, "--set", "workload.arrivals.rate=1/s", "--no-headroom")
HPA = "fleet.autoscale={target: 7.5, min: 1, max: 6, up_replicas: 2, down_share: 50%, stabilization_down: 90 s}"
KEDA = "fleet.autoscale={policy: keda, metric: waiting, target: 4, min: 0, max: 3, cooldown: 120 s, interval: 30 s}"


def scaled(loraplan: CommandLine, folder: Path, *more: str) -> list[Path]:
    loraplan.succeeds(*SCALED, "--emit", "k8s=k8s", *(part for text in more for part in ("--set", text)))
    return sorted((folder / "k8s").iterdir())


@pytest.mark.parametrize("autoscale", [HPA, KEDA])
def test_it_is_valid_and_every_number_has_a_comment(loraplan: CommandLine, tmp_path: Path, autoscale: str) -> None:
    files = scaled(loraplan, tmp_path, autoscale)
    assert [file.name for file in files] == ["autoscaler.yaml", "deployment.yaml"]
    found = documents(tmp_path / "k8s")
    assert [problem for document in found for problem in problems(document)] == []
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert text.startswith("# Written by loraplan --emit k8s ")
        assert uncommented(text) == []


def test_an_hpa_says_what_was_simulated(loraplan: CommandLine, tmp_path: Path) -> None:
    scaled(loraplan, tmp_path, HPA)
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
    (file, _) = scaled(loraplan, tmp_path, KEDA)
    keda, *_ = documents(tmp_path / "k8s")
    spec = keda["spec"]
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
    (deployment,) = scaled(loraplan, tmp_path, f"fleet.autoscale={autoscale}")
    assert f"# Not in this file: the autoscaler: {said}" in deployment.read_text(encoding="utf-8")


def test_a_fixed_fleet_removes_the_autoscaler_of_before(loraplan: CommandLine, tmp_path: Path) -> None:
    assert len(scaled(loraplan, tmp_path, HPA)) == 2
    (deployment,) = scaled(loraplan, tmp_path)
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
        scaled(loraplan, tmp_path, HPA, "workload.arrivals.rate=0.1/s", *more)
        (probe,) = (
            container["startupProbe"]
            for document in documents(tmp_path / "k8s")
            if document["kind"] == "Deployment"
            for container in document["spec"]["template"]["spec"]["containers"]
        )
        assert probe["periodSeconds"] * probe["failureThreshold"] == seconds
