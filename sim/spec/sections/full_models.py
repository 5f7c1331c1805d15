"""Full fine-tunes beside adapters: which replicas serve them, and how they come into GPU memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt, model_validator

from sim.spec.base import Strict, located
from sim.spec.sections.laws import TimeLaw
from sim.spec.units import Seconds

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario

_SWAP_KEYS = ("resident", "load", "turn")
"""What only a pool of replicas has."""


class FullModels(Strict):
    """The replicas of full fine-tunes; they serve nothing else."""

    serve: Literal["dedicated", "swap"] = "dedicated"
    """``dedicated``: every full model has its own replicas, which hold it from the start. ``swap``: a pool of replicas
    for all full models; a replica holds ``resident`` of them and loads another one when one of these has drained."""
    replicas: PositiveInt = Field(default=1, le=4096)
    """``dedicated``: replicas of each full model. ``swap``: replicas of the pool."""
    resident: PositiveInt | None = Field(default=None, le=64)
    """``swap`` only: whole models that a replica holds at a time. Unset: 1."""
    load: TimeLaw | None = None
    """``swap`` only: time of loading one whole model; nothing runs on the replica meanwhile. Unset: the size over the
    bandwidth of the profile's loads from storage, with their cost per tensor, without their spread. For models that are
    kept in host memory give a law, such as ``{law: fixed, value: 800 ms}``."""
    turn: Seconds | None = None
    """``swap`` only: for how long after its load a model's requests may pass older ones that wait for another model.
    Unset: nobody passes; first come, first served, as Ollama does."""

    @model_validator(mode="after")
    def _meaningful(self) -> FullModels:
        for key in _SWAP_KEYS:
            if self.serve == "dedicated" and getattr(self, key) is not None:
                raise located(
                    key, "a replica of its own holds a model from the start and never loads", got="serve dedicated",
                    allowed="only with serve swap", hint=f"remove {key}, or set serve: swap",
                )  # fmt: skip
        return self

    @property
    def places(self) -> int:
        """Whole models that a replica holds at a time, with the default worked out."""
        return self.resident or 1


def check_full_models(scenario: Scenario) -> None:
    """Refuse full models that nothing serves, and what this version doesn't simulate beside them."""
    kinds = [i for i, kind in enumerate(scenario.adapters.mix) if kind.kind == "full"]
    served = scenario.fleet.full_models is not None
    if not kinds:
        if served:
            raise located(
                "fleet.full_models", "there is no full model", got=f"{len(scenario.adapters.mix)} kinds of adapters",
                hint="give adapters.mix a kind such as {share: 1%, kind: full}, or remove full_models",
            )  # fmt: skip
        return
    if not served:
        raise located(
            f"adapters.mix.{kinds[0]}.kind", "no replica serves full models", got="full",
            hint="give fleet.full_models: {serve: dedicated}, or {serve: swap, replicas: 2}",
        )  # fmt: skip
    for key, problem, got, allowed in _beside(scenario):
        raise located(key, problem, got=got, allowed=allowed)


def _beside(scenario: Scenario) -> Sequence[tuple[str, str, object, str]]:
    """Return what doesn't go beside full models: key, problem, what is there, what is allowed."""
    fleet, full = scenario.fleet, scenario.fleet.full_models
    assert full is not None, "somebody serves them"
    found: list[tuple[str, str, object, str]] = [
        (key, f"{key} aren't simulated beside full models", f"{len(getattr(scenario, key))} {key}", "none")
        for key in ("rollouts", "faults") if getattr(scenario, key)
    ]  # fmt: skip
    if fleet.engine == "fixed":
        found.append(("fleet.engine", "engine fixed has no weights that a full model could replace", "fixed",
                      "an engine that batches"))  # fmt: skip
    if fleet.front_end != "none":
        found.append(("fleet.front_end", "this front end reproduces measured runs, in which nobody served full models",
                      fleet.front_end, "none"))  # fmt: skip
    eviction, router = scenario.eviction_policy, scenario.router_policy
    if eviction.needs_future:
        found.append(("cache.eviction", f"eviction {eviction.name} knows the requests to come to one fleet, not to two",
                      eviction.name, "another eviction"))  # fmt: skip
    if router.places_adapters:
        found.append(("router.policy", f"{router.name} places adapters one by one, and full models with them",
                      router.name, "another policy"))  # fmt: skip
    if full.serve == "dedicated" and scenario.workload.churn is not None:
        found.append(("workload.churn", "a full model that comes later would need a replica that comes with it",
                      "fleet.full_models.serve dedicated", "serve swap"))  # fmt: skip
    return found
