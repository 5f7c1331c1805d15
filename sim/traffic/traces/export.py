"""Writes a trace of any format as plain CSV or Parquet, with the columns that every command reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from sim.cells import text_cell
from sim.errors import InputError
from sim.traffic.request import BASE_MODEL
from sim.traffic.shared_text import SharedText
from sim.traffic.traces.data import TraceData
from sim.traffic.traces.text_columns import HASH_IDS, PREFIX_ID, PREFIX_TOKENS

_ROWS = 1 << 16
SUFFIXES = (".csv", ".parquet")


def check_plain(trace: TraceData) -> None:
    """Check that a trace has all columns of a plain one.

    :raises InputError: if it names no adapters, or has no lengths.
    """
    if trace.adapter is None or trace.prompt_tokens is None:
        what = "names no adapters" if trace.adapter is None else "has no lengths"
        raise InputError(
            f"the trace {what}, which a plain trace needs",
            key="--out",
            hint="simulate it as it is: workload.popularity and workload.tokens give what it lacks",
        )


def columns_of(trace: TraceData) -> dict[str, Any]:
    """Return the plain columns of a trace, with their values."""
    found: dict[str, Any] = {"timestamp_s": trace.arrival_s}
    if trace.adapter is not None:
        found["adapter_id"] = trace.adapter
    if trace.prompt_tokens is not None and trace.output_tokens is not None:
        found["input_tokens"], found["output_tokens"] = trace.prompt_tokens, trace.output_tokens
    if trace.adapter is not None and trace.adapter_bytes is not None:
        found["adapter_bytes"] = trace.adapter_bytes
    if trace.session is not None:
        found["session_id"] = trace.session
    if trace.text is not None:
        found |= dict.fromkeys((HASH_IDS,) if trace.text_by_user else (PREFIX_ID, PREFIX_TOKENS), trace.text)
    return found


def write_plain(trace: TraceData, out: BinaryIO, suffix: str) -> None:
    """Write a trace to an open file, block by block.

    In CSV, a name that a spreadsheet would run as a formula gets a leading quote; in Parquet it stays as it is.

    :param suffix: ``.csv`` or ``.parquet``.
    :raises InputError: for another one.
    """
    if suffix == ".csv":
        _write_csv(trace, out)
    elif suffix == ".parquet":
        _write_parquet(trace, out)
    else:
        raise InputError("not a format to convert to", key="--out", got=suffix, allowed=", ".join(SUFFIXES))


def _blocks(trace: TraceData) -> Iterator[dict[str, Any]]:
    columns = columns_of(trace)
    for start in range(0, len(trace), _ROWS):
        block: dict[str, list[Any]] = {}
        for name, values in columns.items():
            if name == "adapter_bytes":
                adapters = trace.adapter[start : start + _ROWS].tolist()  # type: ignore[index]
                block[name] = [None if index == BASE_MODEL else int(values[index]) for index in adapters]
                continue
            if isinstance(values, SharedText):
                block[name] = _text_cells(name, values.part(start, min(start + _ROWS, len(trace))))
                continue
            block[name] = values[start : start + _ROWS].tolist()
            if name == "adapter_id":
                block[name] = [None if index == BASE_MODEL else trace.names[index] for index in block[name]]
        yield block


def _text_cells(name: str, text: SharedText) -> list[Any]:
    runs = [found for found, _ in text.of_requests()]
    if name == HASH_IDS:
        return [" ".join(str(key) for _, key in found) for found in runs]
    if name == PREFIX_ID:
        return [str(found[0][1]) if found else "" for found in runs]
    return [found[0][0] if found else 0 for found in runs]


def _write_csv(trace: TraceData, out: BinaryIO) -> None:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns_of(trace))
    plain = {name: text_cell(name) for name in trace.names}
    for block in _blocks(trace):
        if "adapter_id" in block:
            block["adapter_id"] = ["" if name is None else plain[name] for name in block["adapter_id"]]
        writer.writerows(zip(*block.values(), strict=True))
    text.flush()
    text.detach()


def _write_parquet(trace: TraceData, out: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = dict.fromkeys(("adapter_id", PREFIX_ID, HASH_IDS), pa.string())
    kinds = {"timestamp_s": pa.float64(), **text}
    schema = pa.schema([(name, kinds.get(name, pa.int64())) for name in columns_of(trace)])
    with pq.ParquetWriter(out, schema) as writer:
        for block in _blocks(trace):
            writer.write_table(pa.table(block, schema=schema))
