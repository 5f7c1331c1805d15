"""Registries: every name has something behind it and a place in the docs, and what is not registered is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from sim.policies.eviction import EvictionContext, make_eviction
from sim.spec.adapter_modes import MODES
from sim.spec.engines import ENGINES
from sim.spec.policies import CACHE_DEFAULTS, EVICTIONS, PLACEMENTS, ROUTERS
from sim.spec.registry import Entry, Registry
from sim.spec.scenario import scenario_schema
from sim.spec.scenario_file import load_scenario
from sim.spec.sections.trace_source import TRACE_FORMATS
from sim.spec.sections.traffic_laws import Arrivals, ClosedArrivals, OpenArrivals
from sim.studies.design import build
from sim.studies.plan.what_if import changes
from sim.traffic.arrivals import PROCESSES

DOCS = Path(__file__).resolve().parents[2] / "docs"
REGISTRIES: list[Registry[Any]] = [EVICTIONS, ROUTERS, PLACEMENTS, ENGINES, TRACE_FORMATS]
ENTRIES = [entry for registry in (*REGISTRIES, MODES) for entry in registry if entry.name != "auto"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_name_has_something_behind_it_and_a_line_for_readers(entry: Entry) -> None:
    assert entry.load() is not None
    assert entry.about.endswith(".")
    assert not entry.origin


@pytest.mark.parametrize(
    ("names", "page"),
    [
        (EVICTIONS.names, "model.md"),
        (ROUTERS.names, "routers.md"),
        ([engine.name for engine in ENGINES if engine.preset], "engines.md"),
        (MODES.names, "init.md"),
        (TRACE_FORMATS.names[1:], "trace.md"),
    ],
)
def test_every_name_stands_in_the_docs(names: Sequence[str], page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert [name for name in names if f"`{name}`" not in text and not any(name in line for line in headings)] == []


def test_the_schema_has_the_names_of_every_registry() -> None:
    models = scenario_schema()["$defs"]
    fields = [field for model in models.values() for field in model["properties"].values()]
    found = [set(part["enum"]) for field in fields for part in (field, *field.get("anyOf", ())) if "enum" in part]
    assert all(set(registry.names) in found for registry in REGISTRIES if registry is not ENGINES)
    assert {"vllm", *ENGINES.names} in found


def test_every_arrival_process_does_something() -> None:
    union, _ = get_args(Arrivals)
    assert set(PROCESSES) == set(get_args(OpenArrivals))
    assert set(get_args(union)) - set(PROCESSES) == {ClosedArrivals}, "whose clients are sim.world.closed_loop"


def test_a_replay_begins_with_known_policies() -> None:
    assert not any(EVICTIONS[name].needs_batch for name in CACHE_DEFAULTS)


def test_a_name_stands_in_a_registry_once() -> None:
    with pytest.raises(AssertionError, match="once"):
        Registry("thing", (Entry(name="a"), Entry(name="a")))


def test_loraplans_own_policies_are_not_watched() -> None:
    assert type(make_eviction("lru", EvictionContext([1], 1))) is EVICTIONS["lru"].load()


@pytest.mark.parametrize("entry", EVICTIONS.entries, ids=lambda entry: entry.name)
def test_a_what_if_tries_others_where_the_policy_can_be_exchanged(entry: Any) -> None:
    if entry.needs_batch:
        assert not entry.is_exchangeable
        return
    found = changes(build(load_scenario("quickstart", [f"cache.eviction={entry.name}"]).scenario))
    tried = [change.set["cache.eviction"] for change in found if change.group == "eviction"]
    wanted = [other for other in ("lru", "lfu", "sieve", "gdsf") if other != entry.name]
    assert tried == ([] if entry.name == "belady" else wanted)
