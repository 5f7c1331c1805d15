"""A census: what it counts, what stops it, what it reads, and what it makes of strangers' names."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrate.loads.synthetic_adapters import BASE, MODEL, adapter_config, header_of, write_example_fleet, write_sparse
from sim.errors import InputError, OutputError
from sim.spec.scenario import Targets
from sim.traffic.adapters import SHAPES
from sim.training.files import census as counted
from sim.training.files.adapter_folder import CONFIG, WEIGHTS
from sim.training.files.census import Copies, find_copies, groups, known_model, take_census
from sim.training.files.engine_checks import ServingTarget, check_census


def add(
    root: Path,
    name: str,
    rank: int = 8,
    targets: Targets = ("q", "v"),
    dtype: str = "bf16",
    mark: int = 0,
    **fields: Any,
) -> Path:
    start, size = header_of(MODEL, rank, targets, dtype)
    return write_sparse(root / name, start, size, {**adapter_config(BASE, rank, targets), **fields}, mark)


def test_the_example_fleet(tmp_path: Path) -> None:
    root = tmp_path / "fleet"
    assert len(write_example_fleet(root)) == 16
    census = take_census(root)
    assert len(census.entries) == 16
    assert not census.failures
    assert [kind.count for kind in groups(census.entries)] == [9, 3, 1, 1, 1, 1]
    assert sum(path.stat().st_blocks * 512 for path in root.rglob("*")) < 5_000_000, "its tensors are holes"
    with pytest.raises(InputError, match="this folder exists already"):
        write_example_fleet(root)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't write this folder"):
        write_example_fleet(tmp_path / "file" / "fleet")


def test_bad_folders_stop_nothing_and_are_named(tmp_path: Path) -> None:
    add(tmp_path, "good")
    add(tmp_path, "nested/deep/good")
    (add(tmp_path, "cut") / WEIGHTS).write_bytes(b"\x10")
    (add(tmp_path, "no-config") / CONFIG).unlink()
    (add(tmp_path, "not-a-number") / CONFIG).write_text('{"r": 8, "lora_alpha": NaN}')
    (add(tmp_path, "endless") / CONFIG).write_text('{"r": 8, "lora_alpha": 1e999}')
    (add(tmp_path, "huge") / CONFIG).write_text(f'{{"r": 8, "lora_alpha": {10**400}}}')
    (add(tmp_path, "deep") / CONFIG).write_text('{"a":' * 5000)
    pipe = add(tmp_path, "pipe") / WEIGHTS
    pipe.unlink()
    os.mkfifo(pipe)
    loop = add(tmp_path, "loop") / WEIGHTS
    loop.unlink()
    loop.symlink_to(loop)
    out = add(tmp_path, "out") / WEIGHTS
    out.unlink()
    out.symlink_to("/etc/passwd")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "empty").mkdir()
    (add(tmp_path, "prompt") / CONFIG).write_text('{"peft_type": "PROMPT_TUNING"}')
    pickled = add(tmp_path, "pickled")
    (pickled / WEIGHTS).rename(pickled / "adapter_model.bin")
    census = take_census(tmp_path)
    assert [entry.folder for entry in census.entries] == ["good", "nested/deep/good"]
    found = {failure.folder: (failure.kind, failure.problem) for failure in census.failures}
    says = {
        "cut": "too short",
        "deep": "not JSON",
        "endless": "lora_alpha",
        "huge": "lora_alpha",
        "loop": "",
        "no-config": "no adapter_config",
        "not-a-number": "NaN is no JSON number",
        "out": "leads out of the folder",
        "pipe": "it is not a file",
        "pickled": "never loaded",
    }
    assert set(found) == {*says, "prompt"}
    for name, words in says.items():
        assert found[name][0] == "unreadable"
        assert words in found[name][1]
    assert found["prompt"][0] == "not LoRA"
    assert "PROMPT_TUNING" in found["prompt"][1]


def test_a_folder_without_adapters_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no adapters here"):
        take_census(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        take_census(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file, not a folder"):
        take_census(tmp_path / "file")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, "good")
    add(tmp_path, "closed/inside")
    scandir = os.scandir

    def scan(place: Any) -> Any:
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", scan)
    census = take_census(tmp_path)
    assert [entry.folder for entry in census.entries] == ["good"]
    assert [(f.folder, f.problem) for f in census.failures] == [("closed", "can't list this folder: Permission denied")]


def test_names_of_strangers_can_be_printed(tmp_path: Path) -> None:
    config = adapter_config("evil\x1b[31m[red]/" + "x" * 500, 8, ("q", "v"))
    start, size = header_of(MODEL, 8, ("q", "v"), "bf16")
    hostile = start[8:].replace(b"q_proj", b"../..\\u001b[31m/etc")
    write_sparse(tmp_path / "a", len(hostile).to_bytes(8, "little") + hostile, size, config, 0)
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\x1b")
    write_sparse(tmp_path / os.fsdecode(b"\xff\x1b"), start, size, adapter_config(BASE, 8, ("q", "v")), 0)
    entries = take_census(tmp_path).entries
    assert len(entries) == 2
    for entry in entries:
        for text in (entry.folder, entry.base_model or "", *entry.targets, entry.target_words):
            assert text.isprintable()
            assert len(text) <= 200
            text.encode()


def test_a_hostile_number_of_modules_is_not_kept(tmp_path: Path) -> None:
    header: dict[str, Any] = {}
    for n in range(3000):
        for side, shape in (("A", [2, 1]), ("B", [1, 2])):
            at = 4 * len(header)
            header[f"m.{n}.odd{n}.lora_{side}"] = {
                "dtype": "F8_E4M3",
                "shape": [*shape, 2],
                "data_offsets": [at, at + 4],
            }
    text = json.dumps(header).encode()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(header)))
    (tmp_path / "a" / CONFIG).write_text("{}")
    (entry,) = take_census(tmp_path).entries
    assert len(entry.targets) == 32
    assert entry.tensors == 6000


def test_equal_headers_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.training.files import adapter_folder

    parsed = []
    parse = adapter_folder.parse_header
    monkeypatch.setattr(adapter_folder, "parse_header", lambda *args: (parsed.append(args), parse(*args))[1])
    for n in range(20):
        add(tmp_path, f"a{n}", mark=n)
    add(tmp_path, "b", rank=16)
    longer = add(tmp_path, "c")
    with (longer / WEIGHTS).open("ab") as file:
        file.write(b"x")
    census = take_census(tmp_path)
    assert len(parsed) == 3, "one header each, and the one whose file is longer"
    assert len(census.entries) == 21
    assert "longer than its header says" in census.failures[0].problem


def test_copies_are_found_and_only_likely_ones_are_read(tmp_path: Path) -> None:
    for n in range(6):
        add(tmp_path, f"a{n}", mark=n)
    add(tmp_path, "a3-again", mark=3)
    late = add(tmp_path, "a4-late", mark=4)
    with (late / WEIGHTS).open("r+b") as file:  # equal in all blocks that are compared first
        file.seek(1_000_000)
        file.write(b"x")
    entries = take_census(tmp_path).entries
    copies = find_copies(entries)
    assert copies.sets == (("a3", "a3-again"),)
    assert copies.unread == 0
    limited = find_copies(entries, limit=1000)
    assert (limited.sets, limited.unread) == ((), 4)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"lora_alpha": 128}, False),
        ({"use_dora": True}, False),
        ({"use_rslora": True}, False),
        ({"alpha_pattern": {"q_proj": 4}}, False),
        ({"base_model_name_or_path": "other"}, False),
        ({"lora_dropout": 0.3, "peft_version": "9", "new": None, "target_modules": ["v_proj", "q_proj"]}, True),
    ],
)
def test_copies_compute_the_same(tmp_path: Path, fields: dict[str, Any], same: bool) -> None:
    add(tmp_path, "a")
    add(tmp_path, "b", **fields)
    assert find_copies(take_census(tmp_path).entries).sets == ((("a", "b"),) if same else ())


@pytest.mark.parametrize(
    ("layers", "alike", "level"), [(16, MODEL, None), (16, "qwen2.5-7b", "wrong"), (40, MODEL, "wrong")]
)
def test_fewer_layers_are_part_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int, alike: str, level: str | None
) -> None:
    """An adapter of 16 of 32 layers that doesn't say so, of matrices as large as a model's."""
    monkeypatch.setitem(SHAPES, "other", replace(SHAPES[alike], layers=layers))
    write_sparse(tmp_path / "a", *header_of("other", 8, ("q", "v"), "bf16"), adapter_config(BASE, 8, ("q", "v")), 0)
    census = take_census(tmp_path)
    assert census.entries[0].extras == (() if level else ("part of the layers",))
    found = {each.check: each.level for each in check_census(census, ServingTarget("vllm-0.32"), Copies((), 0))}
    assert found.get("shape") == level
    assert "extras" not in found, "vLLM serves it"


def test_a_file_that_goes_away_is_no_copy(tmp_path: Path) -> None:
    add(tmp_path, "a")
    gone = add(tmp_path, "b")
    entries = take_census(tmp_path).entries
    (gone / WEIGHTS).unlink()
    assert find_copies(entries).sets == ()


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("unsloth/meta-llama-3.1-8b-instruct-bnb-4bit", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("/models/Qwen2.5-7B-Instruct/", "qwen2.5-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("tiny", "tiny"),
        ("hf-internal-testing/tiny-random-llama", None),
        ("meta-llama/Llama-3.1-80B", None),
        ("", None),
    ],
)
def test_base_models_are_known_by_their_names(name: str, model: str | None) -> None:
    assert known_model(name) == model


def test_a_census_of_300_folders_is_quick(tmp_path: Path) -> None:
    import time

    for n in range(300):
        add(tmp_path, f"a{n:03d}", 16, "all-linear", mark=n)
    start = time.process_time()
    census = counted.take_census(tmp_path)
    find_copies(census.entries)
    assert len(census.entries) == 300
    assert time.process_time() - start < 20 * 300 / 10_000 * 3, "10,000 in 20 s, with room for a slow machine"
