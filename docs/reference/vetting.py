"""The table of the lines that ``vet`` draws."""

from __future__ import annotations

from reference.markdown import table


def threshold_table() -> str:
    """Return every line that vet draws: its default and its meaning. Its source stays beside the code."""
    from sim.spec.base import descriptions
    from sim.training.logs.training_case import Thresholds

    rows = []
    texts = descriptions(Thresholds)
    for name, field in Thresholds.model_fields.items():
        meaning = " ".join(texts[name].split()).partition("Source: ")[0]
        rows.append([f"`{name}`", f"{field.default:g}", meaning.strip()])
    return table(["threshold", "value", "meaning"], rows)
