"""What a placement controller (``router.policy: placement``) needs of the rest of its scenario."""

from __future__ import annotations

from pydantic import BaseModel

from sim.spec.base import located
from sim.spec.needs import value_of
from sim.spec.policies import PLACERS

_FAULTS = ("crash", "slow-storage", "storage-stall", "network-delay")
"""Faults that leave adapters where they are placed."""


def check_controller(scenario: BaseModel) -> None:
    """Refuse a controller that doesn't fit the rest of its scenario.

    :raises PydanticCustomError: with the key that is wrong.
    """
    spec = value_of(scenario, "router.placing")
    if spec is None:
        return
    replicas, autoscale = value_of(scenario, "fleet.places"), value_of(scenario, "fleet.autoscale")
    if spec.copies > replicas:
        raise located(
            "router.controller.copies",
            "there are fewer replicas",
            got=spec.copies,
            allowed=f"at most {replicas}",
            hint="raise fleet.replicas, or place fewer copies",
        )
    slots = value_of(scenario, "cache.gpu.slots")
    if spec.slots is not None and slots is not None and spec.slots > slots:
        raise located(
            "router.controller.slots",
            "a replica has fewer slots",
            got=spec.slots,
            allowed=f"at most cache.gpu.slots ({slots})",
        )
    if autoscale is not None and not PLACERS[spec.policy].moves:
        raise located(
            "router.controller.policy",
            "adapters that never move can't follow an autoscaler: no adapter would be placed on a new replica",
            got=spec.policy,
            allowed=", ".join(entry.name for entry in PLACERS if entry.moves),
        )
    if spec.move == "eager" and value_of(scenario, "cache.gpu.unified"):
        raise located(
            "router.controller.move",
            "with unified memory, adapters come and go with the batch, and none is loaded without a request",
            got="eager",
            allowed="lazy",
        )
    if value_of(scenario, "rollouts"):
        raise located(
            "rollouts", "rollouts are not supported with router.policy placement", hint="choose another router"
        )
    for i, fault in enumerate(value_of(scenario, "faults")):
        if fault.kind not in _FAULTS:
            raise located(
                f"faults.{i}.kind",
                "this fault is not supported with router.policy placement",
                got=fault.kind,
                allowed=", ".join(_FAULTS),
                hint="or choose another router",
            )
