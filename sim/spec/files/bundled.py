"""Bundled scenarios: listed, found by name, copied for editing."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sim.errors import OutputError, ScenarioError, did_you_mean
from sim.spec.files.tree import files_of, plain
from sim.spec.files.yaml_tree import read_yaml

_EDITOR_LINE = re.compile(r"(?m)^(# yaml-language-server: \$schema=)\S+$")


@dataclass(frozen=True, slots=True)
class BundledScenario:
    """One scenario of the application; ``description`` is its own."""

    name: str
    description: str
    path: Path


def bundled_folder() -> Path:
    """Return the folder that holds the bundled scenarios."""
    # The application is installed as plain files, never run from a zip: other tools read these too.
    return Path(str(resources.files("scenarios")))


def bundled_scenarios() -> list[BundledScenario]:
    """Return the bundled scenarios by name."""
    found = []
    for path in sorted(bundled_folder().glob("*.yaml")):
        data = plain(read_yaml(path, str(path)))
        found.append(BundledScenario(path.stem, str(data.get("description", "")), path))
    return found


def bundled_path(name: str) -> Path:
    """Return the file of a bundled scenario.

    :raises ScenarioError: if there is none of that name;
    """
    names = [path.stem for path in sorted(bundled_folder().glob("*.yaml"))]
    if name in names:
        return bundled_folder() / f"{name}.yaml"
    raise ScenarioError(
        f"no file and no bundled scenario is called {name!r}",
        allowed="a YAML file, or a name from loraplan scenarios list",
        hint=did_you_mean(name, names),
    )


def copy_scenario(name: str, destination: Path) -> Path:
    """Copy a bundled scenario and the files it reads, for editing; return the new file.

    :param destination: a folder, or the name of the new file. Nothing is overwritten.
    :raises ScenarioError: if there is no such scenario.
    :raises OutputError: if a file is there already or can't be written.
    """
    source = bundled_path(name)
    target = destination / source.name if destination.is_dir() else destination
    schema = source.parent / "schema" / "scenario.schema.json"
    text = source.read_text(encoding="utf-8")
    # The schema is named relative to the bundled file, and an editor finds it from anywhere by its full path.
    text = _EDITOR_LINE.sub(lambda match: match[1] + schema.as_uri(), text)
    copies = [(source.parent / file, target.parent / file) for file in _files(source)]
    for path in (target, *(copy for _, copy in copies)):
        if path.exists():
            raise OutputError("this file already exists", file=str(path), hint="nothing was copied; give another name")
    try:
        with target.open("x", encoding="utf-8") as out:
            out.write(text)
        for original, copy in copies:
            copy.parent.mkdir(parents=True, exist_ok=True)
            if original.is_dir():
                shutil.copytree(original, copy)
            else:
                shutil.copyfile(original, copy)
    except OSError as error:
        raise OutputError(f"can't write this file: {error.strerror}", file=str(target)) from None
    return target


def _files(source: Path) -> list[str]:
    """Return the relative files that a scenario's own keys name."""
    data: Any = plain(read_yaml(source, str(source)))
    return [file for _, file in files_of(data) if not Path(file).is_absolute()]
