"""Profiles: bundled ones with numbers, keys and bytes spoiled, used by a small run."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from validation.fuzz import nonsense
from validation.fuzz.cases import Case
from validation.fuzz.of_scenarios import SMALL


@lru_cache(maxsize=1)
def _bundled() -> list[dict[str, Any]]:
    root = Path(str(files("scenarios") / "profiles"))
    return [json.loads(file.read_bytes()) for file in sorted(root.rglob("*.json"))]


@st.composite
def profile_cases(draw: st.DrawFn) -> Case:
    """A profile, and a scenario that is simulated on it."""
    tree = copy.deepcopy(draw(st.sampled_from(_bundled())))
    for key in ("provenance", "hold_out", "sources"):
        if draw(st.booleans()) and key != "sources":
            tree.pop(key, None)
    if tree.get("draws"):
        tree["draws"] = tree["draws"][:2]
    if draw(st.integers(0, 2)) == 0:
        bits = draw(st.sampled_from(("int8", "nf4")))
        tree.setdefault("quantized", {})[bits] = draw(
            st.sampled_from(
                (
                    {},
                    {"weights_bytes": 1},
                    {"weights_bytes": 10**13},
                    {"step": tree["step"]},
                    {"weights_bytes": 4 * 10**9},
                )
            )
        )
    if draw(st.integers(0, 5)):
        tree = draw(nonsense.much_spoiled(tree, most=3))
    text = nonsense.as_json(tree)
    if draw(st.integers(0, 9)) == 0:
        text = draw(nonsense.damaged(text))
    more = ["--set", "fleet.profile=./p.json"]
    for change in draw(
        st.lists(
            st.sampled_from(
                (
                    "adapters.base_quantization=nf4",
                    "adapters.base_quantization=int8",
                    "fleet.engine=vllm-0.8",
                    "fleet.engine=vllm-0.32",
                    "fleet.replicas=2",
                    "adapters.base_model=tiny",
                    "fleet.engine=s-lora",
                    "cache.host={slots: 4}",
                    "fleet.gpu_memory_utilization=50%",
                )
            ),
            max_size=2,
        )
    ):
        more += ["--set", change]
    line = ["run", "small.yaml", "--json", "--jobs", "1", "--out", "out", *more]
    if draw(st.integers(0, 2)):
        line = ["check", "small.yaml", *more]
    return Case({"small.yaml": SMALL, "p.json": text}, [line])
