"""Workers: urgency, cancelling at any moment, limits of time, processes that die."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from page_tasks import Count, Die, Refuse, Untidy

from sim.errors import InputError, LoraplanError
from sim.ui.simulating import workers
from sim.ui.simulating.workers import FIRST, LATER, TooSlow, Worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with closing(Worker()) as made:
        yield made


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work(), 60)

    return asyncio.run(bounded())


async def all_of(worker: Worker, task: Any, urgency: int = LATER, limit_s: float = 60.0) -> list[Any]:
    return [message async for message in worker.messages(task, urgency, limit_s)]


@asynccontextmanager
async def begun(worker: Worker, task: Any) -> AsyncIterator[tuple[list[Any], asyncio.Task[None]]]:
    """Collect what a task says, from its first message until it ends or, at the end of the block, is cancelled."""
    said: list[Any] = []
    first = asyncio.Event()

    async def listen() -> None:
        async for message in worker.messages(task, LATER, 60.0):
            said.append(message)
            first.set()

    listening = asyncio.create_task(listen())
    await first.wait()
    yield said, listening
    listening.cancel()


def test_a_task_says_what_it_finds_and_ends(worker: Worker) -> None:
    assert run(partial(all_of, worker, Count("plain", 3))) == [0, 1, 2, "end"]


def test_an_urgent_task_stops_another_which_goes_on_later_without_saying_anything_twice(worker: Worker) -> None:
    async def work() -> None:
        async with begun(worker, Count("long", 40)) as (said, listening):
            assert await all_of(worker, Count("urgent", 1), FIRST) == [0, "end"]
            assert len(said) < 39, "the long task had ended before the urgent one began"
            await listening
        assert said == [*range(40), "end"]

    run(work)


def test_a_cancelled_task_stops_at_once_and_says_nothing_more(worker: Worker) -> None:
    async def work() -> float:
        async with begun(worker, Count("endless", 10**6)) as (said, _):
            pass
        started, count = time.monotonic(), len(said)
        assert await all_of(worker, Count("after", 1)) == [0, "end"]
        assert len(said) == count
        return time.monotonic() - started

    assert run(work) < 5


def test_a_task_that_waits_can_be_cancelled(worker: Worker) -> None:
    async def work() -> None:
        first = asyncio.create_task(all_of(worker, Count("first", 10)))
        waiting = asyncio.create_task(all_of(worker, Count("waiting", 1)))
        await asyncio.sleep(0)
        waiting.cancel()
        assert len(await first) == 11
        assert await all_of(worker, Count("last", 1)) == [0, "end"]
        assert waiting.cancelled()

    run(work)


def test_stops_at_random_moments_hit_their_own_task_only(worker: Worker) -> None:
    luck = random.Random(1)

    async def work() -> None:
        for number in range(60):
            stopped = asyncio.create_task(all_of(worker, Count(f"stopped {number}", 10**6, 0.001)))
            await asyncio.sleep(luck.choice((0.0, 0.0002, 0.002, 0.01)))
            stopped.cancel()
            assert await all_of(worker, Count(f"kept {number}", 2, 0.0005)) == [0, 1, "end"]

    run(work)


def test_a_stopped_task_cleans_up(worker: Worker, tmp_path: Path) -> None:
    async def work() -> None:
        async with begun(worker, Untidy(tmp_path / "left")) as (said, _):
            assert said == ["begun"]
            await asyncio.sleep(0.05)
        await all_of(worker, Count("next", 1))

    run(work)
    assert (tmp_path / "left").read_text() == "cleaned up"


def test_what_is_wrong_with_the_input_comes_back_as_it_was_and_a_bug_with_its_name(worker: Worker) -> None:
    with pytest.raises(InputError) as refused:
        run(partial(all_of, worker, Refuse("a.b")))
    assert str(refused.value) == "a.b: not so (got 3)"
    with pytest.raises(LoraplanError, match=r"^ZeroDivisionError: a bug$"):
        run(partial(all_of, worker, Refuse("")))


@pytest.mark.promise("Answers compute for at most two minutes, plans and reports for ten.")
def test_a_task_that_takes_too_long_is_given_up(worker: Worker) -> None:
    with pytest.raises(TooSlow, match=r"run the command below instead$"):
        run(partial(all_of, worker, Count("too long", 10**6), limit_s=1.0))
    assert run(partial(all_of, worker, Count("next again", 1)))[-1] == "end"


def test_a_visitor_reads_after_how_long_a_plan_was_stopped(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "monotonic", lambda: 2000 * time.monotonic())
    with pytest.raises(TooSlow, match=r"^stopped after 10 minutes; run the command below instead$"):
        run(partial(all_of, worker, Count("planned", 10**6), limit_s=600.0))


@pytest.mark.slow
def test_a_process_that_dies_or_does_not_stop_is_replaced(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = set()

    async def die() -> None:
        async with begun(worker, Die()) as ((pid,), listening):
            pids.add(pid)
            await listening

    for _ in range(2):
        with pytest.raises(LoraplanError, match="out of memory"):
            run(die)
    assert len(pids) == 2
    monkeypatch.setattr(workers, "_GRACE_S", 0.1)
    with pytest.raises(TooSlow):
        run(partial(all_of, worker, Untidy(Path("unused"), cleaning_s=60.0), limit_s=0.5))
    assert run(partial(all_of, worker, Count("alive", 1))) == [0, "end"]


def test_a_closed_worker_leaves_no_process() -> None:
    worker = Worker()

    async def work() -> None:
        never = asyncio.create_task(all_of(worker, Count("never", 10**6)))
        await asyncio.sleep(0.01)
        worker.close()
        with pytest.raises(LoraplanError):
            await never

    run(work)
    worker.close()
    assert not worker._process.is_alive()
