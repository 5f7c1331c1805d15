"""One training to judge, with the statistics and thresholds that the rules of all failure modes use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field, ValidationError

from sim.errors import InputError, did_you_mean
from sim.spec.base import Strict
from sim.training.logs.curves import Level, at_share, lowest, start, tail
from sim.training.logs.training_facts import TrainingFacts
from sim.training.logs.training_log import StepSeries, TrainingLog
from sim.training.vet_results import Finding, Mode


class Thresholds(Strict):
    """Lines between a healthy run and a failure; set with ``--threshold name=value``.

    "Our choice" means: between what the healthy and the failing runs of tests/training/make_logs.py show, nearer
    to the failing ones.
    """

    fewest_losses: int = Field(8, ge=3)
    """With fewer finite training losses nothing is judged. Source: our choice; medians of three at both ends and
    something between them."""
    fewest_evals: int = Field(4, ge=2)
    """With fewer evaluations their course is not judged. Source: our choice; a best one and three after it."""

    small_rank: int = Field(4, ge=1)
    """Ranks up to this one are small. Source: our choice; QLoRA (arXiv:2305.14314, figure 4) found no gain above rank 8
    where all linear layers are adapted."""
    mediocre_metric: float = Field(0.8, gt=0, le=1)
    """A validation accuracy, F1 or exact match below this is mediocre. Source: our choice; a task with a floor of its
    own needs another value."""
    high_loss: float = Field(2.0, gt=0)
    """Validation loss per token (nats) from which it counts as mediocre where no metric was logged. Source: our choice;
    of six public logs read for it, four ended at 0.3 to 1.2."""
    flat_share: float = Field(0.2, gt=0, lt=1)
    """A validation loss is flat early if at most this share of its fall lies in the second half of the run. Source: our
    choice; failing runs 0.03 to 0.15, a straight line 0.5."""
    flat_end: float = Field(0.03, gt=0, lt=1)
    """And if at most this share of it lies in the last quarter. Source: our choice; failing runs 0.007 to 0.023, small
    adapters that were cut short 0.023 to 0.09: too near, hence the next line."""
    fewest_epochs: float = Field(0.9, ge=0)
    """Passes over the data below which a small adapter is not to blame. Source: our choice."""

    gradient_jump: float = Field(10.0, gt=1)
    """The gradient norm jumps if the median of five entries is this many times that of the ten before. Source: our
    choice; such medians rise 6.0 times at most in our healthy runs."""
    loss_rise: float = Field(1.5, gt=1)
    """Final training loss over its lowest from which a run has diverged. Source: our choice; near zero our
    healthy runs reach 3, so the next two lines must be crossed as well."""
    least_loss_rise: float = Field(0.3, gt=0)
    """The same in nats: near zero, ratios mean nothing. Source: our choice; healthy runs rise by 0.25 at most."""
    lost_share: float = Field(0.5, gt=0)
    """Share of its whole fall that a loss must have given back. Source: our choice; of our healthy runs only two reach
    it, whose base knew the task before."""
    hot_learning_rate: float = Field(0.05, gt=0)
    """Highest learning rate that LoRA with Adam can take. Source: our choice; published runs use 1e-4 to 5e-4
    (arXiv:2106.09685, arXiv:2305.14314), and the small models of our fixtures take 1e-2."""
    quality_drop: float = Field(0.05, gt=0)
    """Relative loss of quality against the 16-bit run from which quantisation is to blame. Source: our choice; QLoRA's
    NF4 matches 16 bits (arXiv:2305.14314)."""

    tiny_examples: int = Field(1000, ge=1)
    """Training examples below which data is tiny. Source: our choice, as in LIMA (arXiv:2305.11206), where 1,000 chosen
    ones were the least that sufficed."""
    usual_accumulation: int = Field(8, ge=1)
    """Largest gradient accumulation assumed where the number of examples is not known. Source: our choice."""
    eval_rise: float = Field(0.06, gt=0)
    """Final validation loss over its best, less one, from which a run overfits. Source: our choice; failing runs 0.08
    to 0.31, the two healthy ones whose training loss went on falling 0.01."""
    eval_rise_certain: float = Field(0.5, gt=0)
    """The same, from which there is no doubt. Source: our choice."""
    train_fall: float = Field(0.2, gt=0, lt=1)
    """Share by which the training loss of a run that overfits has fallen since the best evaluation. Source: our choice;
    without this a rising validation loss is something else."""
    metric_gain: float = Field(0.05, gt=0)
    """A run still learned if a metric gained this share after the best validation loss, and more than chance. Source:
    our choice; a public speech model gained 7 % in word error rate while its validation loss rose."""
    still_share: float = Field(0.03, gt=0)
    """Validation losses within this share of the best one count as standing still. Source: our choice."""
    gap_ratio: float = Field(3.0, gt=1)
    """Growth of validation over training loss, since the first evaluation, that is a weak sign by itself. Source: our
    choice; healthy runs on 400 examples reach 2.3."""

    least_move: float = Field(0.1, gt=0, lt=1)
    """Share by which the validation loss must fall below its start, or the training taught nothing. Source: our choice;
    runs on a base that can't learn move by 0.00 to 0.08, those of too small a rank by 0.29 and more."""
    learned_by_heart: float = Field(0.5, gt=0, lt=1)
    """If the training loss fell by this share, the base can learn. Source: our choice; on a base that can't learn it
    falls by less than 0.06, where examples are learned by heart by 0.7 and more."""
    least_learning_rate: float = Field(1e-5, gt=0)
    """Below this peak learning rate a flat loss says nothing about the base. Source: our choice; a tenth of what
    published runs use."""


def parse_thresholds(settings: Iterable[str]) -> Thresholds:
    """Return the thresholds with ``name=value`` settings applied.

    :raises InputError: for an unknown name, with a suggestion, or a value out of range.
    """
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise InputError("not a setting", key="--threshold", got=setting, allowed="name=value")
        if name not in Thresholds.model_fields:
            raise InputError(
                "unknown threshold",
                key="--threshold",
                got=name,
                allowed=", ".join(Thresholds.model_fields),
                hint=did_you_mean(name, Thresholds.model_fields),
            )
        values[name] = value
    try:
        return Thresholds.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise InputError(
            f"threshold {name}: {first['msg'].lower()}", key="--threshold", got=f"{name}={values[name]}"
        ) from None


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
        limits, losses, evals, metric = self.thresholds, self.losses, self.evals, judged_metric(self.log)
        if len(losses) < limits.fewest_losses or len(evals) < limits.fewest_evals:
            return None
        train_start, train_half, train_end = start(losses), at_share(losses, 0.5), tail(losses)
        eval_half, eval_end = at_share(evals, 0.5), tail(evals)
        scaled = train_end.value > 3 * eval_end.value  # by accumulated steps, as some Trainers logged it
        begin = evals.values[0] if scaled else max(train_start.value, evals.values[0])
        _, eval_best = lowest(evals)
        fall = max(begin - eval_end.value, limits.least_move * begin)  # at least what counts: noise gets no shares
        # The share of the validation loss's fall that lies in the second half: training losses are too noisy for this.
        late = (eval_half.value - eval_end.value) / fall if fall > 0 else 0.0
        last = 1 - eval_end.value / at_share(evals, 0.75).value if eval_end.value > 0 else 0.0
        best = (metric[0], highest(metric[1])) if metric else None
        return LossSummary(
            begin,
            train_start,
            train_half,
            train_end,
            eval_end,
            eval_best,
            moved=1 - eval_best.value / begin if begin > 0 else 0.0,
            metric=best,
            still=late <= limits.flat_share,
            flat=late <= limits.flat_share and last <= limits.flat_end,
            mediocre=best[1].value < limits.mediocre_metric if best else eval_end.value >= limits.high_loss,
        )

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
    :ivar train_end: last training level; ``train_half`` half-way.
    :ivar moved: share by which the best validation level lies below the start.
    :ivar metric: name and best level of a judged metric, None where there is none.
    :ivar still: whether the second half brought little; ``flat``: and its end next to nothing.
    :ivar mediocre: whether its final quality is poor.
    """

    begin: float
    train_start: Level
    train_half: Level
    train_end: Level
    eval_end: Level
    eval_best: Level
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
