"""Write the lab kit: one archive that calibrates a GPU on a machine without a network (docs/calibrate.md).

    make lab-kit                                   dist/loraplan-lab-kit.tar.gz, for a Python 3.12 with torch
    python tools/lab_kit.py OUT --python 3.12 --python 3.13

The archive has loraplan as a wheel, the wheels of what it needs beside ``IN_THE_LAB``, ``lab.sh`` and ``README.txt``.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "loraplan-lab-kit"
LIMIT_BYTES = 60 * 10**6
IN_THE_LAB = frozenset(
    {
        *("torch", "triton", "numpy", "pandas", "scipy", "pyarrow", "safetensors"),
        *("typer", "rich", "joblib", "jinja2"),
    }
)
"""What the lab's Python has: large, or there wherever torch is."""
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)))
"""pip takes each to the letter."""
README = """\
loraplan's lab kit: calibrate a GPU on a machine without a network.

It needs bash, and a Python {pythons} that has torch 2.10 or newer, {others}.

    tar xzf {name}.tar.gz
    {name}/lab.sh --call-seconds 540      # as often as it exits with 1: each call continues

Every call ends with an archive, lab-results.tar.gz, in $OUT or the current folder: samples, facts of the machine and,
as soon as there is enough to fit, profiles. Bring it back even if not all is timed. lab.sh help says the rest.
"""


def requirements() -> list[str]:
    """Return what loraplan needs that the lab doesn't have, as in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [one for one in project["dependencies"] if re.split(r"[^\w.-]", one)[0].lower() not in IN_THE_LAB]


def build(out: Path, pythons: Sequence[str]) -> Path:
    """Write the archive into a folder and return its path.

    :param pythons: versions that it can be installed on, such as ``3.12``.
    :raises subprocess.CalledProcessError: where pip fails; it has printed why.
    """
    with tempfile.TemporaryDirectory() as folder:
        kit = Path(folder) / NAME
        wheels = kit / "wheels"
        _pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT))
        for python in pythons:
            tags = [f"--platform={platform}" for platform in PLATFORMS]
            versions = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
            _pip("download", *versions, *tags, "--dest", str(wheels), *requirements())
        shutil.copy(Path(__file__).with_name("lab.sh"), kit / "lab.sh")
        others = ", ".join(sorted(IN_THE_LAB - {"torch"}))
        text = README.format(pythons=" or ".join(pythons), others=others, name=NAME)
        (kit / "README.txt").write_text(text, encoding="utf-8")
        out.mkdir(parents=True, exist_ok=True)
        archive = out / f"{NAME}.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(kit, NAME)
    if archive.stat().st_size > LIMIT_BYTES:
        sys.exit(f"{archive} has {archive.stat().st_size / 1e6:.1f} MB: more than {LIMIT_BYTES / 1e6:.0f}")
    return archive


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def main() -> None:
    """Build it, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "dist", help="folder of the archive")
    parser.add_argument("--python", action="append", metavar="VERSION", help="of the lab; repeatable (3.12)")
    given = parser.parse_args()
    archive = build(given.out, given.python or ["3.12"])
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
