"""Values that have broken readers before, and how to spoil a tree of plain data with them."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]

NASTY_TEXT = (
    "",
    " ",
    "nan",
    ".nan",
    "inf",
    "-.inf",
    "1e400",
    "-0",
    "1_000",
    "0x10",
    "1,5",
    "20",
    "20 parsecs",
    "-20 ms",
    "1e308 h",
    "5 GB",
    "101%",
    "-1%",
    "3/s",
    "0/s",
    "-1/s",
    "9/fortnight",
    "null",
    "true",
    "~",
    "no",
    "2023-01-01",
    "a" * 3000,
    "é",
    "１２",
    "\u202e",
    "\ud83d\ude00",
    "../../etc/passwd",
    "/",
    ".",
    "/dev/null",
    "x\0y",
    "\x1b[31mred",
    "{}",
    "[1]",
    "a: b",
    "=1+1",
    "<script>",
    "[bold]",
    "%s%n",
    "{0}",
    "zipf",
    "fixed",
    "lru",
    "new-name",
    "full",
    "vet",
    "swap",
    "price",
    "q",
)
NASTY_NUMBERS = (
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    1e-320,
    1e308,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    float("nan"),
    float("inf"),
    float("-inf"),
    10**400,
)
SMALL_NUMBERS = (0, 1, -1, 2, 3, 0.5, 7, 16, 1e-320, -0.0, 1.0, 64)
"""Where a number that is right would be simulated, it must stay small."""

nasty_values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(NASTY_TEXT),
    st.sampled_from(NASTY_NUMBERS),
    st.none(),
    st.booleans(),
    st.sampled_from(
        ([], {}, [[]], [None], {"": 1}, {"law": "fixed"}, {"kind": "full"}, [1, 1], [2, 1], {"a": {"b": {}}})
    ),
)
small_values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(NASTY_TEXT),
    st.sampled_from(SMALL_NUMBERS),
    st.none(),
    st.booleans(),
    st.sampled_from(([], {}, [[]], [None], {"": 1}, {"law": "fixed"}, {"kind": "full"}, [1, 1], [2, 1])),
)

UNITS = ("ms", "s", "min", "h", "us", "B", "kB", "MB", "GB", "GiB", "%", "/s", "/min", "", "tokens")


def paths(tree: Any, above: Path = ()) -> list[Path]:
    """Return the paths of all values in a tree of mappings and lists, the root left out."""
    found: list[Path] = []
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in items:
        found.append((*above, key))
        found += paths(child, (*above, key))
    return found


def at(tree: Any, path: Path) -> Any:
    """Return the value at a path."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: Any, path: Path, value: Any) -> None:
    """Put a value at a path, making mappings on the way; a path that leads through something else is left alone."""
    for key in path[:-1]:
        if isinstance(tree, list):
            if not isinstance(key, int) or key >= len(tree):
                return
        elif isinstance(tree, dict):
            if not isinstance(tree.get(key), (dict, list)):
                tree[key] = {}
        else:
            return
        tree = tree[key]
    last: Any = path[-1]
    if isinstance(tree, dict) or (isinstance(tree, list) and isinstance(last, int) and last < len(tree)):
        tree[last] = value


@st.composite
def spoiled(draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any] = nasty_values) -> Any:
    """Return a copy of a tree with one thing in it spoiled: a key, a value, a type, a unit."""
    tree = copy.deepcopy(tree)
    every = paths(tree)
    if not every:
        return draw(values)
    path = draw(st.sampled_from(every))
    parent, key = at(tree, path[:-1]), path[-1]
    value = parent[key]
    how = draw(
        st.sampled_from(("value", "value", "value", "unit", "number", "remove", "rename", "wrap", "twice", "swap"))
    )
    if how == "remove":
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        other = draw(
            st.sampled_from((f"{key}s", str(key)[:-1], str(key).upper(), "", "x.y", "0", "a b", "\0", "extends"))
        )
        parent[other] = parent.pop(key)
    elif how == "wrap":
        parent[key] = draw(st.sampled_from(([value], {"value": value}, {"law": value}, str(value), [value, value])))
    elif how == "twice" and isinstance(parent, list):
        parent.insert(0, copy.deepcopy(value))
    elif how == "unit" and isinstance(value, str) and value[:1].isdigit():
        number = value.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/% ")
        parent[key] = f"{number}{draw(st.sampled_from((' ', '')))}{draw(st.sampled_from(UNITS))}"
    elif how == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
        half = value / 2 if abs(value) < 1e300 else 0.5
        parent[key] = draw(st.sampled_from((-value, value + 1, half, str(value), f"{value} s", [value], 0)))
    elif how == "swap":
        parent[key] = copy.deepcopy(at(tree, draw(st.sampled_from(every))))
    else:
        parent[key] = draw(values)
    return tree


@st.composite
def much_spoiled(
    draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any] = nasty_values, least: int = 1, most: int = 4
) -> Any:
    """Return a copy of a tree with a few things in it spoiled."""
    for _ in range(draw(st.integers(least, most))):
        tree = draw(spoiled(tree, values))
    return tree


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes cut short, overwritten, or with something in between."""
    for _ in range(draw(st.sampled_from((1, 1, 2, 4)))):
        place = draw(st.integers(0, len(content)))
        how = draw(st.sampled_from(("cut", "flip", "insert", "drop", "fill")))
        if how == "cut":
            content = content[:place]
        elif how == "flip" and place < len(content):
            content = content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
        elif how == "insert":
            more = (b"\0", b"\xff\xfe", b'"', b"{", b"[" * 3000, b"\n", b"9" * 5000, b"PK\x03\x04", b"\x80\x02")
            content = content[:place] + draw(st.sampled_from(more)) + content[place:]
        elif how == "drop":
            content = content[:place] + content[place + draw(st.sampled_from((1, 8, 100))) :]
        else:
            content = content[:place] + bytes(len(content) - place)
    return content


def as_json(tree: Any, indent: int | None = None) -> bytes:
    """Return a tree as JSON bytes; what can't be encoded is written as an escape."""
    return json.dumps(tree, indent=indent).encode()


def as_yaml(tree: Any) -> bytes:
    """Return a tree as YAML: JSON with one value a line, and YAML's words for what JSON has no words for."""
    text = json.dumps(tree, indent=1, ensure_ascii=True)
    return text.replace(": Infinity", ": .inf").replace(": -Infinity", ": -.inf").replace(": NaN", ": .nan").encode()
