"""What a sweep says of a fault that grows along one of its axes: how much more it harms, and where least.

Which length of a stall harms fewest is no question: none. What is asked is how much a longer one adds in each design.
Points of one design differ in nothing else and meet the same traffic, so that what is slow anyway cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.axes import Axis, in_order
from reports.text import capital
from sim.results.point import Point

_GROWS = frozenset(
    {
        "lasts",
        "probability",
        "down",
        "detected",
        "factor",
        "delay",
        "share",
        "lifetime",
        "propagation",
    }
)
"""Last words of keys of a fault that say how bad it is, not what is done about it."""
_NEVER = frozenset({"lasts", "probability"})
"""Those with which 0 means that there is no fault."""
_LISTED = 6

Label = Callable[[Point, Sequence[Axis]], str]


@dataclass(frozen=True)
class FaultSeries:
    """The points of a sweep that differ in nothing but how bad the fault is.

    :ivar label: of what else is swept; empty where nothing is.
    :ivar points: the mildest fault first.
    """

    label: str
    points: tuple[Point, ...]

    def added(self, step: int) -> tuple[int, str]:
        """Return how many more requests a step harms than the mildest fault; in words, with an interval."""
        from sim.results.pairs import difference_of  # numpy is heavy, and the terminal's words need it here alone

        found = difference_of(self.points[0], self.points[step], "harmed")
        count = round(found.change or 0) if found is not None else 0
        if found is None or found.lo is None or found.hi is None:
            return count, f"{count:,}"
        return count, f"{count:,} ({found.lo:,.0f} to {found.hi:,.0f})"

    def adds_less(self, other: FaultSeries) -> bool:
        """Return whether the worst fault certainly adds less harm here, by the same replications."""
        import numpy as np

        from sim.results.statistics import half_width

        own, theirs = (np.asarray(_more_in_replications(design), dtype=float) for design in (self, other))
        if len(own) != len(theirs) or len(own) < 2:
            return False
        mean = float((own - theirs).mean())
        half = half_width(mean, own - theirs)
        return half is not None and mean + half < 0


def _more_in_replications(design: FaultSeries) -> list[float]:
    """Return how many more requests the worst fault harms in each replication."""
    mild, worst = (design.points[i].metrics["harmed"].parts for i in (0, -1))
    pairs = zip(worst, mild, strict=False)
    return [b - a for b, a in pairs if a is not None and b is not None]


def growing(axes: Sequence[Axis]) -> list[Axis]:
    """Return the axes along which a fault becomes worse."""
    return [a for a in axes if a.key.startswith("faults.") and a.numeric and a.key.rpartition(".")[2] in _GROWS]


def never_happens(axis: Axis) -> bool:
    """Return whether the mildest fault of an axis is none."""
    return axis.key.rpartition(".")[2] in _NEVER and axis.places[0] == 0


def fault_series(points: Sequence[Point], axes: Sequence[Axis], label: Label) -> list[FaultSeries]:
    """Return the designs of a sweep of which several points are there, in its order."""
    worse = growing(axes)
    others = [axis for axis in axes if axis not in worse]
    groups: dict[tuple[int, ...], list[Point]] = {}
    for point in in_order(points, [*others, *worse]):
        groups.setdefault(tuple(axis.index(point) for axis in others), []).append(point)
    if len(worse) > 1:  # of several, the mildest and the worst corner
        groups = {key: [found[0], found[-1]] for key, found in groups.items()}
    most = max(len(found) for found in groups.values())
    return [
        FaultSeries(label(found[0], others) if others else "", tuple(found))
        for found in groups.values()
        if len(found) == most > 1
    ]


def growing_impact(points: Sequence[Point], axes: Sequence[Axis], label: Label) -> list[str]:
    """Return how much more a worse fault harms in each design, the worst first, and in which it does least."""
    worse, designs = growing(axes), fault_series(points, axes, label)
    if not designs:
        return []
    shown = designs if len(designs) <= _LISTED else sorted(designs, key=lambda d: d.added(-1)[0])[:: len(designs) - 1]
    total = first.requests if (first := designs[0].points[0].impact) is not None else 0
    last = len(designs[0].points) - 1
    said = [
        f"{capital(_step(shown[0].points[last], shown[0].points[0], worse))} harms {_each(shown, last)} (of {total:,})."
    ]
    if last > 1:
        steps = [
            f"{worse[0].point_label(designs[0].points[step])}: {_values(shown, step)}"
            for step in range(last - 1, 0, -1)
        ]
        said.append(f"{capital('; '.join(steps))}{' (in the same order)' if len(shown) > 1 else ''}.")
    if len(designs) > 1:
        best = min(designs, key=lambda design: design.added(-1)[0])
        close = [d.label for d in designs if d is not best and not best.adds_less(d)]
        least = f"The fault adds least with {best.label}"
        if len(close) == len(designs) - 1:
            said.append("It is not certain in which of these designs the fault adds least.")
        else:
            said.append(f"{least}, not certainly less than with {', '.join(close)}." if close else f"{least}.")
    return said + _anyway(shown, worse)


def _step(worst: Point, mildest: Point, worse: Sequence[Axis]) -> str:
    """Return the worst fault against the mildest, in words: ``time to notice 30 s instead of 0 s``."""
    said = [
        axis.phrase(worst.set.get(axis.key))
        + ("" if never_happens(axis) else f" instead of {axis.point_label(mildest)}")
        for axis in worse
    ]
    return ", ".join(said)


def _each(designs: Sequence[FaultSeries], step: int) -> str:
    found = [f"{d.added(step)[1]} more requests" if i == 0 else d.added(step)[1] for i, d in enumerate(designs)]
    return ", ".join(f"{text} with {d.label}" if d.label else text for text, d in zip(found, designs, strict=True))


def _values(designs: Sequence[FaultSeries], step: int) -> str:
    return ", ".join(design.added(step)[1] for design in designs)


def _anyway(designs: Sequence[FaultSeries], worse: Sequence[Axis]) -> list[str]:
    """Return how many are slow where the fault never happens."""
    if len(worse) != 1 or not never_happens(worse[0]):
        return []
    healthy = [(int(design.points[0].metrics["harmed"].value or 0), design.label) for design in designs]
    told = ", ".join(f"{count:,} with {label}" if label else f"{count:,}" for count, label in healthy)
    return [f"Without the fault it is {told}."]
