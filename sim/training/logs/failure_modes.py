"""The four failure modes of training, in the order in which one finding rules out the next, and their evidence."""

from __future__ import annotations

import math
from statistics import median

from sim.cells import printable
from sim.training.logs.curves import (
    Jump,
    Level,
    largest_jump,
    largest_spike,
    lowest,
    near,
    points,
    slope,
    start,
    tail,
    window,
)
from sim.training.logs.training_case import Case, LossSummary, RuleResult, SiblingRun, highest, judged_metric
from sim.training.logs.training_log import StepSeries, TrainingLog, entries
from sim.training.vet_results import OTHER_BASE, Confidence, Evidence, Finding, Mode, calmer, less_fit, more_rank

_SURE = ("certain", "likely", "possible")
_CAPACITY: tuple[Mode, ...] = ("underfitting", "domain-shift")


def judge(case: Case) -> tuple[tuple[Finding, ...], tuple[str, ...], tuple[Mode, ...]]:
    """Return the findings, the surest first, notes, and the modes with too little evidence.

    A diverged run says nothing about rank or base, and one that memorised its examples had enough rank.
    """
    said = [_divergence(case)]
    if said[0].finding is None or said[0].finding.confidence == "possible":
        said.append(_overfitting(case))
        if said[1].finding is None:
            said.append(_capacity(case))
    findings = sorted((one.finding for one in said if one.finding), key=lambda found: _SURE.index(found.confidence))
    notes, thin = (tuple(each for one in said for each in getattr(one, name)) for name in ("notes", "thin"))
    return tuple(findings), notes, thin


# Divergence: the loss became NaN, or rose from its lowest level and stayed high; also quality lost to quantisation.


def _divergence(case: Case) -> RuleResult:
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
        notes.append("quantisation may be to blame, but the base's number format is unknown; give --base-bits")
    return RuleResult(
        Finding("divergence", confidence, tuple(evidence), calmer(case.facts, _hottest(case) is not None)), tuple(notes)
    )


Grounds = tuple[Confidence, list[Evidence]]


def _no_number(case: Case, notes: list[str]) -> Grounds | None:
    """Detect a loss that ends as NaN or infinity.

    By default the Trainer leaves such steps out of its mean, so that the log has 0.0 instead, next to a gradient norm
    of NaN, if it logs one. A loss that is merely small has a gradient.
    """
    log = case.log
    norms = dict(entries(log.grad_norm))
    lost = [
        not math.isfinite(loss) or (loss == 0 and not 0 < norms.get(step, math.nan) < math.inf)
        for step, loss in entries(log.loss)
    ]
    trailing = next((n for n, bad in enumerate(reversed(lost)) if not bad), len(lost))
    if sum(lost) > trailing:
        notes.append(f"{_losses(sum(lost) - trailing)} without a number, but the run went on from there")
    if not trailing:
        norm_end = [value for _, value in entries(log.grad_norm)][-3:]
        if len(norm_end) == 3 and not any(map(math.isfinite, norm_end)):
            last = Evidence("the gradient norm is no number at the end", log.grad_norm.steps[-3:], tuple(norm_end))
            return "likely", [last]
        if log.eval_loss and not math.isfinite(log.eval_loss.values[-1]):
            notes.append("the validation loss is no number, the training loss is: examples without a label do that")
        return None
    bad = StepSeries(log.loss.steps[-trailing:], log.loss.values[-trailing:])
    at_end = [norms[step] for step in bad.steps if step in norms]
    what = "0.0 with a gradient of NaN" if any(map(math.isnan, at_end)) else "exactly 0.0"
    if any(not math.isfinite(value) for value in bad.values):
        what = "NaN or infinite"
    evidence = [Evidence(f"the loss is {what} from step {bad.steps[0]} to the end, step {bad.steps[-1]}", *points(bad))]
    before = log.grad_norm.finite().until(bad.steps[0])
    if len(before):
        evidence.append(Evidence(f"the gradient norm was {before.values[-1]:.3g} before", *points(before, 4)))
    if log.kept_step < bad.steps[0]:
        evidence.append(Evidence(f"the weights kept are those of step {log.kept_step}, before that"))
        return "possible", evidence
    return "certain", evidence


def _losses(count: int, kind: str = "") -> str:
    return f"{count or 'no'} {kind}loss{'' if count == 1 else 'es'}"


def _rose(case: Case, notes: list[str]) -> Grounds | None:
    """Detect a loss that rose above its lowest level or its start, and a jump of the gradient norm with it."""
    limits = case.thresholds
    losses = case.losses.until(case.log.kept_step)
    if len(losses) < limits.fewest_losses:
        few = f"{_losses(len(losses))}: too few to see a divergence"
        notes.append(f"{few}; at least {limits.fewest_losses} are needed")
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
    if spike is None or spike.after.value < 1 or _lasting_jump(case) is not None:
        return []
    return [
        f"the gradient norm rose from {spike.before.value:.3g} ({spike.before.where}) to {spike.after.value:.3g} "
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
    here, there = _judged_by(case.log), _judged_by(case.reference)
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


def _judged_by(log: TrainingLog) -> dict[str, StepSeries]:
    metric, evals = judged_metric(log), log.eval_loss.finite()
    result = {metric[0]: metric[1]} if metric else {}
    return result | ({"eval_loss": evals} if len(evals) else {})


def _spread(series: StepSeries) -> float:
    """Return the median distance of the last five values from their median."""
    last = series.values[-5:]
    return median(abs(value - median(last)) for value in last)


# Overfitting: the validation loss rises from its best while the training loss keeps falling.


def _overfitting(case: Case) -> RuleResult:
    """Judge whether a run memorised its examples, up to the step whose weights were kept."""
    limits, log = case.thresholds, case.log
    evals = case.evals.until(log.kept_step)
    losses = case.losses.until(log.kept_step)
    if len(case.evals) < limits.fewest_evals or len(losses) < limits.fewest_losses:
        got = f"{_losses(len(case.evals), 'validation ')} and {_losses(len(losses), 'training ')}"
        return RuleResult(notes=(f"{got}: overfitting can't be judged",), thin=("overfitting",))
    if len(evals) < limits.fewest_evals:  # too few evaluations to judge, but no sign of overfitting
        return RuleResult(
            notes=(f"the weights kept are those of step {log.kept_step}, the best by the run's own account",)
        )
    at, best = lowest(evals)
    after = len(evals) - 1 - at
    end = tail(evals)
    since, last = near(losses, evals.steps[at]), tail(losses)
    fall = 1 - last.value / since.value if since.value > 0 else 0.0
    rise = end.value / best.value - 1 if best.value > 0 else 0.0
    if after < 2 or fall < limits.train_fall:
        return RuleResult()
    if rise < limits.eval_rise or slope(evals.values[at:]) <= 0:
        return _gap(case, evals)
    gain = _better(case, evals.steps[at])
    if gain is not None:
        return RuleResult(notes=(f"the validation loss rises from step {evals.steps[at]} on, but {gain}",))
    fell = f"the training loss fell by {fall:.0%} meanwhile: {since.value:.3g} ({since.where}) to {last.value:.3g}"
    evidence = (
        Evidence(
            f"the validation loss rose by {rise:.0%}: {best.value:.3g} ({best.where}) to {end.value:.3g} ({end.where})",
            *points(evals),
        ),
        Evidence(f"{fell} ({last.where})", (since.last, last.last), (since.value, last.value)),
    )
    sure: Confidence = "possible"
    notes: tuple[str, ...] = ()
    if _few(case):
        sure = "certain" if rise >= limits.eval_rise_certain else "likely"
    elif case.facts.examples is None:
        notes = ("how many examples were trained on is unknown: give --examples",)
    remedies = less_fit(case.facts, evals.steps[at])
    return RuleResult(Finding("overfitting", sure, (*evidence, _examples(case)), remedies), notes)


def _gap(case: Case, evals: StepSeries) -> RuleResult:
    """Judge the case in between: the validation loss plateaus while the training loss falls far below it.

    Their ratio is compared with that at the first evaluation, because some Trainers logged training losses too large by
    the number of accumulated steps.
    """
    limits = case.thresholds
    _, best = lowest(evals)
    levels = [window(evals, at - 1, at + 2).value for at in range(len(evals))]
    at = next(at for at, level in enumerate(levels) if level <= best.value * (1 + limits.still_share))
    losses = case.losses.until(case.log.kept_step)
    first, since, last = near(losses, evals.steps[0], 3), near(losses, evals.steps[at]), tail(losses)
    if len(evals) - at < limits.fewest_evals or not _few(case) or min(first.value, last.value, evals.values[0]) <= 0:
        return RuleResult()
    apart = tail(evals).value / last.value / (evals.values[0] / first.value)
    if apart < limits.gap_ratio or _better(case, evals.steps[at]) is not None:
        return RuleResult()
    evidence = (
        Evidence(f"the validation loss stands at {levels[-1]:.3g} from step {evals.steps[at]} on", *points(evals)),
        Evidence(
            f"the training loss went on to {last.value:.3g} ({last.where}): validation over training grew "
            f"{apart:.1f} times since step {evals.steps[0]}",
            (since.last, last.last),
            (since.value, last.value),
        ),
        _examples(case),
    )
    return RuleResult(Finding("overfitting", "possible", evidence, less_fit(case.facts, evals.steps[at])))


def _few(case: Case) -> bool:
    """Return whether the training data is tiny, by its count or by the lower bound times the usual accumulation."""
    limits, facts = case.thresholds, case.facts
    if facts.examples is not None:
        return facts.examples < limits.tiny_examples
    least = facts.examples_at_least
    return least is not None and least * limits.usual_accumulation < limits.tiny_examples


def _examples(case: Case) -> Evidence:
    facts = case.facts
    source = (facts.origin or {}).get("examples", "")
    if facts.examples is not None:
        about = "" if source.startswith("--") else "about "
        return Evidence(f"{about}{facts.examples:,} training examples ({source})")
    if facts.examples_at_least is not None:
        return Evidence(f"at least {facts.examples_at_least:,} training examples ({source})")
    return Evidence("the number of training examples is unknown")


def _better(case: Case, step: int) -> str | None:
    """Return, in words, a metric that improved since a step by more than noise and stayed so; None without one."""
    for name, series in case.log.metrics.items():
        series = series.finite().until(case.log.kept_step)
        sign = -1 if name.endswith(("wer", "cer", "loss", "error", "perplexity")) else 1
        if len(series) < case.thresholds.fewest_evals or (sign == -1 and name.endswith("loss")):
            continue
        gain, examples = case.thresholds.metric_gain, case.log.eval_examples
        before, now = near(series, step, 3).value, tail(series).value
        best = highest(series).value if sign > 0 else lowest(series)[1].value
        # Two standard errors of a share of right answers; other metrics have none that is known.
        noise = 2 * math.sqrt(before * (1 - before) / examples) if examples and 0 <= before <= 1 else 0.0
        if sign * (now - before) >= max(gain * before, noise) and sign * (best - now) <= gain * best:
            return f"{name} got better: {before:.3g} to {now:.3g}"
    return None


# Underfitting and domain shift: a loss that plateaus too high, for lack of rank or of a suitable base model.


def _capacity(case: Case) -> RuleResult:
    """Judge whether the adapter was too small or the base unsuitable; no finding while the run was still learning."""
    summary, limits = case.summary, case.thresholds
    if summary is None:
        got = f"{len(case.losses)} training and {len(case.evals)} validation losses"
        notes = (f"{got}: underfitting and domain shift can't be judged",)
        return RuleResult(notes=notes, thin=_CAPACITY)
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
        return RuleResult(notes=(note,), thin=_CAPACITY)
    if len(norms) and max(norms.values) == 0:
        return RuleResult(notes=("the gradient is zero throughout: nothing was trained",), thin=_CAPACITY)
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
    evidence = [Evidence(f"{moved}, to {best.value:.3g} ({best.where})", steps, values), *_quality(summary)]
    ranks = sorted({run.rank for run in _as_good(case, summary)} | ({rank} if rank else set()))
    if ranks:
        evidence.append(Evidence(f"ranks tried: {', '.join(map(str, ranks))}"))
    confidence: Confidence = "possible"
    if rank is not None and not case.small:
        sure = len(ranks) > 1 and summary.moved < limits.least_move / 2
        confidence = "certain" if sure else "likely"
    notes = ("only one rank was tried: another one would tell more",) if len(ranks) < 2 else ()
    return RuleResult(Finding("domain-shift", confidence, tuple(evidence), OTHER_BASE), notes)


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
