"""Adapter files from strangers: whatever is in them, the answer is their facts or an error that says what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.loads.synthetic_adapters import SyntheticAdapter, synthesize
from sim.errors import InputError
from sim.traffic.adapters import SHAPES
from sim.training.files.adapter_folder import CONFIG, LIMIT, WEIGHTS, find_adapters, only_dtype, read_adapter
from sim.training.files.safetensors_header import HEADER_LIMIT, read_header

A, B = "model.q_proj.lora_A.weight", "model.q_proj.lora_B.weight"


def raw_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int, dtype: str = "F16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def pair(r_a: int = 2, r_b: int = 2) -> dict[str, Any]:
    return {A: tensor([r_a, 4], 0, 8 * r_a), B: tensor([4, r_b], 8 * r_a, 8 * (r_a + r_b))}


def adapter(folder: Path, header: object, size: int, config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(raw_file(header, bytes(size)))
    (folder / CONFIG).write_text(json.dumps({"r": 2, "lora_alpha": 4} if config is None else config))
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return synthesize(
        tmp_path / "adapters", SyntheticAdapter(SHAPES["tiny"], "tiny", 2, ("q", "v"), "bf16"), 1, seed=1
    )[0]


def test_what_a_folder_holds(tmp_path: Path) -> None:
    header = {**pair(), "model.q_proj.lora_magnitude_vector": tensor([4], 32, 40), "__metadata__": {"format": "pt"}}
    found = read_adapter(adapter(tmp_path / "a", header, 40))
    assert (found.ranks, found.targets, found.dtypes, found.tensors, found.bytes) == (
        (2,),
        ("q_proj",),
        ("fp16",),
        3,
        40,
    )
    assert found.others == ("model.q_proj.lora_magnitude_vector",)
    assert (found.alpha, found.base_model) == (4, None)
    assert only_dtype(found) == "fp16"


def test_ranks_may_differ_by_module_where_the_configuration_says_so(tmp_path: Path) -> None:
    header = {
        **pair(),
        "m.v_proj.lora_A.weight": tensor([3, 4], 32, 56),
        "m.v_proj.lora_B.weight": tensor([4, 3], 56, 80),
    }
    assert read_adapter(adapter(tmp_path / "a", header, 80, {"r": 2, "rank_pattern": {"v_proj": 3}})).ranks == (2, 3)
    with pytest.raises(InputError, match="rank differs from that of the weights"):
        read_adapter(adapter(tmp_path / "b", header, 80))


def test_a_header_of_640_bytes_starts_like_a_pickle_and_is_none(tmp_path: Path) -> None:
    text = json.dumps(pair()).encode().ljust(640)
    (tmp_path / "x").write_bytes(raw_file(text, bytes(32)))
    assert (tmp_path / "x").read_bytes()[:2] == b"\x80\x02"
    assert len(read_header(tmp_path / "x").tensors) == 2


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "a few bytes": (b"\x05\0\0", "too short"),
    "a header length bomb": (struct.pack("<Q", 1 << 62) + b"{}" * 9, "length can't be true"),
    "a length over the limit": (raw_file({}, length=HEADER_LIMIT + 1), "length can't be true"),
    "a length beyond the file": (raw_file({}, length=HEADER_LIMIT), "cut short within its header"),
    "cut short": (raw_file(pair(), bytes(31)), "cut short"),
    "longer": (raw_file(pair(), bytes(33)), "longer than its header says"),
    "no JSON": (raw_file(b"{nonsense}"), "not JSON"),
    "not UTF-8": (raw_file(b'{"\xff": 1}'), "not JSON"),
    "nested without end": (raw_file(b'{"a":' + b"[           " * 100_000), "not JSON"),
    "a number without end": (raw_file(b'{"a":' + b"1" * 10_000 + b"}"), "not JSON"),
    "lists without end": (raw_file(b'{"a":[' + b"[]," * 10_000 + b"[]]}"), "too many brackets"),
    "a tensor of a thousand numbers": (raw_file({A: list(range(1000))}), "got [0, 1, 2, 3, 4, 5, ...]"),
    "twins": (raw_file(b'{"a": {}, "a": {}}'), "a name stands there twice"),
    "metadata of numbers": (raw_file({"__metadata__": {"a": 1}}), "__metadata__"),
    "a gap": (raw_file({A: tensor([1], 2, 4)}, bytes(4)), "overlap or leave a gap"),
    "an overlap": (raw_file({A: tensor([2], 0, 4), B: tensor([2], 2, 6)}, bytes(6)), "overlap or leave a gap"),
    "negative offsets": (raw_file({A: tensor([1], -2, 0)}), "not a range"),
    "falling offsets": (raw_file({A: tensor([0], 4, 2)}), "not a range"),
    "an unknown format": (raw_file({A: tensor([1], 0, 2, "F17")}, bytes(2)), "unknown number format"),
    "a shape that doesn't fill its bytes": (raw_file({A: tensor([3], 0, 2)}, bytes(2)), "doesn't fill"),
    "a shape beyond all bounds": (raw_file({A: tensor([1 << 62] * 8, 0, 2)}, bytes(2)), "doesn't fill"),
    "a negative shape": (raw_file({A: tensor([-1, -1], 0, 2)}, bytes(2)), "not a shape"),
    "a true shape": (raw_file({A: {**tensor([1], 0, 2), "shape": [True]}}, bytes(2)), "not a shape"),
    "a tensor that is a list": (raw_file({A: []}), "not a tensor"),
    "a pickle": (pickle.dumps({"a": 1}, protocol=4), "a pickle; it is not loaded"),
    "an archive": (b"PK\x03\x04" + bytes(30), "as torch.save writes"),
}


@pytest.mark.promise("safetensors header: 100 MB, and no more than the file has")
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    content, reason = BAD_FILES[name]
    path = tmp_path / WEIGHTS
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert reason in str(caught.value)
    assert caught.value.file == str(path)
    assert str(caught.value).isprintable()


def test_a_header_longer_than_any_adapters_is_not_read(tmp_path: Path) -> None:
    place = adapter(tmp_path / "a", pair(), 32)
    with (place / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", LIMIT + 1) + b"{")
        file.truncate(LIMIT + 100)
    with pytest.raises(InputError, match="too long for an adapter's"):
        read_adapter(place)


BAD_PAIRS: dict[str, tuple[dict[str, Any], int, str]] = {
    "A without B": ({A: tensor([2, 4], 0, 16)}, 16, "lacks its lora_B"),
    "B without A": ({B: tensor([4, 2], 0, 16)}, 16, "lacks its lora_A"),
    "ranks differ": (pair(2, 3), 40, "ranks of a LoRA pair differ"),
    "no matrix": ({A: tensor([8], 0, 16), B: tensor([4, 2], 16, 32)}, 32, "not a LoRA matrix"),
    "no LoRA": ({"model.embed": tensor([2, 4], 0, 16)}, 16, "no LoRA matrices"),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_a_file_that_is_no_adapter_is_refused(tmp_path: Path, name: str) -> None:
    header, size, reason = BAD_PAIRS[name]
    with pytest.raises(InputError, match=reason):
        read_adapter(adapter(tmp_path / "a", header, size))


BAD_CONFIGS = {
    "missing": (None, "no adapter_config.json"),
    "no JSON": ("{", "not JSON"),
    "a list": ("[]", "not a JSON object"),
    "nested without end": ("[" * 100_000, "not JSON"),
    "another rank": ('{"r": 3}', "rank differs from"),
    "a rank in words": ('{"r": "two"}', "not of the right type"),
    "a book": (" " * (1 << 21), "it is larger than 1 MiB"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_configuration_is_refused(good: Path, name: str) -> None:
    text, reason = BAD_CONFIGS[name]
    (good / CONFIG).unlink()
    if text is not None:
        (good / CONFIG).write_text(text)
    with pytest.raises(InputError, match=reason):
        read_adapter(good)


def test_mixed_number_formats_are_named_tensor_by_tensor(tmp_path: Path) -> None:
    header = {A: tensor([2, 4], 0, 16), B: tensor([4, 2], 16, 48, "F32")}
    found = read_adapter(adapter(tmp_path / "a", header, 48))
    assert found.dtypes == ("fp16", "fp32")
    with pytest.raises(InputError, match="mixes number formats") as caught:
        only_dtype(found)
    assert f"fp16: {A}, fp32: {B}" in str(caught.value)


class Bomb:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.promise(
    "No code is run.", "Only the safetensors headers of weights are parsed.", "Pickles are never loaded"
)
@pytest.mark.parametrize("name", [WEIGHTS, "adapter_model.bin", "adapter_model.pt"])
@pytest.mark.parametrize("archive", [False, True])
def test_a_pickle_is_never_loaded(good: Path, tmp_path: Path, name: str, archive: bool) -> None:
    content = pickle.dumps(Bomb(tmp_path / "mark"))
    (good / WEIGHTS).unlink()
    if archive:
        with zipfile.ZipFile(good / name, "w") as file:
            file.writestr("archive/data.pkl", content)
    else:
        (good / name).write_bytes(content)
    with pytest.raises(InputError, match="pickle") as caught:
        read_adapter(good)
    assert name in str(caught.value)
    assert "runs the code in it" in str(caught.value)
    with pytest.raises(InputError, match="pickle"):
        read_header(good / name)
    assert not (tmp_path / "mark").exists()


@pytest.mark.promise("An adapter folder is read within itself; links that lead out are refused.")
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_link_out_of_the_folder_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / f"outside-{name}"
    (good / name).rename(outside)
    (good / name).symlink_to(outside)
    with pytest.raises(InputError, match="leads out of the folder"):
        read_adapter(good)
    assert read_adapter(good, root=tmp_path).rank == 2  # a cache of models links within itself


@pytest.mark.promise("An adapter folder is read within itself; links that lead out are refused.")
def test_a_folder_that_leads_out_of_the_root_is_refused(good: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(good)
    for place in (root / "link", root / ".." / "adapters" / good.name):
        with pytest.raises(InputError, match="leads out of the folder"):
            read_adapter(place, root)


def test_links_in_a_circle_pipes_and_folders_are_refused(good: Path) -> None:
    (good / WEIGHTS).unlink()
    (good / WEIGHTS).symlink_to(good / WEIGHTS)
    with pytest.raises(InputError):
        read_adapter(good)
    (good / WEIGHTS).unlink()
    os.mkfifo(good / WEIGHTS)
    with pytest.raises(InputError, match="it is not a file"):
        read_adapter(good)
    (good / WEIGHTS).unlink()
    (good / WEIGHTS).mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        read_adapter(good)


def test_adapters_are_found_without_following_links(good: Path, tmp_path: Path) -> None:
    (good.parent / "loop").symlink_to(good.parent)
    assert list(find_adapters(tmp_path)) == [good]
    with pytest.raises(InputError, match="no such folder"):
        list(find_adapters(tmp_path / "none"))


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F16", "BF16", "F32", "F4", "U8", "F99"]) | values,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | values,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | values,
    }
)
names = st.sampled_from([A, B, "model.q_proj.lora_A", "lora_embedding_B", ".lora_", "__metadata__"]) | st.text()


def facts_or_error(folder: Path, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS).write_bytes(content)
    (folder / CONFIG).write_text("{}")
    try:
        found = read_adapter(folder)
    except InputError as error:
        str(error).encode()
    else:
        assert 0 < found.bytes < len(content)


@given(header=st.dictionaries(names, tensors | values, max_size=4) | values, data=st.binary(max_size=40))
def test_no_header_brings_it_down(tmp_path_factory: pytest.TempPathFactory, header: object, data: bytes) -> None:
    facts_or_error(tmp_path_factory.getbasetemp() / "headers", raw_file(header, data))


@given(content=st.binary(max_size=80))
def test_no_bytes_bring_it_down(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    facts_or_error(tmp_path_factory.getbasetemp() / "bytes", content)


@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 300),
)
def test_no_damage_brings_it_down(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(raw_file(pair(), bytes(32)))
    for place, value in flips:
        content[place % len(content)] = value
    facts_or_error(tmp_path_factory.getbasetemp() / "damage", bytes(content[: len(content) - min(cut, 150)]))
