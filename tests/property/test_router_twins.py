"""Routers next to naive twins, which know all that happened and look at all of it for each request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from sim.policies.routing import RouterContext, View, make_router
from sim.policies.routing.router_policy import Following
from sim.rng import uniform_draw
from sim.spec.sections.control_plane import Router as RouterSpec
from sim.traffic.request import Request

FLEETS = 200
ADAPTERS = 6
BOUND = 1.5
"""Of ``affinity-prefix``."""


@dataclass
class Past:
    """What has happened in a fleet: the replicas of all requests, those inside, and those that ended, with times.

    :ivar texts: by request, those that it shares with others, the longest first.
    """

    view: View
    homes: dict[int, tuple[int, ...]]
    seed: int
    texts: list[list[int]] = field(default_factory=list)
    sent: list[tuple[Request, int]] = field(default_factory=list)
    inside: list[tuple[Request, int]] = field(default_factory=list)
    ended: list[tuple[Request, int, float]] = field(default_factory=list)


Twin = Callable[[Past, Request], list[int]]
"""Returns the replicas of which a router may choose any."""


def least(values: dict[int, float]) -> list[int]:
    return [replica for replica, value in values.items() if value == pytest.approx(min(values.values()), abs=1e-9)]


def by_load(past: Past, among: list[int]) -> list[int]:
    return least({replica: past.view.loads[replica] for replica in among})


def in_turn(past: Past, request: Request) -> list[int]:
    last = past.sent[-1][1] if past.sent else -1
    return [next((replica for replica in past.view.up if replica > last), past.view.up[0])]


def holders(past: Past, request: Request) -> list[int]:
    there = [replica for replica in past.view.up if past.view.resident[request.adapter] >> replica & 1]
    return by_load(past, there)[:1] if there else by_load(past, past.view.up)


def placed(past: Past, request: Request) -> list[int]:
    there = [replica for replica in past.homes.get(request.adapter, ()) if replica in past.view.up]
    return by_load(past, there) if there else past.view.up  # one of its own, by hashing


def means(past: Past, pod: int) -> list[float]:
    """Mean seconds of prefill and of decode, and tokens of prompt and of output; 0 where nothing has ended."""
    rows = [(r.first_token_s - r.admitted_s, now - r.first_token_s, r.prompt_tokens, r.output_tokens)
            for r, on, now in past.ended if on == pod]  # fmt: skip  # one condition
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)] if rows else [0.0] * 4


def latency(past: Past, request: Request) -> list[int]:
    of = {pod: means(past, pod) for pod in past.view.up}
    prompts, outputs = ([mean[place] for mean in of.values() if mean[place]] for place in (2, 3))
    prompt, output = (sum(each) / len(each) if each else other for each, other in ((prompts, 10), (outputs, 100)))
    scores = {pod: m[0] / (m[2] or prompt) * prompt + m[1] / (m[3] or output) * output for pod, m in of.items()}
    return least(scores)


def tokens_of_users(past: Past, request: Request) -> list[int]:
    counted = [(r.tenant, 4 * r.prompt_tokens) for r, _ in past.sent if r.arrival_s > request.arrival_s - 300]
    users = {r.tenant for r, _ in past.sent} or {request.tenant}
    totals = {user: sum(tokens for each, tokens in counted if each == user) for user in users}
    bucket = max(1000, (min(totals.values()) + max(totals.values())) / 2)
    wanted = min(totals.get(request.tenant, 0) / bucket, len(past.view.up) - 1)
    scores = {pod: abs(place - wanted) + min(past.view.loads[pod] / 100, 1) for place, pod in enumerate(past.view.up)}
    return [pod for pod, score in scores.items() if score <= min(scores.values()) + 0.1]


def rates(past: Past, request: Request) -> list[int]:
    unused = [replica for replica in past.view.up if all(on != replica for _, on in past.sent)]
    recent = [on for r, on in past.sent if r.arrival_s > request.arrival_s - 60]
    return unused[:1] or least({replica: recent.count(replica) for replica in past.view.up})[:1]


def cost(past: Past, request: Request) -> list[int]:
    up, adapter = past.view.up, request.adapter
    loaded = [worker for worker in up if past.view.resident[adapter] >> worker & 1]
    homes = [worker for worker in past.homes.get(adapter, ()) if worker in up]
    among = [worker for worker in homes if worker in loaded] or homes or loaded or up
    if adapter in past.homes and not homes and not loaded:
        return among  # its home, by hashing
    there = {worker: [r for r, on in past.inside if on == worker] for worker in among}
    prefill = {w: sum(r.prompt_tokens for r in rs if r.first_token_s < 0) / 16 for w, rs in there.items()}
    return least({w: prefill[w] + sum(r.prompt_tokens // 16 for r in rs) for w, rs in there.items()})


def two(past: Past, request: Request) -> list[int]:
    pairs = [(one, other) for one in past.view.up for other in past.view.up if one != other]
    if not pairs:
        return past.view.up
    one, other = pairs[int(uniform_draw(past.seed, request.index) * len(pairs))]
    return [other if past.view.loads[other] < past.view.loads[one] else one]


def prefix(past: Past, request: Request) -> list[int]:
    up, loads = past.view.up, past.view.loads
    full = BOUND * (sum(loads[replica] for replica in up) + 1) / len(up)
    for text in past.texts[request.index]:
        same = [on for r, on in past.sent if r.adapter == request.adapter and text in past.texts[r.index]]
        if same and same[-1] in up and loads[same[-1]] < full:
            return same[-1:]
    return by_load(past, up)


def services(past: Past, request: Request) -> list[int]:
    up, replicas, adapter = past.view.up, len(past.view.loads), request.adapter
    if adapter % replicas in up:
        return [adapter % replicas]
    last = {r.adapter: on for r, on in past.sent}
    moved = {each: on for each, on in last.items() if on != each % replicas}
    if moved.get(adapter) in up:
        return [moved[adapter]]
    there = [each % replicas for each in range(ADAPTERS)] + [on for each, on in moved.items() if each != adapter]
    return least({replica: there.count(replica) for replica in up})[:1]


TWINS: dict[str, Twin] = {
    "round-robin": in_turn,
    "least-loaded": lambda past, request: by_load(past, past.view.up)[:1],
    "power-of-two": two,
    "affinity-residency": holders,
    "affinity-prefix": prefix,
    "service-per-adapter": services,
    "placement": placed,
    "dynamo": cost,
    "aibrix-least-request": lambda past, request: by_load(past, past.view.up),
    "aibrix-least-latency": latency,
    "aibrix-throughput": lambda past, request: least(
        {pod: 2 * means(past, pod)[2] + means(past, pod)[3] for pod in past.view.up}
    ),
    "aibrix-least-gpu-cache": lambda past, request: least({pod: past.view.kv[pod] for pod in past.view.up}),
    "aibrix-least-kv-cache": lambda past, request: least({pod: past.view.kv[pod] for pod in past.view.up})[-1:],
    "aibrix-vtc": tokens_of_users,
    "production-stack-session": rates,
}
"""The other routers have theirs in test_routing_laws.py, test_scorers.py and test_deployed_routers.py."""


@pytest.mark.parametrize("policy", TWINS)
def test_a_router_is_its_naive_twin(policy: str) -> None:
    for seed in range(FLEETS):
        luck = Random(seed)
        replicas = luck.randint(1, 8)
        every = range(replicas)
        view = View(loads=[0] * replicas, up=list(every), kv=[0.0] * replicas, resident=[0] * (ADAPTERS + 1))
        homes = {adapter: tuple(sorted(luck.sample(every, luck.randint(1, replicas)))) for adapter in range(4)}
        spec = RouterSpec(policy=policy)
        bound = BOUND if policy == "affinity-prefix" else None
        context = RouterContext(view, replicas, seed, ADAPTERS, bound=bound, homes=homes, spec=spec, tenants=True)
        router, past = make_router(policy, context), Past(view, homes, seed)
        for number in range(30):
            arrival_s = 15.0 * number
            request = Request(
                number, arrival_s, luck.randrange(ADAPTERS), luck.choice((10, 64, 1000)), luck.choice((5, 80))
            )
            request.tenant, request.session, view.request = luck.randrange(3), None, request
            request.admitted_s = arrival_s + luck.random()
            view.texts = luck.sample(range(5), luck.randrange(4))
            past.texts.append(list(view.texts))
            chosen = router.choose(request.adapter, number)
            assert chosen in TWINS[policy](past, request), f"{policy}, seed {seed}, request {number}"
            past.sent.append((request, chosen))
            past.inside.append((request, chosen))
            view.loads[chosen] += 1
            if isinstance(router, Following):
                router.entered(request, chosen)
            for started, _ in luck.sample(past.inside, min(2, len(past.inside))):
                started.first_token_s = started.admitted_s + 1.0 if started.first_token_s < 0 else started.first_token_s
            for gone, replica in [each for each in past.inside if each[0].first_token_s >= 0 and luck.random() < 0.4]:
                past.inside.remove((gone, replica))
                past.ended.append((gone, replica, arrival_s + 2.0))
                view.loads[replica] -= 1
                if isinstance(router, Following):
                    router.ended(gone, replica, arrival_s + 2.0)
                    router.left(gone, replica)
            view.kv = [luck.choice((0.0, 0.5, 0.9)) for _ in every]
            view.resident = [luck.getrandbits(replicas) & luck.getrandbits(replicas) for _ in range(ADAPTERS + 1)]
            view.up = sorted(luck.sample(every, luck.randint(1, replicas))) if luck.random() < 0.3 else view.up
