"""What ``--emit`` does in the commands that have it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sim.cli.output import message, say_file
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.results.point import Point
    from sim.results.run_directory.store import RunData
    from sim.spec.scenario import Scenario
    from sim.spec.scenario_file import LoadedScenario
    from sim.studies.deploy.emission import Emission


@dataclass(frozen=True)
class Manifests:
    """The manifests that a command writes once its run has ended; often none.

    :ivar adapters: the folder of adapters to register; None: clients load them.
    """

    emissions: tuple[Emission, ...] = ()
    adapters: Path | None = None

    def write_and_say(self, scenario: Scenario, data: RunData, point: Point, *, json: bool, quiet: bool) -> None:
        """Write them and print their files; with ``--json`` these are messages.

        :param scenario: of the point.
        """
        from sim.spec.engine_flags.command_lines import MODEL, served_model
        from sim.studies.deploy.deployment import list_adapters, make_deployment
        from sim.studies.deploy.emission import check_emission, emit

        adapters = {} if self.adapters is None else list_adapters(self.adapters, scenario)
        for each in self.emissions:
            check_emission(each, scenario)
        deployment = make_deployment(scenario, data, point, adapters)
        # All are written before any is named.
        for kind, file in [(each.kind, file) for each in self.emissions for file in emit(each, deployment)]:
            if json:
                message(f"{kind}: {file}", quiet)
            else:
                say_file(f"{kind:<9} ", file)
        if served_model(scenario) == MODEL:
            message(f"note: replace {MODEL} there with the base model's repository or path", quiet)


def prepare_manifests(emit: list[str], adapters: Path | None, loaded: LoadedScenario) -> Manifests:
    """Return what the options ask for, checked as far as it can be before the run.

    :raises InputError: if it can't be written.
    """
    if not emit:
        if adapters is not None:
            raise InputError("only manifests list adapters", key="--adapters", hint="give --emit too")
        return Manifests()
    from sim.studies.deploy.deployment import list_adapters
    from sim.studies.deploy.emission import check_emission, parse_emissions

    emissions = tuple(parse_emissions(emit))
    try:
        for each in emissions:
            check_emission(each, loaded.scenario)
    except InputError as error:
        raise loaded.locate(error) from None
    plan = loaded.scenario.plan
    if adapters is not None and not (plan and any(key.startswith("adapters.") for key in plan.keys)):
        list_adapters(adapters, loaded.scenario)  # a plan that looks for their number or rank is checked at its end
    return Manifests(emissions, adapters)
