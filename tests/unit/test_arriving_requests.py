"""Requests are made one by one from packed columns."""

from __future__ import annotations

import numpy as np

from sim.traffic.request import ArrivingRequests, Request


def packed(*values: float) -> bytes:
    return np.array(values, dtype="<f8").tobytes()


def whole(*values: int) -> bytes:
    return np.array(values, dtype="<i8").tobytes()


def arriving(**more: object) -> list[Request]:
    times_s = packed(0.1, 0.2), packed(0.3, 0.4), packed(0.5, 0.6)
    source = ArrivingRequests(7, packed(1.5, 2.5), whole(3, 2**40), (whole(10, 20), whole(30, 40)), times_s, **more)  # type: ignore[arg-type]
    found = [source.next(), source.next()]
    assert source.next() is None
    assert source.next() is None, "also when asked again"
    return [request for request in found if request is not None]


def test_each_column_becomes_a_field_of_its_request() -> None:
    fields = ("index", "key", "arrival_s", "adapter", "prompt_tokens", "to_prefill", "output_tokens")
    times = ("load_s", "host_load_s", "service_s")
    first, second = arriving()
    assert [getattr(first, name) for name in (*fields, *times)] == [7, 7, 1.5, 3, 10, 10, 30, 0.1, 0.3, 0.5]
    assert [getattr(second, name) for name in (*fields, *times)] == [8, 8, 2.5, 2**40, 20, 20, 40, 0.2, 0.4, 0.6]
    assert (second.tenant, second.shared, second.text_key) == (0, (), -1)


def test_tenants_and_shared_text_are_optional() -> None:
    first, second = arriving(tenant=whole(4, 5), text=iter([(((8, 1),), -1), ((), 9)]))
    assert (first.tenant, first.shared, first.text_key) == (4, ((8, 1),), -1)
    assert (second.tenant, second.shared, second.text_key) == (5, (), 9)


def test_a_chunk_may_be_empty() -> None:
    assert ArrivingRequests(0, b"", b"", (b"", b""), (b"", b"", b"")).next() is None
