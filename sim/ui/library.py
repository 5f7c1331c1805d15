"""The scenarios that a page may open, and the folder that it may write to."""

from __future__ import annotations

import hashlib
import shlex
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sim.errors import InputError, ScenarioError
from sim.results.run_directory.store import point_key
from sim.spec.files.bundled import bundled_scenarios
from sim.spec.scenario_file import LoadedScenario, load_scenario, scenario_of_text
from sim.studies.study_identity import code_version, digests_of
from sim.ui.controls import Control, controls_of, settings_of

_MOST_FILES = 200
_MOST_TEXTS = 8
"""Scenarios of visitors that are kept checked."""
_NOT_SIMULATED = ("name", "description", "sweep", "plan", "slo")
"""Keys that change no request: a recording is the same without them."""


@dataclass(frozen=True)
class Opened:
    """A scenario that a page shows, as its file has it.

    :ivar name: the file or bundled name, as commands take it.
    """

    name: str
    loaded: LoadedScenario
    controls: tuple[Control, ...]

    def design(self, values: Mapping[str, str]) -> ChosenDesign:
        """Return the design with these values of controls.

        :raises InputError: if they make no valid scenario.
        """
        settings = settings_of(self.controls, values)
        return ChosenDesign(self, tuple(settings), self.loaded.with_settings(settings) if settings else self.loaded)


@dataclass(frozen=True)
class ChosenDesign:
    """A scenario with the values that a visitor chose.

    :ivar settings: as ``--set`` has them; only what differs from the scenario.
    """

    opened: Opened
    settings: tuple[str, ...]
    loaded: LoadedScenario

    def command(self, verb: str = "run") -> str:
        """Return the command line that simulates this design."""
        words = ["loraplan", verb, self.opened.name]
        for setting in self.settings:
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
        self._texts: OrderedDict[str, Opened] = OrderedDict()

    def bundled(self) -> list[tuple[str, str]]:
        """Return name and description of every bundled scenario."""
        return [(each.name, each.description) for each in bundled_scenarios()]

    def files(self) -> list[str]:
        """Return the names of YAML files in the chosen folder, and the scenario of the command line."""
        found = sorted(
            file.name
            for pattern in ("*.yaml", "*.yml")
            for file in self.folder.glob(pattern)
            if file.is_file() and not file.is_symlink()
        )
        given = self._given
        first = [given] if given is not None and given not in found and given not in dict(self.bundled()) else []
        return [*first, *found[:_MOST_FILES]]

    def open(self, name: str, text: str | None = None) -> Opened:
        """Return a scenario.

        :param text: its content, where a visitor chose or dropped the file; then nothing is read from disk for it, but
            files in the chosen folder that it names.
        :raises InputError: with every problem found.
        """
        if text is not None:
            return self._open_text(name, text)
        if name == self._given:
            loaded = load_scenario(name, confined=self._confined, check_points=False)
        elif name in dict(self.bundled()):
            loaded = load_scenario(name, check_points=False)
        elif name in self.files():
            loaded = load_scenario(str(self.folder / name), confined=True, check_points=False)
        else:
            raise ScenarioError("no such scenario here", got=name, hint="choose one of the list, or drop a file")
        return Opened(name, loaded, controls_of(loaded.scenario))

    def _open_text(self, name: str, text: str) -> Opened:
        known = hashlib.sha256(f"{name}\0{text}".encode()).hexdigest()
        if known not in self._texts:
            short = Path(name).name[:100] or "scenario.yaml"
            loaded = scenario_of_text(text.encode(), short, self.folder)
            self._texts[known] = Opened(short, loaded, controls_of(loaded.scenario))
            while len(self._texts) > _MOST_TEXTS:
                self._texts.popitem(last=False)
        self._texts.move_to_end(known)
        return self._texts[known]


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
        text = str(problem).removeprefix("--set: ") if places else str(problem)
        found += [{"control": ident, "text": text.removeprefix(f"{each.key}: ")} for ident, each in places.items()]
        if not places:
            found.append({"control": "", "text": text})
    return found
