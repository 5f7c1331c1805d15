"""What a section, or a whole scenario, must be: rows of tables, from which the checks follow.

A ``Rule`` says when something is wrong. A ``Need`` says which values keys must have, and a ``Choice`` which needs come
with a value of a key. All are rows of one kind: ``errors`` returns what is broken.

Scenarios are looked at key by key, as any model: the module of ``Scenario`` imports this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from sim.spec.base import located
from sim.spec.policies import EVICTIONS
from sim.spec.registry import Entry


def value_of(scenario: BaseModel, key: str) -> Any:
    """Return the value of a dotted key, with the default of ``fleet.load_at`` resolved; None: it is unset."""
    value: Any = scenario
    for part in _path(key):
        if value is None:
            break
        value = getattr(value, part)
    return value


@cache
def _path(key: str) -> tuple[str, ...]:
    return ("load_at",) if key == "fleet.load_at" else tuple(key.split("."))


def words_of(value: object) -> str:
    """Return a value as a scenario file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {words_of(value)}" for key, value in values.items())


Found = Sequence[PydanticCustomError]


class Row(Protocol):
    """A row of a table of rules."""

    def errors(self, model: Any) -> Found:
        """Return what is wrong with a model."""


@dataclass(frozen=True)
class Rule:
    """Something that must not be. Of a list, the first entry that breaks the rule is reported.

    Texts have the model as ``{s}``; with a key such as ``faults.{i}.at``, also the entry as ``{it}``.

    :ivar text: the key that the error names, and what is wrong: ``router.copies: there are fewer replicas``.
    :ivar wrong: looks at ``s``, or at ``s``, ``it`` and ``i`` for each entry. False: all is well. True: it is wrong.
        Any other value is what the error shows as wrong; a dictionary has it as ``got``, and more for the texts.
    """

    text: str
    wrong: Callable[..., object]
    allowed: str = ""
    hint: str = ""
    _entries: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        key, is_list, _ = self.text.partition(".{i}")
        object.__setattr__(self, "_entries", key if is_list else "")

    def errors(self, model: Any) -> Found:
        """Return the error of a model that breaks the rule."""
        if not self._entries:
            found = self.wrong(model)
            return [self._error(found, s=model)] if found else ()
        for i, it in enumerate(value_of(model, self._entries)):
            if found := self.wrong(model, it, i):
                return [self._error(found, s=model, it=it, i=i)]
        return ()

    def _error(self, found: object, **facts: object) -> PydanticCustomError:
        facts |= found if isinstance(found, dict) else {"got": None if found is True else found}
        texts = (*self.text.split(": ", 1), self.allowed, self.hint)
        key, problem, allowed, hint = (text.format(**facts) for text in texts)
        return located(key, problem, got=facts.get("got"), allowed=allowed, hint=hint)


class When:
    """Rows of the models for which ``applies`` holds."""

    def __init__(self, applies: Callable[[Any], object], *rows: Row) -> None:
        self._applies, self.rows = applies, rows

    def errors(self, model: Any) -> Found:
        """Return what is wrong with a model to which the rows apply."""
        return broken(model, self.rows) if self._applies(model) else ()


class First:
    """Rows of which only the first that is broken counts, because what breaks it mostly breaks others as well."""

    def __init__(self, *rows: Row) -> None:
        self.rows = rows

    def errors(self, model: Any) -> Found:
        """Return what is wrong with a model by the first row that it breaks."""
        return next((found for row in self.rows if (found := row.errors(model))), ())


def broken(model: BaseModel, rows: Iterable[Row]) -> list[PydanticCustomError]:
    """Return what is wrong with a model."""
    return [error for row in rows for error in row.errors(model)]


@dataclass(frozen=True)
class Values:
    """The values that a key may have.

    :ivar words: the values, for a table.
    :ivar allow: whether a value, which is not None, is one of them in a scenario.
    :ivar listed: the values, for an error message.
    """

    words: str
    allow: Callable[[Any, BaseModel], bool]
    listed: Callable[[BaseModel], str]


def only(*values: object) -> Values:
    """Return one of these values; without any, the key must be unset."""
    words = " or ".join(map(words_of, values)) or "unset"
    return Values(words, lambda value, scenario: value in values, lambda scenario: words)


UNSET = only()


def eviction_but(*names: str) -> Values:
    """Return any eviction policy but these."""
    others = ", ".join(name for name in EVICTIONS.names if name not in names)
    return Values(f"any but {', '.join(names)}", lambda value, scenario: value not in names, lambda scenario: others)


def at_least(key: str) -> Values:
    """Return at least as much as another key has, where that is set."""
    return Values(
        f"at least {key}",
        lambda value, scenario: bool(value >= (value_of(scenario, key) or 0)),
        lambda scenario: f"at least {key} ({value_of(scenario, key)})",
    )


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

    def errors(self, model: BaseModel) -> Found:
        """Return the error of a scenario that does not meet it, with the key that is wrong and what is allowed."""
        got = {key: value_of(model, key) for key in self.keys}
        wrong = [key for key, value in got.items() if value is not None and not self.keys[key].allow(value, model)]
        if not wrong:
            return ()
        allowed = {key: values.listed(model) for key, values in self.keys.items()}
        at = self.at or wrong[0]
        if list(got) == [at]:
            return [located(at, self.why, got=got[at], allowed=allowed[at], hint=self.hint)]
        return [located(at, self.why, got=_listed(got), allowed=_listed(allowed), hint=self.hint)]


@dataclass(frozen=True, kw_only=True)
class Choice(Entry):
    """Something that a scenario can choose, and what it then needs; a mode names its class as its target.

    :ivar set_by: values of keys, by dotted key; any one of them chooses it. ``set``: any value.
    """

    set_by: Mapping[str, str | bool]
    needs: tuple[Need, ...] = ()

    def is_set(self, scenario: BaseModel) -> bool:
        """Return whether a scenario chooses it."""
        found = [(value_of(scenario, key), value) for key, value in self.set_by.items()]
        return any(got == value or (value == "set" and got is not None) for got, value in found)

    def errors(self, model: BaseModel) -> Found:
        """Return the errors of the needs that a scenario does not meet, if it chooses this."""
        return broken(model, self.needs) if self.is_set(model) else ()
