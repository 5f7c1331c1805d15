"""Reads YAML into a tree of values with their lines, refuses what can't be a scenario, and writes scenarios as text.

The library only composes YAML nodes, and this module converts them. That gives the line of every key, keeps dates and
the like as text, and limits the expansion of aliases.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from sim.errors import ScenarioError
from sim.reading import open_regular
from sim.spec.files.tree import MAX_DEPTH, Node, Origin, Scalar


def yaml_text(scenario: Mapping[str, Any]) -> str:
    """Return plain data as a scenario file has it."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    target = io.StringIO()
    yaml.dump(dict(scenario), target)
    return target.getvalue()


_PLAIN = re.compile(
    r"(?!(true|false|null|yes|no|on|off)$|[\d.]+e[+-]?\d+$|0[xob])([a-z]|\d[\d.]* ?[a-z/%])[\w./% -]*(?<! )",
    re.IGNORECASE,
)
"""Texts that need no quotes: words, and numbers with a unit."""


def flow_text(value: Any) -> str:
    """Return plain data as YAML on one line; numbers with six digits."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow_text, value)) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_TEXT = 4_000_000
"""Characters of all texts with aliases expanded: repeated long texts are checked, hashed and written each time."""
MAX_BITS = 512
"""Bits of a whole number: longer ones, possible in hexadecimal, are no quantities, and Python refuses to print them."""

_CORE = "tag:yaml.org,2002:"
_COLLECTIONS = {_CORE + "map", _CORE + "seq"}
_TYPED = {_CORE + name for name in ("int", "float", "bool", "null")}
# What a plain word may resolve to by its looks, and what we keep as the text that was written.
_TEXT = {_CORE + name for name in ("str", "timestamp", "value", "merge")}


def read_yaml(path: Path, name: str) -> Node:
    """Return the mapping in a YAML file.

    :param name: the file as messages should call it.
    :raises ScenarioError: with file and line, for whatever is wrong with it as YAML.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ScenarioError(f"can't read this file: {error.strerror or error}", file=name) from None
    return yaml_mapping(raw, name)


def yaml_mapping(raw: bytes, name: str) -> Node:
    """Return the mapping in the content of a YAML file; parameters and errors as for ``read_yaml``."""
    if len(raw) > MAX_BYTES:
        raise ScenarioError("too large for a scenario", allowed="at most 1 MB", hint=_of_a_log(name), file=name)
    node = parse_yaml(_decode(raw, name), name)
    if node is None:
        raise ScenarioError("the file is empty", hint="'loraplan scenarios list' shows examples", file=name, line=1)
    if not isinstance(node.value, dict):
        raise ScenarioError(
            "a scenario is a mapping of keys",
            got="a list" if isinstance(node.value, list) else repr(node.value),
            allowed="key: value lines",
            hint=_of_a_log(name),
            file=name,
            line=node.origin.line,
        )
    return node


def _of_a_log(name: str) -> str | None:
    """Return what to do with a file that is not called YAML, and so may be a log of requests."""
    return None if name.endswith((".yaml", ".yml")) else f"a log of requests or a trace: loraplan trace {name}"


_KEPT, _SHORT = 64, 16_384
"""How many trees are kept, and how long a text without aliases may be for its tree to be kept."""


def parse_yaml(text: str, place: str) -> Node | None:
    """Return the tree of a YAML text, or None where it holds nothing."""
    return (_parse_once if len(text) <= _SHORT and "*" not in text else _parse)(text, place)


def _parse(text: str, place: str) -> Node | None:
    if text.count(",") + text.count(":") + text.count("- ") > 4 * MAX_NODES:
        # Checked before composing, which would take a minute; no honest text has so many.
        raise ScenarioError("too many values", allowed=f"{MAX_NODES:,} with aliases written out", file=place)
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except RecursionError:
        raise ScenarioError("nested too deeply", allowed=f"{MAX_DEPTH} levels", file=place) from None
    except MarkedYAMLError as error:
        raise _syntax(error, text, place) from None
    except YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        problem = "a character that YAML does not allow" if hasattr(error, "position") else "not YAML"
        raise ScenarioError(problem, file=place, line=line) from None
    return None if root is None else _Walk(yaml, place).node(root, 0)


_parse_once = functools.lru_cache(maxsize=_KEPT)(_parse)


class _Walk:
    """Converts YAML nodes into ours and counts them: ten lines of aliases can expand to a billion values."""

    def __init__(self, yaml: YAML, place: str) -> None:
        self._yaml = yaml
        self._place = place
        self._num_nodes = 0
        self._num_letters = 0

    def node(self, source: Any, depth: int, line: int | None = None) -> Node:
        """Return the tree below a YAML node; ``line`` is that of its key, where it has one."""
        here = Origin(self._place, source.start_mark.line + 1 if line is None else line)
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise self._refuse("too many values", source, f"{MAX_NODES} with aliases written out")
        if depth > MAX_DEPTH:
            raise self._refuse("nested too deeply", source, f"{MAX_DEPTH} levels")
        if not isinstance(source, ScalarNode) and str(source.tag) not in _COLLECTIONS:
            raise self._refuse("YAML tags are not supported", source, got=str(source.tag))
        if isinstance(source, MappingNode):
            return Node(self._mapping(source, depth), here)
        if isinstance(source, SequenceNode):
            return Node([self.node(item, depth + 1) for item in source.value], here)
        return Node(self._scalar(source), here)

    def _mapping(self, source: MappingNode, depth: int) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key, value in source.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise self._refuse("a key must be a word", key)
            if str(key.tag) == _CORE + "merge":
                raise self._refuse(
                    "merge keys (<<) are not supported", key, hint="use extends to build on another file"
                )
            name = self._text(key)
            if name in result:
                first = result[name].origin.line
                raise self._refuse(f"the key {name!r} occurs twice", key, hint=f"the first is in line {first}")
            result[name] = self.node(value, depth + 1, line)
        return result

    def _scalar(self, source: Any) -> Scalar:
        tag = str(source.tag)
        self._num_letters += len(source.value)
        if self._num_letters > MAX_TEXT:
            raise self._refuse("too much text", source, f"{MAX_TEXT:,} characters with aliases written out")
        if tag in _TEXT:
            return self._text(source)
        if tag not in _TYPED:
            raise self._refuse("YAML tags are not supported", source, got=tag)
        try:
            value: Scalar = self._yaml.constructor.construct_object(source, deep=True)
        except (ValueError, YAMLError):
            raise self._refuse("not a value YAML can read", source, got=source.value) from None
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise self._refuse("too large a number", source, got=source.value)
        return value

    def _text(self, source: Any) -> str:
        r"""Return a text; pairs of escapes as JSON writes an emoji (``"\ud83d\ude00"``) are one character."""
        text = str(source.value)
        if text.isascii():
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self._refuse("half a character: an escape of a pair stands alone", source, got=text) from None

    def _refuse(
        self, problem: str, source: Any, allowed: str | None = None, *, got: object = None, hint: str | None = None
    ) -> ScenarioError:
        line = source.start_mark.line + 1
        return ScenarioError(problem, allowed=allowed, got=got, hint=hint, file=self._place, line=line)


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ScenarioError(
            "not UTF-8 text", got=f"byte 0x{raw[error.start]:02x}", hint="save the file as UTF-8", file=name, line=line
        ) from None


def _syntax(error: MarkedYAMLError, text: str, place: str) -> ScenarioError:
    mark, start = error.problem_mark or error.context_mark, error.context_mark
    line = mark.line + 1 if mark is not None else None
    problem, hint = str(error.problem or error.context or "not YAML"), None
    if start is not None and mark.column != start.column and "found '<block mapping start>'" in problem:
        problem = f"indented by {mark.column}, the keys around it, from line {start.line + 1} on, by {start.column}"
        return ScenarioError(problem, hint="indent keys that belong together alike", file=place, line=line)
    if "'\\t'" in problem:
        return ScenarioError("a tab where YAML wants spaces", hint="indent with spaces", file=place, line=line)
    if "another document" in problem:
        problem, hint = "a second document begins here", "a scenario is one document, without ---"
    elif "mapping values are not allowed" in problem:
        problem, hint = "a second colon in one value", "put text that holds ': ' in quotes, or start a new line"
    elif "cannot start any token" in problem:
        hint = "put the value in quotes"
    elif start is not None and line is not None and start.line + 1 != line:
        hint = f"what is not closed or indented right begins in line {start.line + 1}"
    return ScenarioError(f"not YAML: {problem}", hint=hint, file=place, line=line)
