"""Vet adapters: read their logs, judge each by the rules of the failure modes, return what was found."""

from __future__ import annotations

import math
from pathlib import Path

from sim.errors import InputError
from sim.training.log import TrainingLog, entries, read_log
from sim.training.thresholds import Thresholds
from sim.training.vetted import Cure, Evidence, Finding, Vetted

_DEFAULT = Thresholds()


def vet_path(path: Path, thresholds: Thresholds = _DEFAULT, reference: Path | None = None) -> tuple[Vetted, ...]:
    """Return what is known of every adapter, or of every log without one, at or below ``path``.

    :param path: a ``trainer_state.json``, an adapter folder, or a folder of such folders.
    :param reference: the log of the same training on a 16-bit base: the quality of a quantised base is held against it.
    :raises InputError: if nothing there can be vetted.
    """
    logs = [path] if path.is_file() else sorted(path.rglob("trainer_state.json"))
    if not logs:
        raise InputError("no adapter and no trainer_state.json here", file=str(path))
    return tuple(Vetted(log, None, _divergence(read_log(log), thresholds)) for log in logs)


def _divergence(log: TrainingLog, thresholds: Thresholds) -> tuple[Finding, ...]:
    bad = [(step, value) for step, value in entries(log.loss) if not math.isfinite(value)]
    if len(bad) < thresholds.nonfinite_losses:
        return ()
    what = f"the loss is no number from step {bad[0][0]} on"
    evidence = Evidence(what, tuple(step for step, _ in bad), tuple(value for _, value in bad))
    return (Finding("divergence", "certain", (evidence,), (Cure("clip", "clip gradients at 1.0"),)),)
