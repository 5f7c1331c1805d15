"""The controls of a page: scenario keys that a visitor may change, with what each may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.formatting import key_words
from sim.errors import InputError, ScenarioError, SeveralErrors
from sim.spec.engines import ENGINES, engine_words
from sim.spec.policies import ROUTERS
from sim.spec.profile_choice import gpus_per_replica, profile_of
from sim.spec.scenario import Scenario
from sim.spec.sections.tenants import Slo
from sim.spec.sections.traffic_laws import ClosedArrivals

_OCTAVES = 3
"""A slider goes from an eighth of the scenario's value to eight times it."""
_STEPS = 4
"""Stops of a slider for each doubling."""
_MOST_LETTERS = 40
_MOST_WHOLE = 12
"""Stops of a slider up to which a curve has all of them."""
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TENSOR_PARALLEL = (1, 2, 4, 8)
_SHARES = (1, 2, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)


@dataclass(frozen=True)
class Control:
    """One scenario key that can be moved.

    :ivar key: as ``--set`` has it.
    :ivar words: its label.
    :ivar group: of the panel: traffic, memory, fleet or target.
    :ivar value: the scenario's own value, without its unit; empty: unset.
    :ivar unit: what follows the value in a scenario.
    :ivar stops: values of the slider, ascending; empty where it is a choice. The first is empty where the key may be
        unset.
    :ivar choices: value and words of each choice.
    :ivar whole: whether only whole numbers are allowed.
    :ivar listed: whether a plan along it considers the stops alone, and not what is between them.
    :ivar unsets: other keys that a value other than the scenario's own leaves without meaning.
    :ivar disabled: why it can't be moved in this scenario; empty: it can.
    """

    key: str
    words: str
    group: str
    value: str
    unit: str = ""
    stops: tuple[str, ...] = ()
    choices: tuple[tuple[str, str], ...] = ()
    whole: bool = True
    listed: bool = False
    unsets: tuple[str, ...] = ()
    disabled: str = ""

    @property
    def ident(self) -> str:
        """The key as an id of the page."""
        return self.key.replace(".", "-").replace("_", "-")

    @property
    def unset(self) -> bool:
        """Whether the key may be unset."""
        return bool(self.stops) and not self.stops[0]

    def check(self, text: str) -> str:
        """Return a value as it may stand behind ``--set KEY=``, without its unit.

        The scenario's own checks decide whether it makes sense. This keeps out what is no value of this control.

        :raises ScenarioError: with what is allowed.
        """
        text = text.strip()
        if self.disabled:
            raise ScenarioError(self.disabled, key=self.key, got=text)
        if self.choices:
            names = [name for name, _ in self.choices]
            if text not in names:
                raise ScenarioError("none of the choices", key=self.key, got=text, allowed=", ".join(names))
            return text
        if not text:
            if self.unset:
                return text
            raise ScenarioError("no value", key=self.key, allowed="a number")
        try:
            number = float(text) if len(text) <= _MOST_LETTERS else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (self.whole and number != int(number)):
            allowed = "a whole number" if self.whole else "a number"
            raise ScenarioError("not a number", key=self.key, got=text[:_MOST_LETTERS], allowed=allowed)
        return str(int(number)) if self.whole else f"{number:.10g}"

    def typed(self, text: str) -> Any:
        """Return a value as a sweep has it: with its unit, or as a number.

        :param text: what ``check`` returned; not empty.
        """
        if self.choices or self.unit:
            return f"{text}{self.unit}"
        return int(text) if self.whole else float(text)

    def settings(self, text: str) -> list[str]:
        """Return ``KEY=VALUE`` as ``--set`` has it, for this key and those that it unsets.

        :param text: what ``check`` returned.
        """
        return [f"{self.key}={f'{text}{self.unit}' if text else 'null'}", *(f"{key}=null" for key in self.unsets)]


def controls_of(scenario: Scenario) -> tuple[Control, ...]:
    """Return the controls of a scenario, in the order of the page."""
    groups = (_traffic, _adapters, _memory, _replicas, _fleet, _targets)
    return tuple(control for group in groups for control in group(scenario))


def settings_of(controls: tuple[Control, ...], values: Mapping[str, str]) -> list[str]:
    """Return what ``--set`` needs for these values; those that are the scenario's own need nothing.

    :param values: by key.
    :raises InputError: ``SeveralErrors`` if more than one value is none of its control.
    """
    known = {control.key: control for control in controls}
    found, wrong = [], list[InputError]()
    for key, text in values.items():
        if key not in known:
            wrong.append(ScenarioError("no control of this page", key=key))
            continue
        try:
            checked = known[key].check(text)
        except ScenarioError as error:
            wrong.append(error)
            continue
        if checked != known[key].value:
            found += known[key].settings(checked)
    if wrong:
        raise wrong[0] if len(wrong) == 1 else SeveralErrors(wrong)
    return found


def moved_or_slots(controls: Sequence[Control], moved: str | None) -> Control | None:
    """Return the control that a curve or a plan is along: the one that was moved last, else the GPU slots."""
    by_key = {control.key: control for control in controls}
    return by_key.get(moved or "") or by_key.get("cache.gpu.slots")


def curve_values(control: Control, here: str) -> list[str]:
    """Return the values of a curve along a control, the most useful first: where the visitor stands, the scenario's
    own value and its doublings, then those between.

    :param here: the present value.
    """
    if control.choices:
        return list(dict.fromkeys([here, *(name for name, _ in control.choices)]))
    stops = [stop for stop in control.stops if stop]
    middle = stops.index(control.value) if control.value in stops else 0
    steps = (_STEPS, _STEPS // 2) if len(stops) > _MOST_WHOLE else (1,)
    wanted = [stop for step in steps for place, stop in enumerate(stops) if (place - middle) % step == 0]
    return list(dict.fromkeys([*([here] if here else []), *wanted]))


def _traffic(scenario: Scenario) -> Iterator[Control]:
    workload = scenario.workload
    value: float
    unit = disabled = ""
    if workload.trace is not None:
        key, words, value = "workload.trace.time_scale", "times the recorded traffic", workload.trace.time_scale
    elif (client := workload.client) is not None:
        key, value = f"workload.client.{client.load}", getattr(client, client.load)
        words = key_words(key)
    elif isinstance(workload.arrivals, ClosedArrivals):
        key, words, value = "workload.arrivals.concurrency", "clients", workload.arrivals.concurrency
    else:
        assert workload.arrivals is not None, "traffic is a trace or arrives"
        key, words, value, unit = "workload.arrivals.rate", "requests per second", workload.arrivals.rate, "/s"
        if any(tenant.rate is not None for tenant in scenario.tenants):
            disabled = "tenants have rates of their own (tenants.rate)"
    whole = not key.endswith((".time_scale", ".rate"))
    stops = _around(value, whole=whole)
    yield Control(key, words, "Traffic", f"{value:.10g}", unit, stops, whole=whole, disabled=disabled)


def _adapters(scenario: Scenario) -> Iterator[Control]:
    adapters = scenario.adapters
    count, stops = str(adapters.count or ""), _around(adapters.count or 100)
    named = "the adapters are those of a file, so their number is given" if adapters.count is None else ""
    if adapters.base_alone:
        named = "this scenario serves no adapters"
    elif any(tenant.adapters is not None for tenant in scenario.tenants):
        named = "tenants say how many adapters there are"
    yield Control("adapters.count", "adapters", "Traffic", count, stops=stops, disabled=named)
    mixed = "the scenario has a mix of ranks" if adapters.mix else ""
    rank, stops = "" if mixed else str(adapters.rank), _with(_RANKS, adapters.rank)
    yield Control("adapters.rank", "LoRA rank", "Traffic", rank, stops=stops, disabled=mixed)


def _memory(scenario: Scenario) -> Iterator[Control]:
    gpu, host = scenario.cache.gpu, scenario.cache.host
    disabled, stops = "", _around(gpu.slots or 32)
    if gpu.slots is None:
        disabled = "GPU memory for adapters is given in bytes here (cache.gpu.size), not in slots"
        if gpu.unified:
            disabled = "adapters share GPU memory with the KV cache here (cache.gpu.unified)"
    yield Control("cache.gpu.slots", "GPU slots", "Memory", str(gpu.slots or ""), stops=stops, disabled=disabled)
    disabled, slots = "", None if host is None else host.slots
    if host is not None and slots is None:
        disabled = "host memory is given in bytes here (cache.host.size), not in slots"
        if host.fill == "start":
            disabled = "all adapters are in host memory from the start here (cache.host.fill)"
    stops = _around(slots or scenario.adapters.count or 100)
    stops = stops if host is not None else ("", *stops)
    yield Control("cache.host.slots", "host slots", "Memory", str(slots or ""), stops=stops, disabled=disabled)
    own_start = str(scenario.cache.warm)
    starts = {"0": "empty", own_start: f"{own_start} adapters loaded"} | {"0": "empty", "steady": "full (steady)"}
    yield Control("cache.warm", "caches at the start", "Memory", own_start, choices=tuple(starts.items()))


def _fleet(scenario: Scenario) -> Iterator[Control]:
    fleet, router = scenario.fleet, scenario.router
    words, parallel, disabled = "GPUs per replica (TP)", "", ""
    if fleet.pools:
        disabled = "each pool has GPUs of its own"
    elif fleet.engine == "fixed":
        disabled = "engine fixed is a queue with a given service time, not a GPU"
    else:
        profile = profile_of(scenario)[0]
        parallel = str(gpus_per_replica(scenario, profile) if profile is not None else 1)
    stops = _with(_TENSOR_PARALLEL, int(parallel or 1))
    yield Control("fleet.tensor_parallel", words, "Fleet", parallel, stops=stops, listed=True, disabled=disabled)
    disabled = "engine fixed has a service time, which no other engine takes" if fleet.engine == "fixed" else ""
    names = dict.fromkeys([fleet.engine, *(name for name in ENGINES.all_names() if name != "fixed")])
    engines = tuple((name, engine_words(name)) for name in names)
    yield Control("fleet.engine", "engine", "Fleet", fleet.engine, choices=engines, disabled=disabled)
    routers = tuple((name, name) for name in ROUTERS.all_names(scenario.given.routers))
    unsets = tuple(router.without_own_keys)
    yield Control("router.policy", "router", "Fleet", router.policy, choices=routers, unsets=unsets)


def _replicas(scenario: Scenario) -> Iterator[Control]:
    fleet, disabled = scenario.fleet, ""
    for pool in fleet.pools:
        key, words = f"fleet.pools.{pool.name}.replicas", f"replicas in pool {pool.name}"
        yield Control(key, words, "Fleet", str(pool.replicas), stops=_with(range(9), pool.replicas))
    if fleet.pools:
        return
    if fleet.autoscale is not None:
        disabled = f"an autoscaler decides here, between {fleet.autoscale.min} and {fleet.autoscale.max}"
    stops = _with(range(1, max(8, 2 * fleet.replicas) + 1), fleet.replicas)
    yield Control("fleet.replicas", "replicas", "Fleet", str(fleet.replicas), stops=stops, disabled=disabled)


def _targets(scenario: Scenario) -> Iterator[Control]:
    terms = [name for name in Slo.model_fields if getattr(scenario.slo, name) is not None]
    for name in terms or ["ttft_p99"]:
        target = getattr(scenario.slo, name)
        kind, _, statistic = name.partition("_")
        if name == "miss_ratio":
            value, stops = f"{100 * target:.10g}", _with(_SHARES, round(100 * target))
            yield Control("slo.miss_ratio", "SLO: miss ratio", "Targets", value, "%", stops, whole=False)
            continue
        scale = target if target is not None else 1.0
        unit, factor = (" ms", 1000.0) if scale < 1 else (" s", 1.0)
        words = f"SLO: {statistic} {'queueing' if kind == 'queue' else kind.upper()}"
        value, stops = "" if target is None else f"{target * factor:.10g}", _around(scale * factor, whole=False)
        stops = stops if terms else ("", *stops)
        yield Control(f"slo.{name}", words, "Targets", value, unit, stops, whole=False)


def _around(value: float, *, whole: bool = True) -> tuple[str, ...]:
    """Return stops from an eighth of a value to eight times it: doublings are exact, others have two digits."""
    found = dict[float, None]()
    for place in range(-_OCTAVES * _STEPS, _OCTAVES * _STEPS + 1):
        number = value * 2 ** (place / _STEPS)
        if place % _STEPS:
            number = float(f"{number:.2g}")
        if whole:
            number = max(1, round(number))
        found[number] = None
    own = round(value) if whole else value
    return tuple(f"{number:.10g}" for number in sorted({*found, own}))


def _with(values: range | tuple[int, ...], own: int) -> tuple[str, ...]:
    """Return values as stops, with the scenario's own among them."""
    return tuple(str(value) for value in sorted({*values, own}))
