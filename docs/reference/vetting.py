"""The table of the lines that ``vet`` draws."""

from __future__ import annotations

from reference.markdown import table


def threshold_table() -> str:
    """Return every line that vet draws: its default, its meaning and its source."""
    from sim.spec.base import descriptions
    from sim.training.logs.training_case import Thresholds

    rows = []
    texts = descriptions(Thresholds)
    for name, field in Thresholds.model_fields.items():
        meaning, _, source = " ".join(texts.get(name, "").split()).partition("Source: ")
        rows.append([f"`{name}`", f"{field.default:g}", meaning.strip(), source.strip()])
    return table(["threshold", "value", "meaning", "source"], rows)
