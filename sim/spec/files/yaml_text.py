"""Scenarios as YAML text."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any


def yaml_text(scenario: Mapping[str, Any]) -> str:
    """Return plain data as a scenario file has it."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    target = io.StringIO()
    yaml.dump(dict(scenario), target)
    return target.getvalue()


_PLAIN = re.compile(
    r"(?!(true|false|null|yes|no|on|off)$|[\d.]+e[+-]?\d+$|0[xob])([a-z]|\d[\d.]* ?[a-z/%])[\w./% -]*(?<! )",
    re.IGNORECASE,
)
"""Texts that need no quotes: words, and numbers with a unit."""


def flow_text(value: Any) -> str:
    """Return plain data as YAML on one line; numbers with six digits."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(flow_text, value)) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)
