"""Traces with cells and bytes replaced: what has broken readers before."""

from __future__ import annotations

import gzip
import re

import trace_samples as samples
from hypothesis import strategies as st

NASTY_CELLS = (
    b"",
    b" ",
    b"nan",
    b"-inf",
    b"inf",
    b"-1",
    b"0",
    b"1.5",
    b"1e308",
    b"-1e308",
    b"1e-320",
    b"9" * 400,
    b"9" * 5000,
    b"1_000",
    b"0x10",
    b"1,5",
    b'"',
    b'""',
    b'"x"y',
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
    b"\r",
    b"\n",
    b"\xef\xbb\xbf",
    "１２".encode(),
    "٣".encode(),
    "é".encode(),
    b"null",
    b"true",
    b"{}",
    b"[1]",
    b"now",
    b"today",
    b"9999-12-31 23:59:59",
    b"0001-01-01",
    b"2023-13-01",
    b"18446744073709551616",
    b"1700000000000",
    b"Gamma",
    b"x" * 2000,
    b"=1+1",
    b"\x1b[31m",
)
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


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Draw a valid trace with a few of its cells and bytes replaced."""
    every = samples.SAMPLES | samples.LOGS
    name = draw(st.sampled_from(sorted(every)))
    content = every[name]
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
