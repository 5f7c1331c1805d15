"""The run directory: the same files for one point or a thousand, safe to kill and to continue.

::

    manifest.json      what was asked, with which versions and seed, and how far it came
    points/KEY.json    each point as it ends; what a killed sweep keeps
    summary.json       the metrics of every point, for scripts
    points.csv         the same, one row a point and metric, for spreadsheets
    requests.parquet   one row a request of the first replication
    report.html        written by ``reports``
    .lock              held while a process works here
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from sim.errors import LoraplanError, OutputError
from sim.reading import POINT_BYTES, TABLE_BYTES, open_regular
from sim.results.fleet_costs import priced
from sim.results.model import from_plain
from sim.results.point import Point
from sim.results.run_directory.headroom_record import Headroom
from sim.results.run_directory.result_files import (
    KEY,
    MANIFEST,
    make_folder,
    manifest_or_nothing,
    points_csv,
    read_json,
    read_manifest,
    refuse_foreign,
    refuse_links,
    release_lock,
    remove_ours,
    summary_json,
    take_lock,
    tenants_csv,
    write_atomically,
    write_json,
    write_text,
)
from sim.timing import timed

if TYPE_CHECKING:
    import pyarrow

    from sim.results.run_directory.study_records import PlanRecord, RemedyRow, WhatIfRow

SCHEMA_VERSION = 1
Status = Literal["running", "finished", "interrupted", "failed"]

_POINT = b"loraplan.point"
_MAGIC = b"PAR1"
_FOOTER_BYTES = 16 << 20
"""Bytes of the end of a Parquet file that describes it, at most. Ours have 10 kB to 1 MB."""


class RunStore:
    """Write one run directory; made by ``create``, held by a lock until ``close`` or ``finish``.

    :ivar path: the folder.
    :ivar manifest: as it stands in ``manifest.json``.
    :ivar previous: the manifest of an earlier run of the same scenario, which left its points here; None: there was
        none.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lock: int | None, previous: dict[str, Any] | None) -> None:
        self.path = path
        self.manifest = manifest
        self.previous = previous
        self._lock = lock
        self._kept: set[str] = set()  # keys of the points that this object wrote or read: their files are whole

    @classmethod
    def create(cls, out: Path, manifest: dict[str, Any], overwrite: bool = False) -> RunStore:
        """Open a folder for a run; continue where one of the same ``scenario_hash`` stopped.

        :param manifest: needs ``scenario_hash``; ``point_keys`` gives the points and their order.
        :param overwrite: remove what loraplan wrote there (and nothing else) instead of continuing.
        :raises OutputError: if the folder can't be written, is in use, or holds something else.
        """
        refuse_links(out, (MANIFEST, "points", ".lock"))  # before anything is read or made through one
        refuse_foreign(out)
        make_folder(out / "points")
        lock = take_lock(out)
        try:
            if overwrite:
                remove_ours(out)
            previous = _same_scenario(out, manifest)
            point_keys = list(manifest.get("point_keys", ()))
            start = {"schema_version": SCHEMA_VERSION, "status": "running", "points_done": 0}
            full = {**manifest, **start, "points_total": manifest.get("points_total", len(point_keys))}
            store = cls(out, {**full, "point_keys": point_keys}, lock, previous)
            store.update()
        except BaseException:
            release_lock(lock)
            raise
        return store

    @property
    def resumed(self) -> bool:
        """Whether an earlier run of the same scenario left its points here."""
        return self.previous is not None

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder. Closing twice does nothing."""
        lock, self._lock = self._lock, None
        release_lock(lock)

    def update(self, changes: Mapping[str, Any] | None = None) -> None:
        """Change keys of the manifest and write it."""
        self.manifest = {**self.manifest, **(changes or {})}
        write_json(self.path / MANIFEST, self.manifest)

    @timed("files")
    def save_point(self, key: str, point: Point) -> None:
        """Keep a finished point; from now on it survives the process."""
        data = {"schema_version": SCHEMA_VERSION, "point": point.to_json()}
        write_json(_point_file(self.path, key), data, indent=None)  # one line: people do not read these
        self._kept.add(key)

    def load_priced(
        self, key: str, price: float | None, pools: Sequence[float] = (), tenants: Sequence[Mapping[str, float]] = ()
    ) -> Point | None:
        """Return a kept point with the costs of a price, and keep it so; None: it is not there, or its file is damaged.

        :param pools, tenants: the price in each pool, and what each tenant pays; see ``priced``.
        """
        point = _load_point(self.path, key)
        if point is None:
            return None
        self._kept.add(key)
        found = priced(point, price, pools, tenants)
        if found is not point:
            self.save_point(key, found)
        return found

    def has_requests_of(self, key: str) -> bool:
        """Return whether ``requests.parquet`` is there and holds the requests of this point."""
        return _holds_requests(self.path / "requests.parquet", key)

    @timed("files")
    def save_requests(self, table: pyarrow.Table, key: str) -> None:
        """Write ``requests.parquet``, the requests of the point ``key``."""
        from pyarrow import parquet

        table = table.replace_schema_metadata({_POINT: key.encode()})

        def fill(file: Any) -> None:
            parquet.write_table(table, file, compression="zstd")

        write_atomically(self.path / "requests.parquet", fill)

    @timed("files")
    def finish(
        self, ended: Mapping[str, Point], manifest_updates: Mapping[str, Any] | None = None, status: Status = "finished"
    ) -> None:
        """Write the tables and the final manifest, and let go of the folder.

        :param ended: the points that ended, by key, in the order of the manifest's ``point_keys``.
        :param status: ``finished`` wants every point; the others take what there is.
        """
        points = list(ended.values())
        if status == "finished":
            assert list(ended) == self.manifest["point_keys"], "every point has ended"
        for key, point in ended.items():
            if key not in self._kept:  # Ctrl-C may come while a point is being written
                self.save_point(key, point)
        with blamed_on(self.path) if self.resumed else nullcontext():  # points of this run are what we write
            found = self.manifest.get("headroom")
            more = Headroom.from_json(found) if found else None
            write_json(self.path / "summary.json", summary_json(str(self.manifest.get("name", "")), points, more))
            write_text(self.path / "points.csv", points_csv(points))
            by_tenant = tenants_csv(points)
            if by_tenant:
                write_text(self.path / "tenants.csv", by_tenant)
        # Last, because a manifest that says finished promises that the rest is there.
        self.update({**(manifest_updates or {}), "status": status, "points_done": len(points)})
        self.close()

    def finished(self, points: list[Point]) -> RunData:
        """Return the finished run as ``read_run`` would, without reading a thousand points back, which takes seconds.

        :param points: those that were given to ``finish``.
        """
        return RunData(self.path, read_manifest(self.path), points)

    @contextmanager
    def closing(self, ended: Callable[[], Mapping[str, Point]], started_s: float) -> Iterator[None]:
        """Finish when a block ends, whatever ends it: what is there by then stands in the tables.

        :param ended: returns the points that ended, by key; ``started_s``: when the work began, by ``perf_counter``.
        """
        status: Status = "failed"
        try:
            yield
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            self.finish(ended(), {"wall_s": time.perf_counter() - started_s}, status)


@dataclass(frozen=True)
class RunData:
    """A run directory that was read: all a report needs."""

    path: Path
    manifest: dict[str, Any]
    points: list[Point]

    @property
    def plan(self) -> PlanRecord:
        """What the search of a plan left; empty for other runs."""
        from sim.results.run_directory.study_records import PlanRecord  # only for plans: a run is read faster without

        return from_plain(PlanRecord, self.manifest.get("plan") or {})

    @property
    def recommended(self) -> Point | None:
        """The design that a plan recommends, or the nearest where nothing meets the SLO; None for other runs."""
        plan = self.manifest.get("plan") or {}
        by_key = dict(zip(self.manifest.get("point_keys", ()), self.points, strict=False))
        return by_key.get(plan.get("answer_key") or plan.get("best_key"))

    @property
    def headroom(self) -> Headroom | None:
        """How much more traffic fits, where that was simulated."""
        data = self.manifest.get("headroom")
        return Headroom.from_json(data) if data else None

    @property
    def what_if(self) -> list[WhatIfRow]:
        """What one change at a time would do, where that was asked."""
        from sim.results.run_directory.study_records import WhatIfRow

        return [from_plain(WhatIfRow, row) for row in self.manifest.get("what_if") or []]

    @property
    def levers(self) -> list[WhatIfRow]:
        """What changes that cost no GPU do to the design next to the answer of a plan, where they were tried."""
        from sim.results.run_directory.study_records import WhatIfRow

        return [from_plain(WhatIfRow, row) for row in self.manifest.get("levers") or []]

    @property
    def remedies(self) -> list[RemedyRow]:
        """What the remedies of a vetting cost, where that was asked."""
        from sim.results.run_directory.study_records import RemedyRow

        rows = (self.manifest.get("cures") or {}).get("rows", [])
        return [from_plain(RemedyRow, {**row, "paths": row.get("for", [])}) for row in rows]

    @property
    def slo(self) -> dict[str, Any]:
        """The scenario's ``slo`` block, as it was written."""
        return (self.manifest.get("scenario") or {}).get("slo") or {}

    @property
    def costs_assumed(self) -> bool:
        """Whether the profile's costs are assumed, not measured."""
        return (self.manifest.get("profile") or {}).get("status") == "assumed"


def read_run(path: Path) -> RunData:
    """Read a run directory; an unfinished one gives the points that ended.

    :raises OutputError: if it is no run directory, or damaged.
    """
    if not path.is_dir():
        raise OutputError("no such folder" if not path.exists() else "is not a folder", file=str(path))
    refuse_links(path, (MANIFEST, "points"))
    file = path / MANIFEST
    if not file.exists():
        raise OutputError(
            "is not a run directory: it has no manifest.json", file=str(path), hint="'loraplan run' writes one"
        )
    manifest = read_manifest(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("point_keys"), list):
        raise OutputError("this file is damaged: it is no manifest", file=str(file))
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise OutputError(
            "written by another version of loraplan",
            key="schema_version",
            got=manifest.get("schema_version"),
            allowed=str(SCHEMA_VERSION),
            file=str(file),
        )
    keys = [str(key) for key in manifest["point_keys"]]
    if len(set(keys)) < len(keys):  # ten bytes each, which would be read as a point each
        raise OutputError("this file is damaged: a point stands there twice", key="point_keys", file=str(file))
    points = [(key, _load_point(path, key)) for key in keys]
    lost = [key for key, point in points if point is None]
    if lost and manifest.get("status") == "finished":
        raise OutputError(
            "this point is missing or damaged", file=str(_point_file(path, lost[0])), hint="run the scenario again"
        )
    return RunData(path, manifest, [point for _, point in points if point is not None])


@timed("files")
def read_finished(path: Path) -> RunData | None:
    """Return a run directory if its study is finished and no file but the report is missing or torn, else None.

    :raises OutputError: if there is one, but its manifest or a point is damaged.
    """
    if not (path / MANIFEST).exists():
        return None
    refuse_links(path, (".lock",))
    data = read_run(path)
    tables = [path / name for name in ("summary.json", "points.csv")]
    if data.manifest.get("status") != "finished" or any(file.is_symlink() or not file.is_file() for file in tables):
        return None
    try:
        read_json(tables[0], TABLE_BYTES)  # only for scripts, but a study that is finished has one that they can read
    except OutputError:
        return None
    keys = data.manifest["point_keys"]
    return data if keys and _holds_requests(path / "requests.parquet", str(keys[0])) else None


@contextmanager
def blamed_on(*folders: Path) -> Iterator[None]:
    """Turn a failure of code that reads run directories into an error about them: loraplan did not write them so.

    Their files are JSON that can be edited, and a report reads hundreds of values.

    :raises OutputError: in place of what is no error of ours; ``--debug`` shows that one too.
    """
    try:
        yield
    except LoraplanError:
        raise
    except Exception as error:
        raise OutputError(
            "something in this run directory is not what loraplan writes",
            file=" or ".join(map(str, folders)),
            got=f"{type(error).__name__}: {error}",
            hint="simulate again into another folder; --debug shows more",
        ) from error


def holds_nothing_else(folder: Path, wanted_hash: str, sets: list[dict[str, Any]]) -> bool:
    """Return whether these points may use the folder: it is free, or holds some of them and no others."""
    if not (folder / MANIFEST).exists():
        return not folder.exists() or not any(folder.iterdir())
    old = manifest_or_nothing(folder)
    return old.get("scenario_hash") == wanted_hash and all(set_ in sets for set_ in old.get("sets", []))


def _point_file(folder: Path, key: str) -> Path:
    if not KEY.fullmatch(str(key)):
        raise OutputError("not the key of a point", got=key, file=str(folder / MANIFEST))
    return folder / "points" / f"{key}.json"


def _load_point(folder: Path, key: str) -> Point | None:
    file = _point_file(folder, key)
    refuse_links(folder, (f"points/{file.name}",))
    if not file.exists():
        return None
    try:
        return Point.from_json(read_json(file, POINT_BYTES)["point"])
    except (OutputError, LookupError, TypeError, AttributeError):
        return None


def _holds_requests(file: Path, key: str) -> bool:
    """Return whether a Parquet file is there, not cut off, and holds the requests of this point.

    Its last bytes describe it: the description, how long that is, and ``PAR1``. Our entry stands there as it was given,
    key and value each after the byte 0x18 and its length, so that no pyarrow is needed, which takes long to import.
    """
    value = key.encode()
    entry = b"\x18" + bytes([len(_POINT)]) + _POINT + b"\x18" + bytes([len(value)]) + value
    if file.is_symlink():
        return False  # the table that is written next takes its place
    try:
        with open_regular(file) as table:
            size = table.seek(0, os.SEEK_END)
            table.seek(max(size - 8, 0))
            length, magic = table.read(4), table.read(4)
            start = size - 8 - int.from_bytes(length, "little")
            if magic != _MAGIC or start < len(_MAGIC) or size - start > _FOOTER_BYTES:
                return False
            table.seek(start)
            described = table.read(size - 8 - start)
            table.seek(0)
            return entry in described and table.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _same_scenario(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    if not (out / MANIFEST).exists():
        return None
    try:
        old = read_manifest(out)
    except OutputError as error:
        error.hint = "give another --out, or --overwrite"
        raise
    if not isinstance(old, dict) or old.get("scenario_hash") != manifest["scenario_hash"]:
        raise OutputError(
            "this folder holds the run of another scenario",
            file=str(out),
            got=old.get("name") if isinstance(old, dict) else None,
            hint="give another --out, or --overwrite",
        )
    return old
