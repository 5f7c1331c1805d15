"""Scenarios as YAML text."""

from __future__ import annotations

import io
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
