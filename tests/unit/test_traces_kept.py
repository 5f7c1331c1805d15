"""A trace is read once while its file and what is asked of the reader stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import trace_samples as samples

from sim.spec.sections.trace_source import Trace
from sim.traffic.tables.blocks import BadRows, RowBlock
from sim.traffic.tables.text_files import CsvTable
from sim.traffic.traces.read import TraceData, read_trace


def read(folder: Path, content: bytes) -> TraceData:
    file = folder / "t"
    file.write_bytes(content)
    return read_trace(Trace.model_validate({"file": str(file)}))


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    assert len(read(tmp_path, samples.CSV)) == 4
    assert len(read(tmp_path, samples.CSV + b"99.0,mail,1,1,1,,eu\n")) == 5
    assert read(tmp_path, samples.CSV) is read_trace(Trace(file=str(tmp_path / "t")))


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each block that is read of a text file."""
    reads: list[str] = []
    block_of = CsvTable.read

    def counted(table: CsvTable, columns: Sequence[str], count: int, bad_rows: BadRows) -> RowBlock | None:
        reads.append(bad_rows.file)
        return block_of(table, columns, count, bad_rows)

    monkeypatch.setattr(CsvTable, "read", counted)
    return reads


def test_a_file_of_requests_is_read_once_whatever_its_scales_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = count_reads(monkeypatch)
    plain = read(tmp_path, samples.CSV)
    once = len(reads)
    assert once > 0
    trace = Trace(file=str(tmp_path / "t"))
    assert read_trace(trace, seed=7) is plain
    fast = read_trace(trace.model_copy(update={"time_scale": 2.0}), seed=8)
    assert fast.arrival_s.tolist() == [0, 0, 0.375, 1.25]
    assert fast.adapter is plain.adapter
    twice = [
        read_trace(trace.model_copy(update={"population_scale": 2.0}), limit, seed=seed)
        for limit, seed in ((None, 1), (None, 2), (5, 1), (3, 1))
    ]
    assert [len(data) for data in twice] == [8, 8, 5, 3]
    assert twice[0].arrival_s.tolist() != twice[1].arrival_s.tolist()
    assert len(reads) == once
    assert len(read_trace(trace, 2)) == 2  # this limit ends the reading, so it's another read
    assert len(reads) > once


def test_rates_are_read_anew_for_a_seed_but_not_for_a_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(monkeypatch)
    plain = read(tmp_path, samples.WINDOWS)
    once = len(reads)
    trace = Trace(file=str(tmp_path / "t"))
    fast = read_trace(trace.model_copy(update={"time_scale": 2.0}))
    assert np.array_equal(fast.arrival_s, plain.arrival_s / 2)
    assert len(reads) == once
    assert read_trace(trace, seed=2).arrival_s.tolist() != plain.arrival_s.tolist()
    more = read_trace(trace.model_copy(update={"population_scale": 2.0}))
    assert len(more) > 1.5 * len(plain)


def test_a_lengths_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(samples.WINDOWS)
    trace = Trace(file=str(tmp_path / "t"), lengths_file=str(tmp_path / "l"))
    means = []
    for content in (samples.LENGTHS, samples.LENGTHS.replace(b"322.1,269,331,1218", b"3221,2690,3310,12180")):
        (tmp_path / "l").write_bytes(content)
        data = read_trace(trace)
        means.append(data.prompt_tokens.mean())
    assert means[1] > 5 * means[0]
