"""The scenario reference: a walk over the JSON Schema that the models give."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from reference.markdown import either, linked, table

DOCS = Path(__file__).resolve().parents[1]

TAGS = ("law", "process", "kind", "tool")
"""Keys that say which of several models a mapping is; as in sim/spec/files/tree.py."""

POOLS = "fleet.pools[]"
"""The section that repeats keys of others: its table shows its own."""

NAMES_ON = {
    "fleet.engine": "engines.md",
    "cache.eviction": "model.md",
    "router.policy": "routers.md",
    "router.controller.policy": "routers.md",
    "fleet.autoscale.policy": "autoscaling.md",
    "fleet.autoscale.metric": "autoscaling.md",
    "workload.trace.format": "trace.md",
    "rollouts[].strategy": "rollouts.md",
}
"""Keys whose names a page of their own describes: the tables list them and link it."""

_SANITY = 1
"""Bounds further out only catch slips of the pen: errors and the JSON Schema name them, the tables don't."""

_UNIT_OF_EXAMPLE = {"20 ms": "time", "50 MB": "size", "12/s": "rate", "5%": "share"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_PLAIN = {"integer": "integer", "number": "number", "string": "text", "boolean": "boolean"}

SCENARIO_PAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "workload": (("workload", "adapters", "tenants"), ()),
    "laws": ((), ("arrivals", "popularity", "client", "prompt", "service")),
    "fleet": (("fleet",), ()),
    "cache": (("cache", "storage", "router"), ()),
    "run": (("rollouts", "slo", "run", "plan"), ("faults",)),
}
"""For each page ``scenario-NAME.md``: the keys whose sections it has, and the laws."""

_LAWS = {
    "client": "Benchmark clients",
    "arrivals": "Arrival processes",
    "popularity": "Popularity laws",
    "prompt": "Token laws",
    "service": "Time laws",
    "faults": "Kinds of faults",
}


def scenario_table() -> str:
    """Return the table of a scenario's top level, with links to the page of each section."""
    from sim.spec.scenario import scenario_schema

    models = scenario_schema()["$defs"]
    model = models["Scenario"]
    rows = [_field_row("", key, field, model, models) for key, field in model["properties"].items()]
    for row in rows:
        key = row[0].strip("`")
        page = next((page for page, (keys, laws) in SCENARIO_PAGES.items() if key in (*keys, *laws)), None)
        if page:
            row[0] = f"[{row[0]}](scenario-{page}.md)"
        elif "section" in row[1]:
            raise SystemExit(f"the section {key!r} has no page: add one to SCENARIO_PAGES")
    return "\n" + table(["key", "type", "default", "meaning"], rows) + "\n"


def scenario_sections(page: str) -> str:
    """Return the tables of one page of the scenario reference: its sections in the order of the file, then its laws."""
    from sim.spec.scenario import scenario_schema

    models = scenario_schema()["$defs"]
    parts = []
    keys, laws = SCENARIO_PAGES[page]
    first: dict[str, str] = {}
    for path, name in _sections(models):
        told = first.setdefault(name, path)
        if path.partition(".")[0].removesuffix("[]") not in keys:
            continue
        model = models[name]
        if told != path and path.startswith(POOLS):
            continue  # of the fleet too
        if told != path:
            parts.append(f"## `{path}`\n\nIt has the keys of {_section_link(told)}.")
            continue
        elsewhere = models["Fleet"]["properties"].keys() - {"replicas"} if path == POOLS else ()
        fields = {one: field for one, field in model["properties"].items() if one not in elsewhere}
        rows = _merged([_field_row(path, one, field, model, models) for one, field in fields.items()])
        about = " ".join(str(model.get("description", "")).replace("``", "`").split())
        parts.append(f"## `{path}`\n\n{linked(about)}\n\n" + table(["key", "type", "default", "meaning"], rows))
    return "\n\n".join(["", *parts, *(_law_table(models, law) for law in laws), ""])


def _merged(rows: Iterable[list[str]]) -> list[list[str]]:
    """Return rows with those that follow each other and differ in the key alone as one."""
    groups = itertools.groupby(rows, key=lambda row: row[1:])
    return [[", ".join(key for key, *_ in group), *rest] for rest, group in groups]


def _section_link(path: str) -> str:
    page = next(page for page, (keys, _) in SCENARIO_PAGES.items() if path.partition(".")[0].removesuffix("[]") in keys)
    anchor = re.sub(r"[^\w\- ]", "", path.lower())
    return f"[`{path}`](scenario-{page}.md#{anchor})"


def _sections(models: dict[str, Any], name: str = "Scenario", path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, model) of every section; laws have tables of their own."""
    yield path, name
    for key, field in models[name]["properties"].items():
        if path == POOLS and key in models["Scenario"]["properties"]:
            continue  # keys of cache and storage have their pages
        inner = [one for one in _referred(field) if not models[one]["properties"].keys() & set(TAGS)]
        if len(inner) == 1:
            yield from _sections(models, inner[0], f"{path}.{key}" if path else key)
        listed = field.get("items", {}).get("$ref")
        if listed:
            yield from _sections(models, listed.rpartition("/")[2], f"{path}.{key}[]" if path else f"{key}[]")


def _referred(field: dict[str, Any]) -> list[str]:
    found = [field, *field.get("anyOf", ()), *field.get("oneOf", ())]
    return [part["$ref"].rpartition("/")[2] for part in found if "$ref" in part] + [
        one for part in field.get("anyOf", ()) for one in _referred(part) if "oneOf" in part
    ]


def _field_row(path: str, key: str, field: dict[str, Any], model: dict[str, Any], models: dict[str, Any]) -> list[str]:
    full = f"{path}.{key}".lstrip(".")
    kind = _type(field, models)
    inner = _referred(field)
    about = field.get("description") or (models[inner[0]].get("description", "") if inner else "")
    words = kind.split("`")[1::2]
    if full in NAMES_ON:
        page = (DOCS / NAMES_ON[full]).read_text(encoding="utf-8")
        if lacking := [word for word in words if f"`{word}`" not in page and f"# {word}\n" not in page]:
            raise SystemExit(f"{NAMES_ON[full]} does not say what {', '.join(lacking)} of {full} does")
        first = min(about.index(f"``{word}``: ") for word in words if f"``{word}``: " in about)
        about = about[:first]
        about += "" if f"docs/{NAMES_ON[full]}" in about else f"[What each does]({NAMES_ON[full]})."
    elif len(words) > 1 and all(f"`{word}`" in about.replace("``", "`") for word in words):
        kind = "choice"  # the meaning names each, and says what it does
    if key in model.get("required", ()):
        default = "required"
    elif kind == "section" and field.get("default") is not None:
        default = "see below"
    else:
        default = _default(field, kind)
    return [f"`{full}`", kind, default, about]


def _type(field: dict[str, Any], models: dict[str, Any]) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return either([f"`{word}`" for word in field["enum"]])
    example = next(iter(field.get("examples", ())), None)
    if example in _UNIT_OF_EXAMPLE:
        return _UNIT_OF_EXAMPLE[example]
    if "pattern" in field:
        return f"text such as `{example}`" if example else "text"
    options = field.get("anyOf") or field.get("oneOf")
    if law := _law_of(options or (), models):
        return law
    if options:
        if any("5%" in part.get("examples", ()) for part in options):
            return "share"
        words = [_type(part, models) for part in options if part.get("type") != "null"]
        return either(list(dict.fromkeys(words)))
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        properties = models[name]["properties"]
        tag = next((tag for tag in TAGS if tag in models[name].get("required", ())), None)
        return _type(properties[tag], models) if tag else "section"
    if field.get("type") == "array":
        inner = _type(field["items"], models) if field.get("items") else ""
        if "oneOf" in field.get("items", {}):
            return "list of kinds, see below"
        return "list" if not inner else "list of sections" if inner == "section" else f"list of {inner}"
    if field.get("type") == "object":
        lists = field.get("additionalProperties", {}) not in (True, {})
        return "lists of values by dotted key" if lists else "values by dotted key"
    if "type" not in field:
        return "any value"
    kind = _PLAIN.get(str(field.get("type")), str(field.get("type")))
    if field.get("exclusiveMinimum") == 0:
        kind, field = f"positive {kind}", {key: value for key, value in field.items() if key != "exclusiveMinimum"}
    bounds = [
        f"{sign}\u00a0{field[name]:,.12g}"
        for name, sign in _BOUNDS.items()
        if name in field and (field[name] >= -_SANITY if name.endswith("inimum") else field[name] <= _SANITY)
    ]
    return f"{kind} {', '.join(bounds)}" if bounds and kind != "text" else kind


def _law_of(options: Sequence[dict[str, Any]], models: dict[str, Any]) -> str:
    """Return a link to the laws that a key takes, if these are its options."""
    names = {part["$ref"] for part in options if "$ref" in part}
    for key, words in _LAWS.items():
        kinds = models[_PLACES[key]]["properties"][key]
        if len(names) > 1 and names == {f"#/$defs/{name}" for name in _referred(kinds)}:
            one = re.sub("(?<=ss)es$|s$", "", words.lower())
            return f"[{one}](scenario-laws.md#{words.lower().replace(' ', '-')})"
    return ""


def _default(field: dict[str, Any], kind: str) -> str:
    value = field.get("default")
    if kind.startswith("time") and isinstance(value, (int, float)):
        from sim.spec.units import format_seconds

        return f"`{format_seconds(value)}`"
    if kind.startswith("share") and isinstance(value, float):
        return f"`{value:.0%}`"
    if (kind == "size" or "GB/s" in kind) and isinstance(value, (int, float)):
        from sim.spec.units import human_bytes

        return f"`{human_bytes(value)}{'/s' if 'GB/s' in kind else ''}`"
    if value is None:
        return "unset" if "default" in field or kind in ("rate", "time") else "empty"
    return f"`{_value(value)}`" if value not in ("", [], {}) else "empty"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        given = {key: item for key, item in value.items() if item is not None}
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in given.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


_PLACES = {
    "client": "Workload",
    "arrivals": "Workload",
    "popularity": "Workload",
    "service": "Fleet",
    "prompt": "Tokens",
    "faults": "Scenario",
}
"""The model in which each kind of law can be found."""


def _law_table(models: dict[str, Any], key: str) -> str:
    rows: list[list[str]] = []
    told: dict[tuple[str, ...], str] = {}
    kinds = models[_PLACES[key]]["properties"][key]
    for name in _referred(kinds.get("items", kinds)):
        model = models[name]
        tag = next(tag for tag in TAGS if tag in model["properties"])
        own = [item for item in model["properties"].items() if item[0] != tag]
        names = model["properties"][tag]
        words = [f"`{tag}: {name}`" for name in names.get("enum", [names.get("const")])]
        rows.append([f"**{' or '.join(words)}**", "", "", str(model.get("description", ""))])
        of_law: list[list[str]] = []
        for one, field in own:
            row = _field_row("", one, field, model, models)
            if (first := told.setdefault(tuple(row), words[0])) != words[0]:
                of_law.append([row[0], "", "", f"As with {first}."])
                continue
            of_law.append(row)
            listed = field.get("items", {}).get("$ref", "").rpartition("/")[2]
            section = [ref for ref in _referred(field) if not models[ref]["properties"].keys() & set(TAGS)]
            for ref, path in ((listed, f"{one}[]"), (section[0] if len(section) == 1 else "", one)):
                inner = models[ref]["properties"].items() if ref else ()
                of_law += [_field_row(path, part, item, models[ref], models) for part, item in inner]
        rows += sorted(of_law, key=lambda row: row[1] != "")
    return f"## {_LAWS[key]}\n\n" + table(["key", "type", "default", "meaning"], _merged(rows))
