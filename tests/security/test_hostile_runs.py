"""Run directories and adapter folders from strangers: nothing is read, written or removed outside of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Ended

from reports.render.html import page
from sim.errors import OutputError
from sim.results.catalogue import UNITS
from sim.results.point import Metric, Point
from sim.results.run_directory import result_files
from sim.results.run_directory.result_files import digest_file, read_json, read_manifest, write_text
from sim.results.run_directory.store import RunStore, holds_nothing_else, read_run
from sim.studies.run.report import run_report
from sim.studies.vetting_gate import digest_weights

SCENARIO: dict[str, Any] = {"name": "demo"}
MANIFEST: dict[str, Any] = {
    "kind": "run",
    "name": "demo",
    "scenario": SCENARIO,
    "scenario_hash": "h1",
    "seed": 1,
    "point_keys": ["k1"],
    "sets": [{}],
    "replications": 1,
    "code": "0",
    "versions": {},
    "inputs": {},
    "profile": {},
    "command": "",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunStore.create(tmp_path / "run", MANIFEST) as store:
        store.finish({"k1": Point({}, {name: Metric(1.0, 0.9, 1.1, unit) for name, unit in UNITS.items()})})
    return tmp_path / "run"


def test_the_run_itself_is_fine(run: Path) -> None:
    assert len(read_run(run).points) == 1


LINKED = ("manifest.json", "points", "points/k1.json")


def lead_out(run: Path, name: str, there: bool = True) -> Path:
    """Put a link in place of a file of the run, to a copy outside or to nothing; return the copy."""
    outside = run.parent / "outside"
    (run / name).rename(outside)
    (run / name).symlink_to(outside if there else run.parent / "nothing")
    return outside


@pytest.mark.promise("points, manifest and lock are refused if they are links")
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", LINKED)
def test_links_out_of_a_run_are_not_followed(run: Path, name: str, there: bool) -> None:
    lead_out(run, name, there)
    with pytest.raises(OutputError, match="this is a link"):
        read_run(run)


def contents(folder: Path) -> dict[Path, bytes | Path]:
    """Return what each file below a folder holds, and where each link leads."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_symlink() or file.is_file()]
    return {file: file.readlink() if file.is_symlink() else file.read_bytes() for file in files}


COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "s.yaml", "--no-headroom", "--out", "run"),
    "run --overwrite": ("run", "s.yaml", "--no-headroom", "--out", "run", "--overwrite"),
    "sweep": ("sweep", "s.yaml", "--over", "cache.gpu.slots=4", "--out", "run"),
    "plan": ("plan", "s.yaml", "--minimize", "cache.gpu.slots=4..5", "--no-headroom", "--out", "run"),
    "report": ("report", "run"),
    "compare": ("compare", "run", "run"),
}
SMALL = """\
schema_version: 1
name: small
workload: {requests: 50, arrivals: {process: poisson, rate: 5/s}}
adapters: {count: 20}
cache: {gpu: {slots: 8}}
slo: {ttft_mean: 100 s}
run: {replications: 2}
"""


@pytest.mark.promise(
    "Nothing outside is read, written or removed.", "points, manifest and lock are refused if they are links"
)
@pytest.mark.parametrize("name", [*LINKED, ".lock"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_reads_or_changes_anything_through_a_link(
    loraplan: CommandLine, tmp_path: Path, command: str, name: str
) -> None:
    """The folder that each command itself left, with one file moved out and a link in its place."""
    (tmp_path / "s.yaml").write_text(SMALL)

    def ended(line: tuple[str, ...]) -> Ended:
        options = ("--jobs", "1") if line[0] in ("run", "sweep", "plan") else ()
        return loraplan(*line, *options, "--quiet")

    assert ended(COMMANDS[command] if command in ("sweep", "plan") else COMMANDS["run"]).code == 0
    if name.startswith("points/"):
        name = f"points/{next((tmp_path / 'run' / 'points').iterdir()).name}"
    lead_out(tmp_path / "run", name)
    before = contents(tmp_path)
    reads = command in ("report", "compare")
    if reads and name == ".lock":
        return  # they take no lock
    again = ended(COMMANDS[command])
    if command == "run --overwrite" and name.startswith("points/"):
        assert again.code == 0, "a link among what is overwritten is removed, and its target stays"
        assert not (tmp_path / "run" / name).is_symlink()
        assert (tmp_path / "outside").read_bytes() == before[tmp_path / "outside"]
        return
    assert again.code == 2
    assert "link" in again.err
    changed = {file for file, content in contents(tmp_path).items() if before.get(file) != content}
    assert {file.name for file in changed} <= {"manifest.json", "summary.json", "points.csv"}, "files of the run"
    assert (tmp_path / "run" / name).is_symlink()


@pytest.mark.promise("Tables and reports replace a link: nothing is written or read through it.")
@pytest.mark.parametrize("name", ["requests.parquet", "report.html", "summary.json", "points.csv", "recommended.yaml"])
def test_tables_take_the_place_of_a_link(loraplan: CommandLine, tmp_path: Path, name: str) -> None:
    """They are written and not read: what a link leads to stays as it is, and says nothing about the run."""
    (tmp_path / "s.yaml").write_text(SMALL)
    line = COMMANDS["plan" if name == "recommended.yaml" else "run"]
    for _ in range(2):
        loraplan.succeeds(*line[:-1], "fresh", "--quiet", "--jobs", "1")
        if not (tmp_path / "outside").exists():
            lead_out(tmp_path / "fresh", name)
            before = (tmp_path / "outside").read_bytes()
    assert (tmp_path / "outside").read_bytes() == before
    assert not (tmp_path / "fresh" / name).is_symlink()
    assert (tmp_path / "fresh" / name).is_file()


def test_a_linked_manifest_makes_no_folder_ours(run: Path, tmp_path: Path) -> None:
    """A folder with other files is used only if its manifest is one of loraplan's."""
    lead_out(run, "manifest.json")
    (run / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="this is a link"):
            RunStore.create(run, MANIFEST, overwrite=overwrite)
    assert not holds_nothing_else(run, "h1", [{}])
    with pytest.raises(OutputError, match="this is a link"):
        read_manifest(run)


def test_a_run_may_be_reached_through_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(run)
    assert len(read_run(tmp_path / "latest").points) == 1


def test_a_run_is_not_continued_through_a_link(run: Path, tmp_path: Path) -> None:
    """Overwriting would remove the files of the folder that it leads to."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "settings.json").write_text("{}")
    (run / "points" / "k1.json").unlink()
    (run / "points").rmdir()
    (run / "points").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="this is a link"):
        RunStore.create(run, MANIFEST, overwrite=True)
    assert (tmp_path / "mine" / "settings.json").exists()


@pytest.mark.promise("points, manifest and lock are refused if they are links")
def test_a_lock_makes_no_file_elsewhere(run: Path, tmp_path: Path) -> None:
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(tmp_path / "made")
    with pytest.raises(OutputError):
        RunStore.create(run, MANIFEST)
    assert not (tmp_path / "made").exists()


@pytest.mark.promise("Tables and reports replace a link: nothing is written or read through it.")
@pytest.mark.parametrize("name", ["report.html", ".report.html.PID.tmp"])
def test_a_report_is_not_written_through_a_link(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_text("kept")
    (run / name.replace("PID", str(os.getpid()))).symlink_to(tmp_path / "mine")
    write_text(run / "report.html", "<html>")
    assert (tmp_path / "mine").read_text() == "kept"
    assert (run / "report.html").read_text() == "<html>"
    assert not (run / "report.html").is_symlink()


@pytest.mark.promise("Keys of points are not paths.")
@pytest.mark.parametrize("key", ["../../secret", "/etc/passwd", "a/b", "", ".", "k1\n", "k1\0"])
def test_keys_of_points_are_no_paths(run: Path, key: str) -> None:
    edit(run, point_keys=[key])
    with pytest.raises(OutputError, match="not the key of a point"):
        read_run(run)


@pytest.mark.promise("a point of a run: 32 MiB, each point once")
def test_a_point_is_read_once(run: Path) -> None:
    """Ten bytes of a manifest would be a point of 32 MiB each."""
    edit(run, point_keys=["k1"] * 1000)
    with pytest.raises(OutputError, match="a point stands there twice"):
        read_run(run)


def edit(run: Path, **changes: Any) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.promise("text with more brackets than 1 in 8 bytes is refused before it is parsed")
@pytest.mark.parametrize(
    ("text", "problem"),
    [("[" + "[]," * 10_000 + "1]", "too many brackets"), ("[" * 100_000, "not JSON"), ("1" * 5000, "not JSON")],
)
def test_json_that_blows_up_is_refused(run: Path, text: str, problem: str) -> None:
    (run / "manifest.json").write_text(text)
    with pytest.raises(OutputError, match=problem):
        read_run(run)


@pytest.mark.promise("profile, manifest: 64 MiB")
def test_large_json_is_refused_before_it_is_parsed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (run / "manifest.json").open("wb") as out:
        out.truncate(65 << 20)  # a file of holes
    with pytest.raises(OutputError, match="larger than 64 MiB"):
        read_run(run)
    monkeypatch.setattr("sim.results.run_directory.store.POINT_BYTES", 10)
    with pytest.raises(OutputError, match="larger than 64 MiB"):
        read_run(run)


@pytest.mark.promise("a point of a run: 32 MiB, each point once")
def test_a_large_point_is_a_damaged_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.results.run_directory.store.POINT_BYTES", 10)
    with pytest.raises(OutputError, match="this point is missing or damaged"):
        read_run(run)


@pytest.mark.timeout(10)
def test_pipes_and_devices_are_not_read(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        for read in (read_json, digest_file):
            reader: Callable[[Path], object] = read
            with pytest.raises(OutputError, match="it is not a file"):
                reader(file)
    (run / "requests.parquet").unlink(missing_ok=True)
    (run / "requests.parquet").symlink_to(tmp_path / "pipe")
    with RunStore.create(run, MANIFEST) as store:
        assert not store.has_requests_of("k1")


@pytest.mark.timeout(10)
def test_what_is_hashed_of_new_versions_lies_in_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = digest_weights(folder)
    (tmp_path / "secret").write_text("secret")
    (folder / "adapter_config.json").symlink_to(tmp_path / "secret")
    (folder / "adapter_model.safetensors").symlink_to("/dev/zero")
    assert digest_weights(folder) == before
    os.mkfifo(folder / "trainer_state.json")  # whose content nobody waits for; a vetting finds that there is no log
    assert digest_weights(folder) == before


@pytest.mark.promise("No code is run.", "Pickles are never loaded, and nothing in a file is evaluated.")
def test_nothing_in_the_repository_loads_a_pickle_of_a_file() -> None:
    """Two pickles are loaded, none from a file: an error in the line that made it, and a policy's class in a worker."""
    root = Path(result_files.__file__).parents[3]
    sources = [file for name in ("sim", "reports") for file in (root / name).rglob("*.py")]
    assert len(sources) > 200

    def without(text: str) -> str:
        return text.replace("pickle.loads(pickle.dumps(error))", "").replace("pickle.loads(target)", "")

    words = (
        "pickle.load",
        "read_pickle",
        "allow_pickle=True",
        "joblib.load",
        "torch.load",
        "yaml.load(",
        "eval(",
        "exec(",
    )
    found = {
        (file.name, word) for file in sources for word in words if word in without(file.read_text(encoding="utf-8"))
    }
    assert not found


@pytest.mark.promise(
    "Nothing is injected.", "Reports escape every text; a page's policy allows its one script by hash, and no network."
)
def test_a_report_of_a_strangers_run_is_text(run: Path) -> None:
    evil = '</title></style></pre><script>alert(1)</script><img src=x onerror="alert(1)">'
    edit(
        run,
        name=evil,
        command=evil,
        code=evil,
        started_at=evil,
        versions={evil: evil},
        inputs={evil: evil},
        scenario={"name": evil, "description": f"javascript:alert(1){evil}"},
        profile={"name": evil, "status": "measured", "sha256": evil, "sources": {evil: evil}},
    )
    point = json.loads((run / "points" / "k1.json").read_text())
    point["point"].update(
        warnings=[evil],
        groups=[
            {
                "name": evil,
                "facts": {"adapters": 1, "adapter_bytes": 1, "requests": 1},
                "metrics": {"miss_ratio": {"value": 0.1}, "ttft_p99_s": {"value": 1.0}, "e2e_p99_s": {"value": 1.0}},
            }
        ],
        events=[{"t_s": 1.0, "kind": evil, "text": evil}],
    )
    (run / "points" / "k1.json").write_text(json.dumps(point))
    text = page(run_report(read_run(run)))
    assert text.count("<script") == 1
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert 'href="javascript' not in text
    assert "default-src 'none'; script-src 'sha256-" in text
