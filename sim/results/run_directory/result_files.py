"""Files that are whole or absent, JSON without NaN, the hashes that name a result, and the folder of a run."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from sim.cells import csv_text, text_cell
from sim.errors import OutputError
from sim.reading import MANIFEST_BYTES, brackets_fit, open_regular, read_regular
from sim.results.catalogue import UNITS
from sim.results.point import Metric, Point, SliceResult
from sim.results.run_directory.headroom_record import Headroom
from sim.results.verdict import term_verdict, verdict

# What can change without changing a result, as can fleet.price: a sweep that grows keeps the points it has.
_NOT_HASHED = ("name", "description", "sweep", "plan")

Row = tuple[list[str], Metric, list[str]]
"""What stands in a table of metrics before the numbers, these, and what follows them."""
_POOL_UNITS = {"replicas": "replicas", "gpus": "GPUs", "requests": "requests", "request_share": "1", "loads": "loads"}
"""Units of what pools have that is no metric of a fleet."""


@contextmanager
def _refused(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"can't {what}: {error.strerror or error}", file=str(path)) from None


def write_atomically(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file that is either complete on disk or not there, whenever the process dies.

    :param fill: writes the content to the open binary file.
    :raises OutputError: if the disk is full or the folder can't be written; the old file stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _refused("write this file", path):
        try:
            # A new file: a link of this name, left here by whoever made the folder, must not be written through.
            draft.unlink(missing_ok=True)
            with draft.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8 with plain newlines."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, data: Any, *, indent: int | None = 2) -> None:
    """Write data as JSON, atomically; NaN and infinities become null.

    :param data: its keys are text.
    :param indent: None: all on one line, which takes a third less.
    """
    encoder = json.JSONEncoder(indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text = encoder.encode(data)
    except (TypeError, ValueError):  # seldom: looking at every value first takes a quarter of the time
        text = encoder.encode(json_ready(data))
    write_text(path, text + "\n")


def read_json(path: Path, limit: int = MANIFEST_BYTES) -> Any:
    """Return the content of a JSON file.

    :param limit: bytes, at most.
    :raises OutputError: if it is missing, unreadable, too large or torn.
    """
    try:
        with _refused("read this file", path):
            raw = read_regular(path, limit)
        if not brackets_fit(raw):
            raise ValueError("too many brackets for its length")
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise OutputError("this file is damaged: it is not JSON", got=str(error), file=str(path)) from None


def json_ready(value: Any) -> Any:
    """Return the value as JSON can hold it; numpy's numbers become Python's, NaN becomes None."""
    kind = type(value)  # nearly all values are of these types: asking for these first takes a quarter of the time
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, (dict, Mapping)):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if not isinstance(value, (str, int, float, bool, type(None))) and hasattr(value, "tolist"):
        return json_ready(value.tolist())  # numpy scalars and arrays, without importing numpy
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's content.

    :raises OutputError: if it can't be read.
    """
    with _refused("read this file", path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def scenario_hash(data: Mapping[str, Any], inputs: Mapping[str, str] | None = None) -> str:
    """Return a short hash of what a scenario simulates: not of its name, description, sweep and plan.

    :param inputs: path → digest of the files it reads (trace, weights, profile).
    """
    return _digest({"data": _simulated(data), "inputs": dict(inputs or {})})


def point_key(
    data: Mapping[str, Any], set_: Mapping[str, Any], version: str, inputs: Mapping[str, str] | None = None
) -> str:
    """Return the name of a point's file: equal for equal scenario, values, version and input files."""
    parts = {"data": _simulated(data), "set": dict(set_), "version": version, "inputs": dict(inputs or {})}
    return _digest(parts)


def summary_json(name: str, points: Sequence[Point], headroom: Headroom | None = None) -> dict[str, Any]:
    """Return the content of ``summary.json``; what ``loraplan run --json`` prints.

    :param headroom: of a single run, where that was simulated.
    """
    rows = [
        {
            "set": point.set,
            "metrics": point.metrics_json(),
            **({"setup": point.setup.to_json()} if point.setup else {}),
            **({"held": point.held_back.to_json()} if point.held_back else {}),
            **({"pools": [_slice("pool", pool, point) for pool in point.pools]} if point.pools else {}),
            **({"times": [_slice("time", one, point) for one in point.times]} if point.times else {}),
            **({"tenants": _tenants(point)} if point.tenants else {}),
        }
        for point in points
    ]
    more = {} if headroom is None else {"headroom": headroom.summary()}
    return {"schema_version": 1, "scenario": name, "points": rows, **more}


def points_csv(points: Sequence[Point]) -> str:
    """Return ``points.csv``: one row a point and metric, the swept keys as the first columns.

    What a pool does follows as ``pools.NAME.METRIC``, and the money of tenants that pay as ``tenants.NAME.METRIC``.

    The calibration interval has columns only where a point has one, and they are the last.
    """
    texts = {text for point in points for name, metric in point.metrics.items() for text in (name, metric.unit)}
    cells = {text: text_cell(text) for text in texts}

    def rows(point: Point) -> Iterator[Row]:
        for name, metric in point.metrics.items():
            yield [cells[name]], metric, [cells[metric.unit]]
        for pool in point.pools:
            exact = {name: Metric(value) for name, value in pool.facts.items() if not isinstance(value, str)}
            for name, metric in {**exact, **pool.metrics}.items():
                if metric.value is not None:
                    yield [text_cell(f"pools.{pool.name}.{name}")], metric, [_POOL_UNITS.get(name) or UNITS[name]]
        for tenant in point.tenants if any(each.price for each in point.tenants) else ():
            for name, metric in tenant.money.items():
                yield [text_cell(f"tenants.{tenant.name}.{name}")], metric, [metric.unit]

    return _table(points, ["metric"], ["unit"], rows)


def tenants_csv(points: Sequence[Point]) -> str:
    """Return ``tenants.csv``: one row a point, tenant and metric; empty where no point has tenants.

    Terms of a tenant's SLO have their target and verdict. Calibration intervals have columns only where a point has
    some, and they are the last.
    """
    if not any(point.tenants for point in points):
        return ""

    def rows(point: Point) -> Iterator[Row]:
        for tenant in point.tenants:
            own, named = point.of_tenant(tenant), text_cell(tenant.name)
            for name, metric in {**tenant.metrics, **tenant.money}.items():
                target = tenant.slo.get(name)
                word = "" if target is None else term_verdict(own, name, target)
                yield [named, name], metric, [metric.unit, _cell(target), word]

    return _table(points, ["tenant", "metric"], ["unit", "target", "verdict"], rows)


def _table(points: Sequence[Point], names: list[str], more: list[str], rows: Callable[[Point], Iterable[Row]]) -> str:
    """Return a table with the swept keys as first columns, and calibration intervals as last where a point has any."""
    swept = list(dict.fromkeys(key for point in points for key in point.set))
    ends = ("calibration_lo", "calibration_hi") if any(point.calibration for point in points) else ()
    table = []
    for point in points:
        values = [_cell(point.set.get(key)) for key in swept]
        for named, metric, about in rows(point):
            numbers = [_cell(number) for number in (metric.value, metric.lo, metric.hi)]
            table.append([*values, *named, *numbers, *about, *(_cell(getattr(metric, end)) for end in ends)])
    return csv_text([*map(_cell, swept), *names, "value", "lo", "hi", *more, *ends], table)


def _slice(kind: str, one: SliceResult, point: Point) -> dict[str, Any]:
    return {kind: one.name, **one.row, "metrics": point.metrics_json(one.metrics)}


def _tenants(point: Point) -> dict[str, Any]:
    return {
        tenant.name: {
            "slo": verdict(point.of_tenant(tenant), tenant.slo),
            "token_share": tenant.token_share,
            "metrics": point.metrics_json({**tenant.metrics, **tenant.money}),
        }
        for tenant in point.tenants
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if type(value) is float:  # nearly all are
        return repr(value) if math.isfinite(value) else ""
    value = json_ready(value)
    if isinstance(value, str):
        return text_cell(value)
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _simulated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a scenario that its simulation depends on: a price is put on what was simulated."""
    found = {key: value for key, value in data.items() if key not in _NOT_HASHED}
    fleet = found.get("fleet")
    if isinstance(fleet, Mapping) and "price" in fleet:
        found["fleet"] = {key: value for key, value in fleet.items() if key != "price"}
        if not found["fleet"]:
            del found["fleet"]
    tenants = found.get("tenants")
    if isinstance(tenants, (list, tuple)) and any(isinstance(each, Mapping) and "price" in each for each in tenants):
        found["tenants"] = [
            {key: value for key, value in each.items() if key != "price"} if isinstance(each, Mapping) else each
            for each in tenants
        ]
    return found


def _digest(value: Any) -> str:
    text = json.dumps(json_ready(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# The folder of a run: whose it is, who works in it, and which of its files are loraplan's.

KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The name of a point."""

MANIFEST = "manifest.json"

_FILES = (MANIFEST, "summary.json", "points.csv", "requests.parquet", "report.html", "recommended.yaml")
_DRAFT = re.compile(r"\..+\.\d+\.tmp")


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds files of somebody else."""
    with _refused("use this as a folder", out):
        try:
            names = sorted(entry.name for entry in out.iterdir())
        except FileNotFoundError:
            return
    foreign = [name for name in names if name not in (*_FILES, ".lock", "points") and not _DRAFT.fullmatch(name)]
    if foreign and "scenario_hash" not in manifest_or_nothing(out):  # web pages have a manifest.json too
        raise OutputError(
            "this folder holds other files",
            got=", ".join(foreign[:3]),
            file=str(out),
            allowed="a new or empty folder, or one that loraplan wrote",
            hint="give another --out",
        )


def manifest_or_nothing(out: Path) -> dict[str, Any]:
    """Return what ``manifest.json`` holds; {} where it can't be read or is none."""
    try:
        manifest = read_manifest(out)
    except OutputError:
        return {}
    return manifest if isinstance(manifest, dict) else {}


def read_manifest(out: Path) -> Any:
    """Return what ``manifest.json`` holds; nothing is checked but that it is JSON.

    :raises OutputError: if it is missing, damaged, or a link.
    """
    refuse_links(out, (MANIFEST,))
    return read_json(out / MANIFEST)


def make_folder(out: Path) -> None:
    """Make a folder, and those above it."""
    with _refused("make this folder", out.parent):
        out.mkdir(parents=True, exist_ok=True)


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
    with _refused("write in this folder", out):
        descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
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
        with _refused("remove this file", file):
            file.unlink(missing_ok=True)


def _ours(out: Path) -> Iterable[Path]:
    yield from (out / name for name in _FILES)
    yield from (file for file in (out / "points").glob("*.json") if KEY.fullmatch(file.stem))
    for folder in (out, out / "points"):
        yield from (file for file in folder.iterdir() if _DRAFT.fullmatch(file.name))
