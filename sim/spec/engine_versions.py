"""Versions of engines: whose rules each has, and what is said of a name that stands for none.

``sim/spec/engines.py`` finds the preset of a name with this; nothing else compares names of engines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sim.errors import did_you_mean


@dataclass(frozen=True)
class Versions:
    """Versions of an engine whose scheduling rules are the same.

    :ivar first: the first of them; they reach up to the next row of their table.
    :ivar words: the same, for tables and messages.
    :ivar preset: the name of the preset that has their rules, or of the nearest.
    :ivar about: these rules, or why there is no preset; goes on after the engine's name and ``words``.
    :ivar simulated: whether the preset has their rules, so that a scenario may name these versions.
    """

    first: tuple[int, ...]
    words: str
    preset: str
    about: str
    simulated: bool = True


_KEEP = "keeps the order of requests over the adapter limit"
_AHEAD = "schedules steps ahead on GPUs, as all newer ones do"
_APART = "tries requests over the adapter limit before all others, also before preempted ones"
_CHUNK, _WHOLE = "needs KV blocks for the first chunk", "needs KV blocks for the whole prompt"
VERSIONS: Mapping[str, tuple[Versions, ...]] = {
    # v1/core/sched/scheduler.py and v1/core/block_pool.py of 0.8.5, 0.9.1, 0.9.2, 0.10.2, 0.11.2, 0.12 to 0.14, 0.16 to
    # 0.20, 0.22 to 0.24, 0.28 and 0.30 to 0.33 were read, and steps of 0.11.2, 0.16.0, 0.19.0, 0.28.0, 0.32.0 and
    # 0.33.0 replayed (tests/property/test_records.py).
    "vLLM": (
        Versions((0,), "up to 0.7", "vllm-0.8", "runs the V0 engine, whose rules are different", simulated=False),
        Versions(
            (0, 8),
            "0.8.0 to 0.8.2",
            "vllm-0.8",
            "differs in one rule: a request over the adapter limit holds up all behind it",
            simulated=False,
        ),
        Versions((0, 8, 3), "0.8.3 to 0.9.1", "vllm-0.8", f"{_KEEP}; {_CHUNK}"),
        Versions(
            (0, 9, 2),
            "0.9.2 to 0.13",
            "vllm-0.9.2",
            f"reverses the order of requests over the adapter limit with every step; {_CHUNK}",
        ),
        Versions((0, 14), "0.14 to 0.17", "vllm-0.14", f"{_AHEAD}; {_KEEP}; {_CHUNK}"),
        Versions((0, 18), "0.18", "vllm-0.18", f"{_APART}; {_CHUNK}"),
        Versions((0, 19), "0.19 to 0.22", "vllm-0.19", f"{_APART}; {_WHOLE}"),
        Versions(
            (0, 23), "0.23 to 0.30", "vllm-0.23", "does the same, and reuses blocks that are not cached before others"
        ),
        Versions((0, 31), "0.31 and 0.32", "vllm-0.32", f"{_KEEP}; {_WHOLE}; reuses blocks that are not cached first"),
        Versions(
            (0, 33),
            "0.33",
            "vllm-0.33",
            "does the same, and counts the adapters of all running requests for the adapter limit",
        ),
        Versions((0, 34), "from 0.34 on", "vllm-0.33", "was not read; this is the newest preset", simulated=False),
    ),
    "SGLang": (
        Versions(
            (0,),
            "up to 0.5.6",
            "sglang",
            "has another rule of admission (set fleet.admission: stop) and, up to 0.5.3, of eviction",
            simulated=False,
        ),
        # 0.5.7 to 0.5.12 were read for differences, and 0.5.23 whole.
        Versions(
            (0, 5, 7), "0.5.7 to 0.5.23", "sglang", "passes a request over the adapter limit; evicts by LRU, or FIFO"
        ),
        Versions((0, 5, 24), "from 0.5.24 on", "sglang", "was not read; this is the newest preset", simulated=False),
    ),
}
"""By engine, oldest first. In a table a version without its third number is that version's first release."""

_NUMBERS = r"[0-9]{1,6}(?:\.[0-9]{1,6})*"
_WRITTEN = re.compile(rf"([a-z]+)(?:[ =_-]*v?({_NUMBERS})(?:\.?(?:post|rc|dev|a|b)[0-9]*)?(?:\+[a-z0-9.]+)?)?")
"""A name as people write it: ``vllm``, ``vllm-0.12``, ``vLLM v0.12.0``, ``vllm==0.8.5.post1``."""
NAMES_SCHEMA = {
    "type": "string",
    "pattern": r"^([vV][lL]{2}[mM]|[sS][gG][lL][aA][nN][gG])([ =_-]*v?0\.[0-9].*)?$",
    "examples": ["vllm-0.12", "sglang-0.5.10"],
}
"""Names of versions, in the terms of JSON Schema; the checks of a scenario say more."""
_LOOSE = re.compile(rf"([a-z]+?)(?:v?({_NUMBERS}).*)?", re.DOTALL)


def versions_of(name: str) -> Versions | None:
    """Return the versions whose rules a name stands for; None: for none, or for an engine without versions.

    A name without a version stands for the newest whose rules are known.
    """
    found = _WRITTEN.fullmatch(name.lower())
    rows = _rows(found[1]) if found else ()
    if not found or not rows:
        return None
    known = [row for row in rows if row.simulated]
    if found[2] is None:
        return known[-1] if known else None
    named = [row for row in known if found[2] == row.preset.rpartition("-")[2]]
    row = named[0] if named else _row(rows, found[2])
    return row if row.simulated else None


AHEAD_SINCE = (0, 14)
"""The first version of vLLM that schedules steps ahead on GPUs by default."""


def schedules_ahead(name: str) -> bool:
    """Return whether a name is of a version of vLLM that schedules steps ahead on GPUs by default."""
    row = versions_of(name)
    return row is not None and row in VERSIONS["vLLM"] and row.first >= AHEAD_SINCE


def has_version(name: str) -> bool:
    """Return whether a name that stands for versions names one, or just the engine."""
    found = _WRITTEN.fullmatch(name.lower())
    return found is not None and found[2] is not None


def release_of(name: str) -> str | None:
    """Return the release to install for the rules of an engine's name: ``0.32.0`` for ``vllm``.

    Of a name without a version it is the newest with these rules.

    :return: three numbers; None: the engine has no versions here.
    """
    written, row = _WRITTEN.fullmatch(name.lower()), versions_of(name)
    if written is None or row is None:
        return None
    number = written[2] or re.findall(_NUMBERS, row.words)[-1]
    return ".".join([*number.split("."), "0", "0"][: max(3, number.count(".") + 1)])


def nearest_version(name: str) -> Versions:
    """Return the row of a version of an engine, also of one without a preset; vLLM's newest for what is none."""
    found = _LOOSE.fullmatch(_bare(name))
    rows = _rows(found[1]) if found else ()
    return versions_of(name) or _row(rows or VERSIONS["vLLM"], (found and found[2]) or "999")


def is_same_engine(name: str, other: str) -> bool:
    """Return whether two names are of the same engine and, as far as both say it, of the same minor version.

    :param other: may go on after the version, such as ``vLLM 0.8.5, V1``.
    """
    one, two = (_LOOSE.fullmatch(_bare(each)) for each in (name, other))
    if one is None or two is None or one[1] != two[1]:
        return _bare(other).startswith(_bare(name))
    version = _version(name)
    return version is None or two[2] is None or version.split(".")[:2] == two[2].split(".")[:2]


def version_distance(name: str, other: str) -> float:
    """Return how many minor versions lie between two names of one engine; a name without a version is its newest.

    :return: infinite where a version is not known.
    """
    numbers = []
    for each in (name, other):
        version = _version(each)
        if version is None:
            return math.inf
        major, minor = (*map(int, version.split(".")), 0)[:2]
        numbers.append(1000 * major + minor)
    return float(abs(numbers[0] - numbers[1]))


def suggest_engine(name: str, known: Iterable[str]) -> str | None:
    """Return what to say of a name that stands for no engine: the nearest preset, and why it has none."""
    if number := re.fullmatch(rf"v?({_NUMBERS})", _bare(name)):
        return f"name the engine too, such as vllm-{number[1]}"
    spelled = {_bare(each): each for each in known}
    found = _LOOSE.fullmatch(_bare(name))
    if _bare(name) in spelled or found is None:
        return did_you_mean(spelled.get(_bare(name), name), spelled.values())
    engine, version = found.groups()
    family = next((each for each in VERSIONS if each.lower() == engine), None)
    if family is None or version is None:
        return did_you_mean(spelled.get(engine, name), spelled.values())
    row = _row(VERSIONS[family], version)
    if row.simulated:
        return f"write {family.lower()}-{version}"
    return f"the nearest preset is {row.preset}: {family} {row.words} {row.about}"


def _version(name: str) -> str | None:
    """Return the version in a name, or the one whose preset it stands for; None: neither is known."""
    found, row = _LOOSE.fullmatch(_bare(name)), versions_of(name)
    return (found and found[2]) or (row.preset.rpartition("-")[2] if row and "-" in row.preset else None)


def _rows(engine: str) -> tuple[Versions, ...]:
    return next((rows for family, rows in VERSIONS.items() if family.lower() == engine), ())


def _row(rows: Iterable[Versions], version: str) -> Versions:
    numbers = tuple(map(int, version.split(".")))
    return [row for row in rows if row.first <= numbers][-1]


def _bare(name: str) -> str:
    """Return a name without what people write between its parts: ``TensorRT-LLM``, ``s_lora``, ``vllm==0.12``."""
    return re.sub(r"[^a-z0-9.]", "", name.lower())
