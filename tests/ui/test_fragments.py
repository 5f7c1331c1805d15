"""What parts of the page say of a design, without a server and without a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from served_page import TINY

from sim.ui.following import _judged_event
from sim.ui.fragments import answer_parts, compare
from sim.ui.library import Library
from sim.ui.simulating.tasks import Memory, ShortRun

TENANTS = """\
adapters: {count: 100}
tenants:
  - {name: chat, adapters: 60, share: 70%, slo: {ttft_p99: CHAT}}
  - {name: batch, adapters: 40, share: 30%}
slo: null
"""


def short_parts(text: str) -> dict[str, str]:
    """Return the parts of a short run's answer."""
    design = Library(Path()).open("mine.yaml", text).design({})
    (judged,) = ShortRun(design.loaded, design.traffic_key).run(Memory())
    return answer_parts(judged, design.loaded)


@pytest.mark.parametrize(("target", "style", "words"), [("1 ms", "not-met", "not met"), ("1000 s", "met", "met")])
def test_the_slos_of_tenants_are_judged_where_the_fleet_has_none(target: str, style: str, words: str) -> None:
    parts = short_parts(TINY + TENANTS.replace("CHAT", target))
    assert f'v-{style}"' in parts["glance"]
    assert f"SLOs of tenants {words}" in parts["answer"]
    assert "<caption>Tenants</caption>" in parts["tenants"]
    assert f">{words}" in parts["tenants"]


def test_without_tenants_there_is_no_table_of_them() -> None:
    parts = short_parts(TINY + "slo: null\n")
    assert parts["tenants"] == ""
    assert "No SLO given" in parts["answer"]


AUTOSCALED = """\
fleet: {max_num_seqs: 16, price: 2.50 USD/h, autoscale: {min: 1, max: 3, target: 20}}
slo: {ttft_p99: 1000 s}
"""


def test_a_short_run_of_an_autoscaled_fleet_has_neither_verdict_nor_cost() -> None:
    text = TINY.replace("fleet: {max_num_seqs: 16}\n", AUTOSCALED)
    design = Library(Path()).open("mine.yaml", text).design({})
    (judged,) = ShortRun(design.loaded, design.traffic_key).run(Memory())
    parts = answer_parts(judged, design.loaded)
    said = "This short run is of the fleet at its largest: all 3 replicas serve from the start."
    assert said in parts["answer"]
    assert "says whether the SLO is met and what the fleet costs." in parts["answer"]
    assert said in _judged_event(judged, design, "short", "")["said"]
    shown = "".join(parts.values())
    for other in ("SLO met", "v-met", "$", "cost per", "cost a"):
        assert other not in shown, other
    assert "p99 TTFT" in parts["tiles"]
    pinned = compare(
        (design, judged), (Library(Path()).open("mine.yaml", text).design({"cache.gpu.slots": "9"}), judged)
    )
    assert (pinned.sentence, pinned.table) == ("The comparison follows when both full runs are done.", None)
    final = answer_parts(replace(judged, final=True), design.loaded)
    assert "SLO met" in final["answer"]
    assert "$" in final["tiles"]
