"""Sequences end at their last step, in the order of their index, as in a list that is sorted at every step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.policies.decode_ends import NEVER, DecodeEnds
from sim.traffic.request import Request

LENGTHS = st.sampled_from([1, 2, 3, 4, 256, 257, 258, 259, 600, 5000])
PAUSES = st.sampled_from([0, 0, 0, 1, 2, 255, 300])


@given(st.lists(st.tuples(LENGTHS, PAUSES, st.booleans()), min_size=10, max_size=40))
def test_sequences_end_as_in_a_sorted_list(arrivals: list[tuple[int, int, bool]]) -> None:
    ends, decoding, step = DecodeEnds(), list[Request](), 0
    for number, (tokens, pause, preempted) in enumerate(arrivals):
        request = Request(number ^ 3, 0.0, 0, 1, tokens)  # those that start later often have the lower index
        ended = ends.start([request], step)
        assert request.last_step == step + tokens - 1
        assert ended == ([request] if tokens == 1 else [])
        decoding += [request] if tokens > 1 else []
        if preempted and decoding:
            ends.remove(decoding.pop(len(decoding) // 2))
        until = step + pause
        while (due := min((r.last_step for r in decoding), default=NEVER)) <= until:
            assert ends.next_step == due
            expected = sorted((r for r in decoding if r.last_step == due), key=lambda r: r.index)
            assert ends.pop_next() == expected
            decoding = [r for r in decoding if r.last_step != due]
        step = until
    assert ends.next_step == min((r.last_step for r in decoding), default=NEVER)
