"""What is shipped: the source archive builds a wheel, and that runs in an empty folder with the core dependencies."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from sim.version import __version__, build

ROOT = Path(__file__).resolve().parents[2]
FEW = ("--no-headroom", "--set", "workload.requests=300", "--set", "run.replications=2")


def output(*command: str | Path, cwd: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HOME": str(cwd)}
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def with_dependencies(requirements: Iterable[str]) -> set[str]:
    """Return what has to be installed for these requirements, without extras."""
    found: set[str] = set()
    left = [Requirement(each) for each in requirements]
    while left:
        requirement = left.pop()
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name.lower() not in found:
            found.add(requirement.name.lower())
            left += [Requirement(each) for each in distribution(requirement.name).requires or ()]
    return found


def link_packages(names: Iterable[str], target: Path) -> None:
    """Link the files of installed packages into another environment."""
    for name in names:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (target / top).exists():
                (target / top).symlink_to(Path(str(found.locate_file(top))))


def empty_environment(folder: Path) -> tuple[Path, Path]:
    """Return a new environment and the folder of its packages."""
    place = folder / "environment"
    venv.create(place, symlinks=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return place, Path(output(place / "bin" / "python", "-c", code, cwd=folder).strip())


@pytest.mark.slow
def test_what_a_compiled_wheel_installs_runs_without_the_repository(tmp_path: Path) -> None:
    if build() != "compiled":
        pytest.skip("for tests that run compiled")
    place, site_packages = empty_environment(tmp_path)
    # What .fast-venv has of loraplan, pip put there from a wheel.
    link_packages({"loraplan", *with_dependencies(distribution("loraplan").requires or ())}, site_packages)
    loraplan = (place / "bin" / "python", "-m", "sim.cli")
    assert output(*loraplan, "--version", cwd=tmp_path) == f"loraplan {__version__} (compiled)\n"
    assert output(*loraplan, "run", "quickstart", *FEW, cwd=tmp_path).startswith("quickstart: ")


@pytest.mark.slow
def test_a_wheel_from_the_source_archive_runs_in_an_empty_folder_with_the_core_dependencies(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, which the extra test brings")
    hatchling = (sys.executable, "-m", "hatchling", "build", "-d", tmp_path / "dist", "-t")
    output(*hatchling, "sdist", cwd=ROOT)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    here = {path.name for path in ROOT.iterdir()}
    assert here >= {path.name for path in source.iterdir()} - {"PKG-INFO"}
    assert {"tests", "docs", "tools", "validation"} <= {path.name for path in source.iterdir()}, "its tests can be run"
    output(*hatchling, "wheel", cwd=source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")

    place, site_packages = empty_environment(tmp_path)
    python = place / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps")
    output(*pip, wheel, cwd=tmp_path)
    (metadata,) = site_packages.glob("loraplan-*.dist-info/METADATA")
    core = [line.partition(": ")[2] for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist: ")]
    link_packages(with_dependencies(core), site_packages)

    empty = tmp_path / "empty"
    empty.mkdir()
    code = "import sim, loraplan, importlib.util as u; print(sim.__file__, loraplan.__file__, u.find_spec('torch'))"
    *imported, torch = output(python, "-c", code, cwd=empty).split()
    assert all(Path(path).is_relative_to(place) for path in imported)
    assert torch == "None"
    printed = output(place / "bin" / "loraplan", "run", "quickstart", *FEW, cwd=empty)
    assert printed.startswith("quickstart: ")
    assert (empty / "runs" / "quickstart" / "report.html").stat().st_size > 50_000


def test_the_image_gets_what_the_wheel_is_built_from_and_runs_without_root() -> None:
    text = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    copied = [word for first, *rest in lines if first == "COPY" and not rest[0].startswith("--") for word in rest[:-1]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(copied) == {*wheel["only-include"], "pyproject.toml", "hatch_build.py", "README.md", "LICENSE"}
    seen = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert seen[0] == "*"
    assert {line[1:] for line in seen if line.startswith("!")} == set(copied)
    last = lines[max(at for at, words in enumerate(lines) if words[0] == "FROM") :]
    (user,) = [words[1] for words in last if words[0] == "USER"]
    assert int(user.partition(":")[0]) > 0


@pytest.mark.slow
def test_the_image_runs_where_there_is_a_builder(tmp_path: Path) -> None:
    builder = next((name for name in ("podman", "docker") if shutil.which(name)), None)
    if builder is None or subprocess.run([builder, "info"], capture_output=True, check=False).returncode:
        pytest.skip("no podman or docker here")
    subprocess.run([builder, "build", "-q", "-f", "Containerfile", "-t", "loraplan-test", "."], cwd=ROOT, check=True)
    command = [builder, "run", "--rm", "--network", "none", "loraplan-test"]
    ended = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"loraplan {__version__} (compiled)\n"


def test_the_citation_names_this_version() -> None:
    cited = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__
    assert cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(cited), "what the format requires"
