"""Workers: urgency, cancelling at any moment, limits of time, processes that die."""

from __future__ import annotations

import queue
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from page_tasks import Count, Die, Refuse, Untidy

from sim.errors import InputError
from sim.ui.simulating.worker import DONE, FAILED, REFUSED, Ended
from sim.ui.simulating.workers import FIRST, LATER, Job, TooSlow, Worker


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with closing(Worker("test")) as made:
        yield made


class Ordered:
    """A job and what it has said."""

    def __init__(self, worker: Worker, task: Any, urgency: int = LATER, limit_s: float = 60.0) -> None:
        self.said: queue.Queue[Any] = queue.Queue()
        self.worker = worker
        self.job = Job(task, urgency, self.said.put, limit_s)
        worker.submit(self.job)

    def next(self) -> Any:
        return self.said.get(timeout=60)

    def rest(self) -> list[Any]:
        found = [self.next()]
        while not isinstance(found[-1], Ended):
            found.append(self.next())
        return found

    def cancel(self) -> None:
        self.worker.cancel(self.job)


def test_a_task_says_what_it_finds_and_ends(worker: Worker) -> None:
    *said, ended = Ordered(worker, Count("plain", 3)).rest()
    assert said == [0, 1, 2, "end"]
    assert ended.how == DONE


def test_an_urgent_job_stops_another_which_goes_on_later_without_saying_anything_twice(worker: Worker) -> None:
    long = Ordered(worker, Count("long", 40))
    assert long.next() == 0
    urgent = Ordered(worker, Count("urgent", 1), FIRST)
    assert urgent.rest()[:-1] == [0, "end"]
    said_before = long.said.qsize()
    *rest, ended = long.rest()
    assert said_before < 39, "the long job had ended before the urgent one began"
    assert rest == [*range(1, 40), "end"]
    assert ended.how == DONE


def test_a_cancelled_job_stops_at_once_and_says_nothing_more(worker: Worker) -> None:
    endless = Ordered(worker, Count("endless", 10**6))
    assert endless.next() == 0
    endless.cancel()
    started = time.monotonic()
    assert Ordered(worker, Count("after", 1)).rest()[-1].how == DONE
    assert time.monotonic() - started < 5
    left = [endless.said.get_nowait() for _ in range(endless.said.qsize())]
    assert all(isinstance(number, int) for number in left)
    count = endless.said.qsize()
    assert Ordered(worker, Count("after that", 1)).rest()[-1].how == DONE
    assert endless.said.qsize() == count


def test_a_job_that_waits_can_be_cancelled(worker: Worker) -> None:
    first = Ordered(worker, Count("first", 10))
    waiting = Ordered(worker, Count("waiting", 1))
    waiting.cancel()
    assert first.rest()[-1].how == DONE
    assert Ordered(worker, Count("last", 1)).rest()[-1].how == DONE
    assert waiting.said.empty()


def test_stops_at_random_moments_hit_their_own_job_only(worker: Worker) -> None:
    luck = random.Random(1)
    for number in range(60):
        stopped = Ordered(worker, Count(f"stopped {number}", 10**6, 0.001))
        time.sleep(luck.choice((0.0, 0.0002, 0.002, 0.01)))
        stopped.cancel()
        *said, ended = Ordered(worker, Count(f"kept {number}", 2, 0.0005)).rest()
        assert (said, ended.how) == ([0, 1, "end"], DONE)


def test_a_stopped_task_cleans_up(worker: Worker, tmp_path: Path) -> None:
    untidy = Ordered(worker, Untidy(tmp_path / "left"))
    assert untidy.next() == "begun"
    untidy.cancel()
    assert Ordered(worker, Count("next", 1)).rest()[-1].how == DONE
    assert (tmp_path / "left").read_text() == "cleaned up"


def test_what_is_wrong_with_the_input_comes_back_as_it_was_and_a_bug_with_its_name(worker: Worker) -> None:
    (refused,) = Ordered(worker, Refuse("a.b")).rest()
    assert refused.how == REFUSED
    assert isinstance(refused.error, InputError)
    assert str(refused.error) == "a.b: not so (got 3)"
    (failed,) = Ordered(worker, Refuse("")).rest()
    assert failed.how == FAILED
    assert failed.error.startswith("ZeroDivisionError: a bug")


@pytest.mark.promise("Answers compute for at most two minutes, plans and reports for ten.")
def test_a_job_that_takes_too_long_is_given_up(worker: Worker) -> None:
    *said, ended = Ordered(worker, Count("too long", 10**6), limit_s=1.0).rest()
    assert said
    assert ended.how == FAILED
    assert isinstance(ended.error, TooSlow)
    assert str(ended.error).endswith("run the command below instead")
    assert Ordered(worker, Count("next again", 1)).rest()[-1].how == DONE


def test_a_visitor_reads_after_how_long_a_plan_was_stopped(worker: Worker) -> None:
    job = Job(Count("planned", 10**6), LATER, (said := queue.Queue[Any]()).put, 600.0, used_s=599.5)
    worker.submit(job)
    while not isinstance(ended := said.get(timeout=60), Ended):
        pass
    assert str(ended.error) == "stopped after 10 minutes; run the command below instead"


def test_a_process_that_dies_is_replaced(worker: Worker) -> None:
    pid, ended = Ordered(worker, Die()).rest()
    assert ended.how == FAILED
    assert "out of memory" in ended.error
    again, _ = Ordered(worker, Die()).rest()
    assert again != pid
    assert Ordered(worker, Count("alive", 1)).rest()[-1].how == DONE


def test_a_closed_worker_leaves_no_process() -> None:
    worker = Worker("closed")
    Ordered(worker, Count("never", 10**6))
    worker.close()
    worker.close()
    assert not worker._process.is_alive()
    assert not worker._thread.is_alive()
