"""Loads timed stage by stage on the tiny model: what is timed is what it says, and nothing measured is lost."""

from __future__ import annotations

import math
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from calibrate.device import host_memory  # noqa: E402
from calibrate.device.devices import CpuDevice, Device  # noqa: E402
from calibrate.device.host_memory import SCOPE, make_cold, resident_share, why_not_cold  # noqa: E402
from calibrate.fit.load_fit import fit_load_samples  # noqa: E402
from calibrate.loads import load_stages, load_timing  # noqa: E402
from calibrate.loads.load_stages import COLD, Bench, Slots, Stage, read_tensors, together  # noqa: E402
from calibrate.loads.load_timing import (  # noqa: E402
    ALONE,
    DURING_COPIES,
    INTERFERENCE,
    LoadGrid,
    interference,
    interference_configurations,
    load_configurations,
    slow_down_of,
    time_loads,
)
from calibrate.loads.synthetic_adapters import SyntheticAdapter, synthesize, tensor_shapes  # noqa: E402
from calibrate.measure import Method, Prepared, Sampling  # noqa: E402
from calibrate.samples import SampleLog, read_samples  # noqa: E402
from sim.errors import InputError, OutputError  # noqa: E402
from sim.traffic.adapters import SHAPES, parameters_per_rank, tensor_count  # noqa: E402

TINY = SHAPES["tiny"]
SMALL = LoadGrid(ranks=(2, 4), targets=(("q", "v"), "all-linear"), concurrency=(1, 2))
LEAST = LoadGrid(ranks=(2,), targets=(("q", "v"),), concurrency=(1,))
"""Enough for what depends on the run, not on what is timed."""
FAST = Method(rounds=2, least=2, half_width=1.0, limit_s=0.01, warmup=1)
STAGES = get_args(Stage)


@pytest.fixture(scope="module")
def device() -> Device:
    found = CpuDevice()
    found.flush_bytes = 4096
    found._scratch = torch.ones(1024)
    return found


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    places = synthesize(tmp_path / "adapters", SyntheticAdapter(TINY, "tiny", 2, ("q", "v"), "bf16"), 2, seed=1)
    return [place / "adapter_model.safetensors" for place in places]


def cold_disk(path: Path) -> None:
    """Skip on file systems that are nothing but page cache."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    _, kind = max((place, kind) for place, kind in mounts if path.is_relative_to(place))
    if kind in ("tmpfs", "ramfs"):
        pytest.skip(f"{path} lies in memory: {kind}")


def run(device: Device, out: Path, **more: Any) -> SampleLog:
    """Time loads during a step that takes next to nothing: timing the model's own is most of a run."""
    how = Sampling(method=more.pop("method", FAST), seed=more.pop("seed", 1))
    given = {"grid": LEAST, "step": Prepared(call=lambda: torch.ones(1000).sum()), "command": "test"}
    return time_loads("tiny", device, out, how, **(given | more))


@pytest.mark.slow
def test_every_stage_is_timed_and_the_adapters_are_gone(device: Device, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    log = run(device, tmp_path / "out", grid=SMALL, step=None, progress=lambda *at: seen.append(at))
    frame, manifest = read_samples(tmp_path / "out", "loads")
    kinds = set(frame["kind"].astype(str)) - {"canary", INTERFERENCE}
    skipped = [flag for flag in log.manifest["flags"] if flag.startswith("no cold reads")]
    assert kinds == set(STAGES) - (set(COLD) if skipped else set())
    assert seen[-1][0] == seen[-1][1]
    assert (frame["seconds"] > 0).all()
    assert (frame["wall_s"] >= frame["seconds"] * (1 - 1e-9)).all()
    assert not (tmp_path / "out" / "adapters").exists()
    assert (manifest["status"], manifest["command"]) == ("finished", "test")
    assert manifest["device"]["torch"] == torch.__version__
    assert manifest["page_cache"]["scope"] == SCOPE
    assert manifest["slow_down"] > 0
    if not skipped:
        fitted = fit_load_samples(frame, manifest)
        assert fitted.slow_down == manifest["slow_down"]
        assert {row.concurrency for row in fitted.concurrent} == {1, 2}


def test_parameters_follow_the_formulas() -> None:
    configurations = load_configurations(TINY, SMALL)
    assert len({one.key for one in configurations}) == len(configurations)
    for one in configurations:
        p: Any = one.parameters
        targets: Any = "all-linear" if p["targets"] == "all-linear" else tuple(p["targets"].split(","))
        assert p["bytes"] == p["rank"] * parameters_per_rank(TINY, targets) * 2
        assert p["tensors"] == tensor_count(TINY, targets)
        assert p["padded_tensors"] == (p["tensors"] // 2 if p["rank"] < p["max_rank"] else 0)
        assert one.kind == p["stage"]
        assert (one.kind == "slot write padded") <= (p["rank"] < p["max_rank"])
    full = load_configurations(TINY, LoadGrid())
    assert {(one.kind, one.parameters["concurrency"]) for one in full} == {(s, n) for s in STAGES for n in (1, 2, 4, 8)}


@pytest.mark.parametrize("targets", [("q", "v"), "all-linear"], ids=str)
@pytest.mark.parametrize("rank", [2, 4])
def test_a_slot_holds_the_adapter_and_zeros(tmp_path: Path, targets: Any, rank: int) -> None:
    (place,) = synthesize(tmp_path, SyntheticAdapter(TINY, "tiny", rank, targets, "bf16"), 1, seed=1)
    tensors = read_tensors(place / "adapter_model.safetensors")
    slots = Slots(TINY, 2, 4, torch.bfloat16, torch.device("cpu"))
    for slot in (0, 1):
        for buffer in slots[slot].values():
            buffer.fill_(7)
    slots.write(1, tensors)
    for name, size in tensor_shapes(TINY, 4, "all-linear").items():
        expected = torch.zeros(size, dtype=torch.bfloat16)
        if name in tensors and name.endswith("lora_A.weight"):
            expected[:rank] = tensors[name]
        elif name in tensors:
            expected[:, :rank] = tensors[name]
        assert torch.equal(slots[1][name], expected), name
        assert bool((slots[0][name] == 7).all()), "another slot was touched"
    assert sum(int((buffer != 0).sum()) for buffer in slots[1].values()) == rank * parameters_per_rank(TINY, targets)
    slots.clear(1)
    assert not any(bool(buffer.any()) for buffer in slots[1].values())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_stage_runs_and_stops_its_own_clock(device: Device, files: list[Path], stage: Stage, count: int) -> None:
    with Bench(device, TINY).open(stage, files[:count], 4, "bf16", 1) as prepared:
        if prepared.before is not None:
            prepared.before()
        assert prepared.seconds is not None
        seconds, wall_s = prepared.seconds()
    assert 0 < seconds <= wall_s


def test_a_cold_read_starts_with_nothing_in_the_page_cache(device: Device, files: list[Path]) -> None:
    cold_disk(files[0])
    bench = Bench(device, TINY)
    for stage in COLD:
        files[0].read_bytes()
        assert resident_share(files[0]) == 1
        with bench.open(stage, files, 4, "bf16", 1) as prepared:  # type: ignore[arg-type]
            assert prepared.before is not None
            prepared.before()
            assert [resident_share(path) for path in files] == [0, 0]
            assert prepared.seconds is not None
            prepared.seconds()
            assert [resident_share(path) for path in files] == [1, 1]
    assert bench.resident == {"read cold": 0, "load storage": 0}
    assert bench.warm_flags() == []


def test_what_stays_in_the_page_cache_is_recorded(
    device: Device, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_stages, "make_cold", lambda path: 0.25 if path == files[1] else 0.0)
    bench = Bench(device, TINY)
    with bench.open("read cold", files, 4, "bf16", 1) as prepared:
        assert prepared.before is not None
        prepared.before()
    assert bench.resident == {"read cold": 0.25}
    assert bench.warm_flags() == ["not cold: up to 25% of a file was in the page cache when 'read cold' began"]


def test_a_read_leaves_tensors_that_no_longer_need_the_file(files: list[Path]) -> None:
    tensors = read_tensors(files[0])
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    content = bytearray(files[0].read_bytes())
    content[-1000:] = bytes(1000)
    with files[0].open("r+b") as file:  # in place: a mapping would see it
        file.write(content)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


def test_loads_at_the_same_time_are_at_the_same_time(device: Device) -> None:
    meeting = threading.Barrier(3, timeout=20)
    with together([meeting.wait] * 3, device) as seconds:
        mean, batch = seconds()  # would break the barrier one after the other
    assert 0 < mean <= batch

    for _ in range(20):
        threads: set[int] = set()
        with together([lambda: threads.add(threading.get_ident())] * 4, device) as seconds:  # noqa: B023
            seconds()
        assert len(threads) == 4

    def fail() -> None:
        raise OSError("gone")

    with together([fail, lambda: None], device) as seconds, pytest.raises(OSError, match="gone"):
        seconds()


def test_copies_run_during_the_step_and_are_over_when_it_is_torn_down(device: Device) -> None:
    calls: list[str] = []
    step = Prepared(call=lambda: calls.append("step"), before=lambda: calls.append("before"))
    for copying in (False, True):
        with interference(device, step, 1 << 20, copying=copying) as prepared:
            calls.clear()
            assert prepared.before is not None
            assert prepared.seconds is not None
            prepared.before()
            assert prepared.seconds()[0] > 0
            assert calls == ["before", "step"]
    assert {ALONE, DURING_COPIES} == {one.key for one in interference_configurations(device)}
    assert math.isnan(slow_down_of([]))


def test_what_runs_during_a_step_is_waited_for_and_its_error_is_raised() -> None:
    device, done = CpuDevice(), threading.Event()

    def slow() -> None:
        threading.Event().wait(0.05)
        done.set()

    device.run_concurrently(slow)()
    device.synchronize()
    assert done.is_set()

    def fail() -> None:
        raise ValueError("lost")

    device.run_concurrently(fail)()
    with pytest.raises(ValueError, match="lost"):
        device.synchronize()
    device.synchronize()


def test_an_interrupted_run_goes_on(device: Device, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def interrupt(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(device, out, progress=interrupt)
    kept = (out / "loads.jsonl").read_bytes()
    assert kept.count(b"\n") > 10
    assert any((out / "adapters").iterdir())
    log = run(device, out)
    assert (out / "loads.jsonl").read_bytes().startswith(kept)
    keys = [(visit.configuration.key, visit.round) for visit in log.visits if visit.configuration.kind != "canary"]
    assert len(set(keys)) == len(keys), "a configuration was timed twice in a round"
    assert not (out / "adapters").exists()
    visits = len(log.visits)
    assert len(run(device, out).visits) == visits, "a finished run has nothing left to do"
    with pytest.raises(InputError, match="samples of another run: its seed differs"):
        run(device, out, seed=2)


def test_a_full_disk_keeps_the_samples(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, add, count = tmp_path / "out", SampleLog.add, 0

    def full(log: SampleLog, visit: Any) -> None:
        nonlocal count
        count += 1
        if count > 5:
            raise OutputError("can't write samples: No space left on device", file=str(out / "loads.jsonl"))
        add(log, visit)

    monkeypatch.setattr(SampleLog, "add", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run(device, out)
    assert (out / "loads.jsonl").read_bytes().count(b"\n") == 5
    assert not (out / "adapters").exists(), "room is given back"
    monkeypatch.undo()
    assert [visit.order for visit in run(device, out).visits][:6] == [0, 1, 2, 3, 4, 5]


def test_too_little_disk_is_said_before_anything_is_written(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 0, 1000))
    with pytest.raises(InputError, match=r"--out: too little disk .*1 kB free.*at least") as caught:
        run(device, tmp_path / "out")
    assert "--quick" in str(caught.value)
    assert not (tmp_path / "out" / "adapters").exists()


def test_too_little_memory_for_anything_is_an_error(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_stages.host_memory, "free_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"--model: not even the smallest load .* needed, .* free"):
        run(device, tmp_path / "out")


def test_what_does_not_fit_into_memory_is_skipped_and_said(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(device, TINY)
    one = max(load_configurations(TINY, LEAST), key=lambda c: sum(load_timing._needs(bench, c)))
    monkeypatch.setattr(load_stages.host_memory, "free_bytes", lambda: sum(load_timing._needs(bench, one)) - 1)
    log = run(device, tmp_path / "out")
    assert f"skipped, too little memory: {one.key}" in log.manifest["flags"]
    assert one.key not in {visit.configuration.key for visit in log.visits}


def test_without_a_cold_page_cache_cold_stages_are_left_out(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "drop", lambda path: None)
    log = run(device, tmp_path / "out")
    assert not {visit.configuration.kind for visit in log.visits} & set(COLD)
    assert "no cold reads: 100% of a file stays in the page cache (tmpfs, or a shared mapping)" in log.manifest["flags"]
    frame, manifest = read_samples(tmp_path / "out", "loads")
    with pytest.raises(InputError, match=r"too few configurations of 'load storage'.*no cold reads"):
        fit_load_samples(frame, manifest)


def test_a_system_without_fadvise_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"x")

    def missing(path: Path) -> None:
        raise AttributeError("no posix_fadvise")

    monkeypatch.setattr(host_memory, "drop", missing)
    assert why_not_cold(tmp_path / "x") == "the page cache can't be dropped: no posix_fadvise"


def test_page_cache_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert make_cold(tmp_path / "x") == 0


def test_what_others_keep_in_the_adapters_folder_stays(device: Device, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "adapters" / "mine"
    mine.mkdir(parents=True)
    run(device, tmp_path / "out")
    assert [path.name for path in mine.parent.iterdir()] == ["mine"]


def test_adapters_are_not_written_through_a_link(device: Device, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapters").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is in the place of the adapters' folder"):
        run(device, tmp_path / "out")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lambda raw: raw[:-1], "cut short"), (lambda raw: b"\x80\x04" + raw[2:8] + b"." + raw[9:], "a pickle")],
)
def test_a_file_that_changed_since_it_was_written_is_not_timed(
    device: Device, tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    def spoil(done: int, total: int) -> None:
        if done == 1:
            for path in (tmp_path / "out" / "adapters").rglob("*.safetensors"):
                path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(InputError, match=reason):
        run(device, tmp_path / "out", progress=spoil)


def test_an_unknown_model_lists_the_known(device: Device, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--model: unknown model .*tiny"):
        time_loads("gpt-5", device, tmp_path, Sampling())


def test_adapters_can_be_kept(device: Device, tmp_path: Path) -> None:
    log = run(device, tmp_path, method=replace(FAST, rounds=1), grid=replace(SMALL, ranks=(2,)), keep=True)
    assert log.manifest["status"] == "finished"
    assert len(list((tmp_path / "adapters").iterdir())) == 4
