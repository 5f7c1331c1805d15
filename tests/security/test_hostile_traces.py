"""Traces and other tables from strangers: packed, wide, long or never-ending, they take a block's memory."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sim.errors import InputError
from sim.reading import ROW_BYTES
from sim.spec.sections.laws import EmpiricalTokens
from sim.spec.sections.trace_source import Trace
from sim.studies.fidelity import step_record
from sim.studies.fidelity.measured_runs import read_lengths, read_runs
from sim.traffic import popularity
from sim.traffic.lengths import read_counts
from sim.traffic.popularity import read_weights
from sim.traffic.tables import records, text_files
from sim.traffic.traces import client_lengths, rows
from sim.traffic.traces.read import read_trace

HEAD = b"timestamp_s,adapter_id,input_tokens,output_tokens\n"
JSON = b'{"timestamp_s":0,"adapter_id":"a","input_tokens":1,"output_tokens":1}\n'


def packed(file: Path, parts: Iterable[bytes]) -> Trace:
    with gzip.open(file, "wb", compresslevel=1) as out:
        for part in parts:
            out.write(part)
    return Trace(file=str(file))


ENDLESS = {
    "one line": [HEAD, *[b"a" * (1 << 20)] * 8],
    "one row of quoted line breaks": [HEAD, *[b'"\n",' * 200_000] * 8],
    "one row of cells": [HEAD, *[b"a," * 500_000] * 8],
    "a header": [b"a," * 500_000] * 8,
    "a line of JSON": [JSON, *[b"[" * (1 << 20)] * 8],
    "a first line of JSON": [b"{", *[b" " * (1 << 20)] * 8],
}


@pytest.mark.promise("Memory is bounded.", "row of a trace, unpacked: 4 MiB")
@pytest.mark.parametrize("name", ENDLESS)
def test_a_row_that_never_ends_is_refused_after_4_mib(tmp_path: Path, name: str) -> None:
    trace = packed(tmp_path / "t.csv.gz", ENDLESS[name])
    assert (tmp_path / "t.csv.gz").stat().st_size < ROW_BYTES / 40
    with pytest.raises(InputError, match="a row is too long"):
        read_trace(trace)


def test_a_long_trace_is_no_bomb(tmp_path: Path) -> None:
    """Sixteen times what a row may have, in rows: it is the rows that are bounded, not the file."""
    row = b"0,adapter,1,1" + b" " * 1000 + b"\n"
    rows = 16 * ROW_BYTES // len(row)
    assert len(read_trace(packed(tmp_path / "t.csv.gz", [HEAD, row * rows]))) == rows


@pytest.mark.promise("row of a trace, unpacked: blocks of rows end after 16 MiB")
@pytest.mark.parametrize("line", [b"a," * 50_000 + b"\n", b'{"a":"' + b"a" * 100_000 + b'"}\n'])
def test_blocks_of_long_rows_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes) -> None:
    """4,096 rows of 4 MiB would be a block of 16 GB."""
    for module in (text_files, records):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 20)
    head = HEAD if line[:1] == b"a" else JSON
    most = 0
    with text_files.open_table(packed(tmp_path / "t.gz", [head, line * 100]).file) as table:
        problems = text_files.BadRows("t", skip_bad=True)
        seen = 0
        while table.read(("timestamp_s",), 4096, problems) is not None:
            most, seen = max(most, problems.rows - seen), problems.rows
    assert problems.rows >= 100
    assert most < 30


@pytest.mark.promise("row of a trace, unpacked: 10,000 columns")
def test_a_header_of_very_many_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b",".join(b"c%d" % i for i in range(20_000)) + b"\n1\n")
    with pytest.raises(InputError, match="too many columns"):
        read_trace(Trace(file=str(tmp_path / "t")))


@pytest.mark.promise("name of an adapter; all names: 537 million letters")
def test_names_do_not_add_up_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_NAMES_LETTERS", 100_000)
    lines = b"".join(b"%d,%s%d,1,1\n" % (i, b"a" * 1000, i) for i in range(200))
    with pytest.raises(InputError, match="the names of all adapters are too long together"):
        read_trace(packed(tmp_path / "t.gz", [HEAD, lines]))


def table(**columns: pa.Array) -> pa.Table:
    count = len(next(iter(columns.values())))
    plain = {
        "timestamp_s": [float(i) for i in range(count)],
        "adapter_id": ["a"] * count,
        "input_tokens": [1] * count,
        "output_tokens": [1] * count,
    }
    return pa.table({**plain, **columns})


def long_words(count: int = 1000) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * 100_000]))


PARQUET: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "a dictionary of one long name": (lambda: table(adapter_id=long_words()), "adapter_id: a cell is too long"),
    "numbers as long texts": (lambda: table(input_tokens=long_words()), "input_tokens: a cell is too long"),
    "one long cell": (
        lambda: table(adapter_id=pa.array(["x"] * 1000 + ["x" * 9000])),
        "adapter_id: a cell is too long",
    ),
    "bytes of one size": (
        lambda: table(adapter_id=pa.array([b"x" * 9000], pa.binary(9000))),
        "adapter_id: a cell is too long",
    ),
    "lists": (lambda: table(adapter_id=pa.array([["x"]])), "adapter_id: a column of this type is not supported"),
    "tables": (lambda: table(input_tokens=pa.array([{"a": 1}])), "input_tokens: a column of this type is not"),
}


@pytest.mark.promise(
    "text in a cell of Parquet: 4,096 bytes",
    "text in a cell of Parquet: longer dictionaries and columns are refused before they are decoded",
)
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", PARQUET)
def test_cells_of_parquet_are_bounded(tmp_path: Path, name: str, plain: bool) -> None:
    make, problem = PARQUET[name]
    pq.write_table(make(), tmp_path / "t.parquet", use_dictionary=not plain, store_schema=not plain)
    with pytest.raises(InputError, match=problem):
        read_trace(Trace(file=str(tmp_path / "t.parquet")))


def test_parquet_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    pq.write_table(table(notes=long_words(), tags=pa.array([["x"]] * 1000)), tmp_path / "t.parquet")
    assert len(read_trace(Trace(file=str(tmp_path / "t.parquet")))) == 1000


@pytest.mark.parametrize("length", [0, 100, 2**31 - 1])
def test_a_footer_of_false_length_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + length.to_bytes(4, "little") + b"PAR1")
    with pytest.raises(InputError, match="the Parquet file can't be read"):
        read_trace(Trace(file=str(tmp_path / "t.parquet")))


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(HEAD + b"0,a,1,1\n" * 10_000)
    for broken in (whole[:-20], whole[:50] + b"\xff" * 50 + whole[100:]):
        (tmp_path / "t.gz").write_bytes(broken)
        with pytest.raises(InputError):
            read_trace(Trace(file=str(tmp_path / "t.gz")))


READERS: dict[str, Callable[[str], object]] = {
    "trace": lambda file: read_trace(Trace(file=file)),
    "lengths of clients": lambda file: client_lengths._load(file, skip_bad=False),
    "weights": read_weights,
    "counts": lambda file: read_counts(EmpiricalTokens(law="empirical", file=file, column="a")),
    "step record": lambda file: step_record.read_record(Path(file)),
    "measured runs": lambda file: read_runs(Path(file)),
    "histograms": lambda file: read_lengths(Path(file)),
}


@pytest.mark.promise("Only regular files are opened: no pipes, no devices.")
@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", READERS)
def test_pipes_devices_and_folders_are_no_tables(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (str(tmp_path / "pipe"), "/dev/zero", "/dev/null", str(tmp_path)):
        with pytest.raises(InputError, match=r"not a file|it is a folder"):
            READERS[name](file)


@pytest.mark.parametrize("name", ["weights", "counts"])
def test_lines_of_other_tables_are_bounded_too(tmp_path: Path, name: str) -> None:
    with (tmp_path / "t").open("wb") as out:
        out.write(b"a\n")
        out.truncate(ROW_BYTES * 3)  # a file of holes: it takes no room on the disk
    with pytest.raises(InputError, match="a line is longer than 4 MiB"):
        READERS[name](str(tmp_path / "t"))


@pytest.mark.promise("tables of weights, counts, runs: 10 million weights, 50 million counts")
def test_other_tables_have_so_many_rows_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text("a\n" + "1\n" * 20)
    monkeypatch.setattr("sim.traffic.lengths.MAX_ROWS", 10)
    with pytest.raises(InputError, match="too many rows"):
        READERS["counts"](str(tmp_path / "t"))
    (tmp_path / "t").write_text("1\n" * 20)
    monkeypatch.setattr(popularity, "MAX_WEIGHTS", 10)
    with pytest.raises(InputError, match="too many weights"):
        read_weights(str(tmp_path / "t"))
    monkeypatch.setattr(client_lengths, "MAX_CLIENTS", 10)
    line = "c{},1,1,1,1,1,1,1,1\n"
    (tmp_path / "t").write_text(",".join(client_lengths.COLUMNS) + "\n" + "".join(line.format(i) for i in range(20)))
    with pytest.raises(InputError, match="too many rows"):
        READERS["lengths of clients"](str(tmp_path / "t"))


@pytest.mark.promise("name of an adapter; all names: 1,024 bytes")
def test_names_of_weights_and_pools_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a" * 5000 + ",1\n")
    with pytest.raises(InputError, match="the adapter's name is too long"):
        read_weights(str(tmp_path / "t"))
    head = ",".join((*client_lengths.COLUMNS, "pool"))
    (tmp_path / "t").write_text(f"{head}\nc,1,1,1,1,1,1,1,1,{'p' * 5000}\n")
    with pytest.raises(InputError, match="the pool's name is too long"):
        READERS["lengths of clients"](str(tmp_path / "t"))


@pytest.mark.promise("step record, unpacked: 256 MiB")
def test_a_step_record_does_not_unpack_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_record, "RECORD_BYTES", 1 << 20)
    (tmp_path / "r.json.gz").write_bytes(gzip.compress(b" " * (4 << 20)))
    with pytest.raises(InputError, match=r"it is larger than 1 MiB"):
        step_record.read_record(tmp_path / "r.json.gz")
    (tmp_path / "r.json.gz").write_bytes(b"\x1f\x8b" + zlib.compress(b"{}"))
    with pytest.raises(InputError, match="damaged or cut short"):
        step_record.read_record(tmp_path / "r.json.gz")
