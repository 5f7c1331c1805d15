"""The reports on adapters: a census of their files, and what a vetting found in their training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.document import Report
from reports.table import Table
from sim.cells import printable
from sim.errors import InputError
from sim.spec.scenario import Targets
from sim.spec.units import human_bytes
from sim.training.files.census import AlikeAdapters, Census, Entry, groups
from sim.training.files.engine_checks import Concern, ServingTarget, needed_rank, served_base
from sim.training.logs.training_facts import TrainingFacts
from sim.training.vet_results import MODES, Finding, Vetted

if TYPE_CHECKING:
    from sim.studies.vet.study import PricedRemedies

_ROWS, _LISTED = 20, 5
"""Rows of a table of adapters or kinds, and folders that fail in one way, that the terminal shows."""
_SHOWN = 20
"""Adapters with findings that the terminal shows in full."""
_LABELS = {"refused": "refused", "wrong": "served wrongly", "waste": "waste", "unknown": "unknown", "note": "note"}
_UNKNOWN = "–"
_ENTRY = (
    *("folder", "rank", "ranks", "alpha", "targets", "dtypes", "tensors", "parameters", "bytes", "file_bytes"),
    *("layers", "base_model", "model", "extras"),
)


def none_read(census: Census) -> InputError:
    """Return the error of a census without an adapter; it names the first few folders."""
    return InputError(
        f"none of {_folders(len(census.failures))} holds a LoRA adapter that can be read",
        file=printable(str(census.root), 300),
        hint="; ".join(f"{failure.folder}: {failure.problem}" for failure in census.failures[:3]),
    )


def census_report(
    census: Census, concerns: Sequence[Concern], target: ServingTarget, scenario: Path | None, notes: Sequence[str]
) -> Report:
    """Return how many adapters there are, of which kinds, and what an engine makes of them.

    :param scenario: that was written; ``notes``: on it.
    """
    kinds = groups(census.entries)
    table = _single_table(census.entries) if len(census.entries) <= _ROWS else _kinds_table(kinds)
    lines: list[str | Table] = [_census_headline(census, kinds), "", table]
    option = target.rules.rank_option
    if target.engine is not None and option and target.max_rank is None:
        lines += ["", f"{target.engine} takes these ranks with {option} {needed_rank(census.entries, target)}."]
    lines += ["", *map(_concern_line, concerns)] if concerns else []
    for kind in ("not LoRA", "unreadable"):
        failures = [failure for failure in census.failures if failure.kind == kind]
        if failures:
            lines += ["", f"{kind}: {_folders(len(failures))}"]
            lines += [f"  {failure.folder}: {failure.problem}" for failure in failures[:_LISTED]]
            if len(failures) > _LISTED:
                lines.append(f"  … {len(failures) - _LISTED:,} more; --json has all")
    unreadable = sum(failure.kind == "unreadable" for failure in census.failures)
    return Report(
        kind="adapters",
        name=str(census.root),
        data=_census_json(census, kinds, concerns, target),
        terminal=[*lines, "", f"scenario {scenario}"] if scenario is not None else lines,
        notes=[*notes, *([f"{_folders(unreadable)} could not be read"] if unreadable else [])],
    )


def _census_headline(census: Census, kinds: Sequence[AlikeAdapters]) -> str:
    count = len(census.entries)
    sizes = sorted(entry.bytes for entry in census.entries)
    each = human_bytes(sizes[0])
    if sizes[0] != sizes[-1]:
        each = f"{each} to {human_bytes(sizes[-1])} each"
    what = "1 adapter" if count == 1 else f"{count:,} adapters of {len(kinds):,} kind{'s' if len(kinds) > 1 else ''}"
    total = f"{human_bytes(census.bytes)}, {each}" if count > 1 else each
    return f"{what}: {total}."


def _single_table(entries: Sequence[Entry]) -> Table:
    head = ["adapter", "rank", "alpha", "modules", "dtype", "tensors", "parameters", "size", "base model", "extras"]
    rows = [
        [
            entry.folder,
            _ranks(entry),
            "?" if entry.alpha is None else f"{entry.alpha:g}",
            _modules(entry),
            ",".join(entry.dtypes),
            f"{entry.tensors:,}",
            f"{entry.parameters:,}",
            human_bytes(entry.bytes),
            entry.base_model or "?",
            ", ".join(entry.extras),
        ]
        for entry in entries
    ]
    return Table("", head, rows)


def _kinds_table(kinds: Sequence[AlikeAdapters]) -> Table:
    head = ["adapters", "rank", "modules", "dtype", "size", "in all", "base model", "extras", "such as"]
    rows = []
    for kind in kinds[:_ROWS]:
        low, high = human_bytes(kind.smallest), human_bytes(kind.largest)
        row = [f"{kind.count:,}", _ranks(kind.first), _modules(kind.first), ",".join(kind.first.dtypes)]
        row += [low if low == high else f"{low} to {high}", human_bytes(kind.bytes)]
        rows.append([*row, kind.first.base_model or "?", ", ".join(kind.first.extras), kind.first.folder])
    rest = kinds[_ROWS:]
    if rest:
        said = f"… {len(rest):,} more kinds; --json has all"
        rows.append([f"{sum(kind.count for kind in rest):,}", said, *[""] * (len(head) - 2)])
    return Table("", head, rows)


def _ranks(entry: Entry) -> str:
    return str(entry.rank) if len(entry.ranks) == 1 else f"{entry.ranks[0]} to {entry.rank}"


def _modules(entry: Entry) -> str:
    words = entry.target_words
    return words if len(words) <= 40 else words[:39] + "…"


def _concern_line(concern: Concern) -> str:
    what = "1 adapter" if concern.count == 1 else f"{concern.count:,} adapters"
    more = ", …" if concern.count > len(concern.folders) and concern.check != "copies" else ""
    where = f" ({', '.join(concern.folders)}{more})" if concern.folders else ""
    source = f" [{concern.source}]" if concern.source else ""
    return f"{_LABELS[concern.level]}: {what}: {concern.words}{where}{source}"


def _folders(count: int) -> str:
    return "1 folder" if count == 1 else f"{count:,} folders"


def _census_json(
    census: Census, kinds: Sequence[AlikeAdapters], concerns: Sequence[Concern], target: ServingTarget
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "folder": printable(str(census.root), 300),
        "engine": target.engine,
        "max_rank": needed_rank(census.entries, target),
        "base_model": served_base(census.entries, target),
        "count": len(census.entries),
        "bytes": census.bytes,
        "adapters": [
            {**{name: getattr(entry, name) for name in _ENTRY}, "targets": entry.modules} for entry in census.entries
        ],
        "groups": [
            {
                "count": kind.count,
                "ranks": kind.first.ranks,
                "targets": kind.first.target_words,
                "dtypes": kind.first.dtypes,
                "base_model": kind.first.base_model,
                "extras": kind.first.extras,
                "bytes": kind.bytes,
            }
            for kind in kinds
        ],
        "concerns": [asdict(concern) for concern in concerns],
        "failures": [asdict(failure) for failure in census.failures],
    }


# What a vetting found.


def vet_report(found: Sequence[Vetted], priced: PricedRemedies | None, scenario: str | None) -> Report:
    """Return what went wrong in training, the evidence, and what would fix it.

    :param priced: what remedies cost the fleet of ``scenario``; None where none of them changes that, or there is none.
    """
    vetted: Any = [one.to_json() for one in found]
    lines = list(_one(found[0]) if len(found) == 1 else _several(found))
    if scenario is not None:
        prices = None
        if priced is not None:
            changes = [row.to_json() for row in priced.rows]
            prices = {"run": str(priced.path), "as_it_is": priced.point.metrics_json(), "changes": changes}
        else:
            lines += ["", "None of the remedies changes what serving costs, so there is nothing to price."]
        vetted = {"vetted": vetted, "priced": prices}
    return Report(kind="vet", name=str(found[0].path), data=vetted, terminal=lines)


def vet_notes(found: Sequence[Vetted]) -> list[str]:
    """Return what could not be judged, for those who read no JSON."""
    if len(found) == 1:
        return [printable(note, 400) for note in found[0].notes]
    return ["--json says what could not be judged, and why"] if any(one.notes for one in found) else []


def _several(found: Sequence[Vetted]) -> Iterator[str | Table]:
    modes = Counter(finding.mode for one in found for finding in one.findings)
    clean = [one for one in found if not one.findings]
    parts = [f"{modes[mode]} {mode}" for mode in MODES if modes[mode]]
    for words, count in (
        ("with nothing found", sum(one.judged and not one.unjudged for one in clean)),
        ("with nothing found as far as they can be judged", sum(one.judged and bool(one.unjudged) for one in clean)),
        ("that can't be judged", sum(not one.judged for one in found)),
    ):
        parts += [f"{count} {words}"] if count else []
    yield f"{len(found)} adapters: {', '.join(parts)}"
    notable = sorted((one for one in found if one.findings), key=lambda one: one.passes)
    for one in notable[:_SHOWN]:
        yield ""
        yield from _one(one)
    if len(notable) > _SHOWN:
        yield from ("", f"… and {len(notable) - _SHOWN} more with findings: --json has all of them")
    unknown = [printable(str(one.path), 200) for one in found if not one.judged]
    if unknown:
        yield from ("", f"can't be judged: {', '.join(unknown[:_SHOWN])}{', …' if len(unknown) > _SHOWN else ''}")


def _one(one: Vetted) -> Iterator[str | Table]:
    said = ", ".join(f"{finding.mode} ({finding.confidence})" for finding in one.findings) or "nothing found"
    if not one.findings and (one.unjudged or not one.judged):
        said = f"nothing found; {', '.join(one.unjudged)} can't be judged" if one.judged else "can't be judged"
    yield f"{printable(str(one.path), 200)}: {said}"
    for finding in one.findings:
        if len(one.findings) > 1:
            yield f"{finding.mode} ({finding.confidence})"
        yield from (f"  {printable(evidence.what, 300)}" for evidence in finding.evidence)
        if any(remedy.rank or remedy.targets for remedy in finding.remedies):
            yield from ("", _remedy_table(one.current or TrainingFacts(), finding))
        else:
            yield "remedies, in the order in which to try them"
            yield from (f"  {number}. {remedy.words}" for number, remedy in enumerate(finding.remedies, 1))


def _remedy_table(current: TrainingFacts, finding: Finding) -> Table:
    """Return what each remedy makes of an adapter, after a row for the adapter as it is."""
    head = ["remedy", "rank", "targets", "parameters", "size"]
    rows = [_row("as it is", current.rank, current.targets, current.parameters, current.adapter_bytes)]
    for each in finding.remedies:
        size = each.rank, each.targets or current.targets, each.parameters, each.adapter_bytes
        rows.append(_row(each.words, *size) if each.rank or each.targets else [each.words, "", "", "", ""])
    return Table("", head, rows)


def _row(words: str, rank: int | None, targets: Targets | None, count: int | None, size: int | None) -> list[str]:
    return [
        words,
        _UNKNOWN if rank is None else str(rank),
        _UNKNOWN if targets is None else targets if isinstance(targets, str) else ",".join(targets),
        _UNKNOWN if count is None else f"{count:,}",
        _UNKNOWN if size is None else human_bytes(size),
    ]
