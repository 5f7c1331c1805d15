"""Arguments and options that several commands share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, get_type_hints

import typer

from sim.cli.help import EXECUTION, RESULTS, SIMULATE
from sim.errors import InputError, SeveralErrors
from sim.timing import timed

if TYPE_CHECKING:
    from sim.spec.scenario_file import LoadedScenario
    from sim.studies.deploy.command import Manifests
    from sim.studies.execution import Execution


# Ranges on the command line: ``KEY=a..b`` and ``KEY=a..b:step``, for ``plan`` and ``sweep --over``.

_RANGE = re.compile(r"(?P<key>[^=]+)=(?P<low>[^,\[{]+?)\.\.(?P<high>[^,\[{]+?)(?::(?P<step>[^:,]+))?")
_NUMBER = re.compile(r"\s*[+-]?\.?\d")


class KeyRange(NamedTuple):
    """A key and the range of its values, as typed."""

    key: str
    low: str
    high: str
    step: str | None


def parse_range(text: str) -> KeyRange | None:
    """Return the range that a text is, or None: ``a=../x.csv`` is a path, ``a=8,16`` a list."""
    match = _RANGE.fullmatch(text)
    if match is None or not all(_NUMBER.match(match[end]) for end in ("low", "high")):
        return None
    step = match["step"]
    return KeyRange(match["key"].strip(), match["low"].strip(), match["high"].strip(), step.strip() if step else None)


@contextmanager
def naming(option: str, place: str, section: str = "") -> Iterator[None]:
    """Let errors at a place name an option as it was typed, if it was given.

    :param section: start of the keys that only the option sets; errors leave them out.
    """
    try:
        yield
    except InputError as error:
        for each in error.errors if isinstance(error, SeveralErrors) else [error]:
            if option and each.file == place and (each.key or "").startswith(section):
                each.file, each.key = None, option if section else f"{option} {each.key}"
        raise


# What a shell can complete behind ``loraplan``: scenarios, profiles, keys; see ``loraplan --install-completion``.

_YAML = (".yaml", ".yml")


def complete_scenario(incomplete: str) -> list[tuple[str, str]]:
    """Return bundled scenarios with their descriptions, and scenario files."""
    from sim.spec.scenario_file import bundled_scenarios

    named = [each for each in bundled_scenarios().items() if each[0].startswith(incomplete)]
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    files = [str(path) for path in sorted(folder.glob("*")) if path.suffix in _YAML or path.is_dir()]
    return named + [(name, "") for name in files if name.startswith(incomplete)]


def complete_profile(incomplete: str) -> list[str]:
    """Return bundled profiles."""
    from sim.spec.profile import bundled_profiles

    return [name for name in bundled_profiles() if name.startswith(incomplete)]


def complete_assignment(incomplete: str) -> list[str]:
    """Return the keys of scenarios, ready for a value; behind ``=`` there is nothing to complete."""
    from sim.spec.files.problems import known_keys
    from sim.spec.scenario import Scenario

    keys = dict.fromkeys(known_keys(Scenario))
    sections = {key.rpartition(".")[0] for key in keys}
    found = [f"{key}=" for key in keys if key.startswith(incomplete) and key not in sections]
    # A shell puts a space behind a single candidate; with two it stops behind what they share.
    return [*found, f"{found[0]}VALUE"] if len(found) == 1 else found


T = TypeVar("T")
FINISHED_POINTS = "finished points are kept; run the same command to resume"
MEASURED_SAMPLES = "what was measured is kept; run the same command to resume"


@dataclass(slots=True)
class Session:
    """What all commands share.

    :ivar confined: whether scenarios may name files in their own folder only (``--confined``).
    :ivar kept: what is left of the work if the command is interrupted; commands that keep something say so.
    :ivar ended: what a command says that runs until it is interrupted, in place of that.
    """

    confined: bool = False
    kept: str = "nothing is kept"
    ended: str = ""


ScenarioArgument = Annotated[
    str,
    typer.Argument(
        metavar="SCENARIO", help="A scenario file, or the name of a bundled one.", autocompletion=complete_scenario
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a value of the scenario. Repeatable.",
        autocompletion=complete_assignment,
        rich_help_panel=SIMULATE,
    ),
]
SeedOption = Annotated[int | None, typer.Option(help="Replace run.seed.", min=0, hidden=True, rich_help_panel=SIMULATE)]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Run directory. Default: runs/NAME, NAME-sweep or NAME-plan.", rich_help_panel=RESULTS),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=RESULTS)]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Print results and errors only, no progress.", rich_help_panel=RESULTS)
]
AllOption = Annotated[
    bool, typer.Option("--all", help="Print every number and finding, not only the answer.", rich_help_panel=RESULTS)
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Exit with 1 unless the SLO is met.", rich_help_panel=RESULTS)
]
NoHeadroomOption = Annotated[
    bool,
    typer.Option(
        "--no-headroom",
        help="Skip the search for how much more traffic fits; saves a few seconds.",
        hidden=True,
        rich_help_panel=SIMULATE,
    ),
]
EmitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--emit",
        metavar="KIND=DIR",
        help="Write manifests into a folder, such as k8s=deploy. Repeatable.",
        rich_help_panel=RESULTS,
        hidden=True,
    ),
]
AdaptersOption = Annotated[
    Path | None,
    typer.Option(
        "--adapters",
        metavar="FOLDER",
        help="With --emit: the PEFT adapters that servers register when they start. Default: none, clients load them.",
        hidden=True,
        rich_help_panel=RESULTS,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Simulate again what the run directory already has.", rich_help_panel=EXECUTION),
]
JobsOption = Annotated[
    int, typer.Option(help="Worker processes; -1 means one for each core.", min=-1, rich_help_panel=EXECUTION)
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        "--address",
        metavar="WHERE",
        help="Where to simulate: local (the default), dask, ray, or a cluster's address such as tcp://host:8786 (Dask) "
        "or ray://host:10001.",
        rich_help_panel=EXECUTION,
    ),
]
"""One option with two names: the value shows whether it is a backend or an address."""


def parsed(parse: Callable[[object], T], key: str, text: str, problem: str = "") -> T:
    """Return the value of an option in units, such as ``5%`` or ``10GB``.

    :param problem: to say instead of what exactly is wrong.
    :raises InputError: naming the option.
    """
    from pydantic_core import PydanticCustomError

    try:
        return parse(text)
    except PydanticCustomError as error:
        known = error.context or {}
        raise InputError(
            problem or known["problem"], key=key, got=text, allowed=known["allowed"] or None, hint=known["hint"] or None
        ) from None


def session_of(context: typer.Context) -> Session:
    """Return the session a command belongs to."""
    session = context.find_root().obj
    return session if isinstance(session, Session) else Session()


@dataclass(frozen=True)
class StudyOptions:
    """The argument and the options of commands that simulate a scenario and write a run directory."""

    context: typer.Context
    scenario: ScenarioArgument
    set_: SetOption = None
    seed: SeedOption = None
    out: OutOption = None
    backend: BackendOption = None
    jobs: JobsOption = -1
    json: JsonOption = False
    quiet: QuietOption = False

    @timed("scenario")
    def load(self, *overrides: str, check_points: bool = False) -> LoadedScenario:
        """Read the scenario, with what ``--set`` and further overrides change.

        :param check_points: for commands that simulate the points of its sweep.
        :raises InputError: with every problem found.
        """
        from sim.spec.scenario_file import load_scenario

        session = session_of(self.context)
        session.kept = FINISHED_POINTS
        return load_scenario(
            self.scenario,
            [*(self.set_ or []), *overrides],
            self.seed,
            confined=session.confined,
            check_points=check_points,
        )

    def executing(self, doing: str = "simulating", *, lines: bool = False) -> AbstractContextManager[Execution]:
        """Return what opens the pool that the options select, with a progress bar.

        :param doing: said beside it; ``lines``: whether it prints lines where there is no terminal.
        :raises InputError: if there is no such backend.
        """
        from sim.cli.output import command_line, pool_of, progress_bar, workers_of
        from sim.studies.execution import executing

        bar = progress_bar(self.quiet, doing, workers_of(self.jobs), lines=lines)
        return executing(pool_of(self.backend, self.jobs, self.quiet), bar, command_line())


@dataclass(frozen=True)
class DeployableOptions(StudyOptions):
    """The same for commands whose answer is one fleet, which can be deployed."""

    emit: EmitOption = None
    adapters: AdaptersOption = None

    def manifests(self, loaded: LoadedScenario) -> Manifests:
        """Return what ``--emit`` asks for, checked before anything is simulated.

        :raises InputError: if it can't be written.
        """
        from sim.studies.deploy.command import prepare_manifests

        return prepare_manifests(self.emit or [], self.adapters, loaded)


def takes(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let typer see the fields of a dataclass where a command takes an object of it as its first parameter.

    In ``--help`` the command's own options come first, then the shared ones in the order of the fields.
    """
    hints = get_type_hints(options, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)
    ]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        needed = [parameter for parameter in shared if parameter.default is inspect.Parameter.empty]
        rest = [parameter for parameter in shared if parameter not in needed]
        parameters = [*needed, *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own), *rest]

        def wrapped(**given: Any) -> None:
            command(options(**{parameter.name: given.pop(parameter.name) for parameter in shared}), **given)

        wrapped.__name__, wrapped.__doc__, wrapped.__module__ = command.__name__, command.__doc__, command.__module__
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorated
