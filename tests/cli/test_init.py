"""``loraplan init``: what a command line, a manifest, a log and a folder of adapters become; every draft can be run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.spec.engine_flags.command_lines import Setting, engine_flags, read_command, why_no_flags
from sim.spec.engine_flags.options import bare, flag_tables
from sim.spec.engines import VERSIONS
from sim.spec.files.problems import known_keys
from sim.spec.files.tree import plain
from sim.spec.files.yaml_tree import flow_text, parse_yaml
from sim.spec.needs import value_of
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import bundled_scenarios, load_scenario
from sim.spec.units import parse_bytes
from sim.studies.design import check_points
from sim.studies.init.draft import Draft, write_draft
from sim.studies.init.questions import QUESTIONS, ask

VLLM = (
    "vllm serve meta-llama/Llama-3.1-8B-Instruct --enable-lora --max-loras 12 --max_lora_rank=32 --max-cpu-loras 64 "
    "--max-model-len 8k --no-enable-prefix-caching --port 8000 --quantization fp8 --max-num-seq 128"
)


def drafted(loraplan: CommandLine, *arguments: str) -> Scenario:
    loraplan.succeeds("init", "--out", "mine.yaml", *arguments)
    loraplan.succeeds("check", "mine.yaml")
    return load_scenario("mine.yaml").scenario


def test_a_command_line_becomes_a_scenario_that_runs(loraplan: CommandLine) -> None:
    ended = loraplan.succeeds("init", "--out", "mine.yaml", "--from-vllm", VLLM)
    assert ended.out.splitlines() == ["scenario mine.yaml", "next     loraplan run mine.yaml"]
    scenario = load_scenario("mine.yaml").scenario
    keys = ("cache.gpu.slots", "cache.host.slots", "adapters.rank", "fleet.max_model_len", "fleet.prefix_caching")
    assert [value_of(scenario, key) for key in keys] == [12, 64, 32, 8000, False]
    assert scenario.adapters.base_model == "meta-llama/Llama-3.1-8B-Instruct"
    loraplan.succeeds("run", "mine.yaml", "--set", "workload.requests=200", "--set", "run.replications=1")


def test_what_cant_be_simulated_stays_as_a_comment(loraplan: CommandLine) -> None:
    scenario = drafted(loraplan, "--from-vllm", "vllm serve my/own-3b -tp 4 --max-loras 4")
    assert (scenario.adapters.base_model, scenario.fleet.tensor_parallel) == (None, None)
    ended = loraplan("init", "--out", "other.yaml", "--from-vllm", "vllm serve my/own-3b --port 80")
    first = ended.err.splitlines()[0]
    assert first.startswith("note: Not your model: this simulates llama-3.1-8b, not my/own-3b: there is no profile of")
    assert "build it from the model's config.json: loraplan profiles build --gpu h100-80gb --model config.json" in first
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert "# base_model: my/own-3b   # the command line's model; left out: there is no profile of my/own-3b" in text
    assert "# tensor_parallel: 4   # -tp 4; left out: there is no profile" in text
    assert "\n# This draft is for 1 GPU a replica, not 4 (-tp 4): there is no profile of " in text
    assert "doesn't enable LoRA" in text


def test_a_profile_that_is_missing_comes_next_and_is_taken_once_it_is_built(loraplan: CommandLine) -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the kernels extra: pip install -e '.[kernels]'")
    command = ("--gpu", "l4", "--from-vllm", "vllm serve meta-llama/Llama-3.1-8B --enable-lora")
    ended = loraplan.succeeds("init", "--out", "mine.yaml", *command)
    assert ended.err.startswith("note: Not your GPU: this simulates h100-80gb, not l4 (--gpu): there is no profile of")
    build = "loraplan profiles build --gpu l4 --model meta-llama/Llama-3.1-8B"
    assert f"next     {build}; then remove mine.yaml and draft it again, which takes that profile" in ended.out
    for other in ("a100-80gb --tp 4", "h100-80gb --weights fp8"):  # of the same model
        gpu, *more = other.split()
        loraplan.succeeds("profiles", "build", "--gpu", gpu, "--model", "llama-3.1-8b", *more, "--out", "other.json")
        Path("profiles/l4/llama-3.1-8b").mkdir(parents=True, exist_ok=True)
        Path("other.json").rename(f"profiles/l4/llama-3.1-8b/vllm-{gpu}.json")
    Path("profiles/l4/llama-3.1-8b/vllm-0.1.json").write_text("none", encoding="utf-8")
    loraplan.succeeds("init", "--out", "still.yaml", *command)
    assert load_scenario("still.yaml").scenario.fleet.profile is None, "files are taken by what they hold"
    loraplan.succeeds(*build.split()[1:], "--engine", "sglang")
    loraplan.succeeds(*build.split()[1:])
    Path("deployed").mkdir()
    Path("link").symlink_to("deployed")
    for out in ("deployed/mine.yaml", "link/again.yaml"):
        ended = loraplan.succeeds("init", "--out", out, *command)
        assert ended.out.splitlines()[-1] == f"next     loraplan run {out}"
        fleet = load_scenario(out).scenario.fleet
        assert (fleet.gpu, Path(str(fleet.profile)).name) == ("l4", "vllm-data-sheet.json")
    wide = (*command[:3], f"{command[3]} --tensor-parallel-size 32")
    assert "next     loraplan run wide.yaml" in loraplan.succeeds("init", "--out", "wide.yaml", *wide).out
    Path("profiles").rename("elsewhere")
    ended = loraplan.succeeds("init", "--out", "wider.yaml", *wide)
    assert f"next     {build}; then remove wider.yaml" in ended.out, "none can be built for so many"
    assert "Not your model" not in ended.err


def bundled() -> list[Scenario]:
    found = [load_scenario(name).scenario for name in bundled_scenarios()]
    return [scenario for scenario in found if not why_no_flags(scenario)]


def test_all_that_is_wrong_is_left_out_even_if_something_cant_be(tmp_path: Path) -> None:
    draft = Draft("mine")
    draft.lines["adapters"] = ["  count: 0"]  # the first of three errors, and no setting
    draft.add([Setting("fleet.max_num_seqs", -3, "said"), Setting("cache.gpu.slots", 0, "said")])
    *left_out, hopeless = write_draft(draft, tmp_path / "mine.yaml")
    assert left_out == [
        "left out fleet.max_num_seqs (said): out of range",
        "left out cache.gpu.slots (said): out of range",
    ]
    assert re.search(r"can't be simulated as it stands: .*adapters.count: out of range[^\n]*$", hopeless)


def test_command_lines_that_loraplan_writes_are_read_back() -> None:
    """What ``plan`` recommends, as a command line, means the values that were simulated."""
    scenarios = bundled()
    assert len(scenarios) > 5
    for scenario in scenarios:
        for text in engine_flags(scenario, 100_000).values():
            read = read_command(text)
            assert not read.unknown
            assert not read.of_server
            for setting in read.settings:
                meant = value_of(scenario, setting.key)
                if setting.key == "fleet.kv_offload.size":
                    assert parse_bytes(setting.value) == pytest.approx(meant, rel=1e-5)  # GiB, to six digits
                elif setting.key not in ("adapters.rank", "adapters.targets") and meant is not None:
                    assert setting.value == meant, (scenario.name, setting)


def test_options_that_slow_a_server_are_not_called_harmless_and_secrets_are_not_shown() -> None:
    slower = ["--enforce-eager", "-O0", "-O.level=0", "--compilation-config.level 0", "--cuda-graph-sizes 8 16"]
    secret = "--api-key sk-1 sk-2 --hf_token=sk-3 --ssl-keyfile-password sk-4 --my-secret-name sk-5"
    read = read_command(f"vllm serve m {' '.join(slower)} {secret} --ssl-keyfile /k --max-total-tokens 9")
    assert [said for said, _ in read.untranslated] == slower
    assert read.of_server == ("--api-key …", "--hf_token …", "--ssl-keyfile-password …", "--ssl-keyfile /k")
    assert [said.partition(" (")[0] for said in read.unknown] == ["--my-secret-name …", "--max-total-tokens 9"]
    for wrong in (f"ollama run {secret}", f"vllm serve '{secret}"):
        with pytest.raises(InputError) as refused:
            read_command(wrong)
        assert "sk-" not in str(refused.value)


@pytest.mark.parametrize("engine", ["vLLM", "SGLang"])
def test_every_option_of_the_tables_is_known_and_read(engine: str) -> None:
    start = {"vLLM": "vllm serve m", "SGLang": "python -m sglang.launch_server --model-path m"}[engine]
    for flag in flag_tables()[engine].flags:
        value = "" if flag.is_switch else "7"
        for name in (flag.name, *(each for each in flag.also if each.startswith("-"))):
            read = read_command(f"{start} {name} {value}")
            assert not read.unknown, name
            assert not read.of_server, name
            meant = {setting.key for setting in read.settings}
            assert (
                meant & set(flag.keys)
                or any(bare(name) in bare(said) for said, _ in read.untranslated)
                or (flag.name in ("--model", "--model-path", "--enable-lora", "--chunked-prefill-size"))
            ), name


SGLANG = "python3 -m sglang.launch_server --model-path {} --lora-paths a=/a b=/b c=/c --max-loras-per-batch 4"
COMMANDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "an image with its version": (
        "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.10.1 --model m --lora-modules a=/a b=/b",
        "vllm-0.10.1",
        {"adapters.count": 2, "cache.gpu.slots": 1},
    ),
    "a module": ("python -m vllm.entrypoints.openai.api_server --max-loras=3", "vllm", {"cache.gpu.slots": 3}),
    "lines": ("HF_TOKEN=x vllm serve m \\\n  --max-loras 3 \\\n  --block-size 32", "vllm", {"fleet.block_size": 32}),
    "blocks": ("vllm serve m --num-gpu-blocks-override 100 --block-size 32", "vllm", {"fleet.kv_tokens": 3200}),
    "chunks checked alone": (
        "vllm serve m --no-scheduler-reserve-full-isl --device-memory-utilization 0.8 --max-loras 2",
        "vllm",
        {"fleet.kv_check": "first-chunk", "fleet.gpu_memory_utilization": 0.8, "cache.gpu.slots": 2},
    ),
    "steps scheduled ahead": (
        "vllm serve m --async-scheduling --max-loras 2",
        "vllm",
        {"fleet.async_scheduling": True, "cache.gpu.slots": 2},
    ),
    "steps one by one": ("vllm serve --no-async-scheduling m", "vllm", {"fleet.async_scheduling": False}),
    "prompts every third step": (
        "vllm serve m --prefill-schedule-interval 3",
        "vllm",
        {"fleet.prefill_schedule_interval": 3},
    ),
    "modules of adapters": (
        "vllm serve m --lora-target-modules q_proj v_proj",
        "vllm",
        {"adapters.targets": ["q", "v"]},
    ),
    "sglang": (
        SGLANG.format("m") + " --chunked-prefill-size -1 --disable-radix-cache --lora-eviction-policy lru",
        "sglang",
        {"cache.eviction": "lru", "adapters.count": 3, "fleet.chunked_prefill": False, "fleet.prefix_caching": False},
    ),
    "the longest prefix first, and drained adapters": (
        SGLANG.format("m") + " --schedule-policy lpm --lora-drain-wait-threshold 2.5",
        "sglang",
        {"fleet.scheduling": "lpm", "fleet.drain_wait": "2.5 s"},
    ),
    "the smaller of two limits": (
        SGLANG.format("m") + " --chunked-prefill-size 4096 --max-prefill-tokens 16384",
        "sglang",
        {"fleet.max_num_batched_tokens": 4096},
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_command_lines(case: str) -> None:
    text, engine, values = COMMANDS[case]
    read = read_command(text)
    found = {setting.key: setting.value for setting in read.settings}
    assert read.engine == engine
    assert found | values == found
    assert read_command(shlex.split(text.replace("\\\n", " "))) == read


WORDS = (
    "vllm",
    "serve",
    "sglang.launch_server",
    "-",
    "--",
    "--=",
    "-tp",
    "--max-loras",
    "--no-",
    "8k",
    "=",
    "'",
    "--a=b=c",
)


@settings(max_examples=50)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)), max_size=8))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    for text in (" ".join(words), ["vllm", "serve", *words]):
        with contextlib.suppress(InputError):
            read = read_command(text)
            assert read.model in " ".join(words)
            assert {each.key for each in read.settings} <= set(known_keys(Scenario))


FLOW = st.one_of(
    st.sampled_from(("12/s", "5%", "40 GB", "1e5", "0x1f", "2025-01-01", "1_000", "off", "a ", "x: y", "")),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=6),
    st.booleans(),
    st.integers(-9, 99),
)


@given(st.dictionaries(st.sampled_from(("a", "b")), st.one_of(FLOW, st.lists(FLOW, max_size=3))))
def test_values_on_one_line_are_read_as_they_were(value: dict[str, object]) -> None:
    node = parse_yaml(flow_text(value), "a draft")
    assert node is not None
    assert plain(node) == value


DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: llm}
spec:
  replicas: 3
  template:
    spec:
      nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}
      containers:
        - name: proxy
          image: envoyproxy/envoy:v1.31
          args: ["-c", "/etc/envoy.yaml"]
        - name: server
          image: vllm/vllm-openai:v0.12.0
          command: ["vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct"]
          args: ["--enable-lora", "--max-loras", "6"]
---
kind: Service
"""
SHELL = """\
spec:
  containers:
    - command: ["/bin/sh", "-c"]
      args:
        - |
          export X=1; exec vllm serve meta-llama/Llama-3.1-8B-Instruct \\
            --enable-lora --max-loras 6
"""
CHART = """\
servingEngineSpec:
  modelSpec:
    - name: llama
      repository: vllm/vllm-openai
      tag: v0.12.0
      enableLoRA: true
      modelURL: meta-llama/Llama-3.1-8B-Instruct
      replicaCount: 2
      requestGPU: 1
      vllmConfig:
        maxModelLen: 4096
        extraArgs: ["--max-loras", "6"]
"""
SIDECAR = """\
spec:
  containers:
    - image: vllm/vllm-openai:v0.12.0
      env: [{name: SLOTS, value: "6"}, {name: SECRET, valueFrom: {}}]
      command: [/bin/bash, -euo, pipefail, -c]
      args:
        - |
          # vllm serve another --max-loras 99
          set -e
          pip install x && exec vllm serve meta-llama/Llama-3.1-8B-Instruct --enable-lora --max-loras $(SLOTS) &
          sleep 30; python sidecar.py --max-loras 3
"""
KSERVE = SHELL.replace("  containers", "  minReplicas: 2\n  maxReplicas: 2\n  containers")
COMPOSE = """\
services:
  llm:
    image: vllm/vllm-openai:v0.11.0
    deploy: {replicas: 4}
    command: --model meta-llama/Llama-3.1-8B-Instruct --enable-lora --max-loras=6
"""
SCALED = KSERVE.replace("maxReplicas: 2", "maxReplicas: 5")
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
KSERVE_MODEL = """\
kind: InferenceService
spec:
  predictor:
    minReplicas: 2
    model:
      modelFormat: {name: huggingface}
      args: [--model_name, llm, --backend=vllm, --enable-lora, --max-loras=6]
      storageUri: hf://meta-llama/Llama-3.1-8B-Instruct
"""
LLM_SERVICE = """\
kind: LLMInferenceService
spec:
  replicas: 2
  model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct", lora: {adapters: [{name: a}]}}
  template:
    containers: [{name: main, env: [{name: VLLM_ADDITIONAL_ARGS, value: --max-loras 6}]}]
  prefill: {replicas: 1}
"""
HPA = """\
---
kind: HorizontalPodAutoscaler
spec: {scaleTargetRef: {kind: Deployment, name: llm}, minReplicas: 2, maxReplicas: 5}
"""
KEDA = "---\nkind: ScaledObject\nspec: {scaleTargetRef: {name: llm}, minReplicaCount: 2, maxReplicaCount: 5}\n"


@pytest.mark.parametrize(
    ("text", "replicas"),
    [
        (DEPLOYMENT, 3),
        (SHELL, 1),
        (SIDECAR, 1),
        (CHART, 2),
        (KSERVE, 2),
        (SCALED, 2),
        (KSERVE_MODEL, 2),
        (re.sub(r" +storageUri: hf://(.*)\n", "", KSERVE_MODEL).replace("--backend=vllm", f"--model_id={MODEL}"), 2),
        (LLM_SERVICE, 2),
        (DEPLOYMENT + HPA, 2),
        (DEPLOYMENT.replace("  replicas: 3\n", "") + KEDA, 2),
        (DEPLOYMENT + HPA.replace("name: llm", "name: other"), 3),
        (COMPOSE, 4),
        (COMPOSE.replace("deploy: {replicas: 4}", "scale: 3"), 3),
    ],
)
def test_manifests(loraplan: CommandLine, text: str, replicas: int) -> None:
    Path("llm.yaml").write_text(text)
    scenario = drafted(loraplan, "--from-manifest", "llm.yaml", "--gpu", "h100")
    assert scenario.adapters.base_model == "meta-llama/Llama-3.1-8B-Instruct"
    assert (scenario.cache.gpu.slots, scenario.fleet.replicas, scenario.fleet.gpu) == (6, replicas, "h100-80gb")
    written = Path("mine.yaml").read_text(encoding="utf-8")
    scaled = text is SCALED or "kind: HorizontalPod" in text or "kind: ScaledObject" in text
    scaled = scaled and "name: other" not in text
    assert ("llm.yaml scales from 2 to 5 replicas" in written) == scaled
    assert ("the fewest replicas in llm.yaml" in written) == scaled
    if text is DEPLOYMENT:
        assert "fleet:\n" in written
        assert scenario.fleet.engine.startswith("vllm-0.")
    assert ("Not translated: prefill in llm.yaml" in written) == (text is LLM_SERVICE)
    assert ("doesn't enable LoRA" in written) == ("--enable-lora" not in text and text not in (CHART, LLM_SERVICE))
    if text is CHART:
        assert (scenario.fleet.max_model_len, scenario.fleet.prefix_caching) == (4096, False)
        assert scenario.fleet.engine == "vllm-0.12.0"


@pytest.mark.parametrize(
    ("logic", "policy"),
    [
        ("roundrobin", "round-robin"),
        ("session", "production-stack-session"),
        ("prefixaware", "production-stack-prefixaware"),
        ("kvaware", None),
    ],
)
def test_router_and_offload_of_the_production_stack(loraplan: CommandLine, logic: str, policy: str | None) -> None:
    values = CHART.replace("vllmConfig:", "lmcacheConfig: {enabled: true}\n      vllmConfig:")
    deployed = f"---\nspec: {{containers: [{{args: [--port, '1', --routing-logic, {logic}]}}]}}\n"
    for text in (f"routerSpec: {{routingLogic: {logic}}}\n{values}", values + deployed):
        Path("llm.yaml").write_text(text)
        Path("mine.yaml").unlink(missing_ok=True)
        scenario = drafted(loraplan, "--from-manifest", "llm.yaml", "--gpu", "h100")
        assert scenario.router.policy == (policy or "round-robin")
        written = Path("mine.yaml").read_text(encoding="utf-8")
        assert ("Not translated: the routing logic kvaware" in written) == (policy is None)
        assert "LMCache is not simulated" in written


def test_options_in_a_file_of_the_engine(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text("model: m\nenable-lora: true\nmax-loras: 4\nmax_num_seqs: 9\nlora-modules: [a=/a, b=/b]\n")
    alone = read_command("vllm serve m --max-num-seqs 9 --enable-lora --lora-modules a=/a b=/b --max-loras 6")
    values = {each.key: each.value for each in alone.settings}
    for command in (f"vllm serve --config {file} --max-loras 6", f"vllm serve m --max-loras 6 --config={file}"):
        read = read_command(command)
        assert ({each.key: each.value for each in read.settings}, read.model, read.loras) == (values, "m", True)
    assert read_command(f"vllm serve other --config {file}").model == "other"
    file.write_text("enable-prefix-caching: false\nenable-lora: true\n")
    assert read_command(f"vllm serve m --config {file}").value("fleet.prefix_caching") is False
    gone = read_command(f"vllm serve m --config {tmp_path / 'gone.yaml'}")
    assert [why for _, why in gone.untranslated] == ["a file of options; init reads it where it is at this path"]
    file.write_text("- a\n")
    with pytest.raises(InputError, match=r"vllm\.yaml"):
        read_command(f"vllm serve m --config {file}")


def test_options_of_the_next_command_are_none_of_the_engine() -> None:
    alone = read_command("vllm serve m --enable-lora --max-loras 6")
    for end in (" && ", "&&", " || ", ";", "; ", " | ", " & ", "\n", " 2>&1 | ", "  # Start; don't stop\n"):
        command = f"vllm serve m --enable-lora --max-loras 6{end}python client.py --max-loras 3"
        assert read_command(command) == alone, end
        for before in ("cd /opt/vllm && ", "pip install vllm; ", "set -e\n"):
            assert read_command(before + command) == alone, before
            assert read_command(["bash", "-c", before + command]) == alone, before
    script = 'set -eu\nset -- serve m # model\nset -- "$@" --enable-lora\nset -- "$@" --max-loras 6\nexec vllm "$@"'
    assert read_command(script) == alone, "as --emit writes it"
    quoted = 'vllm serve m --enable-lora --max-loras 6 --hf-overrides \'{"a": "b; c & d"}\''
    assert read_command(quoted).value("cache.gpu.slots") == 6


@pytest.mark.parametrize(
    ("options", "asked", "replicas", "gpus"),
    [("", 4, 3, 4), (", -pp, '4'", 4, 3, 4), (", -dp, '2'", 4, 6, 2), (", -dp, '2'", 2, 6, None), ("", 1, 3, None)],
)
def test_costs_count_the_gpus_of_a_pod(
    loraplan: CommandLine, options: str, asked: int, replicas: int, gpus: int | None
) -> None:
    engine = f"args: [vllm, serve, llama-3.1-8b, --enable-lora{options}]"
    Path("llm.yaml").write_text(
        f"replicas: 3\nspec: {{{engine}, resources: {{limits: {{nvidia.com/gpu: '{asked}'}}}}}}\n"
    )
    fleet = drafted(loraplan, "--from-manifest", "llm.yaml").fleet
    assert (fleet.replicas, fleet.gpus_per_replica) == (replicas, gpus)
    noted = f"GPUs of a pod in llm.yaml: {asked}; tensor" in Path("mine.yaml").read_text(encoding="utf-8")
    assert noted == (gpus is not None)


PICKER = """
kind: EndpointPickerConfig
plugins:
- {type: kv-cache-utilization-scorer, name: kv}
- {type: prefix-cache-scorer, parameters: {matchLengthWeight: 0.2, lruCapacityPerServer: 100}}
- {type: prefix-cache-affinity-filter, parameters: {maxTTFTPenaltyMs: 9000}}
- {type: session-affinity-scorer}
- {type: weighted-random-picker}
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: prefix-cache-affinity-filter}
  - {pluginRef: kv, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 2.5}
  - {pluginRef: session-affinity-scorer}
  - {pluginRef: weighted-random-picker}
"""


def test_the_configuration_of_an_endpoint_picker_comes_in_and_goes_out_again(loraplan: CommandLine) -> None:
    Path("epp.yaml").write_text(PICKER)
    router = drafted(loraplan, "--from-epp", "epp.yaml").router
    assert [(each.name, each.weight) for each in router.scorers] == [("kv-cache-utilization", 2), ("prefix-cache", 2.5)]
    assert (router.scorers[1].match_length_weight, router.filters[0].max_ttft_penalty) == (0.2, 9.0)
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert "# Not translated: lruCapacityPerServer of prefix-cache-scorer: 100" in text
    assert "# Not translated: session-affinity-scorer: " in text
    short = ("--set", "workload.requests=200", "--set", "run.replications=1", "--no-headroom", "--quiet")
    loraplan.succeeds("run", "mine.yaml", *short, "--emit", "llm-d=out")
    loraplan.succeeds("init", "--from-epp", "out/endpoint-picker.yaml", "--out", "again.yaml")
    assert load_scenario("again.yaml").scenario.router == router
    for wrong, problem in ((PICKER.replace("ef: kv", "ef: vk"), "unknown plugin"), ("kind: Pod", "no container")):
        Path("epp.yaml").write_text(wrong)
        ended = loraplan("init", "--from-epp", "epp.yaml", "--out", "wrong.yaml")
        assert (ended.code, Path("wrong.yaml").exists()) == (2, False)
        assert problem in ended.err


def test_a_log_and_a_folder_of_adapters(loraplan: CommandLine) -> None:
    rows = [f"{1741078800 + 3 * n},{'ab'[n % 2]},{10 + n % 7},{20 + n % 5}" for n in range(60)]
    Path("log.csv").write_text("\n".join(["ts,model,prompt_tokens,completion_tokens", *rows, ""]))
    loraplan.succeeds("adapters", "fleet", "--example")
    ended = loraplan.succeeds("init", "--out", "mine.yaml", "--from-trace", "log.csv", "--from-adapters", "fleet")
    assert "Guessed: time, adapter, input, output, unit" in ended.err
    assert "The log names 2 adapters, 0 of them in fleet. They get the ranks and sizes" in ended.err
    scenario = load_scenario("mine.yaml").scenario
    assert scenario.workload.trace.columns is not None
    assert len(scenario.adapters.mix) > 1
    loraplan.succeeds("check", "mine.yaml")
    loraplan.succeeds("run", "mine.yaml")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("", "vLLM refuses 1 of these adapters: a rank up to 64, above 16, the largest asked for."),
        ("--max-lora-rank 64", None),
        ("--max-lora-rank 256", "Those of --max-lora-rank 256 take more memory: adapters.max_rank: 256."),
    ],
)
def test_a_folder_is_compared_with_the_largest_rank_of_its_server(
    loraplan: CommandLine, option: str, said: str | None
) -> None:
    loraplan.succeeds("adapters", "fleet", "--example")
    drafted(loraplan, "--from-adapters", "fleet", "--from-vllm", f"vllm serve llama-3.1-8b --enable-lora {option}")
    text = Path("mine.yaml").read_text(encoding="utf-8")
    assert said in text if said else "rank up to" not in text and "--max-lora-rank" not in text
    assert "vLLM refuses 1 of these adapters: DoRA: " in text


def test_a_log_is_read_as_the_options_say(loraplan: CommandLine) -> None:
    Path("log.csv").write_text("when,route,n,m\n1741078800,/lora/a,5,7\n1741078802,/lora/b,6,8\n1741078803,base,9,9\n")
    columns = ("--columns", "time=when,adapter=route,input=n,output=m", "--base-model", "base")
    scenario = drafted(loraplan, "--from-trace", "log.csv", *columns)
    assert scenario.workload.trace.base_model == "base"
    with Path("log.csv").open("a") as log:
        log.write("then,/lora/b,6,8\n")
    pattern = ("--columns", "time=when,adapter=route,input=n,output=m", "--adapter-from", "/lora/(.+)", "--skip-bad")
    Path("mine.yaml").unlink()
    assert drafted(loraplan, "--from-trace", "log.csv", *pattern).workload.trace.adapter_from == "/lora/(.+)"  # type: ignore[union-attr]


def test_rows_of_the_model_that_is_served_are_requests_to_the_base_model(loraplan: CommandLine) -> None:
    rows = [f"{1741078800 + n},{name},5,7" for n, name in enumerate(["a", "b", "org/base", "org/base"])]
    Path("log.csv").write_text("\n".join(["ts,model,prompt_tokens,completion_tokens", *rows, ""]))
    command = "vllm serve org/base --enable-lora"
    scenario = drafted(loraplan, "--from-trace", "log.csv", "--from-vllm", command)
    assert scenario.workload.trace.base_model == "org/base"


@pytest.mark.parametrize(
    ("gpu", "batch"), [("h100-80gb", (1024, 8192)), ("b200", (1024, 16384)), ("a100-80gb", (256, 2048))]
)
def test_what_a_command_line_leaves_to_vllm_is_vllms_default_on_that_gpu(
    loraplan: CommandLine, gpu: str, batch: tuple[int, int]
) -> None:
    fleet = drafted(loraplan, "--gpu", gpu, "--from-vllm", "vllm serve llama-3.1-8b --enable-lora").fleet
    assert (fleet.max_num_seqs, fleet.max_num_batched_tokens) == batch
    by_hand = load_scenario("quickstart", [f"fleet.gpu={gpu}"]).scenario.fleet
    assert (by_hand.max_num_seqs, by_hand.max_num_batched_tokens) == batch


@pytest.mark.parametrize(("gpu", "chunk"), [("l40s", 4096), ("h100-80gb", 8192), ("b200", 16384)])
def test_what_a_command_line_leaves_to_sglang_is_sglangs_default_on_that_gpu(
    loraplan: CommandLine, gpu: str, chunk: int
) -> None:
    command = "python -m sglang.launch_server --model-path llama-3.1-8b --enable-lora"
    fleet = drafted(loraplan, "--gpu", gpu, "--from-sglang", command).fleet
    assert (fleet.max_num_seqs, fleet.max_num_batched_tokens) == (2048, chunk)
    Path("mine.yaml").unlink()
    fleet = drafted(loraplan, "--gpu", gpu, "--from-sglang", f"{command} --chunked-prefill-size 512").fleet
    assert (fleet.max_num_seqs, fleet.max_num_batched_tokens) == (512, 512)
    by_hand = load_scenario("quickstart", [f"fleet.gpu={gpu}", "fleet.engine=sglang", "cache.gpu.slots=8"])
    assert (by_hand.scenario.fleet.max_num_seqs, by_hand.scenario.fleet.max_num_batched_tokens) == (2048, chunk)


@pytest.mark.parametrize("static", [0.22, 0.8])  # the smaller would not hold the weights if it were loraplan's
def test_sglangs_share_of_memory_comes_back_as_it_was_given(loraplan: CommandLine, static: float) -> None:
    command = f"python -m sglang.launch_server --model-path llama-3.1-8b --enable-lora --mem-fraction-static {static}"
    found = drafted(loraplan, "--gpu", "h100", "--from-sglang", command)
    assert f"--mem-fraction-static {static:.3f} " in engine_flags(found, 100_000)["SGLang"]


@pytest.mark.parametrize(("version", "share"), [("", 0.92), (":v0.25.0", 0.92), (":v0.24.1", 0.9), (":v0.9.1", 0.9)])
def test_memory_that_a_command_line_leaves_to_vllm_is_that_of_its_version(
    loraplan: CommandLine, version: str, share: float
) -> None:
    command = f"docker run vllm/vllm-openai{version} --model llama-3.1-8b --enable-lora"
    assert drafted(loraplan, "--gpu", "h100", "--from-vllm", command).fleet.gpu_memory_utilization == share
    Path("mine.yaml").unlink()
    for option, line in (
        ("--gpu-memory-utilization 0.8", "gpu_memory_utilization: 0.8"),
        ("--num-gpu-blocks-override 9000", ""),
    ):
        drafted(loraplan, "--gpu", "h100", "--from-vllm", f"{command} {option}")
        draft = Path("mine.yaml").read_text(encoding="utf-8")
        assert line in draft
        assert ("gpu_memory_utilization" in draft) == bool(line)
        Path("mine.yaml").unlink()


@pytest.mark.parametrize(("version", "preset"), [("0.99.1", list(VERSIONS["vLLM"])[-1].preset), ("0.7.3", "vllm-0.8")])
def test_a_version_without_a_preset_gets_the_nearest(loraplan: CommandLine, version: str, preset: str) -> None:
    command = f"docker run vllm/vllm-openai:v{version} --model llama-3.1-8b --enable-lora"
    assert drafted(loraplan, "--gpu", "h100", "--from-vllm", command).fleet.engine == preset
    assert f"# {preset} stands for vllm-{version}: vLLM " in Path("mine.yaml").read_text(encoding="utf-8")


def test_a_command_line_without_a_model_says_which_one_is_assumed(loraplan: CommandLine) -> None:
    ended = loraplan.succeeds("init", "--from-vllm", "vllm serve --enable-lora --max-loras 4", "--out", "mine.yaml")
    assert "note: The command line names no model: llama-3.1-8b is assumed" in ended.err


@pytest.mark.slow
@pytest.mark.waits
def test_on_a_terminal_a_wrong_answer_repeats_the_question_and_a_plan_is_offered(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command, plain = [sys.executable, "-m", "sim.cli", "init"], {**os.environ, "TERM": "dumb", "COLUMNS": "80"}
    process = subprocess.Popen(command, cwd=tmp_path, env=plain, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = ""

    def seen(text: str) -> None:
        nonlocal shown
        while text not in shown:
            shown += os.read(ours, 4096).decode()
        shown = shown.partition(text)[2]

    answers = ("llama-3.1-8b", ""), ("h100-80gb", "h10"), ("h100-80gb", ""), ("100", "20"), ("16", "8"), ("6/s", "")
    for default, answer in (*answers, ("300, 120", "20, 2"), ("1 s", ""), ("none", "2.50")):
        seen(f"[{default}]: ")
        os.write(ours, f"{answer}\n".encode())
    seen("Plan the fleet now? [Y/n]: ")
    os.write(ours, b"\n")
    seen("fleet.replicas 1: met")
    process.send_signal(signal.SIGINT)
    seen("finished points are kept")
    assert process.wait(60) == 130
    os.close(ours)
    manifest = json.loads((tmp_path / "runs/scenario-plan/manifest.json").read_text(encoding="utf-8"))
    assert manifest["command"] == "loraplan plan scenario.yaml"


def answered(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.mark.slow
def test_answers_on_standard_input_are_written_and_planned(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, "Qwen/Qwen2.5-7B-Instruct", "h200", "40", "", "90/min, 3", "200, 20", "500 ms, 20 s")
    ended = loraplan(
        "plan", "--ask", "mine.yaml", "--set", "workload.requests=3000", "--minimize", "fleet.replicas=1..2"
    )
    assert ended.out.startswith("mine: Use 1 replica: "), ended.err
    assert "defaults used: adapters.rank 16, fleet.price none" in ended.err
    manifest = json.loads(Path("runs/mine-plan/manifest.json").read_text(encoding="utf-8"))
    assert manifest["command"].split()[1:3] + manifest["command"].split()[-1:] == ["plan", "--set", "mine.yaml"]
    text = Path("mine.yaml").read_text(encoding="utf-8")
    for line in (
        "  arrivals: {process: gamma, rate: 90/min, cv: 3}   # your answer",
        "    prompt: {law: lognormal, mean: 200, p99: 1000, max: 3000}   # your answer; p99 and max are assumed",
        "  rank: 16   # the default",
        "  e2e_p99: 20 s   # your answer",
    ):
        assert line in text
    loraplan.succeeds("check", "mine.yaml")
    loraplan.succeeds("run", "mine.yaml", "--set", "workload.requests=200")


def test_an_slo_may_be_of_other_terms_by_name(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {"ttft_p95 800 ms, itl_p99: 60 ms": ["ttft_p95: 800 ms", "itl_p99: 60 ms"], "e2e_p99=9 s": ["e2e_p99: 9 s"]}
    for place, (typed, written) in enumerate(terms.items()):
        answered(monkeypatch, *[""] * 6, typed)
        loraplan(
            "plan", "--ask", f"{place}.yaml", "--set", "workload.requests=200", "--minimize", "fleet.replicas=1..1"
        )
        text = Path(f"{place}.yaml").read_text(encoding="utf-8").split("\nslo:\n")[1]
        assert [line.split("   #")[0].strip() for line in text.splitlines()[: len(written) + 1]] == [*written, "plan:"]
    for wrong, said in (
        ("ttft_p92 1 s", "slo.ttft_p92: unknown key"),
        ("ttft_p95 9", "slo.ttft_p95: a time needs its unit"),
        ("ttft_p95 1 s, 20 s", "by name, each once"),
    ):
        answered(monkeypatch, *[""] * 6, wrong)
        assert said in loraplan("plan", "--ask", "wrong.yaml").err


WRONG = {  # by the line of the answer, and of a quickstart with the same value
    (1, "my/own-3b"): "adapters.base_model=my/own-3b",
    (2, "h10"): "fleet.gpu=h10",
    (3, "many"): "adapters.count=many",
    (4, "0"): "adapters.rank=0",
    (5, "50"): "workload.arrivals.rate=50",
    (7, "500"): "slo.ttft_p99=500",
    (8, "EUR 2"): "fleet.price=EUR 2",
}


@pytest.mark.parametrize(("line", "answer"), WRONG)
def test_a_wrong_answer_is_refused_as_in_a_scenario(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch, line: int, answer: str
) -> None:
    answered(monkeypatch, *[""] * (line - 1), answer)
    ended = loraplan("plan", "--ask")
    with pytest.raises(InputError) as refused:
        check_points(load_scenario("quickstart", ["fleet.gpu=h100-80gb", WRONG[line, answer]]))
    assert (ended.code, ended.err) == (2, f"error: standard input:{line}: {str(refused.value).partition(': ')[2]}\n")
    assert not Path("scenario.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "lines", "said"),
    [
        (["--ask"], ["", "", "1,000"], "standard input:3: adapters.count: not an answer to this question"),
        (["--ask"], [""] * 8 + ["y"], "standard input:9: more answers than questions"),
        (["--ask", "quickstart"], [], "SCENARIO: with --ask, the file to write (got quickstart"),
        ([], [], "SCENARIO: is missing; loraplan plan --ask"),
    ],
)
def test_what_plan_ask_refuses(
    loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch, arguments: list[str], lines: list[str], said: str
) -> None:
    answered(monkeypatch, *lines)
    assert said in loraplan.refused("plan", *arguments)
    assert not list(Path().iterdir())


_MODEL, _, _COUNT, _RANK, _RATE, *_ = (question.keys[0] for question in QUESTIONS)


@pytest.mark.parametrize(
    ("answers", "values"),
    [
        ({}, {"cache.gpu.slots": 64, "cache.host.slots": 100, "fleet.gpu": "h100-80gb", "plan.range": [1, 16]}),
        ({_MODEL: "llama-3.1-70b"}, {"fleet.tensor_parallel": 4, "cache.gpu.slots": 32}),
        ({_MODEL: "gpt-oss-120b"}, {"fleet.gpu": "h200"}),  # the model has no profile on the usual GPU
        ({_COUNT: "5000", _RANK: "64", _RATE: "500/s"}, {"cache.host.slots": 381, "plan.range": [1, 64]}),
    ],
)
def test_what_follows_from_answers_leaves_no_trap(
    tmp_path: Path, answers: dict[str, str], values: dict[str, object]
) -> None:
    draft = Draft("mine")
    ask(draft, lambda question, default: answers.get(question.keys[0], ""), lambda error: pytest.fail(str(error)))
    (note,) = write_draft(draft, tmp_path / "mine.yaml")
    assert note.startswith(f"Chosen without asking you: cache.gpu.slots {draft.settings['cache.gpu.slots'].value}, ")
    assert {key: draft.settings[key].value for key in values} == values
    page = (Path(__file__).parents[2] / "docs" / "init.md").read_text(encoding="utf-8")
    assert "\n".join(f"{each.text} [{each.default}]:" for each in QUESTIONS) in page


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve --trust-remote-code org/base --enable-lora --max-loras 8",
        "vllm serve org/base --disable-log-requests --enable-lora --max-loras 8",
        "sh -c 'cd /models && exec vllm serve org/base --enable-lora --max-loras 8'",
        ["vllm/vllm-openai:v0.19.0", "/bin/sh", "-c", "vllm serve org/base --enable-lora --max-loras 8"],
    ],
)
def test_the_model_is_found_behind_switches_and_within_shells(command: str | list[str]) -> None:
    read = read_command(command)
    assert (read.model, read.loras, read.unknown) == ("org/base", True, ())
    assert next(each.value for each in read.settings if each.key == "cache.gpu.slots") == 8
    assert read.engine == ("vllm" if isinstance(command, str) else "vllm-0.19.0")
