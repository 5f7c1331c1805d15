"""Overfitting: the validation loss rises from its best while the training loss keeps falling."""

from __future__ import annotations

import math

from sim.training.logs.curves import lowest, near, points, slope, tail, window
from sim.training.logs.training_case import Case, RuleResult, highest
from sim.training.logs.training_log import StepSeries
from sim.training.vet_results import Confidence, Evidence, Finding, less_fit


def judge(case: Case) -> RuleResult:
    """Judge whether a run memorised its examples, up to the step whose weights were kept."""
    limits, log = case.thresholds, case.log
    evals = case.evals.until(log.kept_step)
    losses = case.losses.until(log.kept_step)
    if len(case.evals) < limits.fewest_evals or len(losses) < limits.fewest_losses:
        got = "no validation loss" if not len(case.evals) else f"{len(case.evals)} validation losses"
        notes = (f"{got} and {len(losses)} training losses: overfitting can't be judged",)
        return RuleResult(notes=notes, thin=("overfitting",))
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
    return _finding(case, evidence, evals.steps[at], strong=rise >= limits.eval_rise_certain)


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


def _finding(case: Case, evidence: tuple[Evidence, ...], best_step: int, strong: bool) -> RuleResult:
    few = _few(case)
    order: tuple[Confidence, ...] = ("possible", "likely", "certain")
    sure = 1 + strong if few else 0
    notes: tuple[str, ...] = ()
    if case.facts.examples is None and not few:
        notes = ("how many examples were trained on is unknown: give --examples",)
    remedies = less_fit(case.facts, best_step)
    return RuleResult(Finding("overfitting", order[sure], (*evidence, _examples(case)), remedies), notes)


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
        gain = case.thresholds.metric_gain
        before, now = near(series, step, 3).value, tail(series).value
        best = highest(series).value if sign > 0 else lowest(series)[1].value
        change = sign * (now - before)
        if (
            change >= max(gain * before, _two_standard_errors(before, case.log.eval_examples))
            and sign * (best - now) <= gain * best
        ):
            return f"{name} got better: {before:.3g} to {now:.3g}"
    return None


def _two_standard_errors(share: float, examples: int | None) -> float:
    """Return two standard errors of a share of right answers among so many examples; 0 for other metrics."""
    return 2 * math.sqrt(share * (1 - share) / examples) if examples and 0 <= share <= 1 else 0.0
