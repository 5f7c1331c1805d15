"""Underfitting and domain shift: a loss that stands still too high, for lack of rank or of the right base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.training.logs.training_case import Case, Judged
from sim.training.sized_remedies import more_rank, other_base
from sim.training.vet_results import Confidence, Evidence, Finding, Mode

if TYPE_CHECKING:
    from sim.training.logs.training_case import Course, Tried

_MODES: tuple[Mode, ...] = ("underfitting", "domain-shift")


def judge(case: Case) -> Judged:
    """Say whether the adapter was too small, or the base the wrong one; nothing where the run still learned."""
    course, lines = case.course, case.thresholds
    if course is None:
        got = f"{len(case.losses)} training and {len(case.evals)} validation losses"
        notes = (f"{got}: underfitting and domain shift can't be judged",)
        return Judged(notes=notes, thin=_MODES)
    larger = [tried for tried in case.tried if _larger(tried, case)]
    helped = [tried for tried in larger if tried.best <= course.eval_best.value * (1 - lines.quality_drop)]
    as_good = _as_good(case, course)
    unmoved = course.moved < lines.least_move
    if not (course.still if unmoved else course.flat) or not (course.mediocre or (helped and case.small)):
        return Judged()
    rates, norms = case.log.learning_rate.finite(), case.log.grad_norm.finite()
    if len(rates) and max(rates.values) < lines.least_learning_rate:
        top = max(rates.values)
        note = f"the loss stands still, but the learning rate never rose above {top:.2g}: says nothing"
        return Judged(notes=(note,), thin=_MODES)
    if len(norms) and max(norms.values) == 0:
        return Judged(notes=("the gradient is zero throughout: nothing was trained",), thin=_MODES)
    if case.small and (helped or not any(tried in larger for tried in as_good)):
        return _underfitting(case, course, helped, unmoved)
    if unmoved:
        fell = 1 - course.train_end.value / course.train_start.value
        if fell >= lines.learned_by_heart:
            return Judged(notes=(f"the validation loss hardly moved, but the training loss fell by {fell:.0%}",))
        return _domain_shift(case, course)
    return Judged(notes=(_plateau(course).what + ": this may be what the task allows",))


def _as_good(case: Case, course: Course) -> list[Tried]:
    """Return other ranks of the same training that ended where this one did; one that failed says nothing."""
    near = case.thresholds.quality_drop * course.eval_best.value
    return [tried for tried in case.tried if tried.done and abs(tried.best - course.eval_best.value) <= near]


def _underfitting(case: Case, course: Course, helped: list[Tried], unmoved: bool) -> Judged:
    rank, lines = case.facts.rank, case.thresholds
    if case.epochs is not None and case.epochs < lines.fewest_epochs:
        return Judged(notes=(f"{_plateau(course).what}, but the data was seen {case.epochs:.2g} times only",))
    evidence = [_plateau(course), *_quality(course)]
    if rank is not None:
        layers = "attention's layers only" if case.facts.attention_only else "more than attention's layers"
        evidence.append(Evidence(f"rank {rank} on {layers}"))
    confidence: Confidence = "possible"
    if course.metric and course.mediocre and not unmoved and rank is not None and rank <= lines.small_rank:
        confidence = "likely"
    if helped:
        best = min(helped, key=lambda tried: tried.best)
        words = f"{best.name} with rank {best.rank} reached a validation loss of {best.best:.3g}"
        evidence.append(Evidence(f"{words}, this one {course.eval_best.value:.3g}"))
        confidence = "certain" if course.mediocre and course.metric else "likely"
    notes = ("the loss hardly moved at all: if rank 32 does no better, it is the base",) if unmoved else ()
    return Judged(Finding("underfitting", confidence, tuple(evidence), more_rank(case.facts)), notes)


def _domain_shift(case: Case, course: Course) -> Judged:
    rank, lines = case.facts.rank, case.thresholds
    moved = f"the validation loss moved by {max(course.moved, 0):.1%} from its start, {course.begin:.3g}"
    evidence = [
        Evidence(f"{moved}, to {course.eval_best.value:.3g} ({course.eval_best.where})", *_ends(course)),
        *_quality(course),
    ]
    ranks = sorted({tried.rank for tried in _as_good(case, course)} | ({rank} if rank else set()))
    if ranks:
        evidence.append(Evidence(f"ranks tried: {', '.join(map(str, ranks))}"))
    confidence: Confidence = "possible"
    if rank is not None and not case.small:
        sure = len(ranks) > 1 and course.moved < lines.least_move / 2
        confidence = "certain" if sure else "likely"
    notes = ("only one rank was tried: another one would tell more",) if len(ranks) < 2 else ()
    return Judged(Finding("domain-shift", confidence, tuple(evidence), other_base()), notes)


def _plateau(course: Course) -> Evidence:
    half, end = course.train_half, course.train_end
    what = (
        f"the training loss was {half.value:.3g} half-way ({half.where}) and {end.value:.3g} at the end ({end.where})"
    )
    return Evidence(
        f"{what}, from {course.train_start.value:.3g}",
        (course.train_start.first, half.last, end.last),
        (course.train_start.value, half.value, end.value),
    )


def _quality(course: Course) -> list[Evidence]:
    if course.metric:
        name, level = course.metric
        return [Evidence(f"the best {name} is {level.value:.3g} ({level.where})", (level.last,), (level.value,))]
    end = course.eval_end
    return [Evidence(f"the validation loss ends at {end.value:.3g} ({end.where})", (end.last,), (end.value,))]


def _ends(course: Course) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return (course.train_start.first, course.eval_best.last), (course.begin, course.eval_best.value)


def _larger(tried: Tried, case: Case) -> bool:
    rank = case.facts.rank or 0
    wider = case.facts.attention_only and not tried.attention_only
    return tried.rank > rank or (wider and tried.rank >= rank)
