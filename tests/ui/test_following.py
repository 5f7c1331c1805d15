"""The events that a page gets when something moves: their order, what is computed, and that it equals a run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from served_page import TINY

from sim.spec.files.yaml_tree import yaml_text
from sim.spec.scenario_file import load_scenario
from sim.studies.execution import Execution
from sim.studies.sweep import run_study
from sim.ui import following
from sim.ui.following import PageRequest, follow
from sim.ui.library import ChosenDesign, Library
from sim.ui.simulating.broker import Broker
from sim.ui.simulating.tasks import MOST_REQUESTS, Memory, PointAnswer
from sim.ui.simulating.workers import TooSlow, Workers

Event = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen")
    (folder / "tiny.yaml").write_text(TINY)
    return folder


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with closing(Workers()) as made:
        yield made


@pytest.fixture
def broker(workers: Workers) -> Iterator[Broker]:
    """A broker of its own with workers that stay warm."""
    made = Broker(workers)
    yield made
    made._scratch.cleanup()


def asked(values: dict[str, str] | None = None, moved: str | None = None, **more: Any) -> PageRequest:
    return PageRequest(name="tiny.yaml", values=values or {}, moved=moved, **more)


async def until(events: AsyncIterator[Event], stage: str) -> list[Event]:
    """Return the events up to the first of a stage, and close the iterator."""
    found = []
    async for event in events:
        found.append(event)
        if event["stage"] == stage:
            break
    await events.aclose()  # type: ignore[attr-defined]
    return found


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(work(), 100))


def followed(broker: Broker, folder: Path, request: PageRequest, stage: str = "") -> list[Event]:
    """Return the events of a request, up to the first of a stage or all."""
    return run(lambda: until(follow(broker, Library(folder), request), stage))


async def last(broker: Broker, design: ChosenDesign) -> PointAnswer:
    found = [each async for each in broker.evaluate(design)]
    assert isinstance(found[-1], PointAnswer)
    return found[-1]


async def idle(broker: Broker) -> None:
    """Wait until nothing is computed."""
    for _ in range(400):
        if not broker.busy:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("something is still computed")


def stages(events: list[Event]) -> list[str]:
    return [event["stage"] for event in events]


def test_answers_come_from_rough_to_final(broker: Broker, folder: Path) -> None:
    events = followed(broker, folder, asked({"cache.gpu.slots": "24"}))
    said = stages(events)
    assert said[:2] == ["estimate", "short"]
    assert said.count("tighter") == 2
    assert said.index("tighter") < said.index("final")
    assert "curve" in said
    assert not [stage for stage in said if stage in ("refused", "failed", "stopped")]
    assert all(event["parts"]["answer"] for event in events if event["stage"] in ("short", "tighter", "final"))
    assert "--max-loras 24" in events[0]["parts"]["commands"]
    file = os.path.relpath(folder / "tiny.yaml")
    assert f"loraplan run {file} --set cache.gpu.slots=24" in events[0]["parts"]["commands"]


def test_traffic_that_changes_slowly_has_no_short_run(broker: Broker, folder: Path) -> None:
    """It would be a few minutes of a day."""
    law = {"process": "diurnal", "rate": "20/s"}
    text = yaml_text({**load_scenario(str(folder / "tiny.yaml")).data, "workload": {"requests": 1500, "arrivals": law}})
    events = followed(broker, folder, PageRequest(name="slow.yaml", text=text))
    assert stages(events)[:2] == ["estimate", "estimate"]
    assert events[1]["status"].startswith("No short run: the traffic takes 24 h to go through its phases")
    assert "short" not in stages(events)
    assert stages(events).count("final") == 1
    curves = [event["parts"]["curve"] for event in events if event["stage"] == "curve" and "parts" in event]
    assert "too long for a short run" in curves[-1]


def test_the_final_numbers_are_those_of_loraplan_run(broker: Broker, folder: Path, tmp_path: Path) -> None:
    values = {"cache.gpu.slots": "40", "workload.arrivals.rate": "30", "slo.ttft_p99": "0.5"}
    design = Library(folder).open("tiny.yaml").design(values)
    final = run(lambda: last(broker, design))
    saved = tmp_path / "scenario.yaml"
    saved.write_text(yaml_text(design.loaded.data))
    outcome = run_study(load_scenario(str(saved)), [{}], tmp_path / "run", Execution(), headroom=True)
    (point,) = outcome.points
    assert final.final
    mine, theirs = final.point.to_json(), point.to_json()
    for data in (mine, theirs):
        del data["cost"]["wall_s"]
    assert mine == theirs
    assert final.headroom is not None


def test_no_design_is_computed_twice(broker: Broker, folder: Path) -> None:
    library = Library(folder)

    async def visit(values: dict[str, str], stage: str) -> None:
        await until(follow(broker, library, asked(values, "cache.gpu.slots")), stage)

    async def work() -> int:
        for slots in ("16", "24", "16", "24", "16"):
            await visit({"cache.gpu.slots": slots}, "short")
        both = [visit({"cache.gpu.slots": "48"}, "final") for _ in range(2)]  # two tabs
        await asyncio.gather(*both)
        await idle(broker)
        before = broker._answers.simulated
        await visit({"cache.gpu.slots": "48"}, "final")
        await visit({"cache.gpu.slots": "48.0"}, "final")
        await idle(broker)
        return before

    before = run(work)
    assert broker._answers.simulated == before
    assert {count for (kind, _), count in broker.started.items() if kind in ("short", "final")} == {1}


def test_a_target_moves_without_another_simulation_of_the_same_requests(broker: Broker, folder: Path) -> None:
    library = Library(folder)

    async def short(values: dict[str, str]) -> PointAnswer:
        return await broker.short(library.open("tiny.yaml").design(values))

    async def work() -> tuple[int, PointAnswer, PointAnswer]:
        strict = await short({"cache.gpu.slots": "9", "slo.ttft_p99": "0.001"})
        before = broker._answers.simulated
        return before, strict, await short({"cache.gpu.slots": "9", "slo.ttft_p99": "30"})

    before, strict, lax = run(work)
    assert broker._answers.simulated == before
    assert strict.answer.verdict == "not met"
    assert strict.point.metrics["ttft_p99_s"] == lax.point.metrics["ttft_p99_s"]
    assert strict.point.metrics["slo_attainment"].value < lax.point.metrics["slo_attainment"].value  # type: ignore[operator]


def test_a_target_that_moves_to_the_end_simulates_only_other_multiples_of_the_traffic(
    broker: Broker, folder: Path
) -> None:
    library = Library(folder)

    async def final(target: str) -> PointAnswer:
        values = {"cache.gpu.slots": "26", "slo.ttft_p99": target}
        return await last(broker, library.open("tiny.yaml").design(values))

    async def work() -> tuple[int, PointAnswer, PointAnswer]:
        first = await final("0.5")
        before = broker._answers.simulated
        return before, first, await final("2")

    def multiples(answer: PointAnswer) -> set[tuple[float, int]]:
        return {(probe.multiple, probe.requests) for probe in answer.headroom.probes if probe.multiple != 1}

    before, first, second = run(work)
    assert second.point.metrics["ttft_p99_s"] == first.point.metrics["ttft_p99_s"]
    assert second.point.metrics["slo_attainment"] != first.point.metrics["slo_attainment"]
    assert multiples(first) & multiples(second), "the same traffic was tried for both"
    assert broker._answers.simulated - before <= len(multiples(second) - multiples(first)) + 1


def test_recordings_of_earlier_designs_give_way_to_a_long_one() -> None:
    memory = Memory()
    memory.designs |= {name: SimpleNamespace(requests=count) for name, count in (("first", MOST_REQUESTS), ("now", 0))}
    memory.make_room(0)
    assert list(memory.designs) == ["first", "now"]
    memory.make_room(1)
    assert list(memory.designs) == ["now"]
    memory.make_room(2 * MOST_REQUESTS)
    assert list(memory.designs) == ["now"], "the one that is simulated stays"


def test_a_change_cancels_what_is_under_way(broker: Broker, folder: Path) -> None:
    long = PageRequest(name="tiny.yaml", text=None, values={"workload.arrivals.rate": "7"}, moved=None)
    library = Library(folder)

    async def work() -> None:
        await until(follow(broker, library, PageRequest(name="two-gpus")), "short")
        await idle(broker)  # its simulations have no subscribers left
        await until(follow(broker, library, long), "short")

    run(work)
    assert not broker._under_way


def test_pins_are_compared_with_like(broker: Broker, folder: Path) -> None:
    pins = [{}, {"cache.gpu.slots": "8"}]
    events = followed(broker, folder, asked({"cache.gpu.slots": "64"}, "cache.gpu.slots", pins=pins))
    compared = [event["parts"]["pins"] for event in events if event["stage"] == "compared"]
    assert "These are short runs" in compared[0]
    assert "These are short runs" not in compared[-1]
    assert compared[-1].count("<table>") == 2
    assert "Pinned: tiny as it is" in compared[-1]
    assert "Pinned: GPU slots 8" in compared[-1]


@pytest.mark.parametrize("failing", ["short", "evaluate"])
def test_a_pin_that_fails_leaves_the_answer_alone(
    broker: Broker, folder: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    real = getattr(broker, failing)

    def tried(design: ChosenDesign, **options: Any) -> Any:
        if design.settings == ("cache.gpu.slots=8",):
            raise TooSlow("too slow")
        return real(design, **options)

    monkeypatch.setattr(broker, failing, tried)
    pins = [{"cache.gpu.slots": "8"}, {}]
    events = followed(broker, folder, asked({"cache.gpu.slots": "64"}, "slo.ttft_p99", pins=pins))
    assert "final" in stages(events)
    assert "stopped" not in stages(events)
    compared = [event["parts"]["pins"] for event in events if event["stage"] == "compared"]
    assert "Pinned: tiny as it is" in compared[-1]
    assert ("Pinned: GPU slots 8" in compared[-1]) == (failing == "evaluate")


def test_what_cannot_be_simulated_is_refused_at_its_control(broker: Broker, folder: Path) -> None:
    for moved, value in (("cache.gpu.slots", "100000"), ("fleet.engine", "nope")):
        (event,) = followed(broker, folder, asked({moved: value}, moved))
        assert event["stage"] == "refused"
        assert ".yaml" not in event["problems"][0]["text"]
        assert moved.replace(".", "-") in [problem["control"] for problem in event["problems"]]
        assert event["problems"][0]["text"]


def test_a_design_with_too_many_requests_stays_at_short_runs(broker: Broker, folder: Path) -> None:
    text = TINY.replace("requests: 1500", "requests: 900000")
    events = followed(broker, folder, PageRequest(name="big.yaml", text=text), "stopped")
    assert stages(events)[-1] == "stopped", [each for each in events if each["stage"] == "refused"]
    assert "more than 3,000,000 requests" in events[-1]["status"]


def test_curves_follow_the_control_that_was_moved_but_not_a_target(folder: Path) -> None:
    opened = Library(folder).open("quickstart")
    for moved, along in (
        (None, "cache.gpu.slots"),
        ("fleet.engine", "fleet.engine"),
        ("slo.ttft_p99", "cache.gpu.slots"),
        ("workload.arrivals.rate", "workload.arrivals.rate"),
    ):
        control = following.curve_control(opened, moved)
        assert control.key == along


def test_the_final_line_counts_the_replications_that_were_run(broker: Broker, folder: Path) -> None:
    rows = "".join(f"{0.05 * n:.2f},a{n % 40},64,8\n" for n in range(300))
    (folder / "calls.csv").write_text(f"timestamp_s,tenant_id,input_tokens,output_tokens\n{rows}")
    trace = (
        "schema_version: 1\nname: traced\nworkload: {trace: {file: calls.csv}}\n"
        "adapters: {base_model: llama-3.1-8b, rank: 16}\nfleet: {gpu: h100-80gb, engine: vllm}\n"
        "cache: {gpu: {slots: 16}, host: {slots: 40}}\nrun: {replications: 2}\n"
    )

    for text, count in ((TINY, "2 replications"), (trace, "1 replication")):
        events = followed(broker, folder, PageRequest(name="mine.yaml", text=text), "final")
        assert f"({count}, with headroom)" in events[-1]["status"]
