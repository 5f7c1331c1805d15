"""The configuration of llm-d's endpoint picker, an ``EndpointPickerConfig``: read and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.reading import read_regular
from sim.spec.engine_flags.command_lines import Setting
from sim.spec.policies import FILTERS, SCORERS, PluginEntry
from sim.spec.registry import Registry
from sim.spec.sections.control_plane import Filter, Router, Scorer
from sim.spec.units import format_seconds

MANIFEST_BYTES = 4 << 20
"""Bytes of a manifest, at most."""
_PICKERS = ("max-score-picker", "weighted-random-picker", "random-picker")
_WITHOUT_EFFECT = ("single-profile-handler", "approx-prefix-cache-producer", "inflight-load-producer")
"""Plugins of which the simulated router needs no word."""
_SECONDS = {"load_horizon": ("loadHorizonSeconds", 1.0), "max_ttft_penalty": ("maxTTFTPenaltyMs", 1000.0)}
"""Parameters that are times: their names there, and their unit in parts of a second."""
_REGISTRIES: Mapping[str, Registry[PluginEntry]] = {"scorers": SCORERS, "filters": FILTERS}
_OLD_NAMES = {"kv-cache-scorer": "kv-cache-utilization-scorer"}
_OURS_ALONE = ("count",)
"""Keys that say which release is simulated."""


def _parameter(key: str) -> str:
    first, *others = key.split("_")
    return _SECONDS[key][0] if key in _SECONDS else first + "".join(map(str.capitalize, others))


def is_picker(file: Path) -> bool:
    """Return whether a manifest configures an endpoint picker."""
    return any(map(_is_config, documents_of(file)))


def _is_config(document: object) -> bool:
    return isinstance(document, Mapping) and document.get("kind") == "EndpointPickerConfig"


def read_picker(file: Path) -> tuple[list[Setting], list[str]]:
    """Return the settings that the configuration in a manifest means, and comments on what none can hold.

    :raises InputError: if it names no plugin of its own, or no scorer that is known.
    """
    config, said = next(filter(_is_config, documents_of(file))), f"a plugin list in {file.name}"
    plugins: dict[str, Mapping[str, Any]] = {}
    for plugin in _mappings(config.get("plugins")):
        plugins[str(plugin.get("name") or plugin.get("type"))] = plugin
    profiles = _mappings(config.get("schedulingProfiles")) or [{"plugins": [{"pluginRef": name} for name in plugins]}]
    found: dict[str, list[object]] = {"scorers": [], "filters": []}
    settings, comments = [Setting("router.policy", "scorers", f"an EndpointPickerConfig: {file.name}")], []
    for reference in _mappings(profiles[0].get("plugins")):
        name = str(reference.get("pluginRef"))
        if name not in plugins:
            allowed = ", ".join(plugins) or "none is listed"
            raise InputError("unknown plugin", file=str(file), key="pluginRef", got=name, allowed=allowed)
        kind, parameters = str(plugins[name].get("type")), plugins[name].get("parameters")
        kind = _OLD_NAMES.get(kind, kind)
        known = {entry.plugin: (key, entry) for key, each in _REGISTRIES.items() for entry in each}
        if kind in _PICKERS:
            settings.append(Setting("router.picker", kind.removesuffix("-picker"), f"{kind} in {file.name}"))
        elif kind not in known:
            comments += [] if kind in _WITHOUT_EFFECT else [f"Not translated: {kind}: no scorer or filter is like it"]
        else:
            section, entry = known[kind]
            weight = {"weight": reference.get("weight", 1)} if section == "scorers" else {}
            values: dict[str, object] = {"name": entry.name, **weight}
            names = {_parameter(key): key for key in entry.keys if key not in _OURS_ALONE}
            for parameter, value in (parameters if isinstance(parameters, Mapping) else {}).items():
                key = names.get(str(parameter))
                if key is None:
                    comments.append(f"Not translated: {parameter} of {kind}: {value}")
                elif key in _SECONDS and isinstance(value, int | float):
                    values[key] = format_seconds(value / _SECONDS[key][1])
                else:
                    values[key] = value
            found[section].append(values)
    if not found["scorers"] and all(each.value != "random" for each in settings):
        raise InputError(
            "the profile has no scorer that can be simulated",
            file=str(file),
            allowed=", ".join(entry.plugin for entry in SCORERS),
        )
    settings += [Setting(f"router.{key}", each, said) for key, each in found.items() if each]
    if len(profiles) > 1:
        comments.append(f"{file.name} has {len(profiles)} profiles; this is the first, {profiles[0].get('name')}.")
    return settings, comments


def documents_of(file: Path) -> list[Any]:
    """Return the documents of a manifest.

    :raises InputError: if it is no YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return list(YAML(typ="safe", pure=True).load_all(read_regular(file, MANIFEST_BYTES).decode("utf-8")))
    except OSError as error:
        raise InputError("the manifest can't be read", file=str(file), got=error.strerror or str(error)) from None
    except (YAMLError, ValueError, RecursionError) as error:
        hint = "a chart's templates are no YAML: give its values, or what helm template prints"
        raise InputError("not YAML", file=str(file), got=str(error).split("\n")[0], hint=hint) from None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def plugins_of(router: Router) -> list[tuple[str, float | None, dict[str, Any]]]:
    """Return the plugins of the picker that was simulated: type, weight of a scorer, and parameters."""
    scorers = router.scoring if router.policy == "scorers" else (Scorer(name="lora-affinity"),)
    found: list[tuple[str, float | None, dict[str, Any]]] = []
    found += [(FILTERS[each.name].plugin, None, dict(_parameters(each, FILTERS))) for each in router.filters]
    found += [(SCORERS[each.name].plugin, each.weight, dict(_parameters(each, SCORERS))) for each in scorers]
    return [*found, (f"{router.picker or 'max-score'}-picker", None, {})]


def releases_of(router: Router) -> Iterator[str]:
    """Yield what the picker must be newer than llm-d's router v0.10.0 for."""
    if any(each.count == "union" for each in router.scorers):
        yield "lora-affinity-scorer was simulated as since pull request 2625, after v0.10.0."
    names = [each.name for each in router.scorers] + [each.name for each in router.filters]
    if "lora-load-state" in names or "lora-residency" in names:
        yield "Scorer and filter by residency are in pull request 2792, which was open in September 2026."


def _parameters(each: Scorer | Filter, registry: Registry[PluginEntry]) -> Iterator[tuple[str, Any]]:
    for key in registry[each.name].keys:
        value = getattr(each, key)
        if key not in _OURS_ALONE and value is not None and key in each.model_fields_set:
            yield _parameter(key), value * _SECONDS[key][1] if key in _SECONDS else value
