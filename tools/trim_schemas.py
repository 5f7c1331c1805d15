"""Trim public schemas of Compose and Kubernetes to what ``--emit`` writes (tests/cli/manifest_schemas).

    python tools/trim_schemas.py SCHEMA.json MANIFEST.yaml [MORE.yaml ...] > trimmed.json

What stays of the schema: the properties that a document has, and those that are required. Whatever else is refused, so
a manifest with a new key needs new test data. Descriptions and unused definitions go.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

KEPT = (
    "type",
    "enum",
    "pattern",
    "format",
    "required",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)


def trimmed(schema: dict[str, Any], values: list[Any], root: Path) -> dict[str, Any]:
    """Return the part of a schema that these values use.

    :param root: the file of the schema, to which references are relative.
    """
    if "$ref" in schema:
        file, _, path = schema["$ref"].partition("#")
        target = root.parent / Path(file).name if file else root
        found: Any = json.loads(target.read_text(encoding="utf-8"))
        for part in path.strip("/").split("/"):
            found = found[part] if part else found
        return trimmed(found, values, target)
    kept: dict[str, Any] = {key: schema[key] for key in KEPT if key in schema}
    for key in ("oneOf", "anyOf", "allOf"):
        if key in schema:
            kept[key] = [trimmed(each, values, root) for each in schema[key]]
    objects = [value for value in values if isinstance(value, dict)]
    by_pattern = schema.get("patternProperties", {})
    if "properties" in schema:
        used = {name for value in objects for name in value} | set(schema.get("required", ()))
        kept["properties"] = {
            name: trimmed(each, [value[name] for value in objects if name in value], root)
            for name, each in schema["properties"].items()
            if name in used
        }
        kept["additionalProperties"] = False
    elif by_pattern:
        below = [item for value in objects for item in value.values()]
        kept["patternProperties"] = {name: trimmed(each, below, root) for name, each in by_pattern.items()}
        kept["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        below = [item for value in objects for item in value.values()]
        kept["additionalProperties"] = trimmed(schema["additionalProperties"], below, root)
    if "items" in schema:
        below = [item for value in values if isinstance(value, list) for item in value]
        kept["items"] = trimmed(schema["items"], below, root)
    return kept


def main() -> None:
    """Print a trimmed schema."""
    schema = Path(sys.argv[1])
    documents = [each for file in sys.argv[2:] for each in YAML(typ="safe").load_all(Path(file).read_text())]
    whole = json.loads(schema.read_text(encoding="utf-8"))
    kinds = whole.get("properties", {}).get("kind", {}).get("enum")
    fitting = [each for each in documents if kinds is None or each.get("kind") in kinds]
    print(json.dumps(trimmed(whole, fitting, schema), indent=1))


if __name__ == "__main__":
    main()
