"""``loraplan adapters`` as somebody uses it: tables, JSON, a scenario that runs, and folders from strangers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import CommandLine

from calibrate.loads.synthetic_adapters import BASE, MODEL, adapter_config, header_of, write_sparse
from sim.spec.scenario import Targets
from sim.spec.scenario_file import load_scenario
from sim.traffic.adapters import SHAPES, parameters_per_rank, populate


def add(root: Path, name: str, rank: int = 8, targets: Targets = ("q", "v"), base: str = BASE, mark: int = 0) -> Path:
    start, size = header_of(MODEL, rank, targets, "bf16")
    return write_sparse(root / name, start, size, adapter_config(base, rank, targets), mark)


def test_json_has_every_adapter(loraplan: CommandLine, tmp_path: Path) -> None:
    add(tmp_path, "fleet/a")
    add(tmp_path, "fleet/b", 16, "all-linear", mark=1)
    (tmp_path / "fleet" / "c").mkdir()
    (tmp_path / "fleet" / "c" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    data = loraplan.data("adapters", "fleet")
    assert (data["count"], data["max_rank"], data["base_model"]) == (2, 16, BASE)
    per_rank = parameters_per_rank(SHAPES[MODEL], ("q", "v"))
    first = data["adapters"][0]
    assert (first["folder"], first["rank"], first["targets"], first["bytes"]) == ("a", 8, ["q", "v"], 8 * per_rank * 2)
    assert first["file_bytes"] == (tmp_path / "fleet/a/adapter_model.safetensors").stat().st_size
    assert data["failures"][0]["kind"] == "not LoRA"
    assert [kind["count"] for kind in data["groups"]] == [1, 1]


def test_many_adapters_are_shown_by_kind(loraplan: CommandLine, tmp_path: Path) -> None:
    for n in range(30):
        add(tmp_path, f"fleet/a{n:02d}", 8 if n % 3 else 16, mark=n)
    out = loraplan("adapters", "fleet").out
    assert out.startswith("30 adapters of 2 kinds: ")
    assert "a05" not in out
    for n in range(25):
        add(tmp_path, f"fleet/b{n:02d}", n + 20, mark=n)
    assert "7 more kinds; --json has all" in loraplan("adapters", "fleet").out


@pytest.mark.parametrize(
    "engine", [None, "vllm-0.8", "vllm-0.32", "sglang", "s-lora", "lorax", "tensorrt-llm", "fixed"]
)
def test_a_written_scenario_passes_check_with_true_sizes(
    loraplan: CommandLine, tmp_path: Path, engine: str | None
) -> None:
    chosen = () if engine is None else ("--engine", engine)
    loraplan.succeeds("adapters", "--example", "fleet", *chosen, "--write", "mine.yaml", "--quiet")
    loraplan.succeeds("check", "mine.yaml")
    adapters = load_scenario("mine.yaml", []).scenario.adapters
    assert adapters.count == 15, "the one of another base model is left out"
    data = loraplan.data("adapters", "fleet")
    served = sorted(a["bytes"] for a in data["adapters"] if a["base_model"] == BASE)
    written = sorted(size for kind in adapters.mix for size in [kind.size] * round(kind.share * 15))
    assert written == served
    population = populate(adapters, MODEL, 15)
    assert int(population.size_bytes.max()) == max(served)


def test_what_no_profile_covers_is_said(loraplan: CommandLine, tmp_path: Path) -> None:
    add(tmp_path, "fleet/a", 512, "all-linear")
    ended = loraplan.succeeds("adapters", "fleet", "--write", "mine.yaml")
    assert "note: the scenario is written, but can't be simulated as it stands: mine.yaml" in ended.err
    assert "adapters.rank: more than twice what the profile" in ended.err
    assert loraplan("check", "mine.yaml").code == 2


def test_a_base_model_without_a_profile_is_said(loraplan: CommandLine, tmp_path: Path) -> None:
    add(tmp_path, "fleet/a", base="someone/Strange-9B")
    ended = loraplan.succeeds("adapters", "fleet", "--write", "mine.yaml")
    assert "note: no bundled profile is of someone/Strange-9B" in ended.err
    loraplan.succeeds("check", "mine.yaml")


def test_strangers_folders_leave_no_traceback(loraplan: CommandLine, tmp_path: Path) -> None:
    add(tmp_path, "fleet/good", base="\x1b]0;evil\x07[bold]x")
    weights = add(tmp_path, "fleet/huge") / "adapter_model.safetensors"
    weights.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    weights = add(tmp_path, "fleet/cut") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    halves = [{"dtype": "F16", "shape": [1], "data_offsets": [start, start + 2]} for start in (0, 1)]
    overlapping = json.dumps(dict(zip(("x.lora_A", "x.lora_B"), halves, strict=True))).encode()
    weights = add(tmp_path, "fleet/overlap") / "adapter_model.safetensors"
    weights.write_bytes(len(overlapping).to_bytes(8, "little") + overlapping + bytes(3))
    weights = add(tmp_path, "fleet/twice") / "adapter_model.safetensors"
    weights.write_bytes(b"\x10\0\0\0\0\0\0\0" + b'{"a": 1, "a": 2}')
    os.mkdir(os.fsencode(tmp_path) + b"/fleet/\xff\x1b[2J")
    add(tmp_path / "fleet", os.fsdecode(b"\xff\x1b[2J"), mark=3)
    for extra in ((), ("--json",), ("--engine", "vllm-0.32"), ("--write", "mine.yaml")):
        ended = loraplan.succeeds("adapters", "fleet", *extra)
        assert "note: 4 folders could not be read" in ended.err
        for text in (ended.out, ended.err):
            assert "Traceback" not in text
            assert all(line.isprintable() for line in text.splitlines())
    for words in ("length can't be true", "cut short", "overlap or leave a gap", "a name stands there twice"):
        assert words in loraplan("adapters", "fleet").out
    assert loraplan("adapters", "fleet", "--check").code == 1


def test_nothing_that_can_be_counted(loraplan: CommandLine, tmp_path: Path) -> None:
    (add(tmp_path, "bad/a") / "adapter_model.safetensors").write_bytes(b"")
    assert (
        "bad: none of 1 folder holds a LoRA adapter that can be read; a: adapter_model.safetensors: too short"
        in loraplan.refused("adapters", "bad")
    )
