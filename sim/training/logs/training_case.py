"""One training to judge, with the statistics that the rules of all failure modes use."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from sim.training.logs.curves import Level, at_share, lowest, start, tail
from sim.training.logs.thresholds import Thresholds
from sim.training.logs.training_facts import TrainingFacts
from sim.training.logs.training_log import StepSeries, TrainingLog
from sim.training.vet_results import Finding, Mode

_JUDGED = re.compile(r"(^|_|/)(accuracy|acc|f1|exact_match|em)$")
"""Metrics with the same meaning in every task: a share of right answers."""


@dataclass(frozen=True, slots=True)
class RuleResult:
    """The result of a rule: perhaps a finding, and notes; ``thin``: modes with too little evidence."""

    finding: Finding | None = None
    notes: tuple[str, ...] = ()
    thin: tuple[Mode, ...] = ()


@dataclass(frozen=True, slots=True)
class SiblingRun:
    """Another run of what looks like the same training, with its capacity and best validation loss.

    :ivar done: whether it had stopped learning; otherwise its best says nothing about its rank.
    """

    name: str
    rank: int
    attention_only: bool
    best: float
    done: bool


@dataclass(frozen=True)
class Case:
    """A log with its facts.

    :ivar siblings: other ranks of the same training, from the same folder.
    :ivar reference: the log of the same training on a 16-bit base.
    """

    log: TrainingLog
    facts: TrainingFacts
    thresholds: Thresholds
    siblings: tuple[SiblingRun, ...] = ()
    reference: TrainingLog | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def losses(self) -> StepSeries:
        """Finite training losses."""
        return self.log.loss.finite()

    @cached_property
    def evals(self) -> StepSeries:
        """Finite validation losses."""
        return self.log.eval_loss.finite()

    @cached_property
    def summary(self) -> LossSummary | None:
        """How the run went as a whole; None where the evidence is thin."""
        limits = self.thresholds
        if len(self.losses) < limits.fewest_losses or len(self.evals) < limits.fewest_evals:
            return None
        return _summarize(self.losses, self.evals, judged_metric(self.log), limits)

    @property
    def epochs(self) -> float | None:
        """Passes over the data; None where unknown."""
        per_epoch = self.log.steps_per_epoch
        return self.log.global_step / per_epoch if per_epoch else None

    @property
    def small(self) -> bool:
        """Whether the adapter's capacity is small: its rank, or attention's layers only."""
        rank = self.facts.rank
        return self.facts.attention_only or (rank is not None and rank <= self.thresholds.small_rank)


@dataclass(frozen=True, slots=True)
class LossSummary:
    """A run from start to end, in medians.

    :ivar begin: level at which the losses start: the higher of training and validation.
    :ivar train_end: last training level; ``train_half`` half-way; the same of the validation.
    :ivar late: share of the validation loss's total fall that lies in the second half; training losses are too noisy
        for this.
    :ivar moved: share by which the best validation level lies below the start.
    :ivar metric: name and best level of a judged metric, None where there is none.
    :ivar still: whether the second half brought little; ``flat``: and its end next to nothing.
    :ivar mediocre: whether its final quality is poor.
    """

    begin: float
    train_start: Level
    train_half: Level
    train_end: Level
    eval_half: Level
    eval_end: Level
    eval_best: Level
    late: float
    moved: float
    metric: tuple[str, Level] | None
    still: bool
    flat: bool
    mediocre: bool


def judged_metric(log: TrainingLog) -> tuple[str, StepSeries] | None:
    """Return the logged metric that says how many answers are right, as shares; None where there is none.

    Token accuracy doesn't count: four of ten tokens of good prose are a matter of taste.
    """
    for name in sorted(log.metrics, key=lambda name: (len(name), name)):
        series = log.metrics[name].finite()
        if "token" in name or not _JUDGED.search(name) or not len(series):
            continue
        top, low = max(series.values), min(series.values)
        if low >= 0 and top <= 1:
            return name, series
        if low >= 0 and 1 < top <= 100:
            return name, StepSeries(series.steps, tuple(value / 100 for value in series.values))
    return None


def highest(series: StepSeries) -> Level:
    """Return the highest level of three entries."""
    _, level = lowest(StepSeries(series.steps, tuple(-value for value in series.values)))
    return Level(-level.value, level.first, level.last)


def _summarize(
    losses: StepSeries, evals: StepSeries, metric: tuple[str, StepSeries] | None, limits: Thresholds
) -> LossSummary:
    train_start, train_half, train_end = start(losses), at_share(losses, 0.5), tail(losses)
    eval_half, eval_end = at_share(evals, 0.5), tail(evals)
    scaled = train_end.value > 3 * eval_end.value  # by accumulated steps, as some Trainers logged it
    begin = evals.values[0] if scaled else max(train_start.value, evals.values[0])
    _, eval_best = lowest(evals)
    late = _share(eval_half.value - eval_end.value, begin - eval_end.value, begin, limits)
    last = 1 - eval_end.value / at_share(evals, 0.75).value if eval_end.value > 0 else 0.0
    best = (metric[0], highest(metric[1])) if metric else None
    mediocre = best[1].value < limits.mediocre_metric if best else eval_end.value >= limits.high_loss
    moved = 1 - eval_best.value / begin if begin > 0 else 0.0
    return LossSummary(
        begin,
        train_start,
        train_half,
        train_end,
        eval_half,
        eval_end,
        eval_best,
        late,
        moved,
        best,
        still=late <= limits.flat_share,
        flat=late <= limits.flat_share and last <= limits.flat_end,
        mediocre=mediocre,
    )


def _share(part: float, whole: float, level: float, limits: Thresholds) -> float:
    """Return a part of a fall as a share, at least of the smallest fall that counts, so that noise gets no shares."""
    whole = max(whole, limits.least_move * level)
    return part / whole if whole > 0 else 0.0
