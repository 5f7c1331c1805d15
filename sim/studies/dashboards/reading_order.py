"""In what order pages of the same server were read, which a copied file doesn't show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from sim.errors import InputError
from sim.studies.dashboards.engine_metrics import CREATED, PROCESS_START
from sim.studies.dashboards.metrics_text import Key

_COUNTS = ("_total", "_bucket", "_count")
_MOST_FALL = 0.9


def placed(times: Sequence[float], seconds: float, *, as_given: bool) -> list[float]:
    """Return when each page was read.

    :param times: of the pages, seconds since 1970; two that are equal don't say which page was first.
    :param seconds: from the first page to the last.
    :param as_given: the pages are in order, whatever their times are.
    """
    if not as_given and len(set(times)) == len(times):
        return list(times)
    order = range(len(times)) if as_given else sorted(range(len(times)), key=times.__getitem__)
    last, gaps = max(times), len(times) - 1
    found = [last] * len(times)
    for rank, place in enumerate(order):
        found[place] = last - seconds * (gaps - rank) / gaps
    return found


def check_order(names: Sequence[str], pages: Sequence[Mapping[Key, float]], option: str) -> None:
    """Refuse pages in the wrong order.

    Counters of one server fall when it restarts. Then its process is younger than before; where no metric shows that,
    pages are more often swapped than servers restart.

    :param names: of the pages, in the order of their times.
    :raises InputError: naming two pages between which nearly every counter falls, or the process gets older.
    """
    for (before, earlier), (after, later) in pairwise(zip(names, pages, strict=True)):
        starts = [later[key] - earlier[key] for key in earlier if key[0] in (PROCESS_START, *CREATED) and key in later]
        changed = [later[key] - earlier[key] for key in earlier if key[0].endswith(_COUNTS) and key in later]
        fell, rose = (sum(sign * change > 0 for change in changed) for sign in (-1, 1))
        restarted = any(start > 0 for start in starts)
        if any(start < 0 for start in starts) or (fell and not restarted and fell >= _MOST_FALL * (fell + rose)):
            raise InputError(
                "counters fall from the first of these readings to the second",
                key=option,
                got=f"{before}, {after}",
                hint="give the earlier one first, and how far they are apart: --window 10min; if the server was "
                "restarted, give the later one alone",
            )
