"""What ``make fast`` and ``make wheel`` make: the same numbers, from compiled modules or without a compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from sim.studies.study_identity import code_version
from sim.version import __version__, build

ROOT = Path(__file__).resolve().parents[2]
IMAGE = (ROOT / "Containerfile").read_text()
FAST = ROOT / ".fast-venv"
FEW = ("--set", "workload.requests=500", "--set", "run.replications=2")


@pytest.fixture
def fast() -> Path:
    """Return the compiled ``loraplan``."""
    if not (FAST / ".installed").exists():
        pytest.skip("there is no compiled build here: make fast")
    return FAST / "bin/loraplan"


def output(*command: str | Path, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, capture_output=True, text=True, env={**inherited, **environment}, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_checkout_is_interpreted(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "from sim.version import build; print(build())")
    assert output(*command, PYTHONPATH=str(ROOT)) == "interpreted\n"


def test_the_version_tells_the_build() -> None:
    path = os.environ.get("PYTHONPATH", "")
    printed = output(sys.executable, "-P", "-m", "loraplan", "--version", PYTHONPATH=path)
    assert printed == f"loraplan {__version__} ({build()})\n"


def test_the_compiled_build_says_so(fast: Path) -> None:
    assert output(fast, "--version") == f"loraplan {__version__} (compiled)\n"


def test_the_compiled_build_and_wheels_are_built_as_the_image_builds_them() -> None:
    (line,) = re.findall(r"&& (HATCH_\S+ LORAPLAN_COMPILE=require) \S+/pip install --no-cache-dir (.+) \\", IMAGE)
    assert re.search(rf"\n\t{line[0]} \S+/pip install {re.escape(line[1])}\n", (ROOT / "Makefile").read_text())
    wheels = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    assert wheels["environment"] == dict(pair.split("=") for pair in line[0].split())


def test_the_build_names_the_stubs_that_mypy_reads() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    stubs = {each for each in project["project"]["optional-dependencies"]["test"] if "-stubs" in each}
    assert stubs
    assert stubs <= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["dependencies"])


def test_with_the_compiled_interpreter_tests_run_compiled() -> None:
    if Path(sys.prefix) != FAST:
        pytest.skip("for tests that run compiled")
    assert build() == "compiled"


@pytest.mark.slow
def test_both_builds_write_the_same_tables_and_share_results(fast: Path, tmp_path: Path) -> None:
    over = ("--over", "cache.gpu.slots=8,16", "--jobs", "2", *FEW)
    interpreted = (sys.executable, "-m", "sim.cli")
    output(fast, "sweep", "quickstart", "--out", tmp_path / "compiled", *over)
    tables = (tmp_path / "compiled/points.csv").read_bytes()
    output(*interpreted, "sweep", "quickstart", "--out", tmp_path / "interpreted", *over, PYTHONPATH=str(ROOT))
    assert (tmp_path / "interpreted/points.csv").read_bytes() == tables


def test_the_version_of_the_code_is_that_of_its_sources(fast: Path) -> None:
    code = "from sim.studies.study_identity import code_version; print(code_version())"
    stale = any(path.stat().st_mtime > (FAST / ".installed").stat().st_mtime for path in (ROOT / "sim").rglob("*.py"))
    if stale:
        pytest.skip("the compiled build is older than the sources: make fast")
    assert output(FAST / "bin/python", "-P", "-c", code).strip() == code_version()


def without_compiler(folder: Path) -> str:
    """Return a PATH with the commands that make and pip use, but no C compiler."""
    for name in ("make", "bash", "sh", "env", "find", "ls", "rm", "touch", "test", "git"):
        found = next(
            (Path(each) / name for each in os.environ["PATH"].split(":") if (Path(each) / name).exists()), None
        )
        if found is not None:
            (folder / name).symlink_to(found)
    return str(folder)


@pytest.mark.slow
def test_without_a_compiler_make_fast_says_so_and_a_wheel_is_pure(fast: Path, tmp_path: Path) -> None:
    path = without_compiler(tmp_path)
    python = FAST / "bin/python"
    ended = subprocess.run(
        [python, ROOT / "hatch_build.py"], capture_output=True, text=True, env={"PATH": path}, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("no C compiler: ")
    wheels = tmp_path / "wheels"
    environment = {"PATH": path, "HATCH_BUILD_HOOK_ENABLE_CUSTOM": "true", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [python, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT]
    subprocess.run(command, capture_output=True, env=environment, check=True)
    (wheel,) = wheels.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    packages = output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (tmp_path / "empty").mkdir()
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "sim.cli", "run", "quickstart", "--out", "out", *FEW],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        env={"PATH": path, "PYTHONPATH": os.pathsep.join([str(installed), packages])},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "empty/out/report.html").exists()
