"""Scenarios: bundled ones made small, sections of others, values that the schema allows, then a few things spoiled."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from sim.spec.scenario import scenario_schema
from sim.spec.scenario_file import bundled_scenarios, load_scenario
from validation.fuzz import nonsense, schema_values
from validation.fuzz.cases import Case
from validation.fuzz.of_adapters import adapter_files

REQUESTS = 40
_SECTIONS = (
    "workload",
    "adapters",
    "fleet",
    "cache",
    "storage",
    "router",
    "rollouts",
    "faults",
    "slo",
    "run",
    "sweep",
    "plan",
)
_FULL = {"share": 0.5, "kind": "full"}
_MIXES = (
    [{"share": 1, "kind": "full"}],
    [{"share": 0.5, "rank": 8}, _FULL],
    [{"share": "50%", "kind": "full", "size": "2 GB"}, _FULL],
    [{"share": 0.5, "rank": 8, "size": "1 MB"}, {"share": 0.5, "rank": 64, "targets": ["q"]}],
)
_SERVED = (
    {"serve": "dedicated"},
    {"serve": "swap"},
    {"serve": "swap", "replicas": 2, "turn": "2 s"},
    {"serve": "swap", "resident": 2},
    {"serve": "swap", "resident": 64},
    {"serve": "swap", "load": {"law": "fixed", "value": "800 ms"}, "turn": "0 s"},
    {"serve": "dedicated", "replicas": 3},
    {"serve": "swap", "load": {"law": "exponential", "mean": "1 h"}},
)
_PLANS = (
    {"minimize": "cache.gpu.slots", "range": [1, 4]},
    {"minimize": "fleet.replicas", "range": [1, 3]},
    {"maximize": "workload.arrivals.rate", "range": ["1/s", "8/s"], "step": "100%"},
    {"minimize": "run.seed", "range": [1, 2]},
    {"minimize": ["fleet.replicas", "cache.gpu.slots"], "range": [[1, 2], [2, 4]], "step": [1, 2]},
    {"minimize": "cache.gpu.slots", "values": [1, 2, "3", None]},
    {"maximize": "adapters.count", "range": [2, 6], "step": 2},
    {
        "minimize": "price",
        "range": [1, 2],
        "fleets": [
            {"name": "a", "price": 3},
            {"name": "=b", "price": 1, "set": {"fleet.profile": "l40s-48gb/llama-3.1-8b/assumed"}},
        ],
    },
    {"minimize": "cache.gpu.size", "range": ["1 GB", "2 GB"]},
    {"minimize": "fleet.full_models.replicas", "range": [1, 2]},
    {"minimize": "adapters.mix.0.rank", "range": [8, 16], "step": 8},
    {"maximize": "adapters.base_quantization", "values": ["nf4", "bf16"]},
)
_ROLLOUTS = (
    {"strategy": "new-name", "at": "1 s", "weights": "adapters", "require": "vet"},
    {
        "strategy": "new-name",
        "at": "1 s",
        "weights": "adapters/one",
        "require": "vet",
        "stages": ["50%", "100%"],
        "dwell": "1 s",
    },
    {"strategy": "in-place", "at": "500 ms", "weights": "adapters/one"},
    {"strategy": "lazy-reread", "at": "0 s"},
    {"strategy": "drain-then-swap", "at": "1 s", "adapter": 0, "require": "vet", "weights": "nowhere"},
    {"strategy": "unload-then-load", "at": "1 s", "share": "50%"},
)


@lru_cache(maxsize=1)
def bases() -> list[dict[str, Any]]:
    """Return the bundled scenarios with few requests, adapters and points."""
    return [_small(load_scenario(name).data) for name in bundled_scenarios()]


def _small(data: dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(data)
    tree["workload"]["requests"] = REQUESTS
    tree["workload"].pop("duration", None)
    tree["run"] = {"seed": 1, "replications": 2}
    for key, listed in tree.get("sweep", {}).items():
        tree["sweep"] = {key: listed[:2]}
        break
    return tree


@lru_cache(maxsize=1)
def _schema() -> tuple[dict[str, Any], dict[str, Any]]:
    whole = scenario_schema()
    return whole["$defs"]["Scenario"], whole["$defs"]


@st.composite
def _built(draw: st.DrawFn) -> dict[str, Any]:
    """A scenario in which everything may be right: a bundled one with sections and values from elsewhere."""
    tree: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(bases())))
    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        other, section = draw(st.sampled_from(bases())), draw(st.sampled_from(_SECTIONS))
        if section in other:
            tree[section] = copy.deepcopy(other[section])
    adapters, fleet = tree["adapters"], tree.setdefault("fleet", {})
    for what in draw(st.lists(st.sampled_from(("full", "bits", "rollout", "plan", "engine", "schema")), max_size=3)):
        if what == "full":
            adapters.pop("rank", None)
            adapters["mix"] = copy.deepcopy(draw(st.sampled_from(_MIXES)))
            fleet["full_models"] = copy.deepcopy(draw(st.sampled_from(_SERVED)))
            adapters["count"] = draw(st.sampled_from((2, 3, 8)))
        elif what == "bits":
            adapters["base_quantization"] = draw(st.sampled_from(("int8", "nf4", "bf16")))
        elif what == "rollout":
            tree["rollouts"] = [copy.deepcopy(draw(st.sampled_from(_ROLLOUTS)))]
        elif what == "plan":
            tree["plan"] = copy.deepcopy(draw(st.sampled_from(_PLANS)))
        elif what == "engine":
            fleet["engine"] = draw(
                st.sampled_from(("continuous", "vllm-0.8", "vllm-0.32", "sglang", "s-lora", "lorax", "tensorrt-llm"))
            )
        else:
            draw(_by_schema(tree))
    return tree


@st.composite
def _by_schema(draw: st.DrawFn, tree: dict[str, Any]) -> None:
    """Put something that the schema allows somewhere into the tree."""
    schema, defs = _schema()
    section = draw(st.sampled_from(_SECTIONS))
    node = schema["properties"][section]
    if draw(st.integers(0, 3)) == 0:
        tree[section] = draw(schema_values.values(node, defs))
        return
    ref = node.get("$ref") or next((each["$ref"] for each in node.get("anyOf", ()) if "$ref" in each), None)
    inner = defs[ref.rpartition("/")[2]].get("properties", {}) if ref else {}
    if inner and isinstance(tree.setdefault(section, {}), dict):
        key = draw(st.sampled_from(sorted(inner)))
        tree[section][key] = draw(schema_values.values(inner[key], defs))


def bounded(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a scenario that is as wrong as before, but asks for little where it asks for something possible."""
    tree = copy.deepcopy(tree)
    most = {"requests": 60, "replications": 2, "count": 5000, "max_requests": 200, "replicas": 8}
    for path in nonsense.paths(tree):
        key, value = path[-1], nonsense.at(tree, path)
        if isinstance(key, str) and type(value) in (int, float) and value > most.get(key.rpartition(".")[2], 1e18):
            nonsense.put(tree, path, most[key.rpartition(".")[2]])
    workload = tree.get("workload")
    if isinstance(workload, dict) and "duration" in workload and "requests" not in workload:
        workload["duration"] = "5 s" if isinstance(workload["duration"], str) and len(workload["duration"]) < 9 else 1
    return tree


@st.composite
def scenario_cases(draw: st.DrawFn) -> Case:
    """One scenario file, and commands that read it."""
    simulated = draw(st.integers(0, 1)) == 0
    tree = draw(_built())
    if draw(st.booleans()):
        tree.pop("sweep", None)  # its keys seldom fit what was put together
    if simulated:
        if draw(st.integers(0, 2)) == 0:
            tree = draw(nonsense.spoiled(tree, nonsense.small_values))
        tree = bounded(tree)
    elif draw(st.integers(0, 3)):
        tree = draw(nonsense.much_spoiled(tree))
    text = nonsense.as_yaml(tree)
    if draw(st.integers(0, 14)) == 0:
        text = draw(nonsense.damaged(text))
        simulated = False
    files: dict[str, bytes | None] = {"s.yaml": text}
    if '"weights": "' in json.dumps(tree):
        files |= draw(adapter_files())
    quiet = ["--json", "--jobs", "1", "--out", "out"]
    lines = [["check", "s.yaml", *draw(st.sampled_from(([], ["--resolved"])))]]
    if simulated:
        command = draw(st.sampled_from(("run", "run", "run", "sweep", "plan")))
        more = draw(st.sampled_from(([], ["--check"]))) if command == "run" else []
        if command == "plan":
            more = draw(st.sampled_from(([], ["--what-if"], ["--minimize", "cache.gpu.slots=1..4"])))
        lines = [[command, "s.yaml", *quiet, *more]]
    return Case(files, lines)


SMALL = b"""\
schema_version: 1
name: small
workload:
  requests: 40
  arrivals: {process: poisson, rate: 8/s}
  popularity: {law: zipf, exponent: 0.9}
  tokens: {prompt: {law: fixed, value: 50}, output: {law: fixed, value: 10}}
adapters: {count: 6, rank: 8}
cache: {gpu: {slots: 2}}
slo: {ttft_mean: 1 s}
run: {replications: 2}
sweep: {cache.gpu.slots: [1, 2]}
"""
