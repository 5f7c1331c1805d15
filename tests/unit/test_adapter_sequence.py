"""The adapters of a trace without the rest of it, as ``loraplan cache`` reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trace_samples as samples

from sim.errors import InputError, TraceError
from sim.spec.sections.trace_source import TRACE_FORMATS, Trace
from sim.traffic.traces.data import MAX_REQUESTS
from sim.traffic.traces.read import TraceData, read_adapter_sequence, read_trace
from sim.traffic.traces.rows import MAX_BYTES


def read(folder: Path, content: bytes) -> TraceData:
    file = folder / "t"
    file.write_bytes(content)
    return read_trace(Trace.model_validate({"file": str(file)}))


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
