"""The folder of a run: whose it is, who works in it, and which of its files are loraplan's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sim.errors import OutputError
from sim.results.run_directory.result_files import read_json

KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The name of a point."""

MANIFEST = "manifest.json"

_FILES = (MANIFEST, "summary.json", "points.csv", "requests.parquet", "report.html", "recommended.yaml")
_DRAFT = re.compile(r"\..+\.\d+\.tmp")


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds files of somebody else."""
    try:
        names = sorted(entry.name for entry in out.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"can't use this as a folder: {error.strerror or error}", file=str(out)) from None
    foreign = [name for name in names if name not in (*_FILES, ".lock", "points") and not _DRAFT.fullmatch(name)]
    if foreign and not _wrote_manifest(out):
        raise OutputError(
            "this folder holds other files",
            got=", ".join(foreign[:3]),
            file=str(out),
            allowed="a new or empty folder, or one that loraplan wrote",
            hint="give another --out",
        )


def _wrote_manifest(out: Path) -> bool:
    """Say whether the manifest is one of ours: web pages have a ``manifest.json`` too."""
    try:
        manifest = read_manifest(out)
    except OutputError:
        return False
    return isinstance(manifest, dict) and "scenario_hash" in manifest


def read_manifest(out: Path) -> Any:
    """Return what ``manifest.json`` holds; nothing is checked but that it is JSON.

    :raises OutputError: if it is missing, damaged, or a link.
    """
    refuse_links(out, (MANIFEST,))
    return read_json(out / MANIFEST)


def make_folder(out: Path) -> None:
    """Make a folder, and those above it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make this folder: {error.strerror or error}", file=str(out.parent)) from None


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse links in a run directory: loraplan makes none, and one in a stranger's leads out of it.

    The folder itself may be reached through a link: that is its owner's.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise OutputError(
                "this is a link, which no run directory has", file=str(folder / name), hint="copy what it leads to"
            )


def take_lock(out: Path) -> int | None:
    """Lock the folder for this process; None where the system has no such locks."""
    try:
        descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    except OSError as error:
        raise OutputError(f"can't write in this folder: {error.strerror or error}", file=str(out)) from None
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(
            "another loraplan works in this folder", file=str(out), hint="wait for it, or give another --out"
        ) from None
    except (ImportError, OSError):  # Windows, some network disks: better no lock than no run
        os.close(descriptor)
        return None
    return descriptor


def release_lock(lock: int | None) -> None:
    """Let others work in the folder."""
    if lock is not None:
        os.close(lock)  # which ends the lock; the empty file stays, removing it would race


def remove_ours(out: Path) -> None:
    """Remove what loraplan wrote there, and nothing else."""
    for file in _ours(out):
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"can't remove this file: {error.strerror or error}", file=str(file)) from None


def _ours(out: Path) -> Iterable[Path]:
    yield from (out / name for name in _FILES)
    yield from (file for file in (out / "points").glob("*.json") if KEY.fullmatch(file.stem))
    for folder in (out, out / "points"):
        yield from (file for file in folder.iterdir() if _DRAFT.fullmatch(file.name))
