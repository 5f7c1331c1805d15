"""Tables of engines: rules about adapters, ways of serving them, versions, options."""

from __future__ import annotations

from typing import Any

from reference.markdown import table


def engine_rules() -> str:
    """Return what engines make of adapters."""
    from sim.spec.engines import ENGINES
    from sim.training.files.engine_checks import rules_of
    from sim.training.files.engine_rules import EXTRAS

    names_by_target: dict[str, list[str]] = {}
    for engine in ENGINES:
        if engine.name not in ("continuous", "fixed"):
            names_by_target.setdefault(engine.target, []).append(engine.name)
    rules_by_engine = {
        names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}": rules_of(names[0])
        for names in names_by_target.values()
    }
    real = list(rules_by_engine)
    words = {"served": "yes", "refused": "refused", "wrong": "wrongly", "unknown": "–"}
    rows = [[extra, *(words[rules_by_engine[name].rule(extra).verdict] for name in real)] for extra in EXTRAS]
    slots = {
        "all": "all modules, largest rank",
        "targets": "all targets, largest rank",
        "adapter": "the adapter",
        "unknown": "–",
    }
    rows.append(["a slot holds", *(slots[rules_by_engine[name].slots_hold] for name in real)])
    choices = [", ".join(map(str, rules_by_engine[name].rank_choices)) or "–" for name in real]
    rows.append(["largest rank, choices", *choices])
    return table(["", *real], rows)


def mode_table() -> str:
    """Return the ways of serving adapters, and the keys that choose each."""
    from sim.spec.adapter_modes import MODES
    from sim.spec.needs import words_of

    rows = [
        [f"`{each.name}`", each.about, " or ".join(f"`{key}: {words_of(value)}`" for key, value in each.set_by.items())]
        for each in MODES.entries
    ]
    return table(["mode", "what it does", "set by"], rows)


def version_table() -> str:
    """Return the preset of each version of an engine, or the nearest."""
    from sim.spec.engines import VERSIONS

    rows = [
        [f"{name} {row.words}", f"`{row.preset}`" if row.simulated else f"none; `{row.preset}` is nearest", row.about]
        for name, found in VERSIONS.items()
        for row in found
    ]
    return table(["your version", "preset", "this version …"], rows)


def option_tables() -> str:
    """Return a section for each engine: its options with the key for each, and those without one."""
    from sim.spec.engine_flags.options import flag_tables

    parts = []
    for engine in flag_tables():
        options: dict[tuple[str, ...], list[str]] = {}
        without: list[str] = []
        for flag in engine.flags:
            names = [f"`{name}`" for name in _spellings(flag)]
            if flag.sets:
                key = ", ".join(f"`{setting}`" for setting in flag.sets)
                options.setdefault((key, flag.about), []).extend(names)
            else:
                without.append(names[0])
        rows = [[", ".join(names), *rest] for rest, names in options.items()]
        parts.append(f"### {engine.name}\n\n{table(['option', 'key', ''], rows)}\n\nNo key: {', '.join(without)}.")
    return "\n" + "\n\n".join(parts) + "\n"


def _spellings(flag: Any) -> list[str]:
    """Return the names of an option, without its negation, and without the last part of one that has the whole."""
    return [flag.name, *(name for name in flag.also if not flag.name.endswith(f".{name}") and "--no-" not in name)]
