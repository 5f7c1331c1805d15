"""Each format of traces is read as its authors meant it, recognised by its columns, and read once."""

from __future__ import annotations

import copy
import gzip
import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trace_samples as samples
from traffic_samples import read

from sim.errors import InputError, TraceError
from sim.spec.sections.trace_source import TRACE_FORMATS, Trace
from sim.traffic.tables.blocks import BadRows, RowBlock
from sim.traffic.tables.text_files import CsvTable, open_table
from sim.traffic.traces.data import MAX_REQUESTS, ReadOptions
from sim.traffic.traces.read import TraceData, format_of, read_adapter_sequence, read_trace
from sim.traffic.traces.rows import MAX_BYTES


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_each_format_is_told_by_its_columns(tmp_path: Path, name: str) -> None:
    (tmp_path / "t").write_bytes(samples.SAMPLES[name])
    with open_table(str(tmp_path / "t")) as table:
        assert format_of(table, "auto", ReadOptions(("t",), None)) == name.partition(".")[0]


def test_every_format_has_a_sample() -> None:
    assert {name.partition(".")[0] for name in samples.SAMPLES} == set(TRACE_FORMATS.names) - {"auto"}


@pytest.mark.parametrize("content", [samples.CSV, samples.SAMPLES["csv.gz"], samples.SAMPLES["parquet"]])
def test_plain_tables(tmp_path: Path, content: bytes) -> None:
    data = read(tmp_path, content)
    assert data.arrival_s.tolist() == [0, 0, 0.75, 2.5]
    assert data.names == ("mail", "sql", "legal, draft")
    assert data.adapter.tolist() == [0, 1, 0, 2]
    assert data.prompt_tokens.tolist() == [410, 120, 388, 930]
    assert data.output_tokens.tolist() == [64, 210, 71, 402]
    assert data.adapter_bytes.tolist() == [1000, 2000, 500]
    assert data.session.tolist() == [0, 1, 0, 2]  # the empty one is a session of its own
    assert data.notes[0].endswith("columns ignored: region")
    kinds = (data.arrival_s.dtype, data.prompt_tokens.dtype, data.adapter.dtype, data.session.dtype)
    assert kinds == (np.float64, np.int32, np.int32, np.int32)


def test_what_is_read_can_not_be_changed(tmp_path: Path) -> None:
    data = read(tmp_path, samples.CSV)
    with pytest.raises(ValueError, match="read-only"):
        data.arrival_s[0] = 1


@pytest.mark.parametrize("copied", [lambda data: pickle.loads(pickle.dumps(data)), copy.deepcopy])
def test_nor_can_a_copy_of_it_be_changed(tmp_path: Path, copied: Callable[[TraceData], TraceData]) -> None:
    data = read(tmp_path, samples.CSV)
    again = copied(data)
    for field in fields(TraceData):
        before, after = getattr(data, field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            assert after.tolist() == before.tolist()
            assert after.dtype == before.dtype
            assert not after.flags.writeable
        else:
            assert after == before


def test_azure_llm(tmp_path: Path) -> None:
    data = read(tmp_path, samples.AZURE_LLM)
    # Differences of the times as written, to 100 ns; a float of seconds since 1970 could not hold them.
    assert data.arrival_s.tolist() == [0, 4.314579, 4.5418771]
    assert data.output_tokens.tolist() == [44, 109, 1]
    assert data.adapter is None
    assert read(tmp_path, samples.AZURE_LLM_2024).arrival_s.tolist() == [0, 0.99007]


@pytest.mark.parametrize("content", [samples.MOONCAKE_JSONL, samples.MOONCAKE_CSV])
def test_mooncake(tmp_path: Path, content: bytes) -> None:
    data = read(tmp_path, content)
    assert data.arrival_s.tolist() == pytest.approx([0, 3.053, 3.053], abs=1e-12)
    assert data.prompt_tokens.tolist() == [6955, 6472, 1]
    assert (data.adapter, data.session) == (None, None)


def test_burstgpt_leaves_failed_requests_out(tmp_path: Path) -> None:
    data = read(tmp_path, samples.BURSTGPT)
    assert data.arrival_s.tolist() == [0, 40, 115]
    assert data.session.tolist() == [0, 0, 1]
    assert data.skipped == {"failed (no response tokens)": 1}
    assert data.notes == (f"{tmp_path}/t: left out 1 of 4 rows: 1 failed (no response tokens)",)
    assert read(tmp_path, samples.BURSTGPT_OLD).session is None


def test_azure_functions_2021_sorts_by_beginning(tmp_path: Path) -> None:
    data = read(tmp_path, samples.FUNCTIONS_2021)
    assert data.arrival_s.tolist() == [0, 41, 43]
    assert data.names == ("a2/f1", "a1/f1", "a1/f2")  # a function's name is unique only within its app
    assert data.prompt_tokens is None
    assert read(tmp_path, samples.FUNCTIONS_2021, 2).names == ("a2/f1", "a1/f1")


def test_azure_functions_spread_calls_over_their_minutes(tmp_path: Path) -> None:
    data = read(tmp_path, samples.FUNCTIONS)
    assert data.names == ("f1", "f2")
    assert data.adapter.tolist() == [0, 0, 0, *[1] * 7, 0, 1, 1]
    assert np.all(np.diff(data.arrival_s) >= 0)
    # The third minute has f1's last call, the last minute f2's last two; the first begins within the first minute.
    assert 60 < data.arrival_s[10] < 180
    assert 1438 * 60 < data.arrival_s[-2] <= data.arrival_s[-1] < 1440 * 60
    again = read(tmp_path, samples.FUNCTIONS, 5)
    assert again.arrival_s.tolist() == data.arrival_s[:5].tolist()
    with pytest.raises(TraceError, match="too small for a single request"):
        read(tmp_path, b"HashFunction,1,2\nf1,0,0\n")


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    bad_below = samples.CSV + b"1.0,late,x,1,1,,eu\n"
    assert read(tmp_path, bad_below, 4).prompt_tokens is not None
    with pytest.raises(TraceError):
        read(tmp_path, bad_below, 5)


def test_real_traces(shared: Path) -> None:
    rows = {
        "azure_llm_2023_conv_first30min": 10108,
        "azure_llm_2023_code_first30min": 5740,
        "mooncake_conversation": 12031,
        "servegen_m-large_day2_1h_8rps_requests": 29425,
        "synth_sessions_high_concurrency": 33344,
    }
    for name, count in rows.items():
        file = shared / "traces" / f"{name}.csv"
        lines = file.read_text().count("\n") - 1
        assert len(read_trace(Trace(file=str(file)))) == count == lines


def test_a_silence_and_ties_are_told(tmp_path: Path) -> None:
    times = [float(i) for i in range(400)] + [40_000.0 + i for i in range(100)]
    text = "timestamp_s,adapter_id,input_tokens,output_tokens\n" + "".join(f"{t},a,1,1\n" for t in times)
    data = read(tmp_path, text.encode())
    assert data.notes == (f"{tmp_path}/t: the longest gap without requests, 3.96e+04 s, ends with row 402",)
    assert text.splitlines()[401].startswith("40000.0")
    tied = "timestamp_s,adapter_id,input_tokens,output_tokens\n" + "".join(f"{i // 5},a,1,1\n" for i in range(12))
    assert read(tmp_path, tied.encode()).notes == (f"{tmp_path}/t: 12 of 12 requests share their time with another",)


def test_several_sizes_of_an_adapter_are_told(tmp_path: Path) -> None:
    data = read(tmp_path, samples.CSV.replace(b"388,71,1000", b"388,71,1500"))
    assert data.adapter_bytes.tolist() == [1500, 2000, 500]
    assert f"{tmp_path}/t: 1 adapter has several sizes; the last one counts" in data.notes


def test_parquet_numbers_its_rows(tmp_path: Path) -> None:
    count = 200_000  # more than a batch, and than a block
    output = np.ones(count, dtype=np.int64)
    output[150_001] = -1
    table = pa.table(
        {
            "timestamp_s": np.arange(count),
            "adapter_id": np.arange(count) % 7,
            "input_tokens": np.ones(count),
            "output_tokens": output,
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(TraceError, match=r"t\.parquet:150002: output_tokens: .* \(got -1,"):
        read_trace(Trace(file=str(tmp_path / "t.parquet")))
    left = read_trace(Trace(file=str(tmp_path / "t.parquet"), skip_bad=True))
    assert len(left) == count - 1
    assert left.names == tuple("0123456")


def test_a_format_that_is_asked_for_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="column TIMESTAMP is missing"):
        read(tmp_path, samples.CSV, format="azure-llm-2023")
    with pytest.raises(TraceError, match=r"format: not a Parquet file \(got parquet"):
        read(tmp_path, samples.CSV, format="parquet")
    with pytest.raises(TraceError, match=r"format: a Parquet file \(got csv"):
        read(tmp_path, samples.SAMPLES["parquet"], format="csv")


def test_gzip_that_ends_early_is_damaged(tmp_path: Path) -> None:
    packed = gzip.compress(b"timestamp_s,adapter_id,input_tokens,output_tokens\n" + b"1,a,1,1\n" * 5000)
    with pytest.raises(TraceError, match="t: the compressed file is damaged"):
        read(tmp_path, packed[:-20])


# A trace is read once while its file and what is asked of the reader stay the same


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


# Adapters without the rest, as loraplan cache reads them


def test_objects_need_only_names(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("adapter_id,adapter_bytes\nb,5\na,7\nb,5\n")
    objects = read_adapter_sequence(Trace(file=str(file)))
    assert (objects.adapter.tolist(), objects.names) == ([0, 1, 0], ("b", "a"))
    assert objects.size_bytes.tolist() == [5, 7]
    assert objects.notes == ()
    given = read_adapter_sequence(Trace(file=str(file)), adapter_size=9)
    assert (given.adapter.tolist(), given.size_bytes.tolist()) == ([0, 1, 0], [9, 9])
    file.write_text("tenant_id\nx\n\ny\n")
    assert read_adapter_sequence(Trace(file=str(file))).size_bytes is None
    assert read_adapter_sequence(Trace(file=str(file))).names == ("x", "y")


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_objects_are_those_of_the_trace_or_there_are_none(tmp_path: Path, name: str) -> None:
    data = read(tmp_path, samples.SAMPLES[name])
    if data.adapter is None:
        with pytest.raises(TraceError, match="this format names no adapters"):
            read_adapter_sequence(Trace(file=str(tmp_path / "t")))
        return
    objects = read_adapter_sequence(Trace(file=str(tmp_path / "t")))
    assert objects.adapter.tolist() == data.adapter.tolist()
    assert objects.names == data.names


def test_an_error_lists_the_formats_that_name_adapters(tmp_path: Path) -> None:
    named = [name for name in TRACE_FORMATS.names[1:] if read(tmp_path, samples.SAMPLES[name]).adapter is not None]
    (tmp_path / "t").write_bytes(samples.AZURE_LLM)
    with pytest.raises(TraceError) as raised:
        read_adapter_sequence(Trace(file=str(tmp_path / "t")))
    assert raised.value.allowed == ", ".join(named)


def test_objects_of_a_format_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(samples.CSV)
    with pytest.raises(TraceError, match=r"format: not a Parquet file \(got parquet"):
        read_adapter_sequence(Trace(file=str(tmp_path / "t"), format="parquet"))


def test_bytes_of_all_requests_fit_in_64_bits(tmp_path: Path) -> None:
    assert MAX_REQUESTS * MAX_BYTES < 2**63
    file = tmp_path / "t.csv"
    file.write_text(f"adapter_id,adapter_bytes\na,{MAX_BYTES}\nb,{MAX_BYTES + 1}\n")
    with pytest.raises(
        TraceError, match=r"t\.csv:3: adapter_bytes: not a size in bytes \(got 100000000001, .* 1 to 100"
    ):
        read_adapter_sequence(Trace(file=str(file)))
    sizes = read_adapter_sequence(Trace(file=str(file), skip_bad=True)).size_bytes
    assert sizes.tolist() == [MAX_BYTES]
    with pytest.raises(InputError, match=r"--adapter-size: no size of an adapter \(got 100000000001"):
        read_adapter_sequence(Trace(file=str(file), skip_bad=True), adapter_size=MAX_BYTES + 1)
