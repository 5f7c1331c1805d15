"""The method: enough samples in random order, none left out, interrupted runs resume, disturbances are reported."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate.device.devices import CpuDevice, UnavailableError, open_device, out_of_memory
from calibrate.device.hardware import Ceilings, describe
from calibrate.measure import Method, Prepared, Sampling, TimedWork, drift, measure, median_half_width
from calibrate.samples import Configuration, SampleLog, Visit, read_samples
from sim.errors import InputError, OutputError

METHOD = Method(rounds=3, least=20, half_width=0.01, limit_s=0.3, warmup=1)
ONES = [Configuration(f"c{n}", "decode", {"n": n}) for n in range(12)]


class Bench:
    """Times nothing: each configuration has its own seconds; can break off or run out of memory."""

    def __init__(self, seed: int = 1, fails: dict[str, Exception] | None = None, after: int = 10**9) -> None:
        self.rng, self.fails, self.left, self.calls = np.random.default_rng(seed), fails or {}, after, 0

    @contextmanager
    def opens(self, one: Configuration) -> Iterator[Prepared]:
        if one.key in self.fails:
            raise self.fails[one.key]
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        yield Prepared(lambda: None, seconds=lambda: self._seconds(int(one.parameters["n"])))

    def _seconds(self, n: int) -> tuple[float, float]:
        self.calls += 1
        took = (n + 1) * 1e-3 * float(self.rng.lognormal(0, 0.01))
        return took, took


CANARY = Prepared(lambda: None, seconds=lambda: (1e-3, 1e-3))


@pytest.fixture
def device() -> CpuDevice:
    return CpuDevice()


def run(folder: Path, device: CpuDevice, bench: Bench, method: Method = METHOD, **plan: object) -> SampleLog:
    log = SampleLog.open(folder, "steps", {"model": "tiny", **plan})
    measure(TimedWork(ONES, bench.opens, CANARY, flush=False), device, log, Sampling(method=method))
    log.finish()
    return log


def test_enough_samples_of_everything_in_every_round(tmp_path: Path, device: CpuDevice) -> None:
    run(tmp_path, device, Bench())
    frame, manifest = read_samples(tmp_path, "steps")
    timed = frame[frame["kind"] == "decode"]
    assert timed.groupby("key", observed=True).size().min() >= METHOD.least
    assert timed.groupby("key", observed=True)["round"].nunique().eq(3).all()
    assert manifest["status"] == "finished"
    assert manifest["samples"] == len(frame)
    orders = [tuple(timed[timed["round"] == turn].drop_duplicates("key")["key"]) for turn in range(3)]
    assert len(set(orders)) == 3
    assert (frame["kind"] == "canary").sum() >= 3 * 5


def test_every_sample_taken_is_kept(tmp_path: Path, device: CpuDevice) -> None:
    bench = Bench()
    log = run(tmp_path, device, bench)
    warmups = 3 * len(ONES) * METHOD.warmup
    assert sum(len(v.seconds) for v in log.visits if v.configuration.kind == "decode") == bench.calls - warmups


def test_a_broken_off_run_goes_on(tmp_path: Path, device: CpuDevice) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, device, Bench(after=17))
    before = (tmp_path / "steps.jsonl").read_bytes()
    assert len([line for line in before.splitlines() if b'"decode"' in line]) == 17
    with pytest.raises(OutputError, match="no finished steps"):
        read_samples(tmp_path, "steps")
    (tmp_path / "steps.jsonl").write_bytes(before + b'{"configuration": {"key": "c1", "ki')  # a torn line
    log = run(tmp_path, device, Bench(seed=2))
    assert (tmp_path / "steps.jsonl").read_bytes().startswith(before)
    visits = [(v.configuration.key, v.round) for v in log.visits if v.configuration.kind == "decode"]
    assert sorted(visits) == sorted((one.key, turn) for one in ONES for turn in range(3))


def test_samples_of_another_run_are_not_mixed_in(tmp_path: Path, device: CpuDevice) -> None:
    run(tmp_path, device, Bench())
    with pytest.raises(InputError, match="its layers differs"):
        run(tmp_path, device, Bench(), layers=2)
    assert SampleLog.open(tmp_path, "steps", {"layers": 2}, overwrite=True).visits == []


def test_samples_of_nobody_knows_what_are_refused(tmp_path: Path, device: CpuDevice) -> None:
    run(tmp_path, device, Bench())
    (tmp_path / "steps.json").unlink()
    with pytest.raises(InputError, match=r"samples without steps\.json"):
        SampleLog.open(tmp_path, "steps", {"model": "tiny"})
    assert SampleLog.open(tmp_path, "steps", {"model": "tiny"}, overwrite=True).visits == []


def test_a_resumed_run_keeps_the_first_facts(tmp_path: Path) -> None:
    log = SampleLog.open(tmp_path, "steps", {"model": "tiny"})
    log.once(command="first", date="2026-01-01")
    again = SampleLog.open(tmp_path, "steps", {"model": "tiny"})
    assert again.once(command="second", layers=4)["command"] == "first"
    assert again.manifest["layers"] == 4


def test_too_few_samples_are_said(tmp_path: Path, device: CpuDevice) -> None:
    log = run(tmp_path, device, Bench(), Method(rounds=3, least=20, half_width=0.01, limit_s=0.01, warmup=0))
    assert any(flag.startswith("few samples: ") and "fewer than 20" in flag for flag in log.manifest["flags"])


def test_a_full_disk_keeps_what_is_whole(tmp_path: Path, device: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    import calibrate.samples

    written = []

    def full(number: int) -> None:
        written.append(number)
        if len(written) > 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibrate.samples.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        run(tmp_path, device, Bench())
    monkeypatch.undo()
    kept = SampleLog.open(tmp_path, "steps", {"model": "tiny"}).visits
    assert 0 < len(kept) <= 5


def test_what_does_not_fit_is_skipped_and_said(tmp_path: Path, device: CpuDevice) -> None:
    log = run(tmp_path, device, Bench(fails={"c3": MemoryError()}))
    assert log.manifest["skipped"] == {"c3": "too little memory"}
    assert "skipped, too little memory: c3" in log.manifest["flags"]
    with pytest.raises(InputError, match="no configuration could be timed: too little memory"):
        run(tmp_path / "none", device, Bench(fails={one.key: MemoryError() for one in ONES}))


def test_what_the_device_cannot_do_is_skipped_and_said(tmp_path: Path, device: CpuDevice) -> None:
    log = run(tmp_path, device, Bench(fails={"c4": UnavailableError("can't be captured as a CUDA graph: no")}))
    assert log.manifest["flags"][-1] == "skipped, can't be captured as a CUDA graph: no: c4"


def test_a_run_out_of_time_keeps_what_it_has_and_the_same_command_continues(tmp_path: Path, device: CpuDevice) -> None:
    def timed(ends_at: float) -> SampleLog:
        log = SampleLog.open(tmp_path, "steps", {"model": "tiny"})
        measure(
            TimedWork(ONES, Bench().opens, CANARY, flush=False), device, log, Sampling(method=METHOD, ends_at=ends_at)
        )
        log.finish()
        return log

    log = timed(ends_at=time.monotonic())
    assert log.cut_short
    assert sum(visit.configuration.kind == "decode" for visit in log.visits) == 8, "a few, however short the time"
    _, manifest = read_samples(tmp_path, "steps")
    assert manifest["status"] == "partial"
    assert manifest["untimed"] == len(ONES)
    assert "not finished: 12 of 12 configurations were not visited in every round" in manifest["flags"]
    again = timed(ends_at=math.inf)
    assert not again.cut_short
    visits = [(v.configuration.key, v.round) for v in again.visits if v.configuration.kind == "decode"]
    assert sorted(visits) == sorted((one.key, turn) for one in ONES for turn in range(3))
    _, manifest = read_samples(tmp_path, "steps")
    assert (manifest["status"], manifest["untimed"]) == ("finished", 0)
    assert not any(flag.startswith("not finished") for flag in manifest["flags"])


def test_parts_are_timed_one_after_the_other_and_keep_what_was_skipped(tmp_path: Path, device: CpuDevice) -> None:
    def timed(*parts: list[Configuration], fails: dict[str, Exception] | None = None) -> SampleLog:
        log = SampleLog.open(tmp_path, "steps", {"model": "tiny"})
        measure(
            TimedWork(ONES, Bench(fails=fails).opens, CANARY, flush=False, parts=parts),
            device,
            log,
            Sampling(method=METHOD),
        )
        log.finish()
        return log

    last, first = ONES[6:9], ONES[:3]
    log = timed(last, first, fails={"c7": MemoryError()})
    order = list(dict.fromkeys(v.configuration.key for v in log.visits if v.configuration.kind == "decode"))
    assert (sorted(order[:2]), sorted(order[2:])) == (["c6", "c8"], ["c0", "c1", "c2"])
    assert (log.manifest["status"], log.manifest["untimed"]) == ("partial", 6)
    log = timed(ONES[9:])
    assert log.manifest["skipped"] == {"c7": "too little memory"}, "of a part that was not tried again"
    assert "skipped, too little memory: c7" in log.manifest["flags"]
    assert timed(ONES[3:6]).manifest["status"] == "finished"
    assert timed(last).manifest["skipped"] == {}


def test_other_failures_are_not_hidden(tmp_path: Path, device: CpuDevice) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, device, Bench(fails={"c3": ZeroDivisionError()}))


def test_drift_is_seen_and_calm_is_not_blamed() -> None:
    def visits(*medians: float) -> list[Visit]:
        return [
            Visit(Configuration("canary", "canary", {}), turn, turn, [median] * 5, [median] * 5)
            for turn, median in enumerate(medians)
        ]

    assert drift(visits(1.0, 1.01, 0.99)) == []
    assert "+10.0%" in drift(visits(1.0, 1.0, 1.1))[0]
    assert drift([]) == []


def test_half_width_covers() -> None:
    # The interval's share of covering the true median, by simulation: 95 %, within three standard errors of 2,000 runs.
    rng = np.random.default_rng(5)
    held = []
    for _ in range(2000):
        samples = rng.exponential(size=41)
        ordered = np.sort(samples)
        reach = 0.98 * np.sqrt(41)
        lo, hi = ordered[int(np.floor(20.5 - reach))], ordered[int(np.ceil(20.5 + reach))]
        assert median_half_width(samples.tolist()) == pytest.approx((hi - lo) / 2 / np.median(samples))
        held.append(lo <= np.log(2) <= hi)
    assert 0.95 - 0.015 < np.mean(held) < 0.995
    assert median_half_width([1.0] * 5) == float("inf")


def test_devices_by_name() -> None:
    import torch

    assert open_device("cpu").kind == "cpu"
    with pytest.raises(InputError, match="unknown device"):
        open_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"without CUDA|no CUDA GPU"):
            open_device("cuda")
    assert out_of_memory(MemoryError())
    assert not out_of_memory(ValueError("no"))


def test_facts_name_the_machine_but_no_serial_number(device: CpuDevice) -> None:
    facts = describe(device)
    assert facts["name"]
    assert facts["torch"][0].isdigit()
    assert not any("serial" in name.lower() or "uuid" in name.lower() for name in facts)


def test_floor_is_the_larger_of_bytes_and_operations() -> None:
    ceilings = Ceilings(bytes_per_s=100.0, flops_per_s=10.0)
    assert ceilings.floor_s(200, 10) == 2.0
    assert ceilings.floor_s(100, 50) == 5.0
