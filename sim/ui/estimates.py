"""What formulas say of a design at once, before anything is simulated."""

from __future__ import annotations

from dataclasses import dataclass

from sim.results.fleet_costs.prices import HOURS_PER_MONTH
from sim.spec.engine_flags.command_lines import engine_flags, why_no_flags
from sim.spec.profile_choice import gpus_per_replica, prices_of
from sim.spec.scenario import Scenario
from sim.studies.evaluate import make_design
from sim.studies.planning.screen import Screened, screen
from sim.ui.library import ChosenDesign
from sim.world.world import World


@dataclass(frozen=True)
class Estimate:
    """The formulas' numbers, and what else is known of a design without a simulation.

    :ivar usd_per_month: of all GPUs; None without a price, or where an autoscaler changes their number.
    :ivar flags: the command line that starts one replica, by engine; ``no_flags``: why there is none.
    """

    screened: Screened
    usd_per_month: float | None
    flags: dict[str, str]
    no_flags: str

    @property
    def headroom(self) -> float | None:
        """At what multiple of the traffic queues grow without limit, at most: bursts and the SLO come on top."""
        busiest = max(self.screened.loader_load or 0.0, self.screened.gpu_load or 0.0)
        return 1 / busiest if busiest > 0 else None


def estimate(design: ChosenDesign) -> Estimate:
    """Return the estimate of a design.

    :raises InputError: if it can't be simulated; with its place.
    """
    world = make_design(design.loaded.scenario).world
    scenario = design.loaded.scenario
    return Estimate(
        screen(world), _monthly(scenario, world), engine_flags(scenario, world.kv_tokens), why_no_flags(scenario)
    )


def _monthly(scenario: Scenario, world: World) -> float | None:
    """Return what the fleet costs per month; the world of a fleet of pools has the scenario of its first pool only."""
    price = prices_of(scenario).gpu
    if price is None or scenario.fleet.autoscale is not None:
        return None
    gpus = sum(pool.replicas * pool.gpus for pool in world.own_pools)
    return (gpus or world.replicas * gpus_per_replica(scenario, world.profile)) * price * HOURS_PER_MONTH
