"""Raw samples on disk: each visit is saved as soon as it ends, and an interrupted run resumes.

A folder holds one suite a file triple::

    steps.json      what is measured: options, device, method, flags, progress
    steps.jsonl     one line a visit, appended and flushed: what a killed run keeps
    steps.parquet   all samples, one row each: written when the run ends, or its time is up

and the same for ``loads``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sim.errors import InputError, OutputError
from sim.results.run_directory.result_files import read_json, write_atomically, write_json

if TYPE_CHECKING:
    import pandas as pd

Suite = Literal["steps", "loads"]
Value = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Configuration:
    """One thing to be timed.

    :ivar key: names it, such as ``decode b32 d8 r16 s32 kv512 grouped_mm eager``.
    :ivar kind: what it belongs to: ``decode``, ``prefill``, ``mixed``, ``head``, ``canary``, or a stage of a load.
    """

    key: str
    kind: str
    parameters: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Visit:
    """The samples of one visit to a configuration.

    :ivar round: from 0; ``order``: place among all visits of the run.
    :ivar seconds: on the device's clock; ``wall_s``: on the wall clock; same length.
    :ivar flags: what may have disturbed it, in words.
    """

    configuration: Configuration
    round: int
    order: int
    seconds: Sequence[float]
    wall_s: Sequence[float]
    flags: Sequence[str] = field(default_factory=tuple)


class SampleLog:
    """The samples of one suite in one folder.

    :ivar visits: those already there, in order.
    :ivar manifest: the content of ``SUITE.json``.
    :ivar cut_short: whether the run that added the last visits ended for lack of time.
    """

    def __init__(self, folder: Path, suite: Suite, manifest: dict[str, Any], visits: list[Visit]) -> None:
        self.folder, self.suite, self.manifest, self.visits = folder, suite, manifest, visits
        self.cut_short = False
        self._file = folder / f"{suite}.jsonl"

    @classmethod
    def open(cls, folder: Path, suite: Suite, plan: Mapping[str, Any], *, overwrite: bool = False) -> SampleLog:
        """Open a folder; resume the run of the same plan that was interrupted there.

        :param plan: what decides which samples belong together (options, device, method). Other values than those of
            the samples in the folder are refused.
        :raises InputError: if the folder holds samples of another plan, or can't be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError("can't make this folder", key="--out", got=str(folder), hint=error.strerror) from None
        path = folder / f"{suite}.json"
        if overwrite:
            for old in (path, folder / f"{suite}.jsonl", folder / f"{suite}.parquet"):
                old.unlink(missing_ok=True)
        if not path.exists():
            stray = next((f for f in (folder / f"{suite}.jsonl", folder / f"{suite}.parquet") if f.exists()), None)
            if stray is not None:
                raise InputError(
                    f"this folder holds samples without {path.name}, which describes them",
                    key="--out",
                    got=str(stray),
                    hint="put it back, give another folder, or add --overwrite to start over",
                )
            manifest: dict[str, Any] = {"schema_version": 1, "suite": suite, "plan": dict(plan), "status": "running"}
            write_json(path, manifest)
            return cls(folder, suite, manifest, [])
        manifest = read_json(path)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("plan"), dict):
            raise OutputError("this is not a manifest of samples", file=str(path), hint="add --overwrite to start over")
        wanted = json.loads(json.dumps(dict(plan)))
        different = [key for key in {**manifest["plan"], **wanted} if manifest["plan"].get(key) != wanted.get(key)]
        if different:
            key = sorted(different)[0]
            raise InputError(
                f"this folder holds samples of another run: its {key} differs",
                key="--out",
                got=str(folder),
                allowed=f"{key} {manifest['plan'].get(key)}",
                hint="give another folder, or add --overwrite to start over",
            )
        return cls(folder, suite, manifest, list(_read(folder / f"{suite}.jsonl")))

    @property
    def done(self) -> set[tuple[str, int]]:
        """The (key, round) of all visits."""
        return {(visit.configuration.key, visit.round) for visit in self.visits}

    def add(self, visit: Visit) -> None:
        """Append a visit; when this returns it is on disk.

        :raises OutputError: if the disk is full; earlier visits stay.
        """
        line = (json.dumps(asdict(visit), separators=(",", ":")) + "\n").encode()
        before = self._file.stat().st_size if self._file.exists() else 0
        try:
            with self._file.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self._file.exists():
                os.truncate(self._file, before)  # so that no half line stays
            raise OutputError(
                f"can't write samples: {error.strerror or error}",
                file=str(self._file),
                hint="free some space and run the same command again: it resumes after the samples so far",
            ) from None
        self.visits.append(visit)

    def once(self, **facts: Any) -> dict[str, Any]:
        """Write facts that a resumed run must not change; return the manifest."""
        self.note(**{name: value for name, value in facts.items() if name not in self.manifest})
        return self.manifest

    def note(self, **facts: Any) -> None:
        """Write facts into the manifest."""
        self.manifest.update(facts)
        write_json(self.folder / f"{self.suite}.json", self.manifest)

    def finish(self) -> Path:
        """Write all samples as Parquet, and say in the manifest whether all were taken: ``finished`` or ``partial``."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        for visit in self.visits:
            count = len(visit.seconds)
            rows["key"] += [visit.configuration.key] * count
            rows["kind"] += [visit.configuration.kind] * count
            rows["parameters"] += [json.dumps(dict(visit.configuration.parameters))] * count
            rows["round"] += [visit.round] * count
            rows["order"] += [visit.order] * count
            rows["nth"] += range(count)
            rows["seconds"] += visit.seconds
            rows["wall_s"] += visit.wall_s
            rows["flags"] += ["; ".join(visit.flags)] * count
        table = pa.table(
            {
                name: pa.array(values).dictionary_encode() if name in _WORDS else pa.array(values)
                for name, values in rows.items()
            }
        )
        path = self.folder / f"{self.suite}.parquet"
        write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"))
        status = "partial" if self.manifest.get("untimed") else "finished"
        self.note(status=status, samples=len(rows["seconds"]))
        return path


_COLUMNS = ("key", "kind", "parameters", "round", "order", "nth", "seconds", "wall_s", "flags")
_WORDS = ("key", "kind", "parameters", "flags")


def read_samples(folder: Path, suite: Suite, needed: Sequence[str] = ("plan",)) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return all samples of a suite, one row each with ``parameters`` as dictionaries, and the manifest.

    :param needed: keys that the manifest must have.
    :raises OutputError: if the folder has none, or the run has not ended.
    """
    import pandas as pd

    path = folder / f"{suite}.parquet"
    manifest = read_json(folder / f"{suite}.json")
    missing = [key for key in needed if not isinstance(manifest, dict) or key not in manifest]
    if missing:
        raise OutputError(
            "this is not a manifest of samples",
            file=str(folder / f"{suite}.json"),
            got=f"no {', '.join(missing)}",
            hint=f"the same loraplan calibrate {suite} writes a new one when it ends",
        )
    if not path.exists():
        raise OutputError(
            f"there are no finished {suite} here",
            file=str(folder),
            hint=f"run: loraplan calibrate {suite} --out {folder}; an interrupted run resumes",
        )
    try:
        frame = pd.read_parquet(path)
        frame["parameters"] = [json.loads(text) for text in frame["parameters"].astype(str)]
    except (OSError, ValueError, KeyError) as error:
        raise OutputError("this table of samples is damaged", file=str(path), got=str(error)) from None
    return frame, manifest


def _read(path: Path) -> Iterable[Visit]:
    """Yield the visits of a log; a last line that a killed run left incomplete is removed."""
    if not path.exists():
        return
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        os.truncate(path, whole)
    for number, line in enumerate(raw[:whole].splitlines(), start=1):
        try:
            data = json.loads(line)
            data["configuration"] = Configuration(**data["configuration"])
            yield Visit(**data)
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(
                "this line holds no samples",
                file=str(path),
                line=number,
                got=str(error),
                hint="remove the line, or add --overwrite to start over",
            ) from None
