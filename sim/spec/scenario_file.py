"""Reads a file, the files it extends and ``--set`` into one checked scenario with the origin of each value."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from sim.errors import InputError, OutputError, ScenarioError, SeveralErrors, UnknownKeyError, did_you_mean
from sim.spec.engine_flags.options import flag_hint
from sim.spec.engines import preset_value
from sim.spec.files import tree
from sim.spec.files.problems import keys_ending, known_keys, longer_key, misplaced_flags, problems
from sim.spec.files.tree import Node, Origin, files_of, plain, without_indexes
from sim.spec.files.yaml_tree import parse_yaml, read_yaml, yaml_mapping
from sim.spec.policies import Given
from sim.spec.scenario import Scenario

# Bundled scenarios: listed, found by name, copied for editing.

_EDITOR_LINE = re.compile(r"(?m)^(# yaml-language-server: \$schema=)\S+$")


def bundled_folder() -> Path:
    """Return the folder that holds the bundled scenarios."""
    # The application is installed as plain files, never run from a zip: other tools read these too.
    return Path(str(resources.files("scenarios")))


def bundled_scenarios() -> dict[str, str]:
    """Return the descriptions of the bundled scenarios by name."""
    paths = sorted(bundled_folder().glob("*.yaml"))
    return {path.stem: str(plain(read_yaml(path, str(path))).get("description", "")) for path in paths}


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
    named = [file for _, file in files_of(plain(read_yaml(source, str(source)))) if not Path(file).is_absolute()]
    copies = [(source.parent / file, target.parent / file) for file in named]
    for path in (target, *(new for _, new in copies)):
        if path.exists():
            raise OutputError("this file already exists", file=str(path), hint="nothing was copied; give another name")
    try:
        with target.open("x", encoding="utf-8") as out:
            out.write(text)
        for original, new in copies:
            new.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if original.is_dir() else shutil.copyfile)(original, new)
    except OSError as error:
        raise OutputError(f"can't write this file: {error.strerror}", file=str(target)) from None
    return target


_SET = Origin("--set")
_SEED = Origin("--seed")
_SWEEP = Origin("sweep")
MAX_CHAIN = 20
"""Scenarios that extend each other, at most."""
_NOT_INHERITED = ("sweep",)
"""Keys that a file has for itself alone: its grid seldom fits the scenarios that extend it."""
_NOT_SWEPT = ("schema_version", "name", "description", "sweep", "plan")

_NAMED = ("fleet.engine", "fleet.profile", "cache.eviction", "router.policy")
"""Keys that always have a name. ``--set`` with nothing behind the sign, which removes other keys, is an error here: it
is what a shell makes of a variable that is unset."""


@dataclass(frozen=True)
class LoadedScenario:
    """A checked scenario and where its values were written.

    :ivar scenario: the models.
    :ivar data: the merged plain data; it validates again to the same scenario, from any folder.
    :ivar origins: by dotted path, the root as ``""``.
    :ivar source: the file or bundled name, as the user gave it.
    :ivar confines: the folder that must contain all its files, also those of its points.
    """

    scenario: Scenario
    data: dict[str, Any]
    origins: dict[str, Origin]
    source: str
    confines: Path | None = None

    def with_policies(self, given: Given) -> LoadedScenario:
        """Return this scenario with more policies that its points may name."""
        root = tree.planted(self.data, Origin(self.source), self.origins)
        return replace(_checked(root, self.source, self.scenario.given | given), confines=self.confines)

    def with_values(self, values: Mapping[str, Any], origin: Origin = _SWEEP) -> LoadedScenario:
        """Return the scenario of one sweep point: these dotted keys set, by the rules of ``--set``.

        :param origin: where they were given, as errors name it.
        :raises InputError: if the result is no valid scenario (``SeveralErrors`` for more than one problem).
        """
        root = tree.planted(self.data, Origin(self.source), self.origins)
        for key in tree.tags_first(values):
            node = tree.planted(values[key], origin)
            root = tree.assign(root, key, tree.with_absolute_files(node, Path.cwd(), key, self.confines))
        return replace(_checked(root, self.source, self.scenario.given), confines=self.confines)

    def with_settings(self, settings: Sequence[str]) -> LoadedScenario:
        """Return this scenario with further ``--set``, each as a command line has it: ``a.b.c=value``.

        :raises InputError: if the result is no valid scenario (``SeveralErrors`` for more than one problem).
        """
        root = _set(tree.planted(self.data, Origin(self.source), self.origins), settings, self.confines)
        return replace(_checked(root, self.source, self.scenario.given), confines=self.confines)

    def locate(self, error: InputError) -> InputError:
        """Return the error with the place where its key, or the section around it, was written.

        Of a file that can't be read, that is where the scenario names it.
        """
        key = next((key for key, path in files_of(self.data) if path == error.file and error.line is None), None)
        if key and error.got is None:
            error = type(error)(error.problem, key=key, got=error.file, hint=error.hint)
        return _located(error, self.origins)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (key, value, origin) of every value, defaults included, in the order of the sections."""
        dumped = self.scenario.model_dump(mode="json", by_alias=True)
        return [(key, value_text(value), self._origin_text(key)) for key, value in _leaves(dumped, "")]

    def _origin_text(self, key: str) -> str:
        if key in self.origins:
            return str(self.origins[key])
        engine = self.scenario.fleet.engine
        return "default" if preset_value(engine, key) is None else f"engine {engine}"


def load_scenario(
    source: str,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    confined: bool = False,
    check_points: bool = True,
    given: Given = Given(),  # noqa: B008 — frozen
) -> LoadedScenario:
    """Read, merge and check a scenario.

    :param source: a YAML file, or the name of a bundled scenario.
    :param overrides: ``a.b.c=value`` each, from ``--set``; the value is YAML.
    :param seed: replaces ``run.seed``.
    :param confined: refuse files outside the scenario's folder, except those in ``overrides``.
    :param check_points: check the points of its sweep as well; what does not simulate them has no need to.
    :param given: policies that it may name in addition to those of loraplan and of installed packages.
    :raises InputError: with every problem found (``SeveralErrors`` if more than one), sorted by line.
    """
    path, name = _find(source, Path())
    confines = path.resolve().parent if confined and not _is_ours(path) else None
    root = _set(_laid_over(read_yaml(path, name), path, (), confines), overrides)
    if seed is not None:
        root = tree.assign(root, "run.seed", Node(seed, _SEED))
    loaded = replace(_checked(root, source, given), confines=confines)
    _check_sweep(loaded, check_points)
    return loaded


def scenario_of_text(text: bytes, name: str, folder: Path) -> LoadedScenario:
    """Check a scenario that is no file here, as if it were one in a folder, which confines what it may name.

    :param name: of the file that it was; messages call it so.
    :raises InputError: as for ``load_scenario``.
    """
    confines = folder.resolve()
    root = _laid_over(yaml_mapping(text, name), confines / "scenario.yaml", (), confines)
    return replace(_checked(root, name, Given()), confines=confines)


def resolved_values(data: Mapping[str, Any]) -> dict[str, str]:
    """Return every value of a merged scenario by its key, defaults included, as text.

    :param data: as in a run's manifest; values that this version can't read stay as written.
    """
    try:
        values = Scenario.model_validate(data, context=Given(any_name=True)).model_dump(mode="json", by_alias=True)
    except ValidationError:
        values = dict(data)
    return {key: value_text(value) for key, value in _leaves(values, "")}


def _find(source: str, folder: Path) -> tuple[Path, str]:
    """Return the file of a source, and its name in messages."""
    path = folder / Path(source).expanduser()
    if path.is_file():
        return path, str(path)
    is_bundled = (bundled_folder() / f"{source}.yaml").is_file()  # a run's folder may have the same name
    if Path(source).suffix in (".yaml", ".yml") or "/" in source or (path.is_dir() and not is_bundled):
        hint = "give the YAML file inside it" if path.is_dir() else "'loraplan scenarios list' shows bundled ones"
        if (bundled_folder() / source).is_file():
            hint = f"the bundled scenario is called {path.stem}"
        problem = "is a folder" if path.is_dir() else "not a regular file" if path.exists() else "no such file"
        raise ScenarioError(problem, file=str(path), hint=hint)
    bundled = bundled_path(source)
    return bundled, str(bundled)


def _laid_over(found: Node, path: Path, below: tuple[Path, ...], confines: Path | None) -> Node:
    """Lay what a file holds over the file it extends.

    :param below: the files that extend this one.
    :param confines: the folder that nothing may lead out of, except bundled scenarios.
    """
    ours = _is_ours(path)
    root = tree.with_absolute_files(found, path.parent.resolve(), confines=None if ours else confines)
    assert isinstance(root.value, dict)  # read_yaml's promise
    keys = dict(root.value)
    extends = keys.pop("extends", None)
    root = Node(keys, root.origin)
    if extends is None or extends.value is None:
        return root
    base_path, base_name = _base_of(extends, path, None if ours else confines)
    chain = (*below, path.resolve())
    if len(chain) > MAX_CHAIN:
        raise _at(ScenarioError("too many scenarios extend each other", key="extends", allowed=f"{MAX_CHAIN}"), extends)
    if base_path.resolve() in chain:
        names = " → ".join(file.name for file in (*chain, base_path.resolve()))
        raise _at(ScenarioError("scenarios extend each other in a circle", key="extends", got=names), extends)
    base = _laid_over(read_yaml(base_path, base_name), base_path, chain, confines)
    assert isinstance(base.value, dict)
    inherited = Node({key: node for key, node in base.value.items() if key not in _NOT_INHERITED}, base.origin)
    # The overlay's first line is the place of missing sections.
    return Node(tree.merge(inherited, root).value, root.origin)


def _is_ours(path: Path) -> bool:
    return path.resolve().is_relative_to(bundled_folder().resolve())


def _base_of(extends: Node, path: Path, confines: Path | None) -> tuple[Path, str]:
    if not isinstance(extends.value, str):
        raise _at(ScenarioError("must name one scenario", key="extends", got=tree.plain(extends)), extends)
    # Checked before looking, so as not to reveal which files exist. A bundled name looks like a file inside.
    tree.absolute_file(extends.value, extends.origin, path.parent, "extends", confines)
    try:
        return _find(extends.value, path.parent)
    except ScenarioError as error:
        problem = error.problem if error.file is None else f"{error.file}: {error.problem}"
        moved = ScenarioError(problem, key="extends", allowed=error.allowed, hint=error.hint)
        raise _at(moved, extends) from None


def _at(error: ScenarioError, node: Node) -> ScenarioError:
    error.file, error.line = node.origin.place, node.origin.line
    return error


def _set(root: Node, settings: Sequence[str], confines: Path | None = None) -> Node:
    """Return a scenario with what ``--set`` changes.

    :param confines: the folder that must contain all files that these name; None: any may be named.
    """
    nodes = dict(_parse_override(text) for text in settings)
    for key in tree.tags_first(nodes):
        if nodes[key].value is None:
            _check_removed(key)
        root = tree.assign(root, key, tree.with_absolute_files(nodes[key], Path.cwd(), key, confines))
    return root


def _parse_override(text: str) -> tuple[str, Node]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ScenarioError("not an assignment", got=text, allowed="key=value such as cache.gpu.slots=64", file="--set")
    if key in _NAMED and not value.strip():
        raise ScenarioError("no name", key=key, got=text, hint="write null for the default", file="--set")
    try:
        node = parse_yaml(value, "--set")
    except ScenarioError as error:
        raise ScenarioError(error.problem, key=key, got=value, hint="quote the value", file="--set") from None
    if node is None:
        return key, Node(None, _SET)
    if isinstance(node.value, (dict, list)) and not value.lstrip().startswith(("{", "[")):
        # "a: b" without braces is a sentence with a colon here, not a mapping.
        return key, Node(value.strip(), _SET)
    if isinstance(node.value, dict) and node.value and all(":" in str(name) for name in node.value):
        raise ScenarioError(
            "not a mapping",
            key=key,
            got=value,
            allowed="{name: value}",
            hint="write a space after each colon",
            file="--set",
        )
    return key, tree.planted(tree.plain(node, key), _SET)


def _check_removed(key: str) -> None:
    """Refuse to remove a key that scenarios don't have: what is removed never comes to the check of all keys."""
    known, path = set(known_keys(Scenario)), without_indexes(key)
    parents = [path[:place] for place, letter in enumerate(path) if letter == "."]
    below = next((parent for parent in reversed(parents) if parent in known), None)
    free = below is not None and not any(each.startswith(f"{below}.") for each in known)  # such as sweep: any keys
    if path not in known and not free:
        raise UnknownKeyError("unknown key", key=key, hint=_suggest(path, known), file="--set")


def _checked(root: Node, source: str, given: Given) -> LoadedScenario:
    data, origins = tree.plain(root), tree.origins(root)
    found: list[InputError] = []
    try:
        scenario = Scenario.model_validate(data, context=given)
    except ValidationError as error:
        found = problems(error, Scenario, data)
    named = {problem.key for problem in found}
    found += [flag for flag in misplaced_flags(Scenario, data) if flag.key not in named]
    if found:
        _raise([_located(problem, origins) for problem in found])
    return LoadedScenario(scenario, data, origins, source)


def _located(error: InputError, origins: Mapping[str, Origin]) -> InputError:
    if isinstance(error, SeveralErrors):
        return SeveralErrors([_located(inner, origins) for inner in error.errors])
    if error.file is not None or error.key is None:
        return error
    path = error.key
    while path and path not in origins:
        path = path.rpartition(".")[0]
    origin = origins.get(path)
    if origin is None:
        return error
    located = copy.copy(error)
    located.file, located.line = origin.place, origin.line
    return located


def _raise(errors: list[InputError]) -> NoReturn:
    # Errors without a line, from --set, come first.
    errors = sorted(errors, key=lambda error: (error.line is not None, error.file or "", error.line or 0))
    raise errors[0] if len(errors) == 1 else SeveralErrors(errors)


def _check_sweep(loaded: LoadedScenario, check_points: bool) -> None:
    """Check that the sweep's keys exist and, if wanted, that each of its values makes a valid scenario."""
    sweep = loaded.scenario.sweep
    known = set(known_keys(Scenario))
    errors: list[InputError] = []
    for key, values in sweep.items():
        if key in _NOT_SWEPT:
            errors.append(ScenarioError("this can't be swept", key=f"sweep.{key}"))
        elif not values:
            errors.append(ScenarioError("no values", key=f"sweep.{key}", hint=f"such as {key}: [1, 2]"))
        elif without_indexes(key) not in known:
            errors.append(ScenarioError("unknown key", key=f"sweep.{key}", hint=_suggest(key, known)))
    if not errors and check_points:
        errors = _bad_values(loaded, sweep)
    if errors:
        _raise([_located(error, loaded.origins) for error in errors])


def _bad_values(loaded: LoadedScenario, sweep: Mapping[str, Sequence[Any]]) -> list[InputError]:
    """Check each value together with the first of every other key: all these are points of the grid.

    A value on its own could be wrong where the point is right, if two keys go together.
    """
    found: dict[tuple[str, str], InputError] = {}
    first = {key: values[0] for key, values in sweep.items()}
    for key, values in sweep.items():
        for value in values:
            point = {**first, key: value}
            try:
                loaded.with_values(point)
            except InputError as error:
                for problem in error.errors if isinstance(error, SeveralErrors) else [error]:
                    at = problem.key or ""
                    mine = next((swept for swept in sweep if at == swept or at.startswith(f"{swept}.")), key)
                    moved = ScenarioError(
                        problem.problem if (problem.key or mine) == mine else f"{problem.key}: {problem.problem}",
                        key=f"sweep.{mine}",
                        got=problem.got or point[mine],
                        allowed=problem.allowed,
                        hint=problem.hint,
                    )
                    found.setdefault((mine, str(moved)), moved)
    return list(found.values())


def _suggest(key: str, known: set[str]) -> str | None:
    leaf, hint = key.rpartition(".")[2], flag_hint(key)
    if hint and ".".join(key.split(".")[-2:]) in hint:  # an option with its section, as in kv_cache_config.max_tokens
        return hint
    section = key.removesuffix(leaf)
    siblings = [path for path in sorted(known) if section and path.rpartition(".")[0] == section[:-1]]
    longer = longer_key(leaf, [path.removeprefix(section) for path in siblings])
    if longer is not None:
        return f"did you mean {section + longer!r}?"
    same = keys_ending(leaf, sorted(known))
    return f"did you mean {same[0]!r}?" if same else hint or did_you_mean(key, sorted(known))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and path != "sweep":
        for key, child in value.items():
            yield from _leaves(child, tree.join(path, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, child in enumerate(value):
            yield from _leaves(child, tree.join(path, index))
    else:
        yield path, value


def value_text(value: Any) -> str:
    """Return a value as a scenario file would write it."""
    if value is None:
        return "unset"
    if isinstance(value, list):
        return f"[{', '.join(value_text(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {value_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value) if value != "" else '""'
