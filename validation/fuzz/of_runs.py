"""Run directories with files cut, spoiled, missing or of another kind, read again, compared and gone on with."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache, lru_cache, partial
from pathlib import Path

from hypothesis import strategies as st

from validation.fuzz import nonsense
from validation.fuzz.cases import Case
from validation.fuzz.lines import run_line
from validation.fuzz.of_scenarios import SMALL

_MADE = {
    "run": ["run", "small.yaml", "--out", "run", "--jobs", "1", "--quiet"],
    "other": [
        "run",
        "small.yaml",
        "--out",
        "other",
        "--seed",
        "2",
        "--set",
        "cache.gpu.slots=1",
        "--jobs",
        "1",
        "--quiet",
    ],
    "sweep": ["sweep", "small.yaml", "--out", "sweep", "--jobs", "1", "--quiet"],
    "plan": ["plan", "small.yaml", "--out", "plan", "--minimize", "cache.gpu.slots=1..3", "--jobs", "1", "--quiet"],
}


@lru_cache(maxsize=1)
def template() -> Path:
    """Return a folder with a run, another one, a sweep and a plan, made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="loraplan-fuzz-runs-"))
    (folder / "small.yaml").write_bytes(SMALL)
    for line in _MADE.values():
        ended = run_line(line, folder)
        assert ended.code in (0, 1), ended.err
    return folder


@cache
def _files(name: str) -> dict[str, bytes]:
    """Return the files of a run directory that are read again; pages and tables are not."""
    root = template()
    there = sorted(file for file in (root / name).rglob("*") if file.is_file() and file.suffix not in (".html", ".csv"))
    return {str(file.relative_to(root)): file.read_bytes() for file in there if file.name != ".lock"}


def _copied(name: str, folder: Path) -> None:
    shutil.copytree(template() / name, folder / name)


def _spoil(name: str, how: str, content: bytes, folder: Path) -> None:
    file = folder / name
    if file.is_dir():
        return  # spoiled before
    file.unlink(missing_ok=True)
    if how == "folder":
        file.mkdir()
    elif how == "link":
        file.symlink_to("/etc/passwd")
    elif how == "loop":
        file.symlink_to(file)
    elif how != "missing":
        file.write_bytes(content)


@st.composite
def run_cases(draw: st.DrawFn) -> Case:
    """A run directory with one to three files spoiled, and what reads it."""
    name = draw(st.sampled_from(sorted(_MADE)))
    files = _files(name)
    prepare = [partial(_copied, name), partial(_copied, "run" if name != "run" else "other")]
    for file in draw(
        st.lists(st.sampled_from([*files, *(f for f in files if f.endswith(".json"))]), min_size=1, max_size=3)
    ):
        content = files[file]
        how = draw(
            st.sampled_from(
                ("tree", "tree", "tree", "tree", "bytes", "bytes", "missing", "empty", "folder", "link", "loop")
            )
        )
        if how == "tree" and file.endswith(".json"):
            content = nonsense.as_json(draw(nonsense.much_spoiled(json.loads(content))))
        elif how in ("tree", "bytes"):
            content = draw(nonsense.damaged(content))
        elif how == "empty":
            content = b""
        prepare.append(partial(_spoil, file, how, content))
    beside = "run" if name != "run" else "other"
    lines = draw(
        st.sampled_from(
            (
                [["report", name]],
                [["report", name]],
                [["compare", name, beside, "--json"]],
                [["compare", beside, name]],
                [_MADE[name]],
                [[*_MADE[name], "--json"]],
                [["compare", name, name, "--check", "--json"]],
            )
        )
    )
    return Case({"small.yaml": SMALL}, [list(line) for line in lines], [*prepare], lawful=False)
