"""Logs as gateways and engines write them: which column holds what, times, base requests, and what is said about it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import trace_samples as samples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from traffic_samples import error_of, read

from sim.errors import TraceError
from sim.spec.sections.trace_source import LogColumns, Trace
from sim.traffic.traces.log_columns import style_of
from sim.traffic.traces.read import TraceData, read_adapter_sequence, read_trace

COLUMNS = (
    *("ts", "time", "start_time", "model", "adapter", "request.model", "response.model", "tenant_id", "prompt_tokens"),
    *("usage.prompt_tokens", "completion_tokens", "output_len", "status", "session_id", "x"),
)
HEADER = "ts,model,prompt_tokens,completion_tokens\n"


def rows(data: TraceData) -> list[tuple[float, str, int, int]]:
    names = [data.names[index] if index >= 0 else "" for index in data.adapter.tolist()]
    return list(
        zip(data.arrival_s.tolist(), names, data.prompt_tokens.tolist(), data.output_tokens.tolist(), strict=True)
    )


@pytest.mark.parametrize("name", sorted(set(samples.LOGS) - {"vllm"}))
def test_logs_of_every_kind_say_the_same(tmp_path: Path, name: str) -> None:
    data = read(tmp_path, samples.LOGS[name], **samples.LOG_SETTINGS.get(name, {}))
    expected = [(0.0, "mail", 410, 64), (1.5, "sql", 120, 210), (3.25, "legal", 930, 402)]
    # nginx counts whole seconds: its times are those of the ends, less how long each request took.
    assert [row[1:] for row in rows(data)] == [row[1:] for row in expected]
    assert data.arrival_s == pytest.approx([row[0] for row in expected], abs=1e-6)


def test_the_log_of_vllm(tmp_path: Path) -> None:
    assert rows(read(tmp_path, samples.VLLM)) == [(0.0, "mail", 3, 2), (1.0, "", 1, 1)]
    stamped = b"".join(
        b"2025-03-04T09:00:00.%dZ %s\n" % (number, line) for number, line in enumerate(samples.VLLM.splitlines())
    )
    assert [row[0] for row in rows(read(tmp_path, stamped))] == [0.0, pytest.approx(0.2)], "kubectl's time is finer"
    tricky = samples.VLLM.replace(b"Dear, [all]", b"prompt_token_ids: [1] lora_request: None").replace(
        b"'Hi'", b"'ids: [3,4'"
    )
    assert rows(read(tmp_path, tricky)) == rows(read(tmp_path, samples.VLLM)), "prompts may hold anything"
    short = b"\n".join(line for line in samples.VLLM.splitlines() if b"Generated" not in line)
    assert "column output_tokens is missing (got time, lora_name, input_tokens)" in error_of(tmp_path, short)


def test_a_log_of_vllm_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.traffic.tables.line_tables.MOST_LETTERS", 1000)
    line = "INFO 03-04 09:00:01 [logger.py:48] Received request cmpl-{}: params: 1, lora_request: None.\n"
    assert "the log of vLLM is too long" in error_of(tmp_path, "".join(map(line.format, range(200))))


def test_new_year_in_the_log_of_vllm(tmp_path: Path) -> None:
    lines = samples.VLLM.replace(b"03-04 09:00:01", b"12-31 23:59:59").replace(b"03-04 09:00:02", b"01-01 00:00:01")
    assert [row[0] for row in rows(read(tmp_path, lines))] == [0.0, 2.0]


NO_ZONE = "ISO 8601 without a zone, taken as UTC"
TIMES = {
    "dates": ("2025-03-04T09:00:00Z", "2025-03-04 09:00:01.5", NO_ZONE),
    "a comma before the fraction": ('"2025-03-04 09:00:00,000"', '"2025-03-04 09:00:01,500"', NO_ZONE),
    "slashes": ("2025/03/04 09:00:00", "2025/03/04 09:00:01.5", NO_ZONE),
    "zones": ("2025-03-04T09:00:00+00:00", "2025-03-04T10:00:01.5+01:00", "ISO 8601"),
    "seconds": ("1741078800", "1741078801.5", "seconds"),
    "milliseconds": ("1741078800000", "1741078801500", "milliseconds"),
    "microseconds": ("1741078800000000", "1741078801500000", "microseconds"),
    "nanoseconds": ("1741078800000000000", "1741078801500000000", "nanoseconds"),
}


@pytest.mark.parametrize("case", TIMES)
def test_times(tmp_path: Path, case: str) -> None:
    first, second, words = TIMES[case]
    data = read(tmp_path, f"{HEADER}{second},b,5,5\n{first},a,5,5\n")
    assert data.names == ("a", "b"), "in the order of time, not of the file"
    assert data.arrival_s[1] == pytest.approx(1.5, abs=1e-6)
    assert f"times are {words}. " in data.notes[0]


def test_json_records_may_begin_with_failures_that_have_no_token_counts(tmp_path: Path) -> None:
    failed = [f'{{"ts": {1741078800 + n}, "model": "a", "status": 429}}' for n in range(500)]
    good = '{"ts": 1741080000, "model": "a", "status": 200, "usage": {"prompt_tokens": 5, "completion_tokens": 7}}'
    assert rows(read(tmp_path, "\n".join([*failed, good]) + "\n")) == [(0.0, "a", 5, 7)]


@given(st.integers(10**9, 10**10 - 1), st.sampled_from(("s", "ms", "us", "ns")))
def test_units_since_1970_are_told_apart(seconds: int, unit: str) -> None:
    """From 2001 to 2286, all four."""
    style = style_of(["", "now", str(seconds * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit])])
    assert style.unit == unit


def test_a_page_of_metrics_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="loraplan observe reads it"):
        read(tmp_path, "# HELP up 1 if up\n# TYPE up gauge\nup 1\n")


def test_a_plain_trace_may_have_dates(tmp_path: Path) -> None:
    plain = "timestamp_s,adapter_id,input_tokens,output_tokens\n"
    data = read(tmp_path, plain + "2025-03-04T09:00:00Z,a,5,5\n2025-03-04T09:00:02Z,b,5,5\n")
    assert data.arrival_s.tolist() == [0, 2]
    assert data.notes == (f"{tmp_path}/t: times are ISO 8601",)
    assert read(tmp_path, plain + "0.5,a,5,5\n2.5,b,5,5\n").notes == ()


def test_a_column_without_a_name_is_an_index(tmp_path: Path) -> None:
    """As pandas writes one before the others."""
    lines = "".join(f"{n},{1741078800 + n},a,5,7\n" for n in range(400, 403))
    data = read(tmp_path, f",{HEADER}{lines}")
    assert len(rows(data)) == 3, "an index is no status"
    assert data.session is None
    assert data.notes[0].endswith("columns ignored: ''")


def test_one_column_may_be_used_for_two_things(tmp_path: Path) -> None:
    line = '{"ts": 1741078800, "model": "a", "prompt_tokens": 5, "completion_tokens": 7}\n'
    assert rows(read(tmp_path, line + line, columns={"session": "model"})) == 2 * [(0.0, "a", 5, 7)]


FAILURES = (
    "503",
    "503.0",
    "HTTP 429",
    "500 Internal Server Error",
    "-1",
    "UNAVAILABLE",
    "False",
    "rate_limited",
    "deadline_exceeded",
)
SUCCESSES = (
    "200",
    "200.0",
    "201",
    "0",
    "info",
    "ok",
    "",
    "true",
    "stop",
    "incomplete",
    "no exception",
    "300 ms",
    "100%",
)


@pytest.mark.parametrize(("said", "failed"), [*((s, True) for s in FAILURES), *((s, False) for s in SUCCESSES)])
def test_what_a_status_says_of_a_request(tmp_path: Path, said: str, failed: bool) -> None:
    header = HEADER.replace("\n", ",status,http_status_code\n")
    data = read(tmp_path, f"{header}1741078800,a,5,7,info,{said}\n1741078801,b,5,7,info,200\n")
    assert data.names == (("b",) if failed else ("a", "b")), "codes of HTTP come before a level of logging"
    data = read(tmp_path, f"{header}1741078800,a,5,7,{said},-\n1741078801,b,5,7,failed,200\n1741078802,c,5,7,failed,\n")
    assert data.names == (("b",) if failed else ("a", "b")), "without a code, the word counts"


@pytest.mark.parametrize("column", ["lora_name", "lora_path", "adapter"])
def test_a_tenant_is_an_adapter_only_where_nothing_else_is(tmp_path: Path, column: str) -> None:
    names = read(
        tmp_path, f"ts,tenant_id,model,{column},prompt_tokens,completion_tokens\n1,acme,llama,mail,5,7\n"
    ).names
    assert names == ("mail",)
    data = read(tmp_path, "ts,tenant_id,prompt_tokens,completion_tokens\n1,acme,5,7\n")
    assert data.names == ("acme",)
    assert "Guessed: time, adapter, " in data.notes[0]


def test_a_word_for_nothing_is_said_to_be_taken_for_an_adapter(tmp_path: Path) -> None:
    said = read(tmp_path, f"{HEADER}1741078800,mail,5,7\n1741078801,NULL,5,7\n").notes[-1]
    mended = "--base-model NULL makes its rows requests to the base model"
    assert said.endswith(f"NULL looks like no name, but counts as an adapter; {mended}")
    said = read(tmp_path, f"{HEADER}1741078800,Qwen/Qwen3-8B,5,7\n").notes[-1]
    assert said.endswith(
        "looks like the base model, but counts as an adapter; --columns adapter=COLUMN names another column"
    )


def test_units_in_the_names_of_columns(tmp_path: Path) -> None:
    data = read(tmp_path, f"{HEADER.replace('ts', 'timestamp_ms', 1)}0,a,5,7\n1500,b,5,7\n")
    assert data.arrival_s.tolist() == [0, 1.5]
    ended = f"{HEADER.replace('ts', 'end_time', 1)[:-1]},took_us\n10,a,5,7,2000000\n11,b,5,7,500000\n"
    data = read(tmp_path, ended, columns={"duration": "took_us"})
    assert data.arrival_s.tolist() == [0, 2.5]
    assert "(in us); times" in data.notes[0]


def test_a_date_without_dashes_is_no_time(tmp_path: Path) -> None:
    said = error_of(tmp_path, f"{HEADER}20250304090001,a,5,7\n")
    assert said.startswith("t:2: ts: not a usable time (got 20250304090001")
    assert "Dates are written 2025-03-04 09:00:01" in said


def test_what_stands_at_the_top_comes_before_what_is_nested(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    record = {"timestamp": 1741078800, "model": "a", "usage": usage, "status": "failed"}
    nested = {"container": {"started_at": 1}, "upstream": {"status_code": 200}, "cache": {"status_code": 200}}
    good = {**record, **nested, "status": "ok", "timestamp": 1741078801}
    data = read(tmp_path, f"{json.dumps({**record, **nested})}\n{json.dumps(good)}\n{json.dumps(good)}\n")
    assert len(rows(data)) == 2, "the first failed"
    assert "time = timestamp, " in data.notes[-1]


def test_a_name_with_a_unit_may_hold_dates(tmp_path: Path) -> None:
    content = f"{HEADER.replace('ts', 'event_ms', 1)}2025-03-04T09:00:00Z,a,5,7\n2025-03-04T09:00:01Z,a,5,7\n"
    assert read(tmp_path, content, columns={"time": "event_ms"}).arrival_s.tolist() == [0, 1]


def test_a_plain_trace_with_a_base_model_keeps_its_tenants(tmp_path: Path) -> None:
    content = "timestamp_s,tenant_id,model,input_tokens,output_tokens\n1,acme,llama,5,7\n"
    assert read(tmp_path, content, base_model="none").names == ("acme",)


@pytest.mark.parametrize("before", ["/x.py:12: FutureWarning: y\n", "vllm-1  | ", "[pod/vllm-0/vllm] ", "\x1b[1;36m"])
def test_a_log_of_vllm_behind_what_others_write(tmp_path: Path, before: str) -> None:
    lines = samples.LOGS["vllm"].decode().splitlines(keepends=True)
    each = "" if before.endswith("\n") else before
    content = "".join(each + line for line in lines)
    assert rows(read(tmp_path, content if each else before + content)) == rows(read(tmp_path, samples.LOGS["vllm"]))


def test_a_log_without_requests_says_what_it_has(tmp_path: Path) -> None:
    said = error_of(tmp_path, samples.LOGS["docker"].splitlines()[0])
    assert said.endswith("nothing in it is a request (got lines without JSON)")
    assert "nothing in it is a request (got objects without keys)" in error_of(tmp_path, b"{}\n")


def test_what_looks_like_a_page_may_be_a_column_of_a_request(tmp_path: Path) -> None:
    row = {"ts": 1, "model": "a", "prompt_tokens": 3, "completion_tokens": 2}
    beside = {"events": [{"name": "first"}], "data": {"result": [{"a": 1}]}, "message": "done", "stream": True}
    assert rows(read(tmp_path, json.dumps({**row, **beside}).encode())) == [(0.0, "a", 3, 2)]


def test_what_is_no_request_of_a_model_is_left_out(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    record = {"ts": 1741078800, "model": "a", "trace_id": "t", "usage": usage}
    lines = [json.dumps({**record, "usage_details": {}, "type": kind}) for kind in ("AGENT", "GENERATION")]
    lines.append(json.dumps({**record, "type": "event"}))  # a structured log, not one of Langfuse
    assert len(rows(read(tmp_path, "\n".join(lines) + "\n"))) == 2


def test_a_request_logged_twice_is_read_once(tmp_path: Path) -> None:
    data = read(tmp_path, f"x-request-id,{HEADER}r,2,a,5,7\nr,1,a,5,7\n-,1,a,5,7\n-,1,a,5,7\nr,2,a,5,7\nr,2,a,5,8\n")
    assert [int(row[0]) for row in rows(data)] == [0, 0, 0, 1, 1]
    assert "3 rows repeat the x-request-id of another row; left out 1 that say the same," in data.notes[0]


def test_token_counts_may_be_grouped_in_thousands(tmp_path: Path) -> None:
    """The longest prompts are; a time or a duration in seconds may have a decimal comma, and is refused."""
    assert rows(read(tmp_path, f'{HEADER}1,a,"1,623",20\n2,a,52," 1,000,000 "\n'.encode()))[0][2] == 1623
    assert "(got 16,23, allowed: a whole number" in error_of(tmp_path, f'{HEADER}1,a,"16,23",20\n'.encode())
    assert "(got 1,623" in error_of(tmp_path, f'{HEADER}"1,623",a,16,20\n'.encode())


def test_rows_without_an_adapter_are_counted(tmp_path: Path) -> None:
    content = f"{HEADER}1741078800,a,5,7\n1741078801,,5,7\n"
    said = "1 of 2 rows name no adapter, and count as requests to the base model"
    assert read(tmp_path, content).notes[-1].endswith(said)


def test_an_error_lists_likely_columns_first(tmp_path: Path) -> None:
    header = ",".join([*"abcdefgh", "n_tokens", "model", "i"])
    assert "(got n_tokens, model, a, b, c, d, e, f and 3 more)" in error_of(tmp_path, f"{header}\n1\n")


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(f"{HEADER}1741078800,a,5,7\n")
    with pytest.raises(ValidationError, match="the same file twice"):
        Trace.model_validate({"file": [str(tmp_path / "t")] * 2})


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"BZh9"])
def test_a_packed_table_is_to_be_unpacked(tmp_path: Path, start: bytes) -> None:
    assert error_of(tmp_path, start + b"x") == "t: a compressed archive or an Excel file; unpack it, or save it as CSV"


def test_a_request_without_output_tokens_has_failed(tmp_path: Path) -> None:
    data = read(tmp_path, f"{HEADER}1741078800,a,5,\n1741078801,b,5,0\n1741078802,c,5,7\n")
    assert rows(data) == [(0.0, "c", 5, 7)]
    assert data.notes[0].endswith("left out 2 of 3 rows: 2 failed (no response tokens)")
    missing = '{"ts": 1741078800, "model": "a", "prompt_tokens": 5, "completion_tokens": null}\n'
    good = missing.replace("null", "7")
    assert rows(read(tmp_path, missing + good)) == [(0.0, "a", 5, 7)]


def test_a_time_at_the_end_of_a_request_is_no_arrival(tmp_path: Path) -> None:
    header, lines = HEADER.replace("ts,", "end_time,"), ("1741078801,a,5,7", "1741078802,b,5,7")
    timed = f"{header[:-1]},latency_ms\n{lines[0]},500\n{lines[1]},2000\n"
    assert [row[:2] for row in rows(read(tmp_path, timed))] == [(0.0, "b"), (0.5, "a")]
    data = read(tmp_path, f"{header}{lines[0]}\n{lines[1]}\n")
    assert data.notes[1].endswith(
        "end_time is when a request ends, and counts as its arrival; "
        "--columns duration=COLUMN subtracts how long it took"
    )


def test_every_guess_is_told_and_names_given_are_no_guesses(tmp_path: Path) -> None:
    content = f"{HEADER}1741078800,a,5,7\n1741078801,b,5,7\n"
    (note,) = read(tmp_path, content).notes
    assert note == (
        f"{tmp_path}/t: read as a log with time = ts, adapter = model, input = prompt_tokens, "
        "output = completion_tokens; times are seconds. "
        "Guessed: time, adapter, input, output, unit; --columns (in a scenario: workload.trace.columns) changes that"
    )
    columns = {"time": "ts", "adapter": "model", "output": "prompt_tokens", "input": "completion_tokens"}
    data = read(tmp_path, content, columns=columns)
    assert rows(data)[0] == (0.0, "a", 7, 5)
    assert [note.partition("Guessed: ")[2] for note in data.notes] == [
        "unit; --columns (in a scenario: workload.trace.columns) changes that"
    ]
    assert data.columns == {**columns, "unit": "s"}
    again = read(tmp_path, content, columns=data.columns)
    assert rows(again) == rows(data)
    assert again.notes == ()
    slow = read(tmp_path, content, columns={**columns, "unit": "ms"})
    assert slow.arrival_s == pytest.approx([0, 0.001], abs=1e-6)


@given(st.lists(st.sampled_from(COLUMNS), min_size=1, unique=True))
def test_no_guess_is_silent(header: list[str]) -> None:
    """Whatever columns a log has: each that is used was named by us, or a note names it."""
    from sim.traffic.traces.data import ReadOptions
    from sim.traffic.traces.log_columns import find_columns

    try:
        rules = find_columns(header, ReadOptions(("t",), None))
    except TraceError:
        return
    said = " ".join(rules.notes("t", None, ()))
    for role, column in rules.columns.items():
        assert column in header
        assert f"{role} = {column}" in said or column in ("tenant_id", "session_id")
    assert len(set(rules.columns.values())) == len(rules.columns)


def test_nested_keys_and_their_order(tmp_path: Path) -> None:
    content = "".join(
        json.dumps({"t": 5 - n, "body": {"model": "ab"[n % 2], "usage": {"in.put": n + 1, "o": 2}}}) + "\n"
        for n in range(3)
    )
    columns = {"time": "t", "adapter": "body.model", "input": "body.usage.in.put", "output": "body.usage.o"}
    assert rows(read(tmp_path, content, columns=columns)) == [(0.0, "a", 3, 2), (1.0, "b", 2, 2), (2.0, "a", 1, 2)]


def test_base_requests(tmp_path: Path) -> None:
    content = f"{HEADER}1,meta-llama/Llama-3.1-8B-Instruct,5,5\n2,mail,5,5\n3,,5,5\n"
    data = read(tmp_path, content)
    assert data.names == ("meta-llama/Llama-3.1-8B-Instruct", "mail")
    assert data.notes[1] == (
        f"{tmp_path}/t: meta-llama/Llama-3.1-8B-Instruct looks like the base model, but counts as an adapter; "
        "--base-model meta-llama/Llama-3.1-8B-Instruct makes its rows requests to the base model"
    )
    data = read(tmp_path, content, base_model="meta-llama/Llama-3.1-8B-Instruct")
    assert data.names == ("mail",)
    assert data.base_share == pytest.approx(2 / 3)
    assert len(data.notes) == 1, "that which says what was guessed"
    wrong = read(tmp_path, content, base_model="meta-llama/Llama-3.1-8B")
    assert "no row is for the base model" in wrong.notes[1]
    assert "did you mean 'meta-llama/Llama-3.1-8B-Instruct'?" in wrong.notes[1]


@pytest.mark.parametrize(
    ("name", "is_base"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", True),
        ("Qwen/Qwen2.5-7B", True),
        ("qwen3-32b", True),
        ("mistralai/Mistral-7B-Instruct-v0.2", True),
        ("openai/gpt-oss-120b", True),
        ("llama-3.1-8b-sql-lora", False),
        ("mail", False),
        ("customer-7b", False),
        ("llama-" + "1" * 1000, False),
        ("llama" + "-1" * 300 + "-x", False),
    ],
)
def test_names_of_base_models(tmp_path: Path, name: str, is_base: bool) -> None:
    notes = read(tmp_path, f"{HEADER}1,{name},5,5\n2,other,5,5\n").notes
    assert any("looks like the base model" in note for note in notes) == is_base


def test_names_by_a_pattern(tmp_path: Path) -> None:
    content = f"{HEADER}1,ft:llama:org:mail:x1,5,5\n2,ft:llama:org:sql:x2,5,5\n3,gpt-4,5,5\n"
    data = read(tmp_path, content, adapter_from=r"^ft:[^:]+:org:([^:]+)")
    assert data.names == ("mail", "sql")
    assert data.skipped == {"rows in which adapter_from finds no adapter (model such as gpt-4)": 1}
    nothing = error_of(tmp_path, content, adapter_from="^lora")
    assert "no row is left (got rows in which adapter_from finds no adapter (model such as ft:llama" in nothing
    with pytest.raises(ValueError, match="not a regular expression"):
        Trace(file="t", adapter_from="(")


def test_lengths_and_adapters_from_a_law_only_when_said_so(tmp_path: Path) -> None:
    content = "ts,model\n1,a\n2,b\n"
    assert error_of(tmp_path, content) == (
        "t:1: columns are missing: input_tokens, output_tokens (got ts, model); say which columns hold them: "
        "--columns input=NAME,output=NAME (in a scenario: workload.trace.columns); "
        "--columns input=none,output=none draws lengths from workload.tokens"
    )
    data = read(tmp_path, content, columns={"input": "none", "output": "none"})
    assert (data.prompt_tokens, data.names) == (None, ("a", "b"))
    bare = read(tmp_path, content, columns={"input": "none", "output": "none", "adapter": "none"})
    assert bare.adapter is None
    assert "--columns adapter=none draws adapters" in error_of(tmp_path, "ts,prompt_tokens,output_tokens\n1,5,5\n")


def test_errors_say_what_mends_them(tmp_path: Path) -> None:
    content = HEADER + "".join(f"Tuesday {n},a,5,5\n" for n in range(5000))
    assert error_of(tmp_path, content) == (
        "t:2: ts: not a time (got Tuesday 0, allowed: 2023-11-16 18:15:46.68, 16/Nov/2023:18:15:46 +0000, or seconds, "
        "ms, µs or ns since 1970 (columns.unit says which)); all 5,000 rows have this problem"
    )
    assert error_of(tmp_path, f"{HEADER}1,a,5,5\n", columns={"input": "prompt"}) == (
        "t:1: columns.input: the file has no such column (got prompt, allowed: ts, model, prompt_tokens, "
        "completion_tokens); did you mean 'prompt_tokens'?"
    )
    two = error_of(tmp_path, "ts,a.model,b.model,prompt_tokens,completion_tokens\n1,a,a,5,5\n")
    assert two == (
        "t: several columns may hold the adapter (got a.model, b.model); choose one: --columns adapter=a.model"
    )


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: pa.compress(content, "zstd", asbytes=True)])
def test_several_files_some_of_them_packed(tmp_path: Path, pack: object) -> None:
    lines = [f"{1741078800 + n},{'ab'[n % 2]},{n + 1},5\n" for n in range(9)]
    (tmp_path / "old").write_bytes(pack((HEADER + "".join(lines[:5])).encode()))  # type: ignore[operator]
    (tmp_path / "new").write_text(HEADER + "".join(lines[5:]))
    files = [str(tmp_path / "new"), str(tmp_path / "old")]
    whole = rows(read(tmp_path, HEADER + "".join(lines)))
    assert rows(read_trace(Trace.model_validate({"file": files}))) == whole
    (tmp_path / "old").write_text("ts,model,prompt_tokens,completion_tokens\n1741078800,a,5,5\n1741078801,a,x,5\n")
    with pytest.raises(TraceError, match=f"{tmp_path}/old:3: prompt_tokens: not a usable number"):
        read_trace(Trace.model_validate({"file": files}))
    (tmp_path / "old").write_text("ts,model\n1741078800,a\n")
    with pytest.raises(TraceError, match=f"{tmp_path}/old: column prompt_tokens is missing"):
        read_trace(Trace.model_validate({"file": files}))


def test_damaged_zstd_is_refused(tmp_path: Path) -> None:
    content = pa.compress((HEADER + "1,a,5,5\n" * 5000).encode(), "zstd", asbytes=True)
    assert error_of(tmp_path, content[: len(content) // 2])
    assert error_of(tmp_path, content[:9] + b"\0" * 40)


def test_a_document_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        {"ts": n, "model": "é{]" * (n % 3 + 1), "prompt_tokens": n + 1, "completion_tokens": 1} for n in range(20)
    ]
    whole = rows(read(tmp_path, "".join(json.dumps(each) + "\n" for each in records)))
    for piece in (1, 7, 100):
        monkeypatch.setattr("sim.traffic.tables.records._PIECE", piece)
        for text in (json.dumps(records), json.dumps(records, indent=1), json.dumps({"data": records}, indent=1)):
            assert rows(read(tmp_path, text)) == whole
    broken = json.dumps(records, indent=1).replace('"ts": 7', '"ts": ')
    assert error_of(tmp_path, broken).startswith("t:44: not JSON (got {")


def test_rows_in_any_order_keep_their_own_lengths(tmp_path: Path) -> None:
    order = np.random.default_rng(5).permutation(500)
    lines = [f"{n},{f'a{n % 7}' if n % 5 else ''},{n + 1},{2 * n + 1}\n" for n in range(500)]
    shuffled = rows(read(tmp_path, HEADER + "".join(lines[n] for n in order)))
    assert shuffled == rows(read(tmp_path, HEADER + "".join(lines)))
    assert shuffled[3] == (3.0, "a3", 4, 7)


def test_a_cache_needs_only_the_adapters_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("ts,model,prompt_tokens\n1741078802,b,x\n1741078801,a,\n1741078803,a,5\n")
    found = read_adapter_sequence(Trace(file=str(tmp_path / "t")))
    assert [found.names[index] for index in found.adapter.tolist()] == ["a", "b", "a"], "in the order of time"
    assert found.notes[1].endswith(
        "read as a log with time = ts, adapter = model; times are seconds. Guessed: time, adapter, unit; "
        "--columns (in a scenario: workload.trace.columns) changes that"
    )
    other = LogColumns(adapter="prompt_tokens")
    assert read_adapter_sequence(Trace(file=str(tmp_path / "t"), columns=other)).names == ("x", "5"), (
        "an empty cell: no adapter"
    )
    with pytest.raises(TraceError, match="a cache needs the adapter of each request"):
        read_adapter_sequence(Trace(file=str(tmp_path / "t"), columns=LogColumns(adapter="none")))
    (tmp_path / "t").write_text("ts,who\n1,b\n")
    with pytest.raises(TraceError, match=r"--columns adapter=NAME \("):
        read_adapter_sequence(Trace(file=str(tmp_path / "t")))
