"""The lab kit's whole way: built, unpacked where there is no index, killed, resumed, packed, fitted, simulated."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the gpu extra: pip install -e '.[gpu]'")

from calibrate.steps.step_grid import PARTS as STEP_PARTS
from sim.cli import app

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import lab_kit

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
TINY = ("--device", "cpu", "--model", "tiny", "--quick")
LIMIT_BYTES = 16 * 2**20
PARTS = ("tiny/base-decode", "tiny/lora-decode", "tiny/prefill", "tiny/loads")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit for Python 3.12, as labs get it, and for the Python that runs this test."""
    try:
        return lab_kit.build(tmp_path_factory.mktemp("dist"), sorted({"3.12", HERE}))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip found no package index to build the kit from (exit code {error.returncode})")


@pytest.fixture(scope="module")
def kit(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / lab_kit.NAME


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with pip and what a lab has, and nothing else: links to this environment's packages."""
    lab = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(lab)], check=True)
    site = next(lab.glob("lib/python*/site-packages"))
    for name in needed({"pip", *lab_kit.IN_THE_LAB}):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            if top != "__pycache__" and not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    return lab / "bin/python"


def needed(names: set[str]) -> Iterator[str]:
    """Yield packages and all that they need, where installed."""
    from packaging.requirements import Requirement

    seen, left = set(), sorted(names)
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            requirements = [Requirement(text) for text in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        yield name
        left += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]


def lab(kit: Path, python: Path, folder: Path, *arguments: str, work: Path | None = None) -> subprocess.Popen[str]:
    """Start lab.sh in a folder of its own, without an index, and without this checkout on Python's path."""
    folder.mkdir(exist_ok=True)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PIP_")}
    surroundings = own | {"PYTHON": str(python), "OUT": str(folder / "out"), "LC_ALL": "C.UTF-8"}
    surroundings |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    surroundings["LAB_WORK"] = str(work or kit / "work")
    surroundings["OMP_NUM_THREADS"] = "1"  # two threads of a step wait for each other where cores are few
    return subprocess.Popen(
        [str(kit / "lab.sh"), *arguments],
        cwd=folder,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = process.communicate(timeout=300)[0]
    return process.returncode, said


def loraplan(*arguments: object) -> None:
    """Run a command of this checkout; any code but 0 is an exception."""
    assert app([str(argument) for argument in arguments], standalone_mode=False) in (None, 0)


@pytest.mark.slow
def test_the_archive_has_what_a_lab_lacks_and_no_more(archive: Path) -> None:
    assert archive.stat().st_size < lab_kit.LIMIT_BYTES
    with tarfile.open(archive) as file:
        names = [Path(name).name for name in file.getnames()]
    wheels = [name for name in names if name.endswith(".whl")]
    assert {"lab.sh", "README.txt"} <= set(names)
    assert any(re.match(r"loraplan-.*-py3-none-any\.whl", name) for name in wheels)
    assert any(re.match(r"pydantic_core-.*-cp312-cp312-manylinux.*x86_64", name) for name in wheels)
    assert not {name.split("-")[0].lower() for name in wheels} & lab_kit.IN_THE_LAB


def test_wrong_usage_is_explained_before_anything_is_installed(tmp_path: Path) -> None:
    tools = Path(lab_kit.__file__).parent
    for arguments, words in (
        (("--nope",), "unknown option --nope"),
        (("--model",), "--model needs a value"),
        (("--stage-seconds", "9min"), "take whole seconds"),
        (("llama-3.1-8b/decode",), "unknown stage llama-3.1-8b/decode; ./lab.sh help lists them"),
    ):
        code, said = ended(lab(tools, Path(sys.executable), tmp_path, *arguments, work=tmp_path / "work"))
        assert code == 2
        assert words in said
    code, said = ended(lab(tools, Path(sys.executable), tmp_path, "help"))
    assert code == 0
    listed = re.findall(r"^  (\S+/\S+)$", said, re.MULTILINE)
    assert listed[:5] == [
        *(f"llama-3.1-8b/{part}" for part in ("base-decode", "lora-decode", "prefill", "loads")),
        "qwen2.5-7b/base-decode",
    ]
    parts = {stage.partition("/")[2] for stage in listed}
    assert parts == {*STEP_PARTS, "loads", "loads-rest"}
    assert not (tmp_path / "work").exists()


@pytest.mark.nightly
def test_from_an_empty_folder_to_a_simulation(kit: Path, python: Path, tmp_path: Path) -> None:
    place, samples = tmp_path / "some where", kit / "work/tiny/steps.jsonl"
    started = lab(kit, python, place, *TINY)
    deadline = time.monotonic() + 200
    while not samples.exists() or samples.read_bytes().count(b"\n") < 5:
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < deadline, "no samples"
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    assert "tiny/base-decode: up to 540 s" in ended(started)[1]
    kept = samples.read_bytes()
    code, said = ended(lab(kit, python, place, *TINY, "tiny/base-decode"))
    assert (code, "tiny/base-decode: done\n" in said) == (0, True), said
    assert samples.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1]), "samples of the killed run are kept"

    code, said = ended(lab(kit, python, place, *TINY, "--stage-seconds", "1", *PARTS))
    assert code == 1, said
    assert "tiny/base-decode: done before" in said
    assert "left: tiny/lora-decode tiny/prefill tiny/loads; call lab.sh again" in said
    results = place / "out/lab-results.tar.gz"
    assert results.stat().st_size < LIMIT_BYTES
    a_new_machine_continues(results, kit, python, tmp_path / "new")

    with tarfile.open(results) as file:
        file.extractall(tmp_path / "back", filter="data")
    back = tmp_path / "back/tiny"
    assert "torch" in (tmp_path / "back/facts.txt").read_text()
    loraplan("calibrate", "fit", back, "--out", tmp_path / "profile.json", "--quiet")
    profile, packed = (json.loads(file.read_text()) for file in (tmp_path / "profile.json", back / "profile.json"))
    assert profile["step"] == packed["step"]
    assert profile["load"] == packed["load"]
    assert profile["status"] == "measured"
    assert "not finished: " in profile["provenance"]["device"]["flags"]
    few = ("--no-headroom", "--set", "workload.requests=300", "--set", "run.replications=2", "--quiet")
    loraplan(
        "run", "quickstart", "--set", f"fleet.profile={tmp_path / 'profile.json'}", *few, "--out", tmp_path / "run"
    )
    assert (tmp_path / "run/summary.json").exists()


def a_new_machine_continues(results: Path, kit: Path, python: Path, folder: Path) -> None:
    """Take up packed samples elsewhere. A stage that fails stops no other, and the archive stays small."""
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "venv").symlink_to(kit / "work/venv")  # as if it were installed there, which takes a while
    both = ("--device", "cpu", "--model", "tyni", "--model", "tiny", "--quick", "tyni/base-decode", "tiny/base-decode")
    code, said = ended(lab(kit, python, folder, "--restore", str(results), *both, work=work))
    assert code == 3
    assert re.search(r"tyni/base-decode: FAILED \(exit code 2\): error: .*unknown base model \(got tyni", said)
    assert "tiny/base-decode: done before" in said
    assert "error: failed: tyni/base-decode" in said
    assert (work / "tiny/steps.jsonl").exists()
    with (work / "tiny/steps.jsonl").open("ab") as file:
        file.write(os.urandom(LIMIT_BYTES))
    code, said = ended(lab(kit, python, folder, "pack", "tiny", work=work))
    assert (code, "is above 16 MiB: packing without the logs" in said) == (0, True), said
    assert (folder / "out/lab-results.tar.gz").stat().st_size < LIMIT_BYTES
