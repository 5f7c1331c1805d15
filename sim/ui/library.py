"""The scenarios that a page may open, and the folder that it may write to."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from sim.errors import InputError, ScenarioError
from sim.results.run_directory.result_files import point_key
from sim.spec.scenario_file import LoadedScenario, bundled_scenarios, load_scenario, scenario_of_text
from sim.studies.study_identity import code_version, digests_of
from sim.ui.controls import Control, controls_of, settings_of

SAVED = "scenario.yaml"
"""What the page calls a design that it saves."""
_MOST_FILES = 200
_A_SCENARIO, _LOOKED_AT = re.compile(r"^\W*(schema_version|extends)\b", re.MULTILINE), 65_536
_MOST_LETTERS = 100
_MOST_OPEN = 8
"""Scenarios that are kept checked."""
_MOST_DESIGNS = 64
"""Designs of each of them: a curve has up to 13."""
_NOT_SIMULATED = ("name", "description", "sweep", "plan", "slo")
"""Keys that change no request: a recording is the same without them."""


Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")


def kept_last(found: OrderedDict[Key, Kept], key: Key, most: int) -> Kept:
    """Return what is kept under a key, which is then the last used; of more than ``most``, forget the first used."""
    found.move_to_end(key)
    while len(found) > most:
        found.popitem(last=False)
    return found[key]


@dataclass(frozen=True)
class Opened:
    """A scenario that a page shows, as its file has it.

    :ivar name: the file or bundled name, as the page shows it.
    :ivar path: what commands take for it; empty for a text that was dropped on the page, which has no file here.
    """

    name: str
    path: str
    loaded: LoadedScenario
    controls: tuple[Control, ...]
    _designs: OrderedDict[tuple[str, ...], ChosenDesign] = field(default_factory=OrderedDict, compare=False, repr=False)

    def design(self, values: Mapping[str, str]) -> ChosenDesign:
        """Return the design with these values of controls.

        :raises InputError: if they make no valid scenario.
        """
        settings = tuple(settings_of(self.controls, values))
        if settings not in self._designs:
            loaded = self.loaded.with_settings(settings) if settings else self.loaded
            self._designs[settings] = ChosenDesign(self, settings, loaded)
        return kept_last(self._designs, settings, _MOST_DESIGNS)


@dataclass(frozen=True)
class ChosenDesign:
    """A scenario with the values that a visitor chose.

    :ivar settings: as ``--set`` has them; only what differs from the scenario.
    """

    opened: Opened
    settings: tuple[str, ...]
    loaded: LoadedScenario

    def command(self, verb: str = "run") -> str:
        """Return the command line that simulates this design; without a file, that of the saved design."""
        words = ["loraplan", verb, self.opened.path or SAVED]
        for setting in self.settings if self.opened.path else ():
            words += ["--set", setting]
        return shlex.join(words)

    @cached_property
    def key(self) -> str:
        """What its numbers follow from, as a name: the scenario, its files and the code.

        :raises InputError: if a file can't be read.
        """
        return point_key(self.loaded.data, {}, code_version(), digests_of(self.loaded))

    @cached_property
    def traffic_key(self) -> str:
        """What its requests follow from, as a name: designs that differ in their SLO alone share it."""
        data = {key: value for key, value in self.loaded.data.items() if key not in _NOT_SIMULATED}
        return point_key(data, {}, code_version(), digests_of(self.loaded))


def _is_scenario(file: Path) -> bool:
    """Return whether a YAML file has a key that every scenario has."""
    try:
        with file.open(encoding="utf-8", errors="replace") as content:
            return _A_SCENARIO.search(content.read(_LOOKED_AT)) is not None
    except OSError:
        return False


class Library:
    """Bundled scenarios, those in the chosen folder, and texts that visitors drop.

    :param folder: where scenarios are looked for and reports are written; nothing outside it is read for a visitor.
    :param given: the scenario of the command line, which may lie anywhere.
    :param confined: whether that may name files in its own folder only.
    """

    def __init__(self, folder: Path, given: str | None = None, *, confined: bool = False) -> None:
        self.folder = folder.resolve()
        self._given = given
        self._confined = confined
        self._opened: OrderedDict[str, Opened] = OrderedDict()

    def files(self) -> list[str]:
        """Return the names of scenarios in the chosen folder, and the scenario of the command line."""
        found = sorted(
            file.name
            for pattern in ("*.yaml", "*.yml")
            for file in self.folder.glob(pattern)
            if file.is_file() and not file.is_symlink() and _is_scenario(file)
        )
        given = self._given
        first = [given] if given is not None and given not in found and given not in bundled_scenarios() else []
        return [*first, *found[:_MOST_FILES]]

    def open(self, name: str, text: str | None = None, *, again: bool = True) -> Opened:
        """Return a scenario.

        :param text: its content, where a visitor chose or dropped the file; then nothing is read from disk for it, but
            files in the chosen folder that it names.
        :param again: read it again, as a page does when it is loaded; else it is as it was when it was last opened.
        :raises InputError: with every problem found.
        """
        key = name if text is None else hashlib.sha256(f"{name}\0{text}".encode()).hexdigest()
        if again or key not in self._opened:
            short = name if text is None else Path(name).name[:_MOST_LETTERS] or SAVED
            loaded = self._load(name) if text is None else scenario_of_text(text.encode(), short, self.folder)
            path = self._path(name) if text is None else ""
            self._opened[key] = Opened(short, path, loaded, controls_of(loaded.scenario))
        return kept_last(self._opened, key, _MOST_OPEN)

    def _path(self, name: str) -> str:
        if name == self._given or name in bundled_scenarios():
            return name
        return os.path.relpath(self.folder / name)

    def _load(self, name: str) -> LoadedScenario:
        if name == self._given:
            return load_scenario(name, confined=self._confined, check_points=False)
        if name in bundled_scenarios():
            return load_scenario(name, check_points=False)
        if name in self.files():
            return load_scenario(str(self.folder / name), confined=True, check_points=False)
        raise ScenarioError("no such scenario here", got=name, hint="choose one of the list, or drop a file")


def problems_of(error: InputError, controls: tuple[Control, ...], moved: str | None) -> list[dict[str, str]]:
    """Return every problem with the control that it belongs to; ``control`` is empty where none does.

    A problem that the last move has caused may be about another key: then it stands at both.

    :param moved: key of the control that was moved last.
    """
    by_key = {control.key: control for control in controls}
    found = []
    for problem in getattr(error, "errors", [error]):
        key = problem.key or ""
        own = by_key.get(key) or next((each for each in controls if key and each.key.startswith(f"{key}.")), None)
        places = {each.ident: each for each in (own, by_key.get(moved or "")) if each is not None}
        text = str(problem)
        if places:  # at a control, the line of the file from which the value would be does not help
            placed = copy(problem)
            placed.file = placed.line = None
            text = str(placed)
        found += [{"control": ident, "text": text.removeprefix(f"{each.key}: ")} for ident, each in places.items()]
        if not places:
            found.append({"control": "", "text": text})
    return found
