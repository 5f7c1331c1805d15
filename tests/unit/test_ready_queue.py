"""The queue of requests whose adapter is there: whatever the order in which they come, the lowest key goes first."""

import random

from sim.policies.admission import ReadyQueue
from sim.traffic.request import Request


def test_the_lowest_key_goes_first_whenever_requests_come() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        queue, waiting = ReadyQueue(), list[Request]()
        to_come = [Request(index, 0.0, 0, 1, 1) for index in range(60)]
        while to_come or waiting:
            if to_come and rng.random() < 0.6:
                # Mostly the next one, but some come late, as after a load.
                request = to_come.pop(0 if rng.random() < 0.5 else rng.randrange(len(to_come)))
                waiting.append(request)
                queue.push(request)
            elif waiting:
                first = min(waiting, key=lambda one: one.key)
                assert queue.ready[0] is queue.next_candidate() is first, f"seed {seed}"
                waiting.remove(first)
                queue.take(first)
                if rng.random() < 0.2:  # preempted: it goes before all others
                    queue.push_front(first)
                    waiting.append(first)
            assert queue.size() == len(queue.all_requests()) == len(waiting), f"seed {seed}"
            assert bool(queue.ready) == bool(waiting), f"seed {seed}"
