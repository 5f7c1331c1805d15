"""The JSON Schema of a scenario file, for completion and red underlines in editors."""

from __future__ import annotations

import copy
import json
from typing import Any

from sim.spec.engine_versions import NAMES_SCHEMA
from sim.spec.engines import ENGINES
from sim.spec.policies import EVICTIONS, PLACEMENTS, PLACERS, ROUTERS
from sim.spec.registry import Registry
from sim.spec.scenario import Scenario
from sim.spec.sections.trace_source import TRACE_FORMATS

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# The models check these with better messages than an enum's, so the schema needs them here.
_NAMES: dict[tuple[str, str], Registry[Any]] = {
    ("Fleet", "engine"): ENGINES,
    ("Cache", "eviction"): EVICTIONS,
    ("Router", "policy"): ROUTERS,
    ("Router", "placement"): PLACEMENTS,
    ("PlacementController", "policy"): PLACERS,
    ("Trace", "format"): TRACE_FORMATS,
}
_EXTENDS = {
    "type": "string",
    "description": "The scenario this one builds on: a bundled name, or a file relative to this one. "
    "Mappings are merged, lists replaced, and null removes a key.",
    "examples": ["thousand-adapters", "base.yaml"],
}


def scenario_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a scenario file.

    A file that extends another may leave out anything and remove keys with null, so every model is included twice:
    whole, and as an overlay in which nothing is required.
    """
    scenario = Scenario.model_json_schema(by_alias=True)
    models: dict[str, Any] = scenario.pop("$defs")
    models["Scenario"] = scenario
    for (model, field), registry in _NAMES.items():
        models[model]["properties"][field]["enum"] = list(registry.all_names())
    engine = models["Fleet"]["properties"]["engine"]
    engine["anyOf"] = [{"enum": engine.pop("enum")}, NAMES_SCHEMA]
    models = {name: _without_discriminators(model) for name, model in models.items()}
    overlays = {f"{name}.overlay": _overlay(model) for name, model in models.items()}
    overlays["Scenario.overlay"]["properties"]["extends"] = _EXTENDS
    return {
        "$schema": SCHEMA_DIALECT,
        "title": "loraplan scenario",
        "description": scenario.get("description", ""),
        "type": "object",
        "if": {"required": ["extends"]},
        "then": {"$ref": "#/$defs/Scenario.overlay"},
        "else": {"$ref": "#/$defs/Scenario"},
        "$defs": {**models, **overlays},
    }


def schema_text() -> str:
    """Return the schema as the file that ``loraplan schema`` prints and ``scenarios/schema`` holds."""
    return json.dumps(scenario_schema(), indent=1, ensure_ascii=False) + "\n"


def _without_discriminators(schema: Any) -> Any:
    # OpenAPI's keyword, unknown to JSON Schema; each kind already fixes its tag.
    if isinstance(schema, dict):
        return {
            key: _without_discriminators(value)
            for key, value in schema.items()
            if not (key == "discriminator" and isinstance(value, dict) and "propertyName" in value)
        }
    if isinstance(schema, list):
        return [_without_discriminators(item) for item in schema]
    return schema


def _overlay(model: dict[str, Any]) -> dict[str, Any]:
    overlay: dict[str, Any] = _referring(copy.deepcopy(model))
    overlay.pop("required", None)
    for name, field in overlay.get("properties", {}).items():
        about = {key: field[key] for key in ("description", "title") if key in field}
        overlay["properties"][name] = {**about, "anyOf": [field, {"type": "null"}]}
    return overlay


def _referring(schema: Any) -> Any:
    """Point a model's references to the overlays, except in lists: a list replaces the base's as a whole."""
    if isinstance(schema, list):
        return [_referring(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "$ref":
            result[key] = f"{value}.overlay"
        elif key == "items":
            result[key] = value
        else:
            # A tag may be left to the base, and then several kinds fit what is given.
            result["anyOf" if key == "oneOf" else key] = _referring(value)
    return result
