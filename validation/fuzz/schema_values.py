"""Values that a JSON Schema allows: right by themselves, if not always beside each other."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_BY_EXAMPLE = {
    "20 ms": ("20 ms", "1 s", "0 s", "3 min", "500us", "1e-9 s"),
    "50 MB": ("50 MB", "1 GB", "4 kB", "1 B", "30 MiB"),
    "12/s": ("12/s", "1/s", "40/s", "90/min"),
    "5%": ("5%", "0%", "100%", 0.5, "0.01", 1),
}
_NAMES = (
    "llama-3.1-8b",
    "tiny",
    "q",
    "v",
    "all-linear",
    "a0",
    "0",
    "cache.gpu.slots",
    "fleet.replicas",
    "h100-64gb/x",
    "adapters-dir",
    "trace.csv",
)


@st.composite
def values(draw: st.DrawFn, schema: dict[str, Any], defs: dict[str, Any], depth: int = 0) -> Any:
    """Return a value that a node of a schema allows."""
    if "$ref" in schema:
        return draw(values(defs[schema["$ref"].rpartition("/")[2]], defs, depth + 1))
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return draw(values(draw(st.sampled_from(schema[choice])), defs, depth))
    kind = schema.get("type")
    if kind == "integer":
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        high = min(schema.get("maximum", schema.get("exclusiveMaximum", low + 65) - 1), low + 64)
        return draw(st.sampled_from(sorted({low, min(low + 1, high), min(low + 7, high), high})))
    if kind == "number":
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10))
        return draw(st.sampled_from((low, high, (low + high) / 2, low + 0.1, low + 1e-9)))
    if kind == "boolean":
        return draw(st.booleans())
    if kind == "string":
        example = (schema.get("examples") or [""])[0]
        return draw(st.sampled_from(_BY_EXAMPLE.get(example, _NAMES)))
    if kind == "array":
        return draw(_lists(schema, defs, depth))
    if kind == "object":
        return draw(_objects(schema, defs, depth))
    return None if kind == "null" else draw(st.sampled_from((1, 8, "4", "1 GB", "10/s", None)))


@st.composite
def _lists(draw: st.DrawFn, schema: dict[str, Any], defs: dict[str, Any], depth: int) -> Any:
    if "prefixItems" in schema:
        return [draw(values(item, defs, depth + 1)) for item in schema["prefixItems"]]
    least = schema.get("minItems", 0)
    count = draw(st.integers(least, min(schema.get("maxItems", 3), least + 2)))
    return [draw(values(schema.get("items", {}), defs, depth + 1)) for _ in range(count)]


@st.composite
def _objects(draw: st.DrawFn, schema: dict[str, Any], defs: dict[str, Any], depth: int) -> Any:
    required = set(schema.get("required", ()))
    found = {}
    for name, child in schema.get("properties", {}).items():
        if name in required or (depth < 6 and draw(st.integers(0, 3)) == 0):
            found[name] = draw(values(child, defs, depth + 1))
    return found
