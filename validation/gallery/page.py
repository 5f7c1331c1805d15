"""The gallery as a page: docs/gallery.md and a plot an entry in docs/pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from reports.charts.axis_ticks import x_title, y_title
from reports.charts.canvas import Axes
from reports.charts.fidelity_charts import BAND, draw_agreement
from reports.charts.svg import COLOURS, SERIES, drawing, marker_of, place
from sim.results.run_directory.result_files import write_text
from validation import ROOT
from validation.gallery.entry import Bar, Entry, Row, Source

PAGE, PICTURES = ROOT / "docs" / "gallery.md", ROOT / "docs" / "pictures"
FEW = 10
"""Up to so many rows are shown one by one."""
_PAINT = {"ink": "#1b1f23", "muted": "#5d6570", "grid": "#e3e5e1", "paper": "#fcfcfa"}
_PAINT |= {"s1": "#3a55c0", "s2": "#df7000", "s3": "#679e71", "s4": "#631a7a", "s5": "#895d0b", "s6": "#637382"}
"""Colours of a report in daylight; pictures have their own paper, so the page may be dark."""
_WIDE, _TALL = 430, 420
_URL = re.compile(r"https://[^ ,)]+")

HEAD = """\
# Gallery: published results, predicted

How near does loraplan come to what other people measured and published? `make gallery` predicts all of it, writes this
page, and fails where an error is above the limit that we set; `python -m validation.gallery NAME` predicts the entries
of one name in the last column.

- Settings come from the source alone, and every fitted number is named.
- Anchors are runs that a profile was fitted to. They are shown, but not counted.
- A miss is never removed.
- VTC and S-LoRA are one group's engine, so their entries are not independent.

"""


def write(
    sources: Mapping[str, Source], rows: Mapping[str, Sequence[Row]], page: Path = PAGE, pictures: Path = PICTURES
) -> None:
    """Write the page and its plots.

    :param rows: what each source predicts, by its name.
    """
    lines, parts = ["| entry | rows, median error | limits met | name |", "|---|---|---|---|"], []
    for name, source in sources.items():
        for entry, before in zip(source.entries, (None, *source.entries), strict=False):
            mine = [row for row in rows[name] if row.entry == entry.name]
            judged = [row for row in mine if not row.anchor]
            bars = entry.bars(judged)
            ends = [abs(row.predicted[key] / value - 1) for row in judged for key, value in row.published.items()]
            met = f"{sum(bar.met for bar in bars)} of {len(bars)}" if bars else "–"
            error = f", {median(ends) * 100:.3g} %" if ends else ""
            lines.append(f"| [{entry.title}](#{slug(entry.title)}) | {len(judged)}{error} | {met} | `{name}` |")
            parts.append("\n".join(_section(entry, before, mine, bars, pictures, page)))
    write_text(page, HEAD + "\n".join(lines) + "\n\n" + "\n".join(parts))


def _section(
    entry: Entry, before: Entry | None, rows: Sequence[Row], bars: Sequence[Bar], pictures: Path, page: Path
) -> Iterator[str]:
    """Yield the lines of an entry. What it has in common with the one ``before`` it is not repeated."""
    yield f"## {entry.title}\n"
    if before and (before.source, before.settings) == (entry.source, entry.settings):
        yield "- **Source, settings**: as above."
    else:
        source = _URL.sub(lambda found: f"<{found[0]}>", entry.source)
        yield f"- **Source**: {source}."
        yield f"- **Settings**: {entry.settings}."
    yield f"- **Fitted**: {entry.fitted}."
    shown = 0 < len(rows) <= FEW
    if not shown and (anchors := [row.name for row in rows if row.anchor]):
        yield f"- **Anchors**: {', '.join(anchors)}."
    for met, word in ((False, "Missed"), (True, "Met")):
        if found := [f"{bar.text}: {said(bar)}" for bar in bars if bar.met == met]:
            yield f"- **{word}**: {'; '.join(found)}."
    if entry.about:
        yield f"\n{entry.about}"
    if any(row.published for row in rows):
        picture = pictures / f"gallery-{entry.name}.svg"
        write_text(picture, plot(rows, entry.title))
        yield f"\n![Predicted against published]({picture.relative_to(page.parent)})"
    if shown:
        yield "\n" + "\n".join(_table(rows))
    yield ""


def _table(rows: Sequence[Row]) -> Iterator[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row.predicted if "/" not in key))
    names = [row.name.replace("|", "/").split(", ") for row in rows]
    same = [part for part in names[0] if len(rows) > 1 and all(part in name for name in names)]  # in the head
    head = f"{', '.join(same)}: " if same else ""
    head += "predicted (published)" if any(row.published for row in rows) else "predicted"
    yield f"| {head} | {' | '.join(map(words, keys))} |"
    yield f"|---|{'---|' * len(keys)}"
    for row, name in zip(rows, names, strict=True):
        cells = []
        for key in keys:
            band = f" [{row.band[key][0]:.3g} to {row.band[key][1]:.3g}]" if row.band and key in row.band else ""
            published = f" ({_figure(row.published[key])})" if key in row.published else ""
            cells.append(f"{_figure(row.predicted[key])}{band}{published}" if key in row.predicted else "–")
        own = ", ".join(part for part in name if part not in same)
        yield f"| {own}{' (anchor)' if row.anchor else ''} | {' | '.join(cells)} |"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def slug(title: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def said(bar: Bar) -> str:
    """Return value and limit of a bar, shares in percent."""
    value, limit = (f"{x * 100:.3g} %" if bar.limit < 1 else f"{x:.3g}" for x in (bar.value, bar.limit))
    return f"{value} ({'at least' if bar.floor else 'at most'} {limit})"


def words(key: str) -> str:
    """Return a quantity as a reader says it, with its unit."""
    stem, _, unit = key.rpartition("_")
    per = stem.endswith("_per")
    text = stem.removesuffix("_per") + f"/{unit}" if per else f"{stem}, {unit}" if unit in ("s", "ms") else key
    return text.replace("_", " ")


def plot(rows: Sequence[Row], title: str) -> str:
    """Return a picture of predicted against published values, a mark a row and quantity."""
    stems = list(dict.fromkeys(key.partition("/")[0] for row in rows for key in row.published))
    ends = [value for row in rows for key, value in row.published.items() for value in (value, row.predicted[key])]
    ends += [end for row in rows if row.band for key in row.published for end in row.band[key]]
    low, high = min(ends) / 1.4, max(ends) * 1.4
    with drawing(_TALL, _WIDE) as figure:
        ax = place(figure, 52, 30, 14, 46)
        draw_agreement(ax, low, high, _tick)
        for number, stem in enumerate(stems):
            colour, at = SERIES[number % len(SERIES)], 0.96 - 0.06 * number
            _marks(ax, rows, stem, colour)
            ax.plot([0.04], [at], marker_of(colour), color=colour, markersize=7, transform="axes fraction")
            ax.annotate(words(stem), (0.07, at), xycoords="axes fraction", va="center")
        x_title(ax, "published")
        y_title(ax, f"predicted (the band is a factor of {BAND})", 46)
        body = figure.svg("gallery", {value: _PAINT[name] for name, value in COLOURS.items() if name in _PAINT})
    for name, colour in _PAINT.items():
        body = body.replace(f"var(--{name})", colour)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_TALL}" width="{_WIDE}" height="{_TALL}" '
        f'role="img" font-family="sans-serif" font-size="13" color="{_PAINT["ink"]}"><title>{title}</title>'
        f'<rect width="{_WIDE}" height="{_TALL}" fill="{_PAINT["paper"]}"/>{body}</svg>\n'
    )


def _tick(value: float) -> str:
    return next((f"{value / size:g} {unit}" for size, unit in ((1e6, "M"), (1e3, "k")) if value >= size), f"{value:g}")


def _marks(ax: Axes, rows: Sequence[Row], stem: str, colour: str) -> None:
    """Draw the marks and bands of a quantity and of its parts (``ttft_mean_s/tenant``); those of anchors are hollow."""
    some = [(row, key) for row in rows for key in row.published if key.partition("/")[0] == stem]
    for row, key in some:
        if row.band:
            ax.vlines([row.published[key]], [row.band[key][0]], [row.band[key][1]], color=colour, linewidth=1.4)
    for anchor in (False, True):
        mine = [(row.published[key], row.predicted[key]) for row, key in some if row.anchor == anchor]
        face: dict[str, Any] = {"markerfacecolor": COLOURS["paper"] if anchor else colour, "markeredgecolor": colour}
        look: dict[str, Any] = {"color": colour, "alpha": 0.8, "markersize": 6, **face}
        ax.plot([x for x, _ in mine], [y for _, y in mine], marker_of(colour), **look)
