"""The run directory: whole files, resuming, the lock, and refusals that name folder and reason."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from sim.errors import OutputError
from sim.results.metric_state import Cause, State
from sim.results.point import Metric, Point
from sim.results.run_directory.result_files import digest_file, json_ready, point_key, scenario_hash, write_atomically
from sim.results.run_directory.store import RunStore, read_finished, read_run


def a_point(slots: object = 16, miss_ratio: float | None = 0.25) -> Point:
    metrics = {"miss_ratio": Metric(miss_ratio, 0.2, 0.3), "ttft_p99_s": Metric(1.5, unit="s", state=State(Cause.WIDE))}
    return Point({"cache.gpu.slots": slots}, metrics, cdf={"q": [0.5], "ttft_s": [0.1]}, warnings=["short"])


def a_manifest(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "sweep",
        "name": "demo",
        "scenario": {"name": "demo"},
        "scenario_hash": "h1",
        "seed": 1,
        "point_keys": ["k1", "k2"],
        **changes,
    }


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_reads_back_whole(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    points = [a_point(16), a_point(32, None)]
    with RunStore.create(out, a_manifest()) as store:
        store.save_point("k1", points[0])
        store.save_requests(pyarrow.table({"request": [0, 1]}), "k1")
        (out / "report.html").write_text("<p>µ</p>", encoding="utf-8")
        store.finish(dict(zip(("k1", "k2"), points, strict=True)), {"wall_s": 2.5})
    run = read_run(out)
    assert run.points == points
    assert run.manifest["status"] == "finished"
    assert (run.manifest["points_total"], run.manifest["points_done"], run.manifest["wall_s"]) == (2, 2, 2.5)
    assert parquet.read_table(out / "requests.parquet").column("request").to_pylist() == [0, 1]
    assert (out / "report.html").read_text(encoding="utf-8") == "<p>µ</p>"
    assert files_in(out) == {
        ".lock",
        "manifest.json",
        "summary.json",
        "points.csv",
        "requests.parquet",
        "report.html",
        "points/k1.json",
        "points/k2.json",
    }


def test_requests_are_those_of_one_point_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "r/requests.parquet"
    with RunStore.create(tmp_path / "r", a_manifest()) as store:
        assert not store.has_requests_of("k1")
        store.save_requests(pyarrow.table({"request": [0, 1]}), "k1")
        assert parquet.read_schema(file).metadata == {b"loraplan.point": b"k1"}
        assert store.has_requests_of("k1")
        assert not any(store.has_requests_of(key) for key in ("k2", "k", "k11"))
        whole = file.read_bytes()
        for damaged in (b"", b"PAR1", b"PAR1PAR1", whole[:-1], whole[1:], whole[: len(whole) // 2], b"x" * len(whole)):
            file.write_bytes(damaged)
            assert not store.has_requests_of("k1")
        file.write_bytes(whole[:-8] + (2**32 - 1).to_bytes(4, "little") + b"PAR1")
        assert not store.has_requests_of("k1")


def test_a_finished_run_lacks_no_file(tmp_path: Path) -> None:
    out = tmp_path / "r"
    assert read_finished(out) is None
    with RunStore.create(out, a_manifest(point_keys=["k1"])) as store:
        store.save_requests(pyarrow.table({"request": [0, 1]}), "k1")
        store.save_point("k1", a_point())
        assert read_finished(out) is None
        store.finish({"k1": a_point()})
    found = read_finished(out)
    assert found.points == [a_point()]
    for name in ("summary.json", "points.csv", "requests.parquet"):
        kept = (out / name).read_bytes()
        (out / name).unlink()
        assert read_finished(out) is None
        (out / name).write_bytes(kept)
    (out / "points/k1.json").unlink()
    with pytest.raises(OutputError, match="missing or damaged"):
        read_finished(out)


def test_what_an_earlier_run_left_is_blamed_for_what_cannot_be_written(tmp_path: Path) -> None:
    with RunStore.create(tmp_path, a_manifest(point_keys=["k1"])) as store:
        store.finish({"k1": a_point()})
    told = pytest.raises(OutputError, match="something in this run directory is not what loraplan writes")
    with RunStore.create(tmp_path, a_manifest(point_keys=["k1"], headroom={"probes": [1]})) as store, told:
        store.finish({"k1": a_point()})


def test_summary_and_table_have_the_published_form(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "r", a_manifest()) as store:
        store.finish({"k1": a_point(16), "k2": a_point(32, None)})
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert (summary["schema_version"], summary["scenario"]) == (1, "demo")
    assert summary["points"][0]["set"] == {"cache.gpu.slots": 16}
    miss = summary["points"][0]["metrics"]["miss_ratio"]
    assert (miss["value"], miss["lo"], miss["hi"], miss["unit"]) == (0.25, 0.2, 0.3, "1")
    assert summary["points"][0]["metrics"]["ttft_p99_s"]["settled"] is False
    rows = list(csv.reader(io.StringIO((tmp_path / "r" / "points.csv").read_text())))
    assert rows[0] == ["cache.gpu.slots", "metric", "value", "lo", "hi", "unit"]
    assert rows[1] == ["16", "miss_ratio", "0.25", "0.2", "0.3", "1"]
    assert rows[3] == ["32", "miss_ratio", "", "0.2", "0.3", "1"]
    assert len(rows) == 1 + 2 * 2


def test_nan_never_reaches_json(tmp_path: Path) -> None:
    curves = {"q": [np.float64(0.5), math.nan], "ttft_s": np.array([1.0, math.inf])}
    metric = Metric(math.nan, -math.inf, float(np.float64("nan")))
    point = Point({"a": math.inf}, {"miss_ratio": metric}, cdf=curves)  # type: ignore[arg-type]
    with RunStore.create(tmp_path / "r", a_manifest(point_keys=["k1"])) as store:
        store.finish({"k1": point}, {"wall_s": math.nan})
    for file in (tmp_path / "r").rglob("*.json"):
        json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    kept = read_run(tmp_path / "r").points[0]
    assert kept.metrics["miss_ratio"] == Metric(None, None, None)
    assert kept.cdf == {"q": [0.5, None], "ttft_s": [1.0, None]}


def test_numpy_numbers_become_plain() -> None:
    assert json_ready({"n": np.int64(3), "b": np.bool_(True), 4: (np.float32(0.5),)}) == {"n": 3, "b": True, "4": [0.5]}
    assert type(json_ready(np.float64(0.5))) is float


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=cmd()", "'=cmd()"),
        ("+1", "'+1"),
        ("-x", "'-x"),
        ("@SUM", "'@SUM"),
        ("\t=1", "'\t=1"),
        (-2.5, "-2.5"),
        ("a=b", "a=b"),
        ([1, "x"], '[1, "x"]'),
        (None, ""),
    ],
)
def test_text_cells_can_not_be_formulas(tmp_path: Path, value: object, cell: str) -> None:
    with RunStore.create(tmp_path / "r", a_manifest(point_keys=["k1"])) as store:
        store.finish({"k1": a_point(value)})
    table = io.StringIO((tmp_path / "r" / "points.csv").read_text())
    assert next(csv.DictReader(table))["cache.gpu.slots"] == cell


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    file.write_text("old")

    def half(out: Any) -> None:
        out.write(b"new, but only ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"summary\.json: can't write this file: No space left on device"):
        write_atomically(file, half)
    assert file.read_text() == "old"
    assert files_in(tmp_path) == {"summary.json"}


def test_the_new_file_is_complete_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        seen.append("fsync")
        fsync(descriptor)

    def noted_replace(draft: Path, final: Path) -> None:
        seen.append(f"replace {draft.read_text()}")
        replace(draft, final)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_atomically(tmp_path / "f", lambda out: out.write(b"all"))
    assert seen == ["fsync", "replace all"]


def test_a_killed_sweep_keeps_its_points_and_continues(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "r", a_manifest()) as store:
        assert not store.resumed
        store.save_point("k2", a_point(32))  # and then the process dies
    unfinished = read_run(tmp_path / "r")
    assert (unfinished.manifest["status"], unfinished.points) == ("running", [a_point(32)])
    with RunStore.create(tmp_path / "r", a_manifest()) as again:
        assert again.resumed
        assert again.load_priced("k1", None) is None
        assert again.load_priced("k2", None) == a_point(32)
        again.finish({"k1": a_point(16), "k2": a_point(32)})
    assert [point.set["cache.gpu.slots"] for point in read_run(tmp_path / "r").points] == [16, 32]


def test_an_interrupted_run_writes_what_it_has(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "r", a_manifest()) as store:
        store.finish({"k2": a_point(32)}, status="interrupted")  # its file was not there yet
    run = read_run(tmp_path / "r")
    assert (run.manifest["status"], run.manifest["points_done"], run.manifest["points_total"]) == ("interrupted", 1, 2)
    assert run.points == [a_point(32)]


@pytest.mark.parametrize(
    "damage",
    ["", '{"schema_version": 1, "poi', "[]", "null", '{"point": {"set": {}}}', '{"point": {"metrics": {}, "x": 1}}'],
)
def test_a_torn_point_counts_as_missing(tmp_path: Path, damage: str) -> None:
    with RunStore.create(tmp_path / "r", a_manifest()) as store:
        store.save_point("k1", a_point())
        (tmp_path / "r" / "points" / "k1.json").write_text(damage)
        assert store.load_priced("k1", None) is None


def test_another_scenario_is_refused_unless_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "r"
    with RunStore.create(out, a_manifest()) as store:
        (out / "report.html").write_text("old")
        store.finish({"k1": a_point(16), "k2": a_point(32)})
    (out / "notes.txt").write_text("mine")
    (out / "points" / "k9.json").write_text("{}")
    (out / ".summary.json.12.tmp").write_text("left by a kill")
    with pytest.raises(OutputError) as caught:
        RunStore.create(out, a_manifest(scenario_hash="h2"))
    assert str(caught.value) == (
        f"{out}: this folder holds the run of another scenario (got demo); give another --out, or --overwrite"
    )
    assert read_run(out).manifest["scenario_hash"] == "h1"
    with RunStore.create(out, a_manifest(scenario_hash="h2"), overwrite=True) as store:
        assert not store.resumed
    assert files_in(out) == {".lock", "manifest.json", "notes.txt"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("manifest", [None, '{"name": "a web page"}', "{"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, overwrite: bool, manifest: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    before = files_in(tmp_path)
    with pytest.raises(OutputError, match=r"this folder holds other files .*thesis\.tex.*--out"):
        RunStore.create(tmp_path, a_manifest(), overwrite)
    assert files_in(tmp_path) == before


def test_what_a_crash_left_before_the_manifest_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".manifest.json.77.tmp").write_text("{")
    (tmp_path / "points").mkdir()
    with RunStore.create(tmp_path, a_manifest()) as store:
        assert not store.resumed


def test_a_folder_that_can_not_be_made_says_where_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/r: can't .*: Not a directory"):
        RunStore.create(tmp_path / "file" / "r", a_manifest())
    with pytest.raises(OutputError, match=r"file: can't .*: Not a directory"):
        RunStore.create(tmp_path / "file", a_manifest())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root can't write")
def test_a_folder_that_can_not_be_written_says_where_and_why() -> None:
    with pytest.raises(OutputError, match=r"/proc/loraplan: can't make this folder: "):
        RunStore.create(Path("/proc/loraplan"), a_manifest())


def test_a_second_process_is_told_that_the_folder_is_in_use(tmp_path: Path) -> None:
    out = tmp_path / "r"
    code = (
        "import sys; from pathlib import Path; from sim.results.run_directory.store import RunStore\n"
        "RunStore.create(Path(sys.argv[1]), {'scenario_hash': 'h1'}); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "held\n"
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="another loraplan works in this folder"):
                RunStore.create(out, a_manifest(), overwrite)
        process.kill()
    RunStore.create(out, a_manifest()).close()  # a lock dies with its process


def test_the_lock_ends_with_finish_close_and_failure(tmp_path: Path) -> None:
    out = tmp_path / "r"
    store = RunStore.create(out, a_manifest(point_keys=[]))
    with pytest.raises(OutputError, match="another loraplan"):
        RunStore.create(out, a_manifest())
    store.finish({})
    with pytest.raises(OutputError, match="another scenario"):
        RunStore.create(out, a_manifest(scenario_hash="h2"))
    RunStore.create(out, a_manifest()).close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run directory: it has no manifest.json"),
        ('{"schema_version": 1,', "manifest.json: this file is damaged: it is not JSON"),
        ("[1]", "manifest.json: this file is damaged: it is no manifest"),
        ('{"schema_version": 2, "point_keys": []}', "written by another version of loraplan (got 2, allowed: 1)"),
        ('{"schema_version": 1, "point_keys": ["../../etc/passwd"]}', "not the key of a point"),
        (b"\xff\xfe", "manifest.json: this file is damaged: it is not JSON"),
    ],
)
def test_what_is_no_run_directory_is_refused(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(OutputError) as caught:
        read_run(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere: no such folder"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file: is not a folder"):
        read_run(tmp_path / "file")


def test_a_point_key_follows_what_is_simulated_and_nothing_else(tmp_path: Path) -> None:
    data = {"name": "a", "sweep": {"x": [1]}, "workload": {"requests": 5}, "run": {"seed": 1}}
    key = point_key(data, {"x": 1}, "0.1.0", {"t.csv": "d1"})
    same = {"run": {"seed": 1}, "workload": {"requests": 5}, "name": "b", "description": "c", "sweep": {"x": [1, 2]}}
    assert point_key(same, {"x": 1}, "0.1.0", {"t.csv": "d1"}) == key
    others = [
        point_key({**data, "run": {"seed": 2}}, {"x": 1}, "0.1.0", {"t.csv": "d1"}),
        point_key(data, {"x": 2}, "0.1.0", {"t.csv": "d1"}),
        point_key(data, {"x": 1}, "0.2.0", {"t.csv": "d1"}),
        point_key(data, {"x": 1}, "0.1.0", {"t.csv": "d2"}),
        point_key(data, {"x": 1}, "0.1.0"),
    ]
    assert len({key, *others}) == 6
    assert key == "4599eb7450ff8d84", "a new value here makes every kept point be simulated again: is that meant?"
    assert scenario_hash(data) == scenario_hash(same) != scenario_hash({**data, "run": {"seed": 2}})


def test_a_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert digest_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(OutputError, match="can't read this file: No such file"):
        digest_file(tmp_path / "g")
