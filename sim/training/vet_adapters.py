"""Vets adapters: finds them and their logs, gathers facts, and judges each by the rules of the failure modes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sim.errors import InputError
from sim.training.files.adapter_folder import CONFIG, WEIGHTS, AdapterFile, read_adapter
from sim.training.logs.failure_modes import judge
from sim.training.logs.training_case import Case, SiblingRun, Thresholds
from sim.training.logs.training_facts import TrainingFacts, gather
from sim.training.logs.training_log import CHECKPOINT, STATE, TrainingLog, find_log, read_log
from sim.training.vet_results import MODES, Vetted

_DEFAULT = Thresholds()
_SAME_START = 0.05
"""Relative difference of starting losses up to which two runs may have had the same data."""
_MOST_ALIKE = 100
"""Runs of one training that are compared with each other, at most."""


@dataclass(frozen=True, slots=True)
class _ReadAdapter:
    """An adapter or a lone log, read but not judged; ``log`` is None without a readable one.

    :ivar readable: as of ``Vetted``.
    """

    path: Path
    adapter: AdapterFile | None
    log: TrainingLog | None
    facts: TrainingFacts
    notes: tuple[str, ...]
    readable: bool = True


def vet_path(
    path: Path,
    thresholds: Thresholds = _DEFAULT,
    reference: Path | None = None,
    *,
    base_bits: int | None = None,
    examples: int | None = None,
    strict: bool = False,
) -> tuple[Vetted, ...]:
    """Vet every adapter, and every log without one, at or below ``path``.

    :param path: a ``trainer_state.json``, an adapter folder, or a folder of such folders, at any depth. Of the
        checkpoints of one training the newest counts, unless ``path`` names one.
    :param reference: the log of the same training on a 16-bit base, or its folder, to compare quality with.
    :param base_bits: of the base's weights in training; ``examples``: of training data; where the files don't say.
    :param strict: make any unreadable file an error instead of a note, as the rollout gate needs.
    :raises InputError: if there is nothing to vet, or the only log or the reference can't be read.
    """
    known = None
    if reference is not None:
        found = reference if reference.is_file() else find_log(reference)
        if found is None:
            raise InputError(f"no {STATE} of a 16-bit run here", file=str(reference), key="--reference")
        known = read_log(found)
    if path.is_file():
        facts = gather(path.parent, None, log := read_log(path), base_bits, examples)
        return (_judge(_ReadAdapter(path, None, log, facts, ()), Case(log, facts, thresholds, reference=known), ()),)
    if not path.is_dir():
        raise InputError("no such file or folder", file=str(path))
    folders = list(_folders(path))
    if not folders:
        raise InputError(f"no adapter and no {STATE} here", file=str(path), hint=f"an adapter's folder has an {CONFIG}")
    read = [_read(folder, base_bits, examples, lone=len(folders) == 1, strict=strict) for folder in folders]
    cases = [None if one.log is None else Case(one.log, one.facts, thresholds, reference=known) for one in read]
    alike: dict[tuple[object, ...], list[tuple[_ReadAdapter, Case]]] = {}
    for one, case in zip(read, cases, strict=True):
        if case is not None:
            alike.setdefault(_fingerprint(one), []).append((one, case))
    return tuple(_judge(one, case, alike.get(_fingerprint(one), ())) for one, case in zip(read, cases, strict=True))


def _folders(root: Path) -> Iterator[Path]:
    """Yield folders to vet, sorted; without following links, and with checkpoints only where nothing else counts."""
    for place, names, files in os.walk(root):
        names.sort()
        here = Path(place)
        checkpoints = sorted((int(match[1]), name) for name in names if (match := CHECKPOINT.fullmatch(name)))
        names[:] = [name for name in names if not CHECKPOINT.fullmatch(name)]
        if {CONFIG, WEIGHTS} & set(files):
            yield here
        elif any((here / name / CONFIG).is_file() for name in names) and STATE in files:
            continue  # the log of the one adapter below
        elif checkpoints and (here / checkpoints[-1][1] / CONFIG).is_file():
            yield here / checkpoints[-1][1]
        elif STATE in files or (checkpoints and (here / checkpoints[-1][1] / STATE).is_file()):
            yield here


def _read(folder: Path, base_bits: int | None, examples: int | None, *, lone: bool, strict: bool) -> _ReadAdapter:
    """Read a folder; what can't be read becomes a note, unless ``strict`` or the log of a ``lone`` adapter."""
    notes: list[str] = []
    adapter = log = None
    readable = True
    try:
        if (folder / WEIGHTS).exists():
            adapter = read_adapter(folder)
        elif (folder / CONFIG).is_file():
            notes.append(f"no {WEIGHTS} here: rank and targets are those of {CONFIG}")
    except InputError as error:
        if strict:
            raise
        readable = False
        notes.append(f"the weights can't be used: {error}")
    try:
        found = find_log(folder)
        log = read_log(found) if found else None
        if found is None:
            notes.append(f"no {STATE} here, in a checkpoint or above: how it was trained is unknown")
        elif found.parent != folder:
            notes.append(f"the log is {os.path.relpath(found, folder)}")
    except InputError as error:
        if strict or lone:
            raise
        notes.append(f"the log can't be used: {error}")
    try:
        facts = gather(folder, adapter, log, base_bits, examples)
    except InputError as error:
        if strict:
            raise
        notes.append(f"the configuration can't be used: {error}")
        facts = gather(None, adapter, log, base_bits, examples)
    return _ReadAdapter(folder, adapter, log, facts, tuple(notes), readable)


def _judge(one: _ReadAdapter, case: Case | None, alike: Sequence[tuple[_ReadAdapter, Case]]) -> Vetted:
    if one.log is None or case is None:
        return Vetted(one.path, one.adapter, (), one.notes, MODES, one.facts, one.readable)
    findings, notes, thin = judge(replace(case, siblings=tuple(_siblings(one, case, alike[:_MOST_ALIKE]))))
    said = (*one.notes, *one.log.notes, *notes)
    return Vetted(one.path, one.adapter, findings, said, thin, one.facts, one.readable)


def _siblings(one: _ReadAdapter, case: Case, alike: Sequence[tuple[_ReadAdapter, Case]]) -> Iterator[SiblingRun]:
    """Yield other ranks of what looks like the same training: the same base, the same numbers of training and
    validation examples, and the same loss at the start."""
    for other, there in alike:
        if other is one or other.facts.rank is None or case.summary is None or there.summary is None:
            continue
        if abs(there.summary.begin - case.summary.begin) > _SAME_START * case.summary.begin:
            continue
        enough = there.epochs is None or there.epochs >= case.thresholds.fewest_epochs
        best, done = there.summary.eval_best.value, there.summary.flat and enough
        yield SiblingRun(other.path.name, other.facts.rank, other.facts.attention_only, best, done)


def _fingerprint(one: _ReadAdapter) -> tuple[object, ...]:
    """Return what the runs of one training share, including the folder; the run's own path where too little is
    known."""
    log, facts = one.log, one.facts
    examples = facts.examples or facts.examples_at_least
    if log is None or facts.base_model is None or log.eval_examples is None or examples is None:
        return (one.path,)
    return (one.path.parent, facts.base_model, log.eval_examples, examples)
