"""What a choice in a scenario needs of other keys: rows of a table, from which the checks follow.

Scenarios are looked at key by key, as any model: the module of ``Scenario`` imports this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from sim.spec.base import located
from sim.spec.policies import EVICTIONS
from sim.spec.registry import Entry


def value_of(scenario: BaseModel, key: str) -> Any:
    """Return the value of a dotted key, with the default of ``fleet.load_at`` resolved; None: it is unset."""
    if key == "fleet.load_at":
        key = "load_at"
    value: Any = scenario
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return value


def words_of(value: object) -> str:
    """Return a value as a scenario file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {words_of(value)}" for key, value in values.items())


class Values(ABC):
    """The values that a key may have.

    :ivar words: the values, for a table.
    """

    words: str

    @abstractmethod
    def allow(self, value: Any, scenario: BaseModel) -> bool:
        """Return whether a value, which is not None, is one of them."""

    def listed(self, scenario: BaseModel) -> str:
        """Return the values, for an error message."""
        return self.words


class Only(Values):
    """One of these values; without any, the key must be unset."""

    def __init__(self, *values: object) -> None:
        self._values = values
        self.words = " or ".join(words_of(value) for value in values) or "unset"

    def allow(self, value: Any, scenario: BaseModel) -> bool:
        return value in self._values


UNSET = Only()


class EvictionBut(Values):
    """Any eviction policy but these."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.words = f"any but {', '.join(names)}"

    def allow(self, value: Any, scenario: BaseModel) -> bool:
        return value not in self._names

    def listed(self, scenario: BaseModel) -> str:
        return ", ".join(name for name in EVICTIONS.names if name not in self._names)


class AtLeast(Values):
    """At least as much as another key."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.words = f"at least {key}"

    def allow(self, value: Any, scenario: BaseModel) -> bool:
        return bool(value >= value_of(scenario, self._key))

    def listed(self, scenario: BaseModel) -> str:
        return f"{self.words} ({value_of(scenario, self._key)})"


@dataclass(frozen=True)
class Need:
    """Values that keys of a scenario must have. A key that is unset meets every need.

    :ivar keys: the allowed values by dotted key. Several keys are needed together.
    :ivar why: the reason, which is also the problem that the error states.
    :ivar at: the key that the error names; empty: the first whose value is not allowed.
    :ivar hint: what to do, where it isn't obvious.
    """

    keys: Mapping[str, Values]
    why: str
    at: str = ""
    hint: str = ""

    def check(self, scenario: BaseModel) -> None:
        """Refuse a scenario that does not meet this need.

        :raises PydanticCustomError: with the key that is wrong, its value and what is allowed.
        """
        got = {key: value_of(scenario, key) for key in self.keys}
        wrong = [key for key, value in got.items() if value is not None and not self.keys[key].allow(value, scenario)]
        if not wrong:
            return
        allowed = {key: values.listed(scenario) for key, values in self.keys.items()}
        at = self.at or wrong[0]
        if list(got) == [at]:
            value = words_of(got[at]) if isinstance(got[at], bool) else got[at]
            raise located(at, self.why, got=value, allowed=allowed[at], hint=self.hint)
        raise located(at, self.why, got=_listed(got), allowed=_listed(allowed), hint=self.hint)


@dataclass(frozen=True, kw_only=True)
class Choice(Entry):
    """Something that a scenario can choose, and what it then needs; a mode names its class as its target.

    :ivar set_by: values of keys, by dotted key; any one of them chooses it.
    """

    set_by: Mapping[str, str | bool]
    needs: tuple[Need, ...] = ()

    def is_set(self, scenario: BaseModel) -> bool:
        """Return whether a scenario chooses it."""
        return any(value_of(scenario, key) == value for key, value in self.set_by.items())
