"""Adapters of noise: as large as the formula says, laid out as PEFT's library lays them out, whole or absent."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from calibrate.loads.synthetic_adapters import FORMATS, SyntheticAdapter, adapter_bytes, synthesize, tensor_shapes
from sim.errors import InputError, OutputError
from sim.spec.scenario import Targets
from sim.traffic.adapters import DTYPE_BYTES, SHAPES, parameters_per_rank, tensor_count
from sim.training.files.adapter_folder import CONFIG, WEIGHTS, read_adapter
from sim.training.files.safetensors_header import read_header

TINY = SHAPES["tiny"]
TARGETS: tuple[Targets, ...] = (("q", "v"), ("q", "k", "v", "o"), "all-linear")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: what a full disk does, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("dtype", FORMATS)
def test_an_adapter_is_as_large_as_the_formula_says(tmp_path: Path, targets: Targets, dtype: str) -> None:
    (place,) = synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", 8, targets, dtype), 1, seed=1)
    adapter = read_adapter(place)
    assert adapter.bytes == 8 * parameters_per_rank(TINY, targets) * DTYPE_BYTES[dtype]
    assert adapter.bytes == adapter_bytes(TINY, 8, targets, dtype)
    assert adapter.tensors == tensor_count(TINY, targets)
    assert (adapter.ranks, adapter.dtypes, adapter.base_model) == ((8,), (dtype,), "tiny")
    assert len(adapter.targets) == (7 if targets == "all-linear" else len(targets))
    assert {t.name: t.shape for t in read_header(adapter.path).tensors} == tensor_shapes(TINY, 8, targets)


def test_names_and_configuration_are_those_of_peft(tmp_path: Path) -> None:
    (place,) = synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", 4, ("q", "down"), "bf16"), 1, seed=1)
    shapes = {tensor.name: tensor.shape for tensor in read_header(place / WEIGHTS).tensors}
    prefix = "base_model.model.model.layers.3"
    assert shapes[f"{prefix}.self_attn.q_proj.lora_A.weight"] == (4, TINY.hidden)
    assert shapes[f"{prefix}.mlp.down_proj.lora_B.weight"] == (TINY.hidden, 4)
    config = json.loads((place / CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 4, ["q_proj", "down_proj"])


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_library_reads_it_and_would_write_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    (place,) = synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", 4, "all-linear", dtype), 1, seed=1)
    tensors = library.load_file(place / WEIGHTS)
    values = torch.cat([tensor.float().flatten() for tensor in tensors.values()])
    assert bool((values != 0).all())
    assert bool(torch.isfinite(values).all())
    assert 0.4 < float((values > 0).float().mean()) < 0.6
    library.save_file(tensors, tmp_path / "again", metadata={"format": "pt"})
    assert (tmp_path / "again").read_bytes() == (place / WEIGHTS).read_bytes()


def test_adapters_differ_and_come_back_for_the_same_seed(tmp_path: Path) -> None:
    places = synthesize(tmp_path / "a", SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 3, seed=1)
    again = synthesize(tmp_path / "b", SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 3, seed=1)
    contents = [(place / WEIGHTS).read_bytes() for place in places]
    assert len(set(contents)) == 3
    assert contents == [(place / WEIGHTS).read_bytes() for place in again]
    other = synthesize(tmp_path / "a", SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 1, seed=2)
    assert (other[0] / WEIGHTS).read_bytes() not in contents


def test_whole_adapters_are_kept_and_damaged_ones_written_anew(tmp_path: Path) -> None:
    places = synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 3, seed=1)
    whole = (places[1] / WEIGHTS).read_bytes()
    (places[1] / WEIGHTS).write_bytes(whole[:-1])
    (places[2] / CONFIG).unlink()
    before = [(place / WEIGHTS).stat().st_ino for place in places]
    assert synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 3, seed=1) == places
    assert (places[1] / WEIGHTS).read_bytes() == whole
    kept = [(place / WEIGHTS).stat().st_ino == inode for place, inode in zip(places, before, strict=True)]
    assert kept[0]
    assert read_adapter(places[2]).rank == 4


def test_a_full_disk_leaves_no_half_adapter(tmp_path: Path) -> None:
    size = adapter_bytes(TINY, 4, ("q",), "bf16")
    with files_up_to(size // 2), pytest.raises(OutputError, match="File too large") as caught:
        synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 2, seed=1)
    assert "adapter 1 of 2" in str(caught.value)
    assert "all need" in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert len(synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 2, seed=1)) == 2


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (place,) = synthesize(tmp_path / "real", SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 1, seed=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / place.name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="a symbolic link is in the place"):
        synthesize(tmp_path / "out", SyntheticAdapter(TINY, "tiny", 4, ("q",), "bf16"), 1, seed=1)


@pytest.mark.parametrize(("rank", "dtype"), [(0, "bf16"), (4, "int4")])
def test_impossible_adapters_are_refused(tmp_path: Path, rank: int, dtype: str) -> None:
    with pytest.raises(InputError, match=r"rank|allowed: fp16"):
        synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", rank, ("q",), dtype), 1, seed=1)


def test_every_pattern_of_bits_is_a_small_number_but_never_zero() -> None:
    from calibrate.loads.synthetic_adapters import _BITS

    kind, random, fixed = _BITS["fp16"]
    every = np.arange(1 << 16, dtype=np.uint16)
    values = (every & kind.type(random) | kind.type(fixed)).view(np.float16)
    assert float(np.abs(values).min()) == 2**-7
    assert float(np.abs(values).max()) < 2**-5
