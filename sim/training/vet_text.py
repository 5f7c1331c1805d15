"""The findings of a vetting in words, as rows of a table and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sim.cells import printable
from sim.spec.scenario import Targets
from sim.spec.units import human_bytes
from sim.training.vet_results import MODES, CurrentAdapter, Finding, Remedy, Vetted

UNKNOWN = "–"


def verdict(one: Vetted) -> str:
    """Return one line: the adapter, and what was found."""
    name = printable(str(one.path), 200)
    if one.findings:
        return f"{name}: {', '.join(f'{finding.mode} ({finding.confidence})' for finding in one.findings)}"
    if not one.judged:
        return f"{name}: can't be judged"
    thin = f"; {', '.join(one.unjudged)} can't be judged" if one.unjudged else ""
    return f"{name}: nothing found{thin}"


def summary(all_of: Sequence[Vetted]) -> str:
    """Return one line that counts the findings over several adapters."""
    modes = Counter(finding.mode for one in all_of for finding in one.findings)
    fine = sum(not one.findings and not one.unjudged for one in all_of)
    partly = sum(one.judged and not one.findings and bool(one.unjudged) for one in all_of)
    never = sum(not one.judged for one in all_of)
    parts = [f"{modes[mode]} {mode}" for mode in MODES if modes[mode]]
    parts += [f"{fine} with nothing found"] if fine else []
    parts += [f"{partly} with nothing found as far as they can be judged"] if partly else []
    parts += [f"{never} that can't be judged"] if never else []
    return f"{len(all_of)} adapters: {', '.join(parts)}"


def changes_size(finding: Finding) -> bool:
    """Return whether a remedy changes the size of the adapter."""
    return any(remedy.rank or remedy.targets for remedy in finding.remedies)


def remedy_rows(one: Vetted, finding: Finding) -> list[list[str]]:
    """Return the table of remedies, after a row for the adapter as it is."""
    current = one.current or CurrentAdapter()
    before = [_rank(current.rank), _targets(current.targets), _count(current.parameters), _bytes(current.adapter_bytes)]
    return [["as it is", *before], *(_remedy_row(one, remedy) for remedy in finding.remedies)]


def _remedy_row(one: Vetted, remedy: Remedy) -> list[str]:
    if not (remedy.rank or remedy.targets):
        return [remedy.words, "", "", "", ""]
    targets = remedy.targets or (one.current.targets if one.current else None)
    return [
        remedy.words,
        _rank(remedy.rank),
        _targets(targets),
        _count(remedy.parameters),
        _bytes(remedy.adapter_bytes),
    ]


def _rank(rank: int | None) -> str:
    return UNKNOWN if rank is None else str(rank)


def _targets(targets: Targets | None) -> str:
    return UNKNOWN if targets is None else targets if isinstance(targets, str) else ",".join(targets)


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _bytes(size: int | None) -> str:
    return UNKNOWN if size is None else human_bytes(size)


def as_json(one: Vetted) -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "path": str(one.path),
        "passes": one.passes,
        "judged": one.judged,
        "adapter": None if one.current is None else _plain(one.current),
        "findings": [
            {
                "mode": finding.mode,
                "confidence": finding.confidence,
                "evidence": [
                    {"what": e.what, "steps": list(e.steps), "values": list(e.values)} for e in finding.evidence
                ],
                "cures": [_plain(remedy) for remedy in finding.remedies],
            }
            for finding in one.findings
        ],
        "unjudged": list(one.unjudged),
        "notes": list(one.notes),
    }


def _plain(size: CurrentAdapter | Remedy) -> dict[str, Any]:
    """Return the fields by name, with the bytes of the adapter as ``bytes``."""
    return {"bytes" if name == "adapter_bytes" else name: value for name, value in asdict(size).items()}
