"""Which rollouts and faults a fleet of pools supports, now that its costs are known."""

from __future__ import annotations

from collections.abc import Sequence

from sim.errors import ScenarioError
from sim.spec.scenario import Scenario
from sim.spec.sections.faults import Crash, StorageFault
from sim.world.pools.pool_times import PoolTimes, token_limits
from sim.world.world import ReplicaPool


def check_changes(scenario: Scenario, pools: Sequence[ReplicaPool]) -> None:
    """Refuse what sends a request to another adapter, where pools would disagree on what that means.

    Such a request keeps its draws and gets the load times of the other adapter before it has a pool.

    :raises ScenarioError: with the rollout or fault.
    """
    steering = [f"faults.{i}" for i, fault in enumerate(scenario.faults) if not isinstance(fault, Crash | StorageFault)]
    steering += [f"rollouts.{i}" for i in range(len(scenario.rollouts))]
    if not steering:
        return
    what = "rollouts" if steering[0].startswith("rollouts") else "faults that concern adapters"
    choosy = next((pool.name for pool in pools if not pool.world.takes.all()), None)
    if choosy is not None:
        raise ScenarioError(
            f"{what} are not supported where pools take different requests",
            key=steering[0],
            got=f"pool {choosy} doesn't take all",
            allowed="serves: all in every pool",
            hint="simulate this pool alone",
        )
    if PoolTimes(pools, [token_limits(pool.world) for pool in pools]).differ:
        raise ScenarioError(
            f"{what} are not supported where pools have different load times or limits of tokens",
            key=steering[0],
            got=f"pools {', '.join(pool.name for pool in pools)}",
            hint="simulate each pool alone, or give all pools the same GPU, engine and storage",
        )
