"""Refuses a plan that has no answer: before anything is simulated or written."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sim.errors import InputError, ScenarioError, SeveralErrors, UnknownKeyError
from sim.results.metric_state import Cause, State
from sim.results.run_directory.result_files import scenario_hash
from sim.results.slo_terms import all_terms, is_gap, quantile_of, split_term
from sim.results.statistics import MIN_FOR_P99, MIN_FOR_RATIO, MIN_FOR_REST, enough_for
from sim.spec.profile_choice import profile_of
from sim.spec.scenario import Plan
from sim.spec.scenario_file import LoadedScenario
from sim.spec.sections.tenants import shares_of
from sim.spec.sections.traffic_laws import ClosedArrivals
from sim.spec.sections.workload import Workload
from sim.studies.plan.candidates import Variable, variables
from sim.studies.plan.evaluator import TIMES, longer, too_short
from sim.studies.sweep import task_of

_RATE, _CLIENTS = "workload.arrivals.rate", "workload.arrivals.concurrency"
_TRAFFIC = ("workload.", "adapters.", "tenants.")
"""Sections whose keys may change how many requests a tenant has."""
_SPREAD = 4
"""Standard deviations by which a tenant may have more requests than expected."""
_REPLICAS = re.compile(r"fleet\.(pools\.[^.]+\.)?replicas")
MOST_PROBES = 500
"""Points of a grid that are tried before it is refused as a whole."""
MOST_BUILT = 4
"""Valid ones among them of which one must be possible to build."""


def check_plan(loaded: LoadedScenario) -> tuple[Plan, list[Variable], LoadedScenario]:
    """Return a scenario's plan, its variables, and one design that can be built.

    :raises InputError: if the question makes no sense, or none of a few designs can be built.
    """
    plan = loaded.scenario.plan
    if plan is None:
        raise loaded.locate(
            ScenarioError(
                "the scenario has no plan",
                key="plan",
                hint="add plan: {minimize: cache.gpu.slots, range: [8, 256]}, or --minimize cache.gpu.slots=8..256",
            )
        )
    check_terms(loaded)
    try:
        _check_direction(plan)
        _check_traffic(plan, loaded.scenario.workload)
        axes = variables(plan)
        _check_length(loaded, plan)
        for axis in axes:
            _check_axis(loaded, plan, axes, axis)
        first = _buildable(loaded, plan, axes)
    except InputError as error:
        raise loaded.locate(error) from None
    named = _with_names(plan, loaded)
    return named, variables(named), first


def _check_direction(plan: Plan) -> None:
    question, other = "how few replicas are enough, not how many", "minimize"
    wrong = [key for key in plan.keys if _REPLICAS.fullmatch(key)]
    if plan.direction == "minimize":
        question, other = "how much traffic the fleet takes, not how little", "maximize"
        wrong = [key for key in plan.keys if key in (_RATE, _CLIENTS)]
    if wrong:
        key, hint = f"plan.{plan.direction}", f"{other} it (--{other})"
        raise ScenarioError(f"the question is {question}", key=key, got=wrong[0], hint=hint)


def _check_traffic(plan: Plan, workload: Workload) -> None:
    """Refuse a key of traffic that this workload has no use for: another one says how much there is."""
    if workload.trace is not None:
        right, why = "workload.trace.time_scale", "comes from a trace"
    elif workload.client is not None:
        right, why = f"workload.client.{workload.client.load}", "comes from a benchmark client"
    elif isinstance(workload.arrivals, ClosedArrivals):
        right, why = _CLIENTS, "comes from a closed loop"
    else:
        right, why = _RATE, "has a rate"
    wrong = next((key for key in plan.keys if key in (_RATE, _CLIENTS) and key != right), None)
    if wrong is not None:
        raise ScenarioError(f"the traffic {why}", key=f"plan.{plan.direction}", got=wrong, hint=f"vary {right} instead")


def _with_names(plan: Plan, loaded: LoadedScenario) -> Plan:
    """Return a plan whose keys have the names of tenants in place of their indexes, as answers show them."""
    names = {str(place): tenant.name for place, tenant in enumerate(loaded.scenario.tenants)}

    def named(key: str) -> str:
        section, _, rest = key.partition(".")
        place, _, own = rest.partition(".")
        name = names.get(place, "")
        dotted = section != "tenants" or not own or not name or "." in name or name.isdigit()
        return key if dotted else f"{section}.{name}.{own}"

    keys = tuple(named(key) for key in plan.keys)
    return plan if keys == plan.keys else plan.model_copy(update={plan.direction: keys[0] if len(keys) == 1 else keys})


def _check_gpus(design: LoadedScenario, plan: Plan, number: int) -> None:
    """Refuse a fleet without a profile, or of other GPUs than its profile: its price follows. ``number``: its place."""
    fleet = plan.fleets[number]
    try:
        profile, _ = profile_of(design.scenario)
    except InputError as error:
        raise _asked_for(error, plan, f"plan.fleets.{number}.set", fleet.set) from None
    if fleet.gpus is not None and profile is not None and profile.tensor_parallel not in (1, fleet.gpus):
        raise ScenarioError(
            f"a replica of the profile {profile.name} has another number of GPUs",
            key=f"plan.fleets.{number}.gpus",
            got=fleet.gpus,
            allowed=str(profile.tensor_parallel),
            hint="remove it: the number is that of the profile",
        )


def _check_length(loaded: LoadedScenario, plan: Plan) -> None:
    """Refuse an SLO for which the longest runs of the search will have too few requests.

    Only what is sure: the requests of a trace, of a tenant without a share, or of a plan that varies them aren't known.

    :raises InputError: with how long the scenario must be.
    """
    scenario = longer(loaded, TIMES[-1]).scenario
    workload = scenario.workload
    varied = {*plan.keys, *(key for fleet in plan.fleets for key in fleet.set)} - {_RATE}
    if workload.recorded or workload.requests is None or any(key.startswith(_TRAFFIC) for key in varied):
        return
    total = workload.requests * scenario.run.replications
    shares = shares_of(scenario.tenants)
    of_adapters = total * (1 - scenario.adapters.base_share)
    expected = {"": float(total), **{scenario.tenants[place].name: of_adapters * shares[place] for place in shares}}
    for term in all_terms(scenario):
        tenant, metric = split_term(term)
        if tenant not in expected or metric.startswith("itl"):
            continue
        needed = enough_for(quantile_of(metric) or 0.0, MIN_FOR_P99, MIN_FOR_REST)
        needed = MIN_FOR_RATIO if metric == "miss_ratio" else needed
        if expected[tenant] + _SPREAD * math.sqrt(expected[tenant]) < needed:
            found = round(expected[tenant])
            of_whom = f" of {tenant}" if tenant else ""
            why = f"its longest runs together have about {found:,} requests{of_whom}, {needed:,} are needed"
            raise too_short(term, State(Cause.FEW_REQUESTS, found, needed), loaded, why)


def _check_axis(loaded: LoadedScenario, plan: Plan, axes: list[Variable], axis: Variable) -> None:
    """Refuse a key whose values make no difference, or that another key fixes to the value it has.

    :raises ScenarioError: for a price, where no value is possible but that of the scenario, all others for the same
        reason, and where a fault is of a replica that some design lacks.
    """
    others = {other.key: other.values[0] for other in axes if other is not axis}
    fixed = {**(plan.fleets[0].set if plan.fleets else {}), **others}
    possible: list[LoadedScenario] = []
    refused: list[ScenarioError] = []
    if _REPLICAS.fullmatch(axis.key):
        _check_faults(loaded, plan, {**fixed, axis.key: min(axis.values)})
    for value in axis.values[:: max(1, len(axis.values) // MOST_PROBES)]:
        values = {**fixed, axis.key: value}
        try:
            possible.append(loaded.with_values(values))
        except InputError as error:
            refused.append(_asked_for(error, plan, "plan.values" if plan.values is not None else "plan.range", values))
        if len(possible) == 2:
            break
    if len(possible) == 2 and scenario_hash(possible[0].data) == scenario_hash(possible[1].data):
        raise ScenarioError(
            "a price changes no latency, so there is nothing to plan for",
            key=f"plan.{plan.direction}",
            got=axis.key,
            allowed="hardware, configuration or traffic, such as cache.gpu.slots or workload.arrivals.rate",
        )
    if len(possible) != 1 or not refused or len({error.problem for error in refused}) > 1:
        return
    if possible[0].scenario != loaded.with_values(fixed).scenario:
        return
    first = refused[0]
    rated = next((place for place, tenant in enumerate(loaded.scenario.tenants) if tenant.rate is not None), None)
    if axis.key == _RATE and rated is not None:  # the rates of tenants fix that of the traffic
        own = f"tenants.{rated}.rate"
        first.hint = f"plan for the rate of a tenant, such as {own}, or give the tenants shares, which divide any rate"
    raise first


def _check_faults(loaded: LoadedScenario, plan: Plan, fewest: dict[str, Any]) -> None:
    """Refuse a fault of a replica that the design with the fewest lacks: the search would take it to miss the SLO."""
    try:
        loaded.with_values(fewest)
    except InputError as error:
        found = _asked_for(error, plan, "plan.values" if plan.values is not None else "plan.range", fewest)
        if found.problem.startswith("faults."):
            found.hint = "name a replica that every design has"
            raise found from None


def check_terms(loaded: LoadedScenario) -> None:
    """Refuse an SLO that is missing or can't be measured in this scenario.

    :raises ScenarioError: with the term.
    """
    scenario = loaded.scenario
    terms = all_terms(scenario)
    if not terms:
        raise loaded.locate(
            ScenarioError("a plan needs an SLO to meet", key="slo", hint="add one, such as slo: {ttft_p99: 1 s}")
        )
    if scenario.fleet.engine != "fixed":
        return
    places = {tenant.name: f"tenants.{place}." for place, tenant in enumerate(scenario.tenants)}
    for tenant, name in map(split_term, terms):
        if is_gap(name):
            raise loaded.locate(
                ScenarioError(
                    "engine fixed has no tokens, so this is never measured",
                    key=f"{places.get(tenant, '')}slo.{name.removesuffix('_s')}",
                    hint="remove the term, or choose another engine",
                )
            )


def _buildable(loaded: LoadedScenario, plan: Plan, axes: list[Variable]) -> LoadedScenario:
    """Return a design that can be built.

    :raises InputError: if none of the values tried for a fleet, or for the plan, makes a valid scenario, or none of the
        scenarios can be built.
    """
    found: LoadedScenario | None = None
    refused: InputError | None = None
    for number in range(max(1, len(plan.fleets))):
        fleet = plan.fleets[number].set if plan.fleets else {}
        where = f"plan.fleets.{number}.set" if fleet else "plan.values" if plan.values is not None else "plan.range"
        designs = _valid(loaded, plan, fleet, where, axes)
        if plan.fleets:
            _check_gpus(designs[0], plan, number)
        for design in designs:
            if found is not None:
                break
            try:
                task_of(0, design, {})
            except InputError as error:
                refused = refused or error
            else:
                found = design
                break
    if found is not None:
        return found
    assert refused is not None, "there is a value"
    raise refused


def _valid(
    loaded: LoadedScenario, plan: Plan, fleet: Mapping[str, Any], where: str, axes: list[Variable]
) -> list[LoadedScenario]:
    """Return a few designs that are valid scenarios.

    Values that are none together, such as fewer host slots than GPU slots, are left out of the search.

    :raises InputError: if there is none among those tried.
    """
    found: list[LoadedScenario] = []
    first: InputError | None = None
    for values in ({**fleet, **point} for point in _probes(axes)):
        try:
            found.append(loaded.with_values(values))
        except InputError as error:
            first = first or _asked_for(error, plan, where, values)
        if len(found) == MOST_BUILT:
            break
    if not found and first is not None:
        raise first
    return found


def _probes(axes: list[Variable]) -> Iterator[dict[str, Any]]:
    """Yield the corners of the grid that a plan spans, then points spread over it."""
    ends = [(axis.values[0], axis.values[-1]) for axis in axes]
    corners = itertools.product(*ends)
    sizes = [len(axis.values) for axis in axes]
    total = math.prod(sizes)
    spread = (np.unravel_index(place, sizes) for place in range(0, total, max(1, total // MOST_PROBES)))
    inner = (tuple(axis.values[i] for axis, i in zip(axes, place, strict=True)) for place in spread)
    for point in itertools.chain(corners, inner):
        yield {axis.key: value for axis, value in zip(axes, point, strict=True)}


def _asked_for(error: InputError, plan: Plan, where: str, values: dict[str, Any]) -> ScenarioError:
    """Return an error of a design as an error of the plan that contains it."""
    found = error.errors[0] if isinstance(error, SeveralErrors) else error
    unknown = found.key in plan.keys and isinstance(found, UnknownKeyError)
    got = None if unknown else found.got if found.got is not None else values.get(found.key or "")
    return ScenarioError(
        f"{found.key}: {found.problem}",
        key=f"plan.{plan.direction}" if unknown else where,
        got=got,
        allowed=found.allowed,
        hint=found.hint,
    )
