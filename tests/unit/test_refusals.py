"""Every refusal of a scenario in its whole words: ``refusals/*.yaml`` hold what is changed and what is answered.

A group has a scenario (``base`` is that of ``scenario_samples``, another name a bundled one) and, if it needs them,
files. A change is one or more of these, with ``; `` between them:

- ``key=value``: as after ``--set``;
- ``old -> new``: the text of the scenario is edited in the one place where ``old`` stands;
- ``+ text``: lines at its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refusal_tables import Refusal, refusals
from scenario_samples import BASE, write

from sim.errors import InputError
from sim.spec.scenario_file import load_scenario
from sim.studies.design import check_points
from sim.studies.plan.checks import check_plan


def check(source: str, overrides: list[str]) -> None:
    """Check a scenario as ``loraplan check`` does."""
    loaded = load_scenario(source, overrides)
    check_points(loaded)
    if loaded.scenario.plan is not None:
        check_plan(loaded)


def refusal(group: dict[str, Any], change: str) -> str:
    """Return what is said of a group's scenario, written into this folder, with a change."""
    text, overrides = BASE if group["scenario"] == "base" else group["scenario"], []
    for part in change.split("; "):
        old, arrow, new = part.partition(" ->")
        if part.startswith("+ "):
            text += f"{part[2:]}\n"
        elif arrow:
            assert text.count(old) == 1, "the edit must hit exactly one place"
            text = text.replace(old, new.removeprefix(" "))
        else:
            overrides.append(part)
    for name, content in group.get("files", {}).items():
        write(Path(name), content)
    source = str(write(Path("s.yaml"), text)) if "\n" in text else text
    with pytest.raises(InputError) as caught:
        check(source, overrides)
    return str(caught.value)


@pytest.mark.parametrize("row", refusals(Path(__file__).with_name("refusals")))
def test_what_is_wrong_is_said_in_these_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Refusal) -> None:
    monkeypatch.chdir(tmp_path)
    row.compare(refusal(row.group, row.change))
