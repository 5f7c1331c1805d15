"""Whatever stands in a trace: it ends with requests that obey the laws, or with a message that names the file."""

from __future__ import annotations

import gzip
import itertools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trace_samples as samples
from hypothesis import given, note, settings
from hypothesis import strategies as st

from sim.errors import InputError
from sim.spec.trace import Trace
from sim.traffic.traces.objects import read_objects
from sim.traffic.traces.read import TraceData, read_trace

NASTY_CELLS = (
    b"", b" ", b"nan", b"-inf", b"inf", b"-1", b"0", b"1.5", b"1e308", b"-1e308", b"1e-320", b"9" * 400, b"9" * 5000,
    b"1_000", b"0x10", b"1,5", b'"', b'""', b'"x"y', b"\xff", b"\xed\xa0\x80", b"\0", b"\r", b"\n", b"\xef\xbb\xbf",
    "１２".encode(), "٣".encode(), "é".encode(), b"null", b"true", b"{}", b"[1]", b"now", b"today",
    b"9999-12-31 23:59:59", b"0001-01-01", b"2023-13-01", b"18446744073709551616", b"1700000000000", b"Gamma",
    b"x" * 2000, b"=1+1", b"\x1b[31m",
)  # fmt: skip
"""What has broken readers before."""

NASTY_BYTES = (
    b"",
    b"\0",
    b"\xff",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\r\n",
    b"{",
    b"}",
    b"-",
    b".",
    b"e9",
    b"\xff\xfe",
    b"PAR1",
    b"\x1f\x8b",
)

_EDGE = re.compile(rb"[,{}:]")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


_numbers = itertools.count()


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Draw a valid trace with a few of its cells and bytes replaced."""
    name = draw(st.sampled_from(sorted(samples.SAMPLES)))
    content = samples.SAMPLES[name]
    packed = name.endswith(".gz") and draw(st.booleans())
    content = gzip.decompress(content) if packed else content
    if name not in ("parquet", "csv.gz") or packed:
        for _ in range(draw(st.integers(0, 4))):
            content = _with_cell(draw, content)
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        place = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from((0, 1, 1, 2, 50, 10_000)))
        content = content[:place] + draw(st.sampled_from(NASTY_BYTES)) + content[place + length :]
    if draw(st.integers(0, 30)) == 17:
        content = content.decode("latin-1").encode("utf-16")
    return gzip.compress(content, mtime=0) if packed else content


def _with_cell(draw: st.DrawFn, content: bytes) -> bytes:
    """Replace a cell: mostly below the header, and among the first or last ones of its row."""
    lines = content.split(b"\n")
    row = draw(st.integers(0, len(lines) - 1)) if draw(st.integers(0, 9)) == 9 else draw(st.integers(1, len(lines) - 1))
    edges = [0, *(found.end() for found in _EDGE.finditer(lines[row])), len(lines[row]) + 1]
    cell = draw(st.integers(0, min(len(edges) - 2, 8))) if draw(st.booleans()) else len(edges) - 2
    begin, end = edges[cell], edges[cell + 1] - 1
    lines[row] = lines[row][:begin] + draw(st.sampled_from(NASTY_CELLS)) + lines[row][end:]
    return b"\n".join(lines)


def check_laws(data: TraceData, limit: int | None) -> None:
    count = len(data.arrival_s)
    assert count > 0
    assert limit is None or count <= limit
    assert data.arrival_s[0] == 0
    assert np.isfinite(data.arrival_s).all()
    assert np.all(np.diff(data.arrival_s) >= 0)
    for tokens in (data.prompt_tokens, data.output_tokens):
        assert tokens is None or (len(tokens) == count and tokens.min() >= 1 and tokens.dtype == np.int32)
    if data.adapter is not None:
        assert len(data.adapter) == count
        assert 0 <= data.adapter.min() <= data.adapter.max() < len(data.names)
    assert all(name.strip() and min(name) >= " " for name in data.names)
    "".join(data.names).encode()
    assert len(set(data.names)) == len(data.names)
    if data.session is not None:
        assert len(data.session) == count
        assert set(np.unique(data.session).tolist()) == set(range(int(data.session.max()) + 1))
    if data.adapter_bytes is not None:
        assert len(data.adapter_bytes) == len(data.names)
        assert data.adapter_bytes.min() >= 1
    assert all(rows > 0 for rows in data.skipped.values())


def check_error(error: InputError, file: Path) -> None:
    text = str(error)
    note(text)
    assert text.startswith(f"{file}:")
    assert text.isprintable(), "a message is one line that a terminal can show"
    text.encode()
    assert len(text) < 1500


@settings(max_examples=600)
@given(
    content=broken(), skip_bad=st.booleans(), limit=st.sampled_from((None, None, 1, 3)),
    population=st.sampled_from((1.0, 1.0, 0.5, 2.5)),
)  # fmt: skip
def test_a_broken_trace_is_read_or_refused(
    folder: Path, content: bytes, skip_bad: bool, limit: int | None, population: float
) -> None:
    file = folder / f"t{next(_numbers)}"  # the reader keeps traces by name, time and size
    file.write_bytes(content)
    note(repr(content[:2000]))
    trace = Trace(file=str(file), skip_bad=skip_bad, population_scale=population)
    try:
        data = read_trace(trace, limit)
    except InputError as error:
        check_error(error, file)
    else:
        note(repr(data))
        check_laws(data, limit)
    try:
        objects = read_objects(str(file), skip_bad=skip_bad)
    except InputError as error:
        check_error(error, file)
    else:
        assert 0 <= objects.adapter.min() <= objects.adapter.max() == len(objects.names) - 1
        assert objects.size_bytes is None or objects.size_bytes.min() >= 1
    file.unlink()


@settings(max_examples=100)
@given(cells=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(NASTY_CELLS)), min_size=1, max_size=3))
def test_bad_rows_cost_only_themselves(folder: Path, cells: list[tuple[int, bytes]]) -> None:
    """Rows with one bad cell each, between good ones: exactly the good ones are left."""
    rows, good = [b"0,first,1,1"], 1
    for time, (column, cell) in enumerate(cells, start=1):
        quoted = b'"' + cell.replace(b'"', b'""') + b'"'
        values = [str(time).encode(), b"mine", b"7", b"7"]
        values[column] = quoted
        fine = not _is_bad(column, cell)
        rows += [b",".join(values), str(time).encode() + b",between,1,1"]
        good += 1 + fine
    file = folder / f"t{next(_numbers)}"
    file.write_bytes(b"timestamp_s,adapter_id,input_tokens,output_tokens\n" + b"\n".join(rows))
    data = read_trace(Trace(file=str(file), skip_bad=True))
    note(repr(data))
    assert len(data) == good
    assert sum(data.skipped.values()) == 1 + 2 * len(cells) - good


def _is_bad(column: int, cell: bytes) -> bool:
    """Say by the rules of docs/traces.md whether a cell can stand in a column: 1 is the name, 2 and 3 are tokens."""
    try:
        text = cell.decode()
    except UnicodeDecodeError:
        return True
    if column == 1:
        name = text.strip()
        return not name or len(name.encode()) > 1024 or any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
    if not text.isascii() or "_" in text:
        return True
    try:
        value = float(text)
    except ValueError:
        return True
    return not (1 <= value <= 1e9 and value == int(value))
