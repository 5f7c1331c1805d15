"""Adapter folders and training logs: good ones, with keys, numbers, headers and bytes spoiled."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st

from calibrate.loads.synthetic_adapters import adapter_config, header_of
from validation import ROOT
from validation.fuzz import nonsense
from validation.fuzz.cases import Case

WEIGHTS, CONFIG, STATE = "adapter_model.safetensors", "adapter_config.json", "trainer_state.json"
_FIXTURES = ROOT / "tests" / "training" / "fixtures"
_TARGETS: tuple[Any, ...] = (("q", "v"), ("q",), "all-linear", ("q", "k", "v", "o"))


@lru_cache(maxsize=1)
def _logs() -> list[bytes]:
    return [file.read_bytes() for file in sorted(_FIXTURES.glob(f"*/{STATE}"))]


@st.composite
def weights(draw: st.DrawFn) -> bytes:
    """A safetensors file as PEFT writes it, mostly with its header spoiled or its bytes damaged."""
    rank, targets = draw(st.sampled_from((1, 2, 8, 64))), draw(st.sampled_from(_TARGETS))
    start, size = header_of("tiny", rank, targets, draw(st.sampled_from(("bf16", "fp32", "fp16"))))
    how = draw(st.sampled_from(("good", "good", "tree", "bytes", "size")))
    if how == "tree":
        tree = draw(nonsense.much_spoiled(json.loads(start[8:])))
        text = nonsense.as_json(tree)
        start = len(text).to_bytes(8, "little") + text
    if how == "size":
        size = max(0, size + draw(st.sampled_from((-1, 1, -size))))
    content = start + bytes(size)
    return draw(nonsense.damaged(content)) if how == "bytes" else content


@st.composite
def _spoiled_json(draw: st.DrawFn, content: bytes, sometimes: int = 3) -> bytes:
    how = draw(st.integers(0, sometimes))
    if how == 0:
        return draw(nonsense.damaged(content))
    if how == 1:
        return nonsense.as_json(draw(nonsense.much_spoiled(json.loads(content))))
    return content


@st.composite
def adapter_folder(draw: st.DrawFn) -> dict[str, bytes | None]:
    """The files of one adapter."""
    targets = draw(st.sampled_from(_TARGETS))
    base = draw(st.sampled_from(("tiny", "meta-llama/Llama-3.1-8B", "\x1b[31m[red]x", "")))
    config = nonsense.as_json(adapter_config(base, draw(st.sampled_from((2, 8))), targets))
    files: dict[str, bytes | None] = {
        WEIGHTS: draw(weights()),
        CONFIG: draw(_spoiled_json(config)),
        STATE: draw(_spoiled_json(draw(st.sampled_from(_logs())), 4)),
    }
    for name in draw(st.lists(st.sampled_from(sorted(files)), max_size=2)):
        how = draw(st.sampled_from(("keep", "keep", "drop", "empty", "folder")))
        if how == "drop":
            files.pop(name, None)
        elif how != "keep":
            files[name] = b"" if how == "empty" else None
    if draw(st.integers(0, 5)) == 0:
        files[f"checkpoint-{draw(st.sampled_from(('100', '00', '9' * 12, 'x')))}/{STATE}"] = draw(
            st.sampled_from(_logs())
        )
    return files


@st.composite
def adapter_files(draw: st.DrawFn) -> dict[str, bytes | None]:
    """Up to four adapters below ``adapters``, the first in ``adapters/one``."""
    names = [
        "one",
        *draw(
            st.lists(st.sampled_from(("two", "dé/ep/three", "[red]four", "five\n", "-six")), max_size=3, unique=True)
        ),
    ]
    return {f"adapters/{name}/{file}": content for name in names for file, content in draw(adapter_folder()).items()}


@st.composite
def adapter_cases(draw: st.DrawFn) -> Case:
    """Adapters, counted, vetted and priced."""
    files = draw(adapter_files())
    where = draw(st.sampled_from(("adapters", "adapters", "adapters/one", f"adapters/one/{STATE}", "nowhere")))
    command = draw(st.sampled_from(("adapters", "adapters", "vet", "vet", "priced")))
    if command == "adapters":
        options = draw(
            st.lists(
                st.sampled_from(
                    (
                        ("--engine", "vllm-0.32"),
                        ("--engine", "sglang"),
                        ("--max-rank", "4"),
                        ("--max-rank", "8"),
                        ("--check",),
                        ("--base-model", "tiny"),
                        ("--base-model", "x\x1b"),
                        ("--json",),
                        ("--engine", "vllm-0.8"),
                        ("--engine", "lorax"),
                    )
                ),
                max_size=3,
                unique_by=lambda option: option[0],
            )
        )
        lines = [["adapters", where, *(word for option in options for word in option)]]
        if draw(st.booleans()):
            lines[0] += ["--write", "w.yaml"]
            lines.append(["check", "w.yaml"])
    else:
        options = draw(
            st.lists(
                st.sampled_from(
                    (
                        ("--base-bits", "4"),
                        ("--base-bits", "32"),
                        ("--examples", "1"),
                        ("--examples", "9" * 30),
                        ("--check",),
                        ("--json",),
                        ("--threshold", "small_rank=8"),
                        ("--threshold", "small_rank=1e400"),
                        ("--threshold", "x=1"),
                        ("--threshold", "small_rank"),
                        ("--reference", "adapters/one"),
                        ("--reference", "adapters/two"),
                        ("--threshold", "high_loss=nan"),
                    )
                ),
                max_size=3,
                unique_by=lambda option: option[0],
            )
        )
        lines = [["vet", where, *(word for option in options for word in option)]]
        if command == "priced":
            from validation.fuzz.of_scenarios import SMALL

            files["small.yaml"] = SMALL
            lines[0] += ["--scenario", "small.yaml"]
    return Case(files, lines)
