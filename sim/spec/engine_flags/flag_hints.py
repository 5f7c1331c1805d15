"""What a scenario has for an option of an engine that stands where a key should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from sim.spec.engine_flags.flag import Flag, bare
from sim.spec.engine_flags.flag_tables import FLAGS

_MOST_HINTS = 3


def flag_hint(key: str, value: object = None) -> str | None:
    """Return what a scenario has for an option of an engine that stands where a key should; None: it is no option.

    :param key: the dotted key whose last part, or last two, may name an option.
    :param value: what stands there. Configurations of engines have sections, so keys of a mapping are tried too.
    """
    before, _, word = key.rpartition(".")
    hints = [_hint(f"{before.rpartition('.')[2]}.{word}") or _hint(word)]
    if isinstance(value, Mapping):
        hints += [_hint(f"{word}.{inner}") or _hint(str(inner)) for inner in value]
    found = list(dict.fromkeys(hint for hint in hints if hint))
    return "; ".join(found[:_MOST_HINTS]) or None


def _hint(name: str) -> str | None:
    groups: dict[tuple[str, ...], list[tuple[str, Flag]]] = {}
    for engine, flag in _by_name().get(bare(name), ()):
        groups.setdefault(flag.sets or (flag.about,), []).append((engine, flag))
    return "; ".join(_sentence(group, bare(name)) for group in groups.values()) or None


def _sentence(group: list[tuple[str, Flag]], name: str) -> str:
    """Return what options of one meaning, which engines share under this name, are in a scenario."""
    engines = [engine for engine, _ in group]
    flag = group[0][1]
    whose = f"{engines[0]}'s {flag.name}"
    if len(engines) > 1:
        shared = next(each for each in (flag.name, *flag.also) if bare(each) == name)
        whose = f"{shared} of {', '.join(engines[:-1])} and {engines[-1]}"
    if not flag.sets:
        return f"{whose} has no equivalent here: {flag.about}"
    about = f" ({flag.about})" if flag.about and all(other.about == flag.about for _, other in group) else ""
    return f"{whose} is {' and '.join(flag.sets)} here{about}"


@lru_cache(maxsize=1)
def _by_name() -> dict[str, list[tuple[str, Flag]]]:
    found: dict[str, list[tuple[str, Flag]]] = {}
    for engine in FLAGS:
        for flag in engine.flags:
            for name in dict.fromkeys(_names(flag)):
                found.setdefault(name, []).append((engine.name, flag))
    return found


def _names(flag: Flag) -> Iterator[str]:
    for name in (flag.name, *flag.also):
        yield bare(name)
