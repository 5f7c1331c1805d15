"""Ways of serving adapters, and what they need of other keys: ``adapter_modes.toml``.

A scenario may choose several of ``MODES``, such as ``loads-in-steps`` and ``vllm-lru``; its replicas have the last of
them. It must meet the needs of each, and those of ``OTHER_CHOICES``, which are no modes but restrict them.

A new mode is a class in ``sim/world/replica/modes``, an entry there, and a case in ``make_mode``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sim.spec.needs import UNSET, Choice, Need, Values, at_least, eviction_but, only
from sim.spec.policies import EVICTIONS
from sim.spec.registry import Registry

AT_ADMISSION = "loads-at-admission"
AT_ARRIVAL = "loads-at-arrival"
IN_STEPS = "loads-in-steps"
VLLM_LRU = "vllm-lru"
BATCH_SLOTS = "batch-slots"
PER_ADAPTER = "per-adapter"
UNIFIED = "unified"
PREFETCHING = "prefetching"


def _values(given: Any) -> Values:
    if isinstance(given, Mapping):
        if "at_least" in given:
            return at_least(given["at_least"])
        names = given.get("not") or [entry.name for entry in EVICTIONS if getattr(entry, given["without"])]
        return eviction_but(*names)
    return UNSET if given == "unset" else only(*(given if isinstance(given, list) else [given]))


def _need(row: dict[str, Any]) -> Need:
    texts = {name: row.pop(name) for name in ("why", "at", "hint") if name in row}
    return Need({key: _values(value) for key, value in row.items()}, **texts)


def _choices(table: Mapping[str, Any]) -> tuple[Choice, ...]:
    needs = {name: tuple(map(_need, row.get("needs", ()))) for name, row in table.items()}
    return tuple(
        Choice(name, row["about"], row.get("class", ""), set_by=row["set_by"], needs=needs[name])
        for name, row in table.items()
    )


_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
MODES = Registry("adapter mode", _choices(_TABLES["modes"]))
OTHER_CHOICES = _choices(_TABLES["others"])


def mode_of(scenario: BaseModel) -> str:
    """Return the name of the mode in which a scenario's replicas serve adapters."""
    return [mode.name for mode in MODES if mode.is_set(scenario)][-1]
