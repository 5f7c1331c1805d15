"""Every vLLM command that is emitted is accepted by vLLM's own parser, with the values that were simulated.

Without a vLLM here, its options are those recorded in ``vllm_options.json``: what ``vllm_parser.py options`` printed.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine
from ruamel.yaml import YAML
from vllm_environment import PYTHON, needs_vllm

from calibrate.loads.synthetic_adapters import BASE, MODEL, adapter_config, header_of, write_sparse
from sim.results.run_directory.store import read_run
from sim.spec.engine_flags.command_lines import read_command
from sim.spec.engine_flags.options import flag_tables

PARSER = Path(__file__).with_name("vllm_parser.py")
OPTIONS: dict[str, list[list[str]]] = json.loads(Path(__file__).with_name("vllm_options.json").read_text())
NAMES = {name for group in OPTIONS.values() for names in group for name in names}

QUICK = ("--set", "workload.requests=300", "--set", "run.replications=1", "--set", "run.warmup=0", "--jobs", "1")
NONE_CAN_MISS = ("--set", "slo.miss_ratio=")
RUNS: dict[str, tuple[str, ...]] = {
    "plain": ("quickstart",),
    "adapters": ("quickstart", "--set", "adapters.count=2", "--adapters", "adapters"),
    "limits": ("quickstart", "--set", "fleet.max_model_len=8192", "--set", "fleet.kv_tokens=160000"),
    "rank": ("quickstart", "--set", "adapters.rank=20", "--set", "fleet.prefix_caching=false"),
    "base": (
        "quickstart",
        "--set",
        "adapters.mix=[{kind: base, share: 100%}]",
        "--set",
        "adapters.rank=",
        *NONE_CAN_MISS,
    ),
    "experts": (
        "quickstart",
        *("--set", "fleet.gpu=h200", "--set", "adapters.base_model=gpt-oss-120b"),
        *("--set", "adapters.targets=[q, v, experts-shared-outer]", "--set", "cache.gpu.slots=4"),
    ),
    "drafts": (
        "quickstart",
        *("--set", "fleet.async_scheduling=false"),
        *("--set", "fleet.speculation={tokens: 3, acceptance: 70%, draft: 0%, method: ngram}"),
    ),
    "gpus": ("plan-70b-tensor-parallel", "--set", "fleet.replicas=1", "--set", "fleet.fully_sharded_loras=true"),
}
KINDS = ("vllm", "compose", "k8s", "kserve", "llm-d")


def words_of(folder: Path, kind: str) -> list[str]:
    """Return the words after ``vllm serve`` of an emitted manifest."""
    if kind == "vllm":
        fake = folder / "fake" / "vllm"
        fake.parent.mkdir()
        fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
        fake.chmod(0o755)
        environment = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
        script = str(folder / kind / "serve.sh")
        done = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split("\n")[1:-1]
    files = sorted((folder / kind).glob("*.yaml"))
    found = [each for file in files for each in YAML(typ="safe").load_all(file.read_text(encoding="utf-8"))]
    return next(filter(None, map(_arguments, found)))


def _arguments(value: Any) -> list[str]:
    """Return the arguments of the first container below a value, or of a Compose service."""
    if isinstance(value, dict):
        for key in ("args", "command"):
            if isinstance(value.get(key), list) and "serve" not in value[key]:
                return [str(word) for word in value[key]]
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return next(filter(None, map(_arguments, below)), [])


@pytest.fixture
def emitted(loraplan: CommandLine, tmp_path: Path) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """What was emitted: the words after ``vllm serve``, and the scenario of each."""
    for number in range(2):
        start, size = header_of(MODEL, 8, ("q", "v"), "bf16")
        write_sparse(tmp_path / f"adapters/t{number}", start, size, adapter_config(BASE, 8, ("q", "v")), number)
    commands, wanted = [], []
    for name, run in RUNS.items():
        emits = [part for kind in KINDS for part in ("--emit", f"{kind}={name}/{kind}")]
        loraplan.succeeds("run", *run, *QUICK, "--out", f"runs/{name}", *emits)
        commands += [words_of(tmp_path / name, kind) for kind in KINDS]
        wanted += [read_run(tmp_path / "runs" / name).manifest["scenario"]] * len(KINDS)
    return commands, wanted


@pytest.mark.slow
def test_every_emitted_option_is_one_of_vllm(emitted: tuple[list[list[str]], list[dict[str, Any]]]) -> None:
    commands, _ = emitted
    assert {word.partition("=")[0] for words in commands for word in words if word.startswith("-")} <= NAMES


@pytest.mark.nightly
@needs_vllm
def test_vllm_takes_every_emitted_command(emitted: tuple[list[list[str]], list[dict[str, Any]]]) -> None:
    commands, wanted = emitted
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), str(PARSER)],
        input=json.dumps(commands),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parsed = json.loads(done.stdout.splitlines()[-1])
    assert len(parsed) == len(commands)
    for words, found, scenario in zip(commands, parsed, wanted, strict=True):
        assert "error" not in found, (words, found)
        assert found["model_tag"] == words[0]
        if not found["enable_lora"]:
            assert not any("lora" in word for word in words)
            continue
        assert found["max_loras"] == scenario["cache"]["gpu"]["slots"]
        assert found["max_cpu_loras"] == scenario["cache"]["host"]["slots"]
        assert found["max_lora_rank"] >= scenario["adapters"]["rank"]
        assert found["tensor_parallel_size"] == scenario["fleet"].get("tensor_parallel", 1)
        assert found["max_model_len"] == scenario["fleet"].get("max_model_len")
        drafts = scenario["fleet"].get("speculation")
        assert (found["speculative_config"] or {}).get("num_speculative_tokens") == (drafts and drafts["tokens"])
    listed = [[name for name, _ in found["lora_modules"]] for found in parsed]
    assert listed == [["t0", "t1"] if name == "adapters" else [] for name in RUNS for _ in KINDS]


GONE = {"--cuda-graph-sizes", "--max-num-partial-prefills", "--swap-space"}
"""Options of older versions."""
UNANSWERED = {
    *("--cp-kv-cache-interleave-size", "--dcp-comm-backend", "--dcp-kv-cache-interleave-size", "--dcp-q-replicate"),
    *("--diffusion-config", "--elastic-ep-max-dp-size", "--enable-batch-sharded-sampling", "--enable-hc-sp"),
    *("--enable-flash-late-interaction", "--engram-config", "--ir-op-priority", "--max-lora-cls-labels"),
    *("--enable-mamba-cache-stochastic-rounding", "--enable-mamba-shared-prefix-checkpoint", "--mamba-cache-mode"),
    *("--mamba-cache-philox-rounds", "--mamba-ssu-algorithm", "--replayssm-buffer-len", "--use-replayssm"),
    *("--prefix-cache-retention-interval", "--prefix-match-unit", "--sparse-indexer-topk-backend"),
    *("--swa-bounded-replay", "--enable-mixed-moe-lora-format"),
}
"""Options that ``init`` calls unknown: of models that are not simulated, or that few have met."""


def test_the_table_has_the_options_of_vllm() -> None:
    spelled = {
        flag.name: {each for each in (flag.name, *flag.also) if each.startswith("-")}
        for flag in flag_tables()["vLLM"].flags
    }
    gone = {name for name, names in spelled.items() if names - NAMES - {"-O"}}  # vLLM reads -O0 itself
    assert gone == GONE
    asked = [names[0] for group in OPTIONS.values() for names in group if names[0] not in ("-h", "--config")]
    assert {name for name in asked if read_command(["vllm", "serve", "m", name, "1"]).unknown} == UNANSWERED


@pytest.mark.nightly
@needs_vllm
def test_the_recorded_options_are_those_of_this_vllm() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), str(PARSER), "options"], env=environment, capture_output=True, text=True, check=True
    )
    groups = json.loads(done.stdout.splitlines()[-1])
    assert {title: found for title, names in groups.items() if (found := [each for each in names if each])} == OPTIONS


@pytest.mark.nightly
@needs_vllm
def test_a_command_that_vllm_refuses_is_noticed() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    wrong = json.dumps([["m", "--max-loras", "many"], ["m", "--no-such-option"], ["m", "--max-lora-rank=20"]])
    done = subprocess.run(
        [str(PYTHON), str(PARSER)], input=wrong, env=environment, capture_output=True, text=True, check=True
    )
    assert ["error" in found for found in json.loads(done.stdout.splitlines()[-1])] == [True, True, True]
