"""Every command line that is refused: ``refusals/*.yaml`` hold all that it prints. It has no result, changes no file.

A group may have the beginning of its commands, files, the names of what is made for it (``MADE``), and a package that
it needs.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import CommandLine
from log_samples import falling, history, write_config, write_log
from refusal_tables import Refusal, refusals
from serve_samples import write_samples

from calibrate.loads.synthetic_adapters import BASE, MODEL, adapter_config, header_of, write_sparse

HERE = Path(__file__).parent


def write_adapters(folder: str, count: int, **config: object) -> None:
    for number in range(count):
        start, size = header_of(MODEL, 8, ("q", "v"), "bf16")
        write_sparse(
            Path(folder, f"tone-{number}"), start, size, {**adapter_config(BASE, 8, ("q", "v")), **config}, number
        )


def write_training_log() -> None:
    write_config(Path("stuck"), 4, ["q_proj", "v_proj"])
    write_log(Path("stuck"), history(falling(2.5, 1.2, 30), falling(2.5, 1.3, 30), accuracy=falling(0.2, 0.7, 30)))


MADE: dict[str, Callable[[], object]] = {
    "adapters": lambda: write_adapters("fleet", 3),
    "DoRA adapters": lambda: write_adapters("dora", 2, use_dora=True),
    "adapters of strangers": lambda: write_adapters("spaced/of mine", 1),
    "a benchmark": lambda: shutil.copy(HERE.parent / "observe" / "samples" / "vllm-closed.json", "bench.json"),
    "a folder": Path("empty").mkdir,
    "a live scenario": write_samples,
    "a training log": write_training_log,
}


def contents() -> dict[Path, bytes]:
    """Return every file of this folder, and its folders."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")}


@pytest.mark.parametrize("row", refusals(Path(__file__).with_name("refusals")))
def test_what_is_wrong_is_said_and_nothing_is_done(loraplan: CommandLine, row: Refusal) -> None:
    if "needs" in row.group:
        pytest.importorskip(row.group["needs"])
    for name, content in row.group.get("files", {}).items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
    for name in row.group.get("made", ()):
        MADE[name]()
    before = contents()
    err = loraplan.refused(*shlex.split(f"{row.group.get('command', '')} {row.change}"))
    assert contents() == before
    said = re.sub(rf"{Path.cwd()}/|\S*/(?=scenarios/)", "", err)  # wherever it and the bundled ones lie
    row.compare(said.removesuffix("\n"))
