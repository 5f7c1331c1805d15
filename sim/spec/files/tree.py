"""A scenario before checking: values with the place where they were written, and how they merge.

A file, the file it extends, ``--set`` and the values of a sweep merge by the same rules: mappings merge, lists are
replaced, null removes, and a later choice replaces an earlier one (another ``law``, ``size`` where the base has
``slots``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sim.errors import ScenarioError

Scalar = str | int | float | bool | None

MAX_DEPTH = 50
"""Deeper nesting is refused: no scenario needs it, and functions on the tree are recursive."""

TAGS = ("law", "process", "kind", "serve", "tool")
"""Keys that decide the meaning of the other keys of their mapping."""

# By section: a key of an overlay, and the keys it drops from the base. Only unambiguous choices; ``rank`` over a base
# with a ``mix`` stays an error, because it would silently lose the mix.
_CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "workload": {
        "requests": ("duration",),
        "duration": ("requests",),
        "trace": ("arrivals", "tokens", "sessions", "drift", "churn", "client"),
        "client": (
            *("requests", "duration", "arrivals", "popularity", "sessions", "drift", "churn", "tokens"),
            *("prefix", "trace"),
        ),
        "arrivals": ("trace", "client"),
    },
    "plan": {
        "minimize": ("maximize", "fleets"),
        "maximize": ("minimize", "fleets"),
        "values": ("range", "step"),
        "range": ("values", "step"),
    },
    "adapters": {"mix": ("rank", "targets", "size")},
    "fleet": {"gpu": ("profile",), "profile": ("gpu",)},
    "cache.gpu": {"slots": ("size",), "size": ("slots",)},
    "cache.host": {"slots": ("size",), "size": ("slots",)},
}

_MAY_AGREE = ("fleet",)
"""Sections whose choices may be made together: of two ``--set``, neither drops the other, and checks compare them."""

FILE_KEYS = (
    "workload.trace.file",
    "workload.trace.lengths_file",
    "workload.popularity.file",
    "workload.tokens.prompt.file",
    "workload.tokens.output.file",
    "fleet.profile",
    "fleet.pools.profile",
    "rollouts.weights",
)
"""Keys whose value is a file or a folder (a profile only where it looks like a path), without places in lists."""

_PROFILES = ("fleet.profile", "fleet.pools.profile")
_POOLS = "fleet.pools."
OF_A_POOL = ("cache", "storage", "serves")
"""Sections of a pool; the other keys that follow ``fleet.pools.`` at this place are indexes or names of pools. No pool
may be called so."""

_TENANTS = "tenants"
_OF_A_TENANT = ("bucket", "price", "slo", "steps")
"""Sections of a tenant; the other keys that follow ``tenants.`` before another one are indexes or names of tenants."""

_MOST_NAMES = 10
"""Names of pools or tenants that an error lists."""

_FLEETS = "plan.fleets.set."
"""The prefix of these keys in a plan's fleets."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a file and its line, or ``--set``, ``--seed``, ``sweep``, ``default``."""

    place: str
    line: int | None = None

    def __str__(self) -> str:
        return self.place if self.line is None else f"{self.place}:{self.line}"


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its origin; mappings and lists contain nodes. Immutable."""

    value: dict[str, Node] | list[Node] | Scalar
    origin: Origin


def join(path: str, key: str | int) -> str:
    """Return the dotted path of a key inside ``path``."""
    return f"{path}.{key}" if path else str(key)


def merge(base: Node, over: Node, path: str = "") -> Node:
    """Lay ``over`` on ``base``; the mapping keeps the base's origin, each value keeps its own."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    if path == "sweep":
        return over  # a new grid replaces the base's, whose axes would multiply the points
    if _other_kind(base.value, over.value):
        return over
    dropped = _dropped(path, base.value, over.value)
    merged = {key: node for key, node in base.value.items() if key not in dropped}
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node, join(path, key)) if key in merged else node
    return Node(merged, base.origin)


def assign(root: Node, key: str, value: Node) -> Node:
    """Return the tree with ``value`` laid at the dotted ``key``; whole numbers index lists."""
    parts = key.split(".")
    if parts[0] == "sweep" and len(parts) > 1:
        parts = ["sweep", ".".join(parts[1:])]  # its keys are dotted paths
    if not all(parts) or len(parts) > MAX_DEPTH:
        raise ScenarioError("not a dotted key", got=key, allowed="such as cache.gpu.slots", file=value.origin.place)
    return _assign(root, parts, value, "")


def value_at(data: Any, key: str) -> Any:
    """Return the value at a dotted key of plain data; None where there is none."""
    for part in key.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def tags_first(keys: Iterable[str]) -> list[str]:
    """Return the keys with laws and processes first, because setting one drops the keys of another."""
    return sorted(keys, key=lambda key: key.rpartition(".")[2] not in TAGS)


def changed(root: Node, values: Mapping[str, Any], origin: Origin) -> Node:
    """Return the tree with plain values laid at dotted keys."""
    for key in tags_first(values):
        root = assign(root, key, planted(values[key], origin))
    return root


def plain(node: Node, path: str = "") -> Any:
    """Return the values without their origins; keys set to null are left out, except where a plan's fleet sets them."""
    if isinstance(node.value, dict):
        kept = f"{without_indexes(path)}." == _FLEETS
        items = ((key, child) for key, child in node.value.items() if kept or child.value is not None)
        return {key: plain(child, join(path, key)) for key, child in items}
    if isinstance(node.value, list):
        return [plain(child, join(path, i)) for i, child in enumerate(node.value)]
    return node.value


def origins(node: Node) -> dict[str, Origin]:
    """Return the origin of every dotted path, removed keys included; the root is ``""``."""
    return dict(_origins(node, ""))


def planted(value: Any, origin: Origin, known: Mapping[str, Origin] | None = None, path: str = "") -> Node:
    """Return plain data as a tree, with the known origins by path and ``origin`` for the rest."""
    known = known or {}
    here = known.get(path, origin)
    if isinstance(value, Mapping):
        return Node({str(k): planted(v, here, known, join(path, str(k))) for k, v in value.items()}, here)
    if isinstance(value, (list, tuple)):
        return Node([planted(v, here, known, join(path, i)) for i, v in enumerate(value)], here)
    return Node(value, here)


def with_absolute_files(node: Node, folder: Path, path: str = "", confines: Path | None = None) -> Node:
    """Return the tree with every file in it made absolute, relative names taken from ``folder``.

    :param confines: the folder that must contain all files, after following links; None: no restriction.
    :raises ScenarioError: for a file outside, and for what can't be a file's name.
    """
    value = node.value
    if path.startswith("sweep."):
        key = path.removeprefix("sweep.")
        items = value if isinstance(value, list) else []
        swept = [with_absolute_files(item, folder, key, confines) for item in items]
        return replace(node, value=swept) if swept else node
    if isinstance(value, dict):
        children = {key: with_absolute_files(child, folder, join(path, key), confines) for key, child in value.items()}
        return replace(node, value=children)
    key = without_indexes(path).removeprefix(_FLEETS)
    if isinstance(value, list) and (key in FILE_KEYS or any(isinstance(child.value, dict) for child in value)):
        children_of = [with_absolute_files(child, folder, join(path, i), confines) for i, child in enumerate(value)]
        return replace(node, value=children_of)
    if isinstance(value, str) and key in FILE_KEYS and (key not in _PROFILES or is_path(value)):
        return replace(node, value=str(absolute_file(value, node.origin, folder, path, confines)))
    return node


def absolute_file(value: str, origin: Origin, folder: Path, path: str, confines: Path | None) -> Path:
    """Return a file that the scenario names at the key ``path``, made absolute with links followed.

    :raises ScenarioError: as ``with_absolute_files`` does.
    """

    def refusal(problem: str, allowed: str | None = None) -> ScenarioError:
        return ScenarioError(problem, key=path, got=value, allowed=allowed, file=origin.place, line=origin.line)

    if "\0" in value:
        raise refusal("not the name of a file")
    try:
        file = (folder / Path(value).expanduser()).resolve()
    except (OSError, RuntimeError):  # ~nobody, a link to itself
        raise refusal("this path can't be followed") from None
    if confines is not None and confines not in file.parents:
        raise refusal("this file lies outside the scenario's folder", f"with --confined only files below {confines}")
    return file


def without_indexes(key: str) -> str:
    """Return a dotted key without the places in lists: ``adapters.mix.0.rank`` → ``adapters.mix.rank``.

    A pool's place may also be its name: ``fleet.pools.small.replicas`` → ``fleet.pools.replicas``; so may a tenant's.
    """
    parts = [part for part in key.split(".") if not part.isdigit()]
    if key.startswith(_POOLS) and len(parts) > 3 and parts[2] not in OF_A_POOL:
        del parts[2]
    if len(parts) > 2 and parts[0] == _TENANTS and parts[1] not in _OF_A_TENANT:
        del parts[1]
    return ".".join(parts)


def files_of(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every file and folder that a scenario's plain data names: its dotted key and its path.

    The name of a bundled profile is no file.
    """
    for key in FILE_KEYS:
        for path, value in _values(data, key.split("."), ""):
            if isinstance(value, str) and (key not in _PROFILES or is_path(value)):
                yield path, value


def _values(data: Any, parts: Sequence[str], path: str) -> Iterator[tuple[str, Any]]:
    """Yield the values at a dotted key, of every item where there is a list on the way."""
    if isinstance(data, (list, tuple)):
        for i, item in enumerate(data):
            yield from _values(item, parts, join(path, i))
    elif not parts:
        yield path, data
    elif isinstance(data, Mapping) and parts[0] in data:
        yield from _values(data[parts[0]], parts[1:], join(path, parts[0]))


def is_path(profile: str) -> bool:
    """Return whether a profile is given as a file, not as a bundled name."""
    return profile.endswith(".json") or profile.startswith((".", "/", "~"))


def _other_kind(base: Mapping[str, Node], over: Mapping[str, Node]) -> bool:
    both = (tag for tag in TAGS if tag in base and tag in over)
    return any(base[tag].value != over[tag].value for tag in both)


def _dropped(path: str, base: Mapping[str, Node], over: Mapping[str, Node]) -> set[str]:
    given = {key for key, node in over.items() if node.value is not None}
    # With a trace, requests and duration go together: the first limits its rows.
    free = {"requests", "duration"} if {"trace"} & (given | set(base)) else set()
    inside = without_indexes(path)
    choices = _CHOICES.get("fleet" if f"{inside}." == _POOLS else inside.removeprefix(_POOLS), {})
    return {key for choice in given for key in choices.get(choice, ()) if key not in given and key not in free}


def _assign(node: Node | None, parts: Sequence[str], value: Node, path: str) -> Node:
    if not parts:
        if node is not None and node.value and isinstance(node.value, dict) and value.value == {}:
            raise ScenarioError(
                "an empty mapping changes nothing, because mappings are merged",
                key=path,
                got="{}",
                hint="null instead of {} removes what is there",
                file=value.origin.place,
            )
        return value if node is None else merge(node, value, path)
    head, rest = parts[0], parts[1:]
    if node is None or node.value is None:
        if head.isdigit():
            _index(head, 0, path, value.origin)
        return Node({head: _assign(None, rest, value, join(path, head))}, value.origin)
    if isinstance(node.value, list):
        items = list(node.value)
        names = [_name_of(item) for item in items] if f"{path}." == _POOLS or path == _TENANTS else []
        by_name = head in names and not (path == _TENANTS and head.isdigit())
        index = names.index(head) if by_name else _index(head, len(items), path, value.origin, names)
        items[index] = _assign(items[index], rest, value, join(path, head))
        return Node(items, node.origin)
    if not isinstance(node.value, dict):
        raise ScenarioError(
            f"{path} holds one value and has no keys",
            key=join(path, ".".join(parts)),
            got=node.value,
            file=value.origin.place,
        )
    child = _assign(node.value.get(head), rest, value, join(path, head))
    over = {head: child}
    if _other_kind(node.value, over):
        return Node(over, value.origin)
    dropped = _dropped(path, node.value, over)
    at_once = path in _MAY_AGREE
    kept = {
        key: old for key, old in node.value.items() if key not in dropped or (at_once and old.origin == value.origin)
    }
    return Node({**kept, **over}, node.origin)


def _name_of(item: Node) -> Scalar:
    """Return the name of a pool or a tenant."""
    name = item.value.get("name") if isinstance(item.value, dict) else None
    return name.value if name is not None and not isinstance(name.value, (dict, list)) else None


def _index(part: str, length: int, path: str, origin: Origin, names: Sequence[Scalar] = ()) -> int:
    """Return a place in a list.

    :param names: of its items, where they have names.
    :raises ScenarioError: if there is none.
    """
    if part.isascii() and part.isdigit() and int(part) < length:
        return int(part)
    allowed = f"0 to {length - 1}" if length else "nothing, the list is empty"
    known = [name for name in names if isinstance(name, str)]
    if known:
        shown = [*known[:_MOST_NAMES], *(["…"] if len(known) > _MOST_NAMES else [])]
        allowed = f"{', '.join(shown)}, or {allowed}"
    problem = f"no such {'tenant' if path == _TENANTS else 'pool'}" if known else "no such index in the list"
    raise ScenarioError(problem, key=join(path, part), got=part, allowed=allowed, file=origin.place)


def _origins(node: Node, path: str) -> Iterator[tuple[str, Origin]]:
    yield path, node.origin
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from _origins(child, join(path, key))
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _origins(child, join(path, index))
