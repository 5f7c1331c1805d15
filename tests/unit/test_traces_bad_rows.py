"""What can be wrong with a trace, what is said about it, and what skip_bad makes of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trace_samples as samples
from traffic_samples import error_of, read

from sim.errors import TraceError
from sim.spec.sections.laws import EmpiricalTokens
from sim.spec.sections.trace_source import Trace
from sim.traffic.lengths import read_counts
from sim.traffic.popularity import read_weights
from sim.traffic.traces.read import read_adapter_sequence, read_trace

HEADER = b"timestamp_s,adapter_id,input_tokens,output_tokens\n"
GOOD = b"1,a,5,5\n2,b,5,5\n"


BAD = {
    "gap in time": (b",a,5,5\n", "t:4: timestamp_s: the cell is empty (got '', allowed: a number)"),
    "gap in tokens": (b"3,a,,5\n", "t:4: input_tokens: the cell is empty"),
    "backwards": (
        b"1.5,a,5,5\n",
        "t:4: timestamp_s: time runs backwards (got 1.5, allowed: times that never fall); sort the trace by time",
    ),
    "NaN": (b"nan,a,5,5\n", "t:4: timestamp_s: not a usable number (got nan, allowed: a number)"),
    "inf": (b"3,a,5,inf\n", "t:4: output_tokens: not a usable number (got inf"),
    "zero": (b"3,a,0,5\n", "t:4: input_tokens: not a usable number (got 0, allowed: a whole number, 1 to 10,000,000)"),
    "negative": (b"3,a,5,-7\n", "t:4: output_tokens: not a usable number (got -7"),
    "fraction": (b"3,a,5,1.5\n", "t:4: output_tokens: not a token count (got 1.5"),
    "huge": (b"3,a,5,99999999999999999999999999\n", "t:4: output_tokens: not a token count (got 9999"),
    "huger": (b"3,a,5," + b"9" * 5000 + b"\n", "t:4: output_tokens: not a usable number (got 9999"),
    "milliseconds": (
        b"1700000000000,a,5,5\n",
        "t:4: timestamp_s: not a usable time (got 1700000000000, "
        "allowed: up to 1e+11); times in ms, µs or ns must be converted, or named: --columns unit=ms",
    ),
    "words": (b"later,a,5,5\n", "t:4: timestamp_s: not a usable number (got later"),
    "bytes": (b"3,\xff\xfe,5,5\n", "t:4: adapter_id: not UTF-8 text (got \\xff\\xfe"),
    "bytes in a number": (b"3,a,\xe45,5\n", "t:4: input_tokens: not UTF-8 text (got \\xe45"),
    "NUL": (b"3,a\0b,5,5\n", "t:4: adapter_id: the adapter's name holds control characters (got a\\x00b"),
    "newline in a name": (b'3,"a\nb",5,5\n', "t:4: adapter_id: the adapter's name holds control characters"),
    "long name": (b"3," + b"n" * 1025 + b",5,5\n", "t:4: adapter_id: the adapter's name is too long (got nnn"),
    "fewer cells": (b"3,a,5\n", "t:4: not as many cells as the header (got 3, allowed: 4)"),
    "more cells": (b"3,a,5,5,5\n", "t:4: not as many cells as the header (got 5, allowed: 4)"),
    "a cell without end": (
        b'3,"' + b"x" * 200_000 + b"\n",
        "t:4: not a CSV row (got field larger than field limit (131072)); a quote that is never",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_or_left_out(tmp_path: Path, case: str) -> None:
    row, says = BAD[case]
    # The quote that is never closed swallows what follows it.
    after = b"" if case == "a cell without end" else b"4,c,5,5\n"
    assert error_of(tmp_path, HEADER + GOOD + row + after).startswith(says)
    data = read(tmp_path, HEADER + GOOD + row + after, skip_bad=True)
    assert data.names == (("a", "b", "c") if after else ("a", "b"))
    assert list(data.skipped.values()) == [1]
    assert next(iter(data.skipped)) in says
    assert any(note.startswith(f"{tmp_path}/t: left out 1 of {len(data) + 1} rows: 1 ") for note in data.notes)
    if case not in ("backwards", "milliseconds"):  # alone they are in order, and of one unit
        assert error_of(tmp_path, HEADER + row, skip_bad=True).endswith("no row is left")


FINE = {
    "BOM": b"\xef\xbb\xbf" + HEADER + GOOD,
    "CR line ends": (HEADER + GOOD).replace(b"\n", b"\r"),
    "CR LF line ends": (HEADER + GOOD).replace(b"\n", b"\r\n"),
    "blank lines": b"\n" + HEADER + b"\n1,a,5,5\n\n \n2,b,5,5\n\n",
    "no newline at the end": (HEADER + GOOD).rstrip(),
    "ties": HEADER + b"1,a,5,5\n1,b,5,5\n",
    "spaces": HEADER.replace(b",", b" , ") + b"1, a , 5,5 \n2,b,5.0,5\n",
    "quotes": b'"timestamp_s","adapter_id","input_tokens","output_tokens"\n"1","a","5","5"\n2,b,5,5\n',
    "a column of foreign bytes": b"timestamp_s,adapter_id,input_tokens,output_tokens,x\n1,a,5,5,\xff\n2,b,5,5,\0\n",
    "a column with line ends": b'x,timestamp_s,adapter_id,input_tokens,output_tokens\n"p\nq",1,a,5,5\nr,2,b,5,5\n',
    "JSON lines": b'{"timestamp_s": 1, "adapter_id": "a", "input_tokens": 5, "output_tokens": 5}\n'
    b'{"adapter_id": "b", "timestamp_s": 2.0, "input_tokens": 5, "output_tokens": "5"}\n',
}


@pytest.mark.parametrize("case", FINE)
def test_what_looks_odd_but_is_fine(tmp_path: Path, case: str) -> None:
    data = read(tmp_path, FINE[case])
    assert data.names == ("a", "b")
    assert data.prompt_tokens.tolist() == [5, 5]
    assert data.arrival_s.tolist() == ([0, 0] if case == "ties" else [0, 1])


def test_rows_are_counted_in_lines_of_the_file(tmp_path: Path) -> None:
    quoted = b'x,timestamp_s,adapter_id,input_tokens,output_tokens\n"p\nq\n",1,a,5,5\n\n"r\ns",2,b,5,0\n'
    assert error_of(tmp_path, quoted).startswith("t:6: output_tokens: not a usable number (got 0")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "t: the trace is empty"),
        (b"\xef\xbb\xbf \n\n", "t: the trace is empty"),
        (HEADER, "t:1: the trace has a header but no requests"),
        (HEADER + b"\n\n", "t:1: the trace has a header but no requests"),
        ((HEADER + GOOD).decode().encode("utf-16"), "t: not UTF-8 text (got what looks like UTF-16); save it as UTF-8"),
        ((HEADER + GOOD).decode().encode("utf-16-le"), "t: not UTF-8 text (got what looks like UTF-16)"),
        (HEADER.replace(b"output_tokens", b"input_tokens") + GOOD, "t:1: column output_tokens is missing"),
        (
            HEADER.replace(b"\n", b",input_tokens\n") + b"1,a,5,5,5\n",
            "t:1: input_tokens: a column occurs twice in the header",
        ),
        (b'{"timestamp_s": 1,', "t:1: not a line of JSON"),
        (b"PAR1 and no more", "t: the Parquet file can't be read"),
        (b"\x1f\x8bno gzip", "t: the compressed file is damaged"),
    ],
)
def test_a_file_that_is_no_trace(tmp_path: Path, content: bytes, says: str) -> None:
    for skip_bad in (False, True):
        assert error_of(tmp_path, content, skip_bad=skip_bad).startswith(says)


def test_a_folder_and_nothing_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="not a file"):
        read_trace(Trace(file=str(tmp_path)))
    with pytest.raises(TraceError, match="no such trace"):
        read_trace(Trace(file=str(tmp_path / "nothing")))


@pytest.mark.parametrize("mark", [b";", b"\t", b"|"])
def test_what_stands_between_cells_is_told_by_the_header(tmp_path: Path, mark: bytes) -> None:
    assert read(tmp_path, (HEADER + GOOD).replace(b",", mark)).names == ("a", "b")


def test_a_hundred_columns_give_a_short_note(tmp_path: Path) -> None:
    extra = [f"column_{index}" for index in range(100)]
    text = HEADER.decode().strip() + "," + ",".join(extra) + "\n" + "1,a,5,5" + ",x" * 100 + "\n"
    data = read(tmp_path, text.encode())
    assert data.notes == (f"{tmp_path}/t: columns ignored: {', '.join(extra[:8])} and 92 more",)


def test_bad_rows_are_counted_by_reason(tmp_path: Path) -> None:
    rows = b"5,a,5,5\n" + b"4,a,5,5\n" * 7 + b"6,a,5,5\n" + b"6,b,5,0.5\n" * 5 + b"7,c,5,5\n"
    data = read(tmp_path, HEADER + rows, skip_bad=True)
    assert data.skipped == {"time runs backwards": 7, "not a usable number": 5}
    assert data.notes[0] == (f"{tmp_path}/t: left out 12 of 15 rows: 7 time runs backwards, 5 not a usable number")
    assert data.names == ("a", "c")  # b has no request that can be used
    first = error_of(tmp_path, HEADER + rows)
    assert first.startswith("t:3: timestamp_s: time runs backwards (got 4")
    assert first.endswith("; 11 more bad rows; most rows are bad, so their cause matters more than --skip-bad")


def test_a_limit_counts_good_rows(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(HEADER + b"1,a,5,5\n,a,5,5\n2,b,5,5\n3,c,5,5\n4,d,5,5\n5,e,5,x\n")
    data = read_trace(Trace(file=str(tmp_path / "t"), skip_bad=True), 3)
    assert data.names == ("a", "b", "c")
    assert data.skipped == {"the cell is empty": 1}


def test_the_first_bad_row_is_named_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    rows = b"1,a,5,5\n2,\x07,5,5\n3,a,0,5\n0,a,5,5\nx,a,5,5\n1,a\n"
    assert error_of(tmp_path, HEADER + rows).startswith("t:3: adapter_id: the adapter's name holds control characters")


def test_a_refused_file_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.traffic.tables.blocks.LOOK_ON", 10_000)
    assert "; at least 4,095 more bad rows; " in error_of(
        tmp_path, HEADER + b"1,a,5,0\n" * 4096 + b"1,a,5,5\n" * 50_000
    )
    (tmp_path / "t").write_bytes(HEADER + b"1,a,5,0\n" + b"1,a,5,5\n" * 50_000 + b"1,b,5,0\n")
    assert "more bad" not in error_of(tmp_path, (tmp_path / "t").read_bytes())


def test_a_bad_row_does_not_move_the_clock(tmp_path: Path) -> None:
    data = read(tmp_path, HEADER + b"1,a,5,5\n1000,a,5,0\n2,a,5,5\n", skip_bad=True)
    assert data.arrival_s.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (samples.WINDOWS.replace(b"0.5,1.5", b"-0.5,1.5"), "t:2: rate_rps: not a usable number (got -0.5"),
        (samples.WINDOWS.replace(b"Gamma,0.4957", b"Gamma,nan"), "t:3: shape: not a usable number"),
        (samples.WINDOWS.replace(b"Gamma,0.4957", b"Gamma,0"), "t:3: shape: a shape that can't be drawn (got 0"),
        (samples.WINDOWS.replace(b"Weibull,0.7", b"Pareto,0.7"), "t:2: pattern: an unknown pattern (got Pareto"),
        (samples.WINDOWS.replace(b"4,0,0.02", b"0,0,0.02"), "t:3: client_id: a second row for this client and window"),
        (samples.WINDOWS.replace(b"0,1800", b"0,1700"), "t:6: timestamp_s: the windows don't lie on a grid"),
        (samples.FUNCTIONS.replace(b"http,3", b"http,-3"), "t:2: 1: not a usable number (got -3, allowed"),
        (samples.FUNCTIONS.replace(b"timer,0,7", b"timer,0,1.5"), "t:3: 2: not a count (got 1.5"),
        (samples.FUNCTIONS_2021.replace(b"42.25", b"-1"), "t:3: duration: not a usable number (got -1"),
        (samples.AZURE_LLM.replace(b"2023-11-16 18:15:50", b"now"), "t:3: TIMESTAMP: not a time (got now.9951690"),
        (samples.AZURE_LLM.replace(b"2023-11-16 18:15:50", b"2999-11-16 18:15:50"), "t:3: TIMESTAMP: not a time"),
        (samples.MOONCAKE_JSONL.replace(b"6472", b"true"), "t:2: input_length: not a usable number"),
        (samples.MOONCAKE_JSONL.replace(b'"input_length": 6472, ', b""), "t:2: input_length: the cell is empty"),
        (samples.MOONCAKE_JSONL.replace(b"2366]}", b""), "t:2: not a line of JSON (got"),
    ],
)
def test_bad_rows_of_other_formats(tmp_path: Path, content: bytes, says: str) -> None:
    assert error_of(tmp_path, content).startswith(says)
    if "grid" not in says:
        data = read(tmp_path, content, skip_bad=True)
        assert sum(data.skipped.values()) == 1


def test_a_lengths_file_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(samples.WINDOWS)
    (tmp_path / "l").write_bytes(samples.LENGTHS.replace(b"269,331", b"469,331"))
    trace = Trace(file=str(tmp_path / "t"), lengths_file=str(tmp_path / "l"))
    with pytest.raises(TraceError, match="l:2: input_tokens_p50: the quantiles are not in order"):
        read_trace(trace)
    (tmp_path / "t").write_bytes(samples.CSV)
    with pytest.raises(TraceError, match="only servegen-windows has a lengths file"):
        read_trace(trace)


def test_objects_of_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"adapter_id,adapter_bytes\na,5\n\x07,5\nb,0\nb,7\n")
    with pytest.raises(TraceError, match="t:3: adapter_id: the adapter's name holds control characters"):
        read_adapter_sequence(Trace(file=str(tmp_path / "t")))
    objects = read_adapter_sequence(Trace(file=str(tmp_path / "t"), skip_bad=True))
    assert objects.names == ("a", "b")
    assert objects.notes[0].startswith(f"{tmp_path}/t: left out 2 of 4 rows: ")


def test_objects_need_no_times_and_lengths_but_those_there_are_checked(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"adapter_id,timestamp_s\na,1\nb,3\nc,2\n")
    with pytest.raises(TraceError, match="t:4: timestamp_s: time runs backwards"):
        read_adapter_sequence(Trace(file=str(tmp_path / "t")))
    assert read_adapter_sequence(Trace(file=str(tmp_path / "t"), skip_bad=True)).names == ("a", "b")
    (tmp_path / "t").write_bytes(b"adapter_id,output_tokens\na,1\nb,-3\n")
    with pytest.raises(TraceError, match="t:3: output_tokens"):
        read_adapter_sequence(Trace(file=str(tmp_path / "t")))


def test_a_quote_that_is_never_closed_loses_no_rows_unseen(tmp_path: Path) -> None:
    few = HEADER + b'1,a,5,5\n2,"b,5,5\n3,c,5,5\n'
    assert "the row goes on to line 4: a quote that is never closed?" in error_of(tmp_path, few)
    many = few + b"4,d,5,5\n" * 20
    for skip_bad in (False, True):
        with pytest.raises(TraceError, match=r"t:3: not as many cells.*goes on to line 24"):
            read(tmp_path, many, skip_bad=skip_bad)


@pytest.mark.parametrize("cell", ["1_0", "１２", "١٢"])
def test_only_plain_digits_are_numbers(tmp_path: Path, cell: str) -> None:
    assert "t:3: input_tokens: not a usable number" in error_of(tmp_path, HEADER + f"1,a,5,5\n2,a,{cell},5\n".encode())


@pytest.mark.slow
def test_a_million_rows_need_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    with file.open("w") as out:
        out.write("timestamp_s,adapter_id,session_id,input_tokens,output_tokens\n")
        for index in range(0, 1_000_000, 1000):
            out.write(
                "".join(
                    f"{i * 0.25},adapter-{i * 7919 % 1000},{i // 4},{i % 900 + 1},{i % 70 + 1}\n"
                    for i in range(index, index + 1000)
                )
            )
    code = (
        "import resource, sys; from sim.spec.sections.trace_source import Trace; "
        "from sim.traffic.traces.read import read_trace; "
        "import pandas; small = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "data = read_trace(Trace(file=sys.argv[1])); assert data.session.max() == 249_999; "
        "print(len(data), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - small)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    count, grown_kib = map(int, ended.stdout.split())
    assert count == 1_000_000
    # 24 bytes a row are kept, 4 of them from a hash of 8 and a table of 250,000 sessions; a list of strings for each
    # row would need 400 bytes a row.
    assert grown_kib * 1024 < 100 * count, grown_kib


@pytest.mark.parametrize("content", [b'"' + b"9" * 200_000 + b"\n", b"\xff\xfe1\n", b"1,\xe4\n"])
def test_files_of_weights_and_counts_are_refused_like_traces(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(b"count\n" + content)
    with pytest.raises(TraceError, match="t: the weights file can't be read"):
        read_weights(str(tmp_path / "t"))
    with pytest.raises(TraceError, match="t: the file can't be read"):
        read_counts(EmpiricalTokens(law="empirical", file=str(tmp_path / "t"), column="count"))
