"""The boundary at which someone can join a leap: the first one after now, or of this very instant if in time for it."""

from __future__ import annotations

import math

from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from sim.world.replica.continuous import BatchServer


def leap(started_s: float, load_s: float, first_s: float, growth_s: float) -> BatchServer:
    """Return a server of which nothing is there but the leap under way."""
    server = BatchServer.__new__(BatchServer)
    server._started_s, server._load_s, server._first_s, server._growth_s = started_s, load_s, first_s, growth_s
    server._ahead, server._head_s = 0, load_s
    return server


@examples(1000)
@given(
    st.floats(0.0, 1e5),
    st.floats(0.0, 2.0),
    st.floats(1e-4, 0.5),
    st.sampled_from((0.0, 1e-7, 1e-5, 3e-4)),
    st.integers(1, 3000),
)
def test_the_next_boundary_is_the_first_after_now_as_the_clock_has_it(
    started_s: float, load_s: float, first_s: float, growth_s: float, steps: int
) -> None:
    # Ends of steps are known as the clock computes them; all else is rounded, and started_s may be large.
    server = leap(started_s, load_s, first_s, growth_s)
    end_s = started_s + server._elapsed(steps)
    assert server._steps_until(end_s) == steps + 1, "who comes with a boundary joins at the next one"
    assert server._steps_until(end_s, may_join_now=True) == steps, "a load that ends with a boundary is there for it"
    assert server._steps_until(math.nextafter(end_s, 0.0)) == steps
    assert server._steps_until(math.nextafter(end_s, math.inf), may_join_now=True) == steps + 1
