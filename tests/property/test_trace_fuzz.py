"""Whatever stands in a trace: it ends with requests that obey the laws, or with a message that names the file."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from broken_traces import NASTY_CELLS, broken
from examples import examples
from hypothesis import given, note
from hypothesis import strategies as st

from sim.errors import InputError
from sim.spec.sections.trace_source import Trace
from sim.traffic.traces.read import TraceData, read_adapter_sequence, read_trace


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


_numbers = itertools.count()


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
        assert -1 <= data.adapter.min() <= data.adapter.max() < len(data.names)
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


@pytest.mark.slow
@examples(600)
@given(
    content=broken(),
    skip_bad=st.booleans(),
    limit=st.sampled_from((None, None, 1, 3)),
    population=st.sampled_from((1.0, 1.0, 0.5, 2.5)),
)
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
        objects = read_adapter_sequence(Trace(file=str(file), skip_bad=skip_bad))
    except InputError as error:
        check_error(error, file)
    else:
        assert 0 <= objects.adapter.min() <= objects.adapter.max() == len(objects.names) - 1
        assert objects.size_bytes is None or objects.size_bytes.min() >= 1
    file.unlink()


@examples(100)
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
    """Say by the rules of docs/trace.md whether a cell can stand in a column: 1 is the name, 2 and 3 are tokens."""
    try:
        text = cell.decode()
    except UnicodeDecodeError:
        return True
    if column == 1:
        name = text.strip()
        return len(name.encode()) > 1024 or any(ord(letter) < 32 or ord(letter) == 127 for letter in name)
    if not text.isascii() or "_" in text:
        return True
    try:
        value = float(text)
    except ValueError:
        return True
    return not (1 <= value <= 1e9 and value == int(value))
