"""Names that a scenario may use, each with what stands behind it: one registry for each kind of name.

Checks, the JSON Schema, the docs, help and the what-if read names and facts from here. An entry names its class the way
an entry point does (``package.module:Class``), so that reading names imports no policy and no numpy.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from sim.errors import InputError, did_you_mean

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OURS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Entry:
    """A name, and what stands behind it. Each kind of name adds the facts that others need.

    :ivar about: one sentence or half of one, for help, docs and the schema.
    :ivar target: the class (or function, or data), or where it is: ``package.module:Name``.
    :ivar origin: where it comes from if it isn't part of loraplan, in words for error messages; else empty.
    """

    name: str
    about: str = ""
    target: Any = ""
    origin: str = ""

    def load(self) -> Any:
        """Return what the name stands for, importing it if need be.

        :raises InputError: if it comes from outside and can't be imported.
        """
        if not isinstance(self.target, str):
            return self.target
        if not self.target:
            raise self.unusable("it isn't installed here")
        module, _, path = self.target.partition(":")
        try:
            return reduce(getattr, path.split("."), import_module(module))
        except Exception as error:  # whatever somebody else's module does when it is imported
            if not self.origin:
                raise
            raise self.unusable(f"{type(error).__name__}: {error}") from error

    def unusable(self, problem: str) -> InputError:
        """Return the error for an entry from outside that can't be used."""
        hint = "mend or uninstall that package" if isinstance(self.target, str) else "mend the class"
        return InputError(f"{self.name!r} from {self.origin} can't be used: {problem}", hint=hint)

    def made(self, context: Any, methods: Sequence[str], optional: Sequence[str] = ()) -> Any:
        """Return an object of the class of an entry from outside: a mistake in it becomes an error that says so.

        :param methods: what it must have; ``optional``: what it must have too, but may be None.
        :raises InputError: if it can't be imported or made, or lacks something.
        """
        make = self.load()
        if not isinstance(make, type):
            raise self.unusable(f"it is no class but {make!r}")
        try:
            found = make(context)
        except Exception as error:  # whatever somebody else's class does when it is made
            raise self.unusable(f"making it from its context raises {type(error).__name__}: {error}") from error
        lacking = [name for name in methods if not callable(getattr(found, name, None))]
        for name in optional:
            value = getattr(found, name, False)
            if value is not None and not callable(value):
                lacking.append(f"{name} (None will do)")
        if lacking:
            raise self.unusable(f"it lacks {', '.join(lacking)}")
        return found

    def digest(self) -> str:
        """Return a hash of the code behind an entry from outside; results of other code are then not reused.

        It covers the module of the class and those of its bases (of a notebook or script the class alone), but not what
        these import, nor values that a class takes from around it. Without source code every process has another hash.

        :raises InputError: if it can't be imported, or is no class.
        """
        found = self.load()
        if not isinstance(found, type):
            raise self.unusable(f"it is no class but {found!r}")
        digest = hashlib.sha256(f"{found.__module__}:{found.__qualname__}".encode())
        for each in found.__mro__[:-1]:
            digest.update(_source(each))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Take a class along by value: a worker may have another version of its module, or none."""
        state = dict(self.__dict__)
        if isinstance(self.target, type):
            state["target"] = _packed(self.target)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        target = state["target"]
        self.__dict__.update(state, target=pickle.loads(target) if isinstance(target, bytes) else target)


def _packed(found: type) -> bytes:
    try:
        import cloudpickle
    except ImportError:  # joblib before 1.6 brings its own
        from joblib.externals import cloudpickle
    module = sys.modules.get(found.__module__)
    by_value = module is not None and found.__module__ != "__main__" and not found.__module__.startswith("sim.")
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        packed: bytes = cloudpickle.dumps(found)
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return packed


_NO_SOURCE = os.urandom(16)


def _source(found: type) -> bytes:
    """Return the source code that a class is known by; the simulator's own is covered by the version of its code."""
    file = getattr(sys.modules.get(found.__module__), "__file__", None)
    try:
        if file is not None and found.__module__ != "__main__":
            path = Path(file).resolve()
            return b"" if path.is_relative_to(_OURS) else path.read_bytes()
        return inspect.getsource(found).encode()
    except (OSError, TypeError):
        return _NO_SOURCE


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Registry(Generic[E]):
    """The names of one kind: those of loraplan in order, then those of installed packages, then those of a call.

    :ivar what: what the names are, such as ``eviction policy``.
    :ivar entries: those of loraplan. An installed package can add names, but not take one of these.
    :ivar group: the entry points by which packages add theirs; empty: they can't.
    :ivar make: makes an entry from ``name``, ``target``, ``origin`` and ``about``, with the facts of one from outside.
    :ivar suggest: finds what to say of a name that is not registered, given those that are.
    """

    what: str
    entries: tuple[E, ...]
    group: str = ""
    make: Callable[..., E] | None = None
    suggest: Callable[[str, Iterable[str]], str | None] = did_you_mean
    _ours: Mapping[str, E] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ours", {entry.name: entry for entry in self.entries})
        assert len(self._ours) == len(self.entries), "a name stands here once"

    def __iter__(self) -> Iterator[E]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self._ours

    def __getitem__(self, name: str) -> E:
        """Return loraplan's own entry of this name."""
        return self._ours[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of loraplan, without those of other packages."""
        return tuple(self._ours)

    def get(self, name: str, given: Mapping[str, E] | None = None) -> E | None:
        """Return the entry of a name; packages are searched only if no other entry has it."""
        return self._ours.get(name) or (given or {}).get(name) or self.installed.get(name)

    def all(self, given: Mapping[str, E] | None = None) -> tuple[E, ...]:
        """Return every entry, those from outside last."""
        return tuple({**self.installed, **(given or {}), **self._ours}[name] for name in self.all_names(given))

    def all_names(self, given: Mapping[str, E] | None = None) -> tuple[str, ...]:
        """Return every name, those from outside last."""
        return tuple(dict.fromkeys((*self._ours, *self.installed, *(given or {}))))

    def check(self, name: str, given: Mapping[str, E] | None = None) -> str:
        """Return a name that is registered; for validators of models.

        :raises PydanticCustomError: for another one, with those that are and the nearest.
        """
        if self.get(name, given) is not None:
            return name
        from sim.spec.base import located  # pydantic, which help does without

        error = self.unknown(name, "", given)
        raise located("", error.problem, got=name, allowed=error.allowed or "", hint=error.hint or "")

    def unknown(self, name: str, key: str, given: Mapping[str, E] | None = None) -> InputError:
        """Return the error for a name that is not registered, with those that are and the nearest."""
        known = self.all_names(given)
        hint = self.suggest(name, known)
        return InputError(f"unknown {self.what}", key=key, got=name, allowed=", ".join(known), hint=hint)

    def given(self, classes: Mapping[str, type] | None, key: str) -> dict[str, E]:
        """Return entries for classes that a call brings along.

        :param key: the parameter, for messages.
        :raises InputError: for what is no class, and names that can't be used.
        """
        assert self.make is not None, "names of this kind can come from outside"
        found = {}
        for name, target in (classes or {}).items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise InputError("not a name", key=key, got=name, allowed="letters, digits, '.', '_' and '-'")
            if name in self._ours or name in self.installed:
                raise InputError(f"this name is that of another {self.what}", key=key, got=name, hint="choose another")
            if not isinstance(target, type):
                raise InputError("not a class", key=f"{key}.{name}", got=target, hint=f'such as {key}={{"mine": Mine}}')
            about = (target.__doc__ or "").strip().partition("\n")[0]
            found[name] = self.make(name=name, target=target, origin=f"{key}=", about=about)
        return found

    def described(self, text: str) -> str:
        """Return the description of a field that takes these names: a text, then a line for each of loraplan's own."""
        return " ".join([text, *(f"``{entry.name}``: {entry.about}" for entry in self.entries)])

    @cached_property
    def installed(self) -> Mapping[str, E]:
        """The entries of installed packages; the first of two packages has a name, by the alphabet."""
        if not self.group or self.make is None:
            return {}
        found: dict[str, E] = {}
        points: Sequence[metadata.EntryPoint] = sorted(metadata.entry_points(group=self.group), key=_package)
        for point in points:
            if point.name not in self._ours and point.name not in found:
                origin = f"package {_package(point)} (entry point {self.group}: {point.name} = {point.value})"
                found[point.name] = self.make(name=point.name, target=f"{point.module}:{point.attr}", origin=origin)
        return found


def _package(point: metadata.EntryPoint) -> str:
    return "of unknown name" if point.dist is None else f"{point.dist.name} {point.dist.version}"
