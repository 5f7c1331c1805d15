"""``loraplan profiles``: what there is, what each says, and how to make more."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from command_line import CommandLine

from sim.errors import ScenarioError
from sim.spec.profile import UNFIT, Draw, Shape, StepCost, bundled_profiles, load_profile
from sim.spec.scenario import Adapters
from sim.studies.profile_listing import tpot_error
from sim.traffic.adapters import SHAPES, GpuSplit, ModelShape, base_shape, populate
from sim.world.memory.gpu_memory import adapter_bytes

needs_tables = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="needs the kernels extra: pip install -e '.[kernels]'",
)
BUILD = ("profiles", "build", "--gpu", "h100-80gb", "--model", "llama-3.1-8b")


def test_list_has_every_bundled_profile_with_its_status_and_error(loraplan: CommandLine) -> None:
    rows = loraplan.data("profiles", "list")["profiles"]
    assert [row["name"] for row in rows] == bundled_profiles()
    for row in rows:
        profile, _ = load_profile(row["name"])
        assert (row["status"], row["device"], row["model"]) == (profile.status, profile.device, profile.model)
        assert row["error"] == profile.error
        assert (row["gpus"], row["weights"]) == (profile.tensor_parallel, profile.dtype)
        assert (row["tpot_error"] is None) == (not profile.draws)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (("h100-64", "qwen"), ["h100-64gb/qwen2.5-7b/vllm-0.8.5"]),
        (("--gpu", "H100", "--model", "Qwen2.5-14B-Instruct"), ["h100-80gb/qwen2.5-14b/vllm-0.24.0"]),
        (
            ("l40s", "--model", "qwen"),
            [f"l40s/{model}/vllm-0.24.0" for model in ("qwen2.5-14b", "qwen2.5-7b", "qwen3-14b", "qwen3-8b")],
        ),
        (("--status", "assumed"), ["h100-64gb/llama-3.1-8b/assumed", "l40s-48gb/llama-3.1-8b/assumed"]),
        (("l40s", "--status", "assumed", "--model", "llama-3.1-8b"), ["l40s-48gb/llama-3.1-8b/assumed"]),
    ],
)
def test_list_filters(given: tuple[str, ...], names: list[str], loraplan: CommandLine) -> None:
    rows = loraplan.data("profiles", "list", *given)["profiles"]
    assert [row["name"] for row in rows] == names


def test_the_error_of_a_decode_step_is_the_spread_of_its_draws() -> None:
    """Draws that scale all costs by 0.8 to 1.2, evenly, leave 18 % open: nine tenths of 20 %."""
    known, _ = load_profile("h100-64gb/llama-3.1-8b/vllm-0.8.5")

    def scaled(cost: StepCost, factor: float) -> StepCost:
        data = cost.model_dump()
        table = [(tokens, factor * seconds) for tokens, seconds in data.pop("tokens")]
        lora = {key: factor * value for key, value in data.pop("lora").items()}
        return StepCost(tokens=table, lora=lora, **{key: factor * value for key, value in data.items()})

    factors = [0.8 + 0.4 * number / 40 for number in range(41)]
    draws = tuple(Draw(step=scaled(known.step, factor), load=known.load) for factor in factors)
    assert tpot_error(known.model_copy(update={"draws": draws})) == pytest.approx(0.18, abs=0.001)
    assert tpot_error(known.model_copy(update={"draws": ()})) is None


def test_list_reads_a_folder_and_passes_over_other_json(tmp_path: Path, loraplan: CommandLine) -> None:
    profile, _ = load_profile("h100-64gb/llama-3.1-8b/assumed")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.json").write_text(profile.model_dump_json())
    (tmp_path / "mine" / "b.json").write_text("{}")
    rows = loraplan.data("profiles", "list", "--from", "mine")["profiles"]
    assert [row["name"] for row in rows] == ["mine/a.json"]
    ended = loraplan("profiles", "list", "--from", "elsewhere")
    assert (ended.code, ended.err) == (2, "error: --from: no such folder (got elsewhere)\n")


def test_build_without_the_extra_says_how_to_install_it(loraplan: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibrate.kernels import kernel_tables

    kernel_tables._package.cache_clear()
    for module in kernel_tables.PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, None)
    ended = loraplan(*BUILD)
    kernel_tables._package.cache_clear()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: profiles are built from kernel tables, which are not installed; run pip install -e '.[kernels]' in "
        "your clone of loraplan\n"
    )


@needs_tables
def test_a_built_profile_is_listed_shown_and_simulated(tmp_path: Path, loraplan: CommandLine) -> None:
    built = loraplan.succeeds(*BUILD)
    file = "profiles/h100-80gb/llama-3.1-8b/vllm-0.24.0.json"
    assert (tmp_path / file).exists()
    assert f"use it: loraplan run quickstart --set fleet.profile=./{file}" in built.err
    (row,) = loraplan.data("profiles", "list", "--from", "profiles")["profiles"]
    assert row["made_by"] == "loraplan profiles build --gpu h100-80gb --model llama-3.1-8b"
    assert "LoRA terms scaled from H100-64GB (launches)" in loraplan("profiles", "show", f"./{file}").out
    small = ("--set", "workload.requests=2000", "--json", "--out", "run")
    ran = loraplan.succeeds("run", "quickstart", "--set", f"fleet.profile=./{file}", *small)
    metric = json.loads(ran.out)["points"][0]["metrics"]["tpot_mean_s"]
    assert metric["calibration_lo"] < metric["value"] < metric["calibration_hi"]


@needs_tables
def test_a_build_of_another_version_says_so(loraplan: CommandLine) -> None:
    built = loraplan.succeeds(*BUILD, "--engine", "vllm-0.12", "--out", "p.json")
    assert "note: the kernel tables have no vllm-0.12: this profile is of vLLM 0.24.0" in " ".join(built.err.split())


@needs_tables
def test_the_same_build_twice_gives_the_same_bytes(tmp_path: Path, loraplan: CommandLine) -> None:
    for name in ("a.json", "b.json"):
        loraplan.succeeds(*BUILD, "--out", name, "--json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@needs_tables
def test_build_does_not_replace_what_is_no_profile(tmp_path: Path, loraplan: CommandLine) -> None:
    (tmp_path / "notes.json").write_text("[]")
    assert "this file is no profile: it is not replaced" in loraplan.refused(*BUILD, "--out", "notes.json")
    assert (tmp_path / "notes.json").read_text() == "[]"


@needs_tables
def test_a_model_that_loraplan_does_not_know_is_built_and_simulated(tmp_path: Path, loraplan: CommandLine) -> None:
    """Own GPU, own model: a config.json is all there is, over two cards, with 8-bit weights."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "vocab_size": 152064,
    }
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    given = ("--gpu", "l40s", "--model", "ours", "--tp", "2", "--weights", "fp8", "--out", "p.json", "--json")
    built = loraplan.succeeds("profiles", "build", *given)
    assert json.loads(built.out)["name"] == "l40s/ours-fp8-tp2/vllm-0.24.0"
    profile, _ = load_profile("./p.json")
    assert "--model config.json --name ours --tp 2" in profile.provenance.command
    assert base_shape(profile) == ModelShape(6144, 16384, 40, 48, 8, vocab=152064, qkv_bias=True)
    linear, rest = 40 * base_shape(profile).linear_parameters(), 2 * 152064 * 6144 + 81 * 6144 + 40 * 64 * 128
    assert profile.memory.weights_bytes == linear + 2 * rest
    changes = ("fleet.profile=./p.json", "workload.requests=1000", "cache.gpu.slots=16", "adapters.rank=32")
    assert (
        loraplan.data("run", "quickstart", "--out", "run", *(part for c in changes for part in ("--set", c)))["points"][
            0
        ]["metrics"]["tpot_mean_s"]["value"]
        > 0
    )


@pytest.mark.parametrize("command", [("check",), ("run", "--out", "run", "--set", "workload.requests=500")])
def test_results_say_that_a_profile_is_not_to_plan_with(
    command: tuple[str, ...], tmp_path: Path, loraplan: CommandLine
) -> None:
    profile, _ = load_profile("h200/llama-3.1-8b/vllm-0.24.0")
    note = f"LoRA terms scaled; steps of this class are off by more than 30% in the median: {UNFIT}"
    for name, status_note in (("unfit", note), ("fit", profile.status_note)):
        built = profile.model_copy(update={"name": name, "status_note": status_note})
        (tmp_path / f"{name}.json").write_text(built.model_dump_json())
    said = {}
    for name in ("unfit", "fit"):
        ended = loraplan.succeeds(command[0], "quickstart", *command[1:], "--set", f"fleet.profile=./{name}.json")
        said[name] = " ".join((ended.out + ended.err).split())
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert f"the profile unfit is derived; {note}" in said["unfit"]
    assert UNFIT not in said["fit"]


def test_a_shape_of_its_own_sizes_adapters_and_slots() -> None:
    """A model under another name behaves as the known one whose shape it has."""
    known, _ = load_profile("h100-64gb/qwen2.5-7b/vllm-0.8.5")
    shape = {name: getattr(SHAPES["qwen2.5-7b"], name) for name in Shape.model_fields}
    renamed = known.model_copy(update={"model": "ours", "shape": Shape(**shape)})
    assert base_shape(renamed) == base_shape(known)
    adapters = Adapters(count=10, rank=16)
    named, shaped = populate(adapters, "qwen2.5-7b", 10), populate(adapters, base_shape(renamed), 10)
    assert named.size_bytes.tolist() == shaped.size_bytes.tolist()
    split = GpuSplit(renamed.tensor_parallel)
    assert adapter_bytes(8, renamed, shaped, split) == adapter_bytes(8, known, named, split)
    with pytest.raises(ScenarioError, match="unknown base model"):
        base_shape(renamed.model_copy(update={"shape": None}))


SMALL = ("--set", "workload.requests=600", "--set", "run.replications=1")


def test_a_sweep_over_gpus_gets_a_profile_for_each(loraplan: CommandLine) -> None:
    over = ("--over", "fleet.gpu=l40s,h100", "--set", "adapters.base_model=qwen3-8b")
    swept = loraplan.succeeds("sweep", "quickstart", "--all", *over, *SMALL, "--out", "run")
    second = next(line for line in swept.out.splitlines() if " · profile " in line)
    assert second.endswith(
        " · profile l40s/qwen3-8b/vllm-0.24.0 or h100-80gb/qwen3-8b/vllm-0.24.0 "
        "(derived; nearest version of the engine)"
    ), "profiles that were chosen for the same reason share one"
    points = loraplan.data("sweep", "quickstart", *over, *SMALL, "--out", "run")["points"]
    slow, fast = (point["metrics"]["tpot_mean_s"]["value"] for point in points)
    assert slow > 1.5 * fast, "an L40S has a quarter of the memory bandwidth"
    assert "fleet.gpu: unknown GPU (got h300, allowed: a10, a100-40gb, a100-80gb, a10g, " in loraplan.refused(
        "sweep", "quickstart", "--all", "--over", "fleet.gpu=l40s,h300", *SMALL
    )
