"""The report on the stages of a serving benchmark: measured beside predicted, and errors by server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.document import Report
from reports.table import Table
from sim.studies.fidelity.serving_stages import METRICS, Server, ServerErrors, StagePrediction, errors_by_server


def stage_report(predictions: Sequence[StagePrediction], refused: Mapping[Server, Exception]) -> Report:
    """Return how close the predictions of stages are.

    :param refused: servers without a profile, and why there is none; their stages are left out.
    """
    errors = {
        metric: errors_by_server(predictions, metric)
        for metric in METRICS
        if any(metric in each.stage.measured for each in predictions)
    }
    shown = [metric for metric in ("tpot_mean", "tpot_p90", "ttft_mean", "ttft_p99") if metric in errors]
    heads = [f"{metric.partition('_')[0].upper()} {metric.partition('_')[2]}" for metric in shown]
    rows = [
        [each.stage.name, each.stage.server.words, each.stage.load, *(_beside(each, metric) for metric in shown)]
        for each in predictions
    ]
    by_server = [
        [words, f"{count:,}", *(_error_words(errors[metric].get(words)) for metric in shown)]
        for words, (count, *_) in errors[shown[0]].items()
    ]
    overloaded = [each.stage.name for each in predictions if each.overloaded]
    return Report(
        kind="fidelity",
        name="stages",
        data=_stages_json(predictions, errors),
        terminal=[
            Table("", ["stage", "server", "load", *(f"{head}: measured, predicted, error" for head in heads)], rows),
            "",
            "Errors: median and 90 % quantile of absolute errors, and the median signed one",
            "",
            Table("", ["server", "stages", *heads], by_server),
        ],
        notes=[
            *(f"the stages of {server.words} are left out: {error}" for server, error in refused.items()),
            *(f"stage {name}: the predicted server is overloaded" for name in overloaded),
            *(f"predicted with the profile {name}" for name in sorted({each.profile for each in predictions})),
        ],
    )


def _beside(prediction: StagePrediction, metric: str) -> str:
    if metric not in prediction.stage.measured:
        return ""
    measured, predicted = (values[metric] * 1e3 for values in (prediction.stage.measured, prediction.predicted))
    return f"{measured:,.1f} {predicted:,.1f} ms {prediction.error(metric):+.0%}"


def _error_words(found: ServerErrors | None) -> str:
    if found is None:
        return ""
    _, median, ninety, bias = found
    return f"{median:.1%} {ninety:.1%} {bias:+.1%}"


def _stages_json(
    predictions: Sequence[StagePrediction], errors: Mapping[str, Mapping[str, ServerErrors]]
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "stages": [
            {
                "name": each.stage.name,
                "server": each.stage.server.words,
                "load": each.stage.load,
                "profile": each.profile,
                "metrics": {
                    f"{name}_s": {"measured": value, "predicted": each.predicted[name], "error": each.error(name)}
                    for name, value in each.stage.measured.items()
                },
            }
            for each in predictions
        ],
        "errors": {
            f"{metric}_s": {
                words: dict(zip(("stages", "median", "p90", "bias"), found, strict=True))
                for words, found in by_server.items()
            }
            for metric, by_server in errors.items()
        },
    }
