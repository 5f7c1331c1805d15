"""Underfitting and domain shift: a loss that plateaus too high, for lack of rank or of a suitable base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.training.logs.training_case import Case, RuleResult
from sim.training.vet_results import Confidence, Evidence, Finding, Mode, more_rank, other_base

if TYPE_CHECKING:
    from sim.training.logs.training_case import LossSummary, SiblingRun

_MODES: tuple[Mode, ...] = ("underfitting", "domain-shift")


def judge(case: Case) -> RuleResult:
    """Judge whether the adapter was too small or the base unsuitable; no finding while the run was still learning."""
    summary, limits = case.summary, case.thresholds
    if summary is None:
        got = f"{len(case.losses)} training and {len(case.evals)} validation losses"
        notes = (f"{got}: underfitting and domain shift can't be judged",)
        return RuleResult(notes=notes, thin=_MODES)
    larger = [run for run in case.siblings if _larger(run, case)]
    helped = [run for run in larger if run.best <= summary.eval_best.value * (1 - limits.quality_drop)]
    as_good = _as_good(case, summary)
    unmoved = summary.moved < limits.least_move
    if not (summary.still if unmoved else summary.flat) or not (summary.mediocre or (helped and case.small)):
        return RuleResult()
    rates, norms = case.log.learning_rate.finite(), case.log.grad_norm.finite()
    if len(rates) and max(rates.values) < limits.least_learning_rate:
        top = max(rates.values)
        note = f"the loss stands still, but the learning rate never rose above {top:.2g}: says nothing"
        return RuleResult(notes=(note,), thin=_MODES)
    if len(norms) and max(norms.values) == 0:
        return RuleResult(notes=("the gradient is zero throughout: nothing was trained",), thin=_MODES)
    if case.small and (helped or not any(run in larger for run in as_good)):
        return _underfitting(case, summary, helped, unmoved)
    if unmoved:
        fell = 1 - summary.train_end.value / summary.train_start.value
        if fell >= limits.learned_by_heart:
            return RuleResult(notes=(f"the validation loss hardly moved, but the training loss fell by {fell:.0%}",))
        return _domain_shift(case, summary)
    return RuleResult(notes=(_plateau(summary).what + ": this may be what the task allows",))


def _as_good(case: Case, summary: LossSummary) -> list[SiblingRun]:
    """Return other ranks of the same training that ended at a similar loss."""
    near = case.thresholds.quality_drop * summary.eval_best.value
    return [run for run in case.siblings if run.done and abs(run.best - summary.eval_best.value) <= near]


def _underfitting(case: Case, summary: LossSummary, helped: list[SiblingRun], unmoved: bool) -> RuleResult:
    rank, limits = case.facts.rank, case.thresholds
    if case.epochs is not None and case.epochs < limits.fewest_epochs:
        return RuleResult(notes=(f"{_plateau(summary).what}, but the data was seen {case.epochs:.2g} times only",))
    evidence = [_plateau(summary), *_quality(summary)]
    if rank is not None:
        layers = "attention's layers only" if case.facts.attention_only else "more than attention's layers"
        evidence.append(Evidence(f"rank {rank} on {layers}"))
    confidence: Confidence = "possible"
    if summary.metric and summary.mediocre and not unmoved and rank is not None and rank <= limits.small_rank:
        confidence = "likely"
    if helped:
        best = min(helped, key=lambda run: run.best)
        words = f"{best.name} with rank {best.rank} reached a validation loss of {best.best:.3g}"
        evidence.append(Evidence(f"{words}, this one {summary.eval_best.value:.3g}"))
        confidence = "certain" if summary.mediocre and summary.metric else "likely"
    notes = ("the loss hardly moved at all: if rank 32 does no better, it is the base",) if unmoved else ()
    return RuleResult(Finding("underfitting", confidence, tuple(evidence), more_rank(case.facts)), notes)


def _domain_shift(case: Case, summary: LossSummary) -> RuleResult:
    rank, limits = case.facts.rank, case.thresholds
    moved = f"the validation loss moved by {max(summary.moved, 0):.1%} from its start, {summary.begin:.3g}"
    best = summary.eval_best
    steps, values = (summary.train_start.first, best.last), (summary.begin, best.value)
    evidence = [
        Evidence(f"{moved}, to {best.value:.3g} ({best.where})", steps, values),
        *_quality(summary),
    ]
    ranks = sorted({run.rank for run in _as_good(case, summary)} | ({rank} if rank else set()))
    if ranks:
        evidence.append(Evidence(f"ranks tried: {', '.join(map(str, ranks))}"))
    confidence: Confidence = "possible"
    if rank is not None and not case.small:
        sure = len(ranks) > 1 and summary.moved < limits.least_move / 2
        confidence = "certain" if sure else "likely"
    notes = ("only one rank was tried: another one would tell more",) if len(ranks) < 2 else ()
    return RuleResult(Finding("domain-shift", confidence, tuple(evidence), other_base()), notes)


def _plateau(summary: LossSummary) -> Evidence:
    half, end = summary.train_half, summary.train_end
    what = (
        f"the training loss was {half.value:.3g} half-way ({half.where}) and {end.value:.3g} at the end ({end.where})"
    )
    return Evidence(
        f"{what}, from {summary.train_start.value:.3g}",
        (summary.train_start.first, half.last, end.last),
        (summary.train_start.value, half.value, end.value),
    )


def _quality(summary: LossSummary) -> list[Evidence]:
    if summary.metric:
        name, level = summary.metric
        return [Evidence(f"the best {name} is {level.value:.3g} ({level.where})", (level.last,), (level.value,))]
    end = summary.eval_end
    return [Evidence(f"the validation loss ends at {end.value:.3g} ({end.where})", (end.last,), (end.value,))]


def _larger(run: SiblingRun, case: Case) -> bool:
    rank = case.facts.rank or 0
    wider = case.facts.attention_only and not run.attention_only
    return run.rank > rank or (wider and run.rank >= rank)
