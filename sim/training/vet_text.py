"""What a vetting found, in words, as rows of a table and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sim.cells import printable
from sim.spec.scenario import Targets
from sim.spec.units import human_bytes
from sim.training.vet_results import MODES, Cure, Finding, Now, Vetted

UNKNOWN = "–"


def verdict(one: Vetted) -> str:
    """Return a line: which adapter, and what was found."""
    name = printable(str(one.path), 200)
    if one.findings:
        return f"{name}: {', '.join(f'{finding.mode} ({finding.confidence})' for finding in one.findings)}"
    if not one.judged:
        return f"{name}: can't be judged"
    thin = f"; {', '.join(one.unjudged)} can't be judged" if one.unjudged else ""
    return f"{name}: nothing found{thin}"


def summary(all_of: Sequence[Vetted]) -> str:
    """Return a line that counts what was found in several adapters."""
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
    """Return whether a cure gives the adapter another size."""
    return any(cure.rank or cure.targets for cure in finding.cures)


def cure_rows(one: Vetted, finding: Finding) -> list[list[str]]:
    """Return the table of cures: the adapter as it is first."""
    now = one.now or Now()
    before = [_rank(now.rank), _targets(now.targets), _count(now.parameters), _bytes(now.adapter_bytes)]
    return [["as it is", *before], *(_cure_row(one, cure) for cure in finding.cures)]


def _cure_row(one: Vetted, cure: Cure) -> list[str]:
    if not (cure.rank or cure.targets):
        return [cure.words, "", "", "", ""]
    targets = cure.targets or (one.now.targets if one.now else None)
    return [cure.words, _rank(cure.rank), _targets(targets), _count(cure.parameters), _bytes(cure.adapter_bytes)]


def _rank(rank: int | None) -> str:
    return UNKNOWN if rank is None else str(rank)


def _targets(targets: Targets | None) -> str:
    return UNKNOWN if targets is None else targets if isinstance(targets, str) else ",".join(targets)


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _bytes(size: int | None) -> str:
    return UNKNOWN if size is None else human_bytes(size)


def as_json(one: Vetted) -> dict[str, Any]:
    """Return everything as plain data; numbers that are none become null."""
    now = one.now
    return {
        "path": str(one.path),
        "passes": one.passes,
        "judged": one.judged,
        "adapter": None
        if now is None
        else {
            "rank": now.rank,
            "targets": now.targets,
            "parameters": now.parameters,
            "bytes": now.adapter_bytes,
            "base_bits": now.base_bits,
            "examples": now.examples,
        },
        "findings": [_finding_json(finding) for finding in one.findings],
        "unjudged": list(one.unjudged),
        "notes": list(one.notes),
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "mode": finding.mode,
        "confidence": finding.confidence,
        "evidence": [{"what": e.what, "steps": list(e.steps), "values": list(e.values)} for e in finding.evidence],
        "cures": [
            {
                "name": cure.name,
                "words": cure.words,
                "rank": cure.rank,
                "targets": cure.targets,
                "base_quantization": cure.base_quantization,
                "full_model": cure.full_model,
                "parameters": cure.parameters,
                "bytes": cure.adapter_bytes,
            }
            for cure in finding.cures
        ],
    }
