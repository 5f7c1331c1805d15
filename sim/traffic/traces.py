"""Recorded requests: plain CSV and Azure LLM 2023 files, checked row by row."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CSV_COLUMNS = (
    "timestamp_s",
    "adapter_id",
    "tenant_id",
    "input_tokens",
    "output_tokens",
    "adapter_bytes",
    "session_id",
)
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class TraceData:
    """The requests of a trace, in order.

    :ivar arrival_s: (n,) float64, from 0 at the first request, never falling.
    :ivar adapter: (n,) int64 index into ``names`` (by first appearance), or None where the trace names none.
    :ivar adapter_bytes: (adapters,) int64 from the optional column, or None.
    :ivar notes: what a reader should know, such as columns that were ignored.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    adapter: Ints | None
    names: tuple[str, ...]
    adapter_bytes: Ints | None
    notes: tuple[str, ...]


def read_trace(file: str, format_: str = "auto", limit: int | None = None) -> TraceData:
    """Read a trace; at most ``limit`` of its rows.

    :raises TraceError: naming file, row, value and what is allowed.
    """
    try:
        status = os.stat(file)
    except OSError:
        return _read(file, format_, limit, 0, 0)  # says what is wrong
    return _read(file, format_, limit, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(file: str, format_: str, limit: int | None, mtime_ns: int, size: int) -> TraceData:
    """Read a trace once per state of its file: a sweep builds many worlds from it."""
    frame = _read_csv(file, limit)
    columns = list(frame.columns)
    if format_ == "azure-llm-2023" or (format_ == "auto" and set(AZURE_COLUMNS) <= set(columns)):
        return _azure(frame, file)
    return _plain(frame, file)


def _read_csv(file: str, limit: int | None) -> pd.DataFrame:
    import pandas as pd

    try:
        # Everything as text: a bad cell is then found by its row, not by a parser's guess at a type.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cells beyond the header's
            frame = pd.read_csv(
                file, dtype=str, keep_default_na=False, nrows=limit, encoding="utf-8-sig", skipinitialspace=True,
                index_col=False,
            )  # fmt: skip
    except FileNotFoundError:
        raise TraceError("no such trace", file=file, hint="paths in a scenario are relative to its file") from None
    except UnicodeDecodeError as error:
        raise TraceError("not UTF-8 text", file=file, got=f"byte {error.object[error.start]:#x}") from error
    except pd.errors.EmptyDataError:
        raise TraceError("the trace is empty", file=file) from None
    except pd.errors.ParserWarning:
        raise TraceError("rows have more cells than the header", file=file, line=2) from None
    except pd.errors.ParserError as error:
        raise TraceError("not a CSV table", file=file, got=str(error).strip()) from error
    except OSError as error:
        raise TraceError("the trace can't be read", file=file, got=error.strerror or str(error)) from error
    if frame.empty:
        raise TraceError("the trace has a header but no requests", file=file, line=1)
    return frame


def _plain(frame: pd.DataFrame, file: str) -> TraceData:
    columns = list(frame.columns)
    identity = "adapter_id" if "adapter_id" in columns else "tenant_id"
    for column in ("timestamp_s", identity, "input_tokens", "output_tokens"):
        if column not in columns:
            wanted = "adapter_id or tenant_id" if column == "tenant_id" else column
            hint = did_you_mean(column, columns) or ""
            raise TraceError(
                f"column {wanted} is missing", file=file, line=1, got=", ".join(map(str, columns)),
                allowed="timestamp_s, adapter_id or tenant_id, input_tokens, output_tokens", hint=hint,
            )  # fmt: skip
    ignored = [str(column) for column in columns if column not in CSV_COLUMNS]
    notes = [f"{file}: columns ignored: {', '.join(ignored)}"] if ignored else []
    identities = frame[identity].str.strip()
    _refuse_rows(identities == "", identities, file, identity, "the adapter's name is empty", "a name")
    codes, names = identities.factorize()
    arrival = _in_order(_numbers(frame["timestamp_s"], file, "timestamp_s", -np.inf), frame["timestamp_s"], file)
    adapter = np.asarray(codes, dtype=np.int64)
    return TraceData(
        arrival_s=arrival - arrival[0],
        prompt_tokens=_tokens(frame["input_tokens"], file),
        output_tokens=_tokens(frame["output_tokens"], file),
        adapter=adapter,
        names=tuple(map(str, names)),
        adapter_bytes=_sizes(frame, adapter, len(names), file),
        notes=tuple(notes),
    )


def _azure(frame: pd.DataFrame, file: str) -> TraceData:
    import pandas as pd

    missing = [column for column in AZURE_COLUMNS if column not in frame.columns]
    if missing:
        raise TraceError(
            f"column {missing[0]} is missing", file=file, line=1, got=", ".join(map(str, frame.columns)),
            allowed=", ".join(AZURE_COLUMNS),
        )  # fmt: skip
    times = pd.to_datetime(frame["TIMESTAMP"], errors="coerce", format="ISO8601")
    _refuse_rows(times.isna(), frame["TIMESTAMP"], file, "TIMESTAMP", "not a time", "2023-11-16 18:15:46.6805900")
    seconds = np.asarray((times - times.iloc[0]).dt.total_seconds(), dtype=np.float64)
    return TraceData(
        arrival_s=_in_order(seconds, frame["TIMESTAMP"], file),
        prompt_tokens=_tokens(frame["ContextTokens"], file),
        # 0 generated tokens stand for requests that were cut off; a request has at least its first token.
        output_tokens=np.maximum(_tokens(frame["GeneratedTokens"], file, least=0), 1),
        adapter=None,
        names=(),
        adapter_bytes=None,
        notes=(),
    )


def _numbers(column: pd.Series[str], file: str, name: str, least: float) -> Floats:
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    bad = ~np.isfinite(numbers) | (numbers < least)
    allowed = "a number" if least == -np.inf else f"a number, {least:g} or more"
    _refuse_rows(bad, column, file, name, "not a number that can stand here", allowed)
    return np.asarray(numbers, dtype=np.float64)


def _tokens(column: pd.Series[str], file: str, least: int = 1) -> Ints:
    numbers = _numbers(column, file, str(column.name), least)
    bad = (numbers != np.floor(numbers)) | (numbers > MAX_TOKENS)
    _refuse_rows(bad, column, file, str(column.name), "not a token count", f"a whole number up to {MAX_TOKENS:,}")
    return numbers.astype(np.int64)


def _sizes(frame: pd.DataFrame, adapter: Ints, count: int, file: str) -> Ints | None:
    if "adapter_bytes" not in frame.columns:
        return None
    sizes = np.zeros(count, dtype=np.int64)
    sizes[adapter] = _numbers(frame["adapter_bytes"], file, "adapter_bytes", 1).astype(np.int64)
    return sizes


def _in_order(seconds: Floats, column: pd.Series[str], file: str) -> Floats:
    falls = np.concatenate(([False], np.diff(seconds) < 0))
    _refuse_rows(
        falls,
        column,
        file,
        str(column.name),
        "time runs backwards",
        "times that never fall; sort the trace by time",
    )
    return seconds


def _refuse_rows(bad: object, column: pd.Series[str], file: str, name: str, problem: str, allowed: str) -> None:
    rows = np.flatnonzero(np.asarray(bad))
    if len(rows) == 0:
        return
    first = int(rows[0])
    more = f"{len(rows) - 1:,} more rows like it" if len(rows) > 1 else ""
    raise TraceError(problem, key=name, file=file, line=first + 2, got=column.iloc[first], allowed=allowed, hint=more)
