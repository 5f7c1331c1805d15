"""What a shell can complete behind ``loraplan``: scenarios, profiles, keys; see ``loraplan --install-completion``."""

from __future__ import annotations

from pathlib import Path

_YAML = (".yaml", ".yml")


def complete_scenario(incomplete: str) -> list[tuple[str, str]]:
    """Return bundled scenarios with their descriptions, and scenario files."""
    from sim.spec.files.bundled import bundled_scenarios

    named = [(each.name, each.description) for each in bundled_scenarios() if each.name.startswith(incomplete)]
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    files = [str(path) for path in sorted(folder.glob("*")) if path.suffix in _YAML or path.is_dir()]
    return named + [(name, "") for name in files if name.startswith(incomplete)]


def complete_profile(incomplete: str) -> list[str]:
    """Return bundled profiles."""
    from sim.spec.profile import bundled_profiles

    return [name for name in bundled_profiles() if name.startswith(incomplete)]


def complete_assignment(incomplete: str) -> list[str]:
    """Return the keys of scenarios, ready for a value; behind ``=`` there is nothing to complete."""
    from sim.spec.files.problems import known_keys
    from sim.spec.scenario import Scenario

    keys = dict.fromkeys(known_keys(Scenario))
    sections = {key.rpartition(".")[0] for key in keys}
    found = [f"{key}=" for key in keys if key.startswith(incomplete) and key not in sections]
    # A shell puts a space behind a single candidate; with two it stops behind what they share.
    return [*found, f"{found[0]}VALUE"] if len(found) == 1 else found
