"""Arrow columns from numpy arrays, put together from buffers.

``pyarrow.array`` and ``pyarrow.table`` import pandas to find out whether they were given something of pandas, which
takes longer than a small simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow


def column(values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pyarrow.Array:
    """Return an array of numbers or truth values.

    :param missing: which values are null.
    """
    import pyarrow as pa

    present = None if missing is None or not missing.any() else pa.py_buffer(_bits(~missing))
    data = _bits(values) if values.dtype == np.bool_ else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [present, pa.py_buffer(data)])


def words(
    which: NDArray[Any], texts: Sequence[str], missing: NDArray[np.bool_] | None = None
) -> pyarrow.DictionaryArray:
    """Return an array of texts, each of which is kept once.

    :param which: the place of each row's text in ``texts``.
    :param missing: which rows are null.
    """
    import pyarrow as pa

    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    dictionary = pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))
    return pa.DictionaryArray.from_arrays(column(which, missing), dictionary)


def table(columns: Mapping[str, pyarrow.Array]) -> pyarrow.Table:
    """Return a table of columns by name."""
    import pyarrow as pa

    return pa.Table.from_arrays(list(columns.values()), names=list(columns))


def _bits(values: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.packbits(values, bitorder="little")
