"""Divergence: the loss became NaN, or rose from its lowest level and stayed high; also quality lost to quantisation."""

from __future__ import annotations

import math
from statistics import median

from sim.cells import printable
from sim.training.logs.curves import Jump, Level, largest_jump, largest_spike, lowest, near, points, start, tail, window
from sim.training.logs.training_case import Case, RuleResult, judged_metric
from sim.training.logs.training_log import StepSeries, TrainingLog, entries
from sim.training.vet_results import Confidence, Evidence, Finding, Mode, calmer


def judge(case: Case) -> RuleResult:
    """Judge whether a run diverged, or lost quality to its quantised base."""
    notes: list[str] = []
    found = _no_number(case, notes) or _rose(case, notes) or _too_hot(case) or _worse_than_16_bit(case, notes)
    if found is None:
        notes += _spike(case)
        thin: tuple[Mode, ...] = ("divergence",) if len(case.losses) < case.thresholds.fewest_losses else ()
        return RuleResult(notes=tuple(notes), thin=thin)
    confidence, evidence = found
    bits = case.facts.base_bits
    if bits is not None and bits < 16:
        source = printable((case.facts.origin or {}).get("base_bits", ""))
        evidence.append(Evidence(f"the base was held in {bits} bits ({source})"))
    elif bits is None:
        notes.append("the base's number format is unknown, so whether quantisation is to blame: give --base-bits")
    return RuleResult(
        Finding("divergence", confidence, tuple(evidence), calmer(case.facts, _hottest(case) is not None)), tuple(notes)
    )


Grounds = tuple[Confidence, list[Evidence]]


def _no_number(case: Case, notes: list[str]) -> Grounds | None:
    """Detect a loss that ends as NaN or infinity.

    By default the Trainer leaves such steps out of its mean, so that the log has 0.0 instead, next to a gradient norm
    of NaN.
    """
    log = case.log
    norms = dict(entries(log.grad_norm))
    lost = [
        not math.isfinite(loss) or (loss == 0 and not math.isfinite(norms.get(step, 0.0)))
        for step, loss in entries(log.loss)
    ]
    trailing = next((n for n, bad in enumerate(reversed(lost)) if not bad), len(lost))
    if sum(lost) > trailing:
        notes.append(f"{sum(lost) - trailing} losses were no number, but the run went on from there")
    if not trailing:
        norm_end = [value for _, value in entries(log.grad_norm)][-3:]
        if len(norm_end) == 3 and not any(map(math.isfinite, norm_end)):
            last = Evidence("the gradient norm is no number at the end", log.grad_norm.steps[-3:], tuple(norm_end))
            return "likely", [last]
        if log.eval_loss and not math.isfinite(log.eval_loss.values[-1]):
            notes.append("the validation loss is no number, the training loss is: examples without a label do that")
        return None
    bad = StepSeries(log.loss.steps[-trailing:], log.loss.values[-trailing:])
    what = "NaN or infinite" if any(not math.isfinite(value) for value in bad.values) else "0.0 with a gradient of NaN"
    evidence = [Evidence(f"the loss is {what} from step {bad.steps[0]} to the end, step {bad.steps[-1]}", *points(bad))]
    before = log.grad_norm.finite().until(bad.steps[0])
    if len(before):
        evidence.append(Evidence(f"the gradient norm was {before.values[-1]:.3g} before", *points(before, 4)))
    if log.kept_step < bad.steps[0]:
        evidence.append(Evidence(f"the weights kept are those of step {log.kept_step}, before that"))
        return "possible", evidence
    return "certain", evidence


def _rose(case: Case, notes: list[str]) -> Grounds | None:
    """Detect a loss that rose above its lowest level or its start, and a jump of the gradient norm with it."""
    limits = case.thresholds
    losses = case.losses.until(case.log.kept_step)
    if len(losses) < limits.fewest_losses:
        notes.append(f"{len(losses)} losses: too few to see a divergence; at least {limits.fewest_losses} are needed")
        return None
    wide = max(5, len(losses) // 8)
    begin, base, end = start(losses), _base(losses, wide), window(losses, len(losses) - wide, len(losses))
    rise = end.value - base.value
    rose = (
        end.value >= limits.loss_rise * base.value
        and rise >= max(limits.least_loss_rise, limits.lost_share * (begin.value - base.value))
        and _validation_agrees(case, base)
    )
    jump = _lasting_jump(case)
    evidence = []
    if rose:
        evidence.append(
            Evidence(
                f"the loss rose from {base.value:.3g} ({base.where}) to {end.value:.3g} ({end.where})",
                (base.last, end.last),
                (base.value, end.value),
            )
        )
    if jump is not None:
        before = near(losses, jump.before.last).value
        steps, norms = (jump.before.last, jump.after.first), (jump.before.value, jump.after.value)
        what = f"the gradient norm jumped from {norms[0]:.3g} ({jump.before.where}) to {norms[1]:.3g}"
        evidence.append(Evidence(f"{what} ({jump.after.where})", steps, norms))
        if not rose and end.value < 1.1 * before:
            notes.append(f"{evidence[-1].what}, but the loss came back to {end.value:.3g}")
            return None
    if not evidence:
        return None
    far = end.value >= 2 * limits.loss_rise * base.value and end.value >= base.value + 1
    sure = rose and (far or jump is not None)
    return ("certain" if sure else "likely"), evidence


def _lasting_jump(case: Case) -> Jump | None:
    """Return the largest rise of the gradient norm that lasted for several entries, if it is a jump."""
    jump = largest_jump(case.log.grad_norm.finite().until(case.log.kept_step))
    if jump is None or jump.ratio < case.thresholds.gradient_jump or jump.after.value < 1:
        return None
    return jump


def _spike(case: Case) -> list[str]:
    """Return a note on a gradient norm that was high for an entry or two, which medians of five don't show."""
    norms, least = case.log.grad_norm.finite().until(case.log.kept_step), case.thresholds.gradient_jump
    spike = largest_spike(norms, least)
    if spike is None or spike.value < 1 or _lasting_jump(case) is not None:
        return []
    return [
        f"the gradient norm rose from {spike.before:.3g} (step {spike.before_step}) to {spike.value:.3g} "
        f"(step {spike.step}), {least:g} times its usual level or more; a single spike alone is not a divergence"
    ]


def _base(losses: StepSeries, wide: int) -> Level:
    """Return the level to which a rise is compared: the lowest, or the start if the loss never fell below it.

    The start has too few entries for a median, so the highest of them counts.
    """
    _, low = lowest(losses, wide)
    first = max(3, len(losses) // 20)
    begin = Level(max(losses.values[:first]), losses.steps[0], losses.steps[first - 1])
    return low if low.value <= begin.value else begin


def _validation_agrees(case: Case, base: Level) -> bool:
    """Return whether the less noisy validation loss rose as well; true without validation losses."""
    evals, limits = case.evals.until(case.log.kept_step), case.thresholds
    if len(evals) < limits.fewest_evals:
        return True
    end = tail(evals).value
    return end >= 1.2 * lowest(evals)[1].value or end >= limits.loss_rise * base.value


def _too_hot(case: Case) -> Grounds | None:
    """Detect a run that learned nothing at a far too high learning rate: it diverged before the first entry."""
    summary, top = case.summary, _hottest(case)
    if top is None or summary is None or not (summary.still and summary.mediocre):
        return None
    return "likely", [
        Evidence(f"the learning rate went up to {top[1]:.3g}", (top[0],), (top[1],)),
        Evidence(
            f"the training loss stands at {summary.train_end.value:.3g} ({summary.train_end.where}), half-way it was "
            f"{summary.train_half.value:.3g}",
            (summary.train_half.last, summary.train_end.last),
            (summary.train_half.value, summary.train_end.value),
        ),
    ]


def _hottest(case: Case) -> tuple[int, float] | None:
    """Return step and value of the highest learning rate, if it is too high for any adapter."""
    rates = case.log.learning_rate.finite()
    step, top = max(entries(rates), key=lambda entry: entry[1], default=(0, 0.0))
    return (step, top) if top >= case.thresholds.hot_learning_rate else None


def _worse_than_16_bit(case: Case, notes: list[str]) -> Grounds | None:
    """Compare with the run on a 16-bit base: by a metric that both have, else by validation loss."""
    if case.reference is None:
        return None
    here, there = _quality(case.log), _quality(case.reference)
    shared = next((name for name in here if name in there), None)
    if shared is None:
        notes.append("no validation in common with the reference: quality can't be compared")
        return None
    mine, theirs = here[shared], there[shared]
    level, other = tail(mine).value, tail(theirs).value
    if not other > 0:
        notes.append(f"the reference's {shared} is zero: quality can't be compared")
        return None
    drop = (level - other) / other if shared == "eval_loss" else (other - level) / other
    noise = 2 * max(_spread(mine), _spread(theirs)) / other
    said = f"{shared} is {level:.3g} at the end, {other:.3g} in the 16-bit run"
    if drop < case.thresholds.quality_drop or drop <= noise:
        notes.append(f"{said}: no more than {case.thresholds.quality_drop:.0%} worse, or within its noise")
        return None
    enough = min(len(mine), len(theirs)) >= 3
    steps = (mine.steps[-1], theirs.steps[-1])
    return ("likely" if enough else "possible"), [Evidence(f"{said}: {drop:.0%} worse", steps, (level, other))]


def _quality(log: TrainingLog) -> dict[str, StepSeries]:
    metric, evals = judged_metric(log), log.eval_loss.finite()
    result = {metric[0]: metric[1]} if metric else {}
    return result | ({"eval_loss": evals} if len(evals) else {})


def _spread(series: StepSeries) -> float:
    """Return the median distance of the last five values from their median."""
    last = series.values[-5:]
    return median(abs(value - median(last)) for value in last)
