"""Sample paths of queues whose waits are known: two on which the rules of intervals were chosen, and others.

Service takes 1 s on average at the one server, or as many seconds as there are servers at each of several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from known_queues import md1, mm1
from numpy.typing import NDArray
from scipy.optimize import brentq

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, float, tuple[int, int]], tuple[Floats, Floats]]
"""Random numbers, load, (replications, requests) to gaps before requests and service times, both of that shape."""

BATCH = 4.0
"""Mean size of batches that arrive together; sizes are geometric."""
SCV = 4.0
"""Squared coefficient of variation of the hyperexponential and log-normal laws."""


Tail = list[tuple[float, float]]
"""P(> t) as a sum of weights times exp(-rate t); what the weights lack to 1 doesn't wait at all."""


@dataclass(frozen=True)
class Queue:
    """How a queue is drawn, and what is known of its wait and E2E, by metric, at a load."""

    draw: Draw
    known: Callable[[float], dict[str, float]]
    servers: int = 1


def path(queue: Queue, load: float, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return waits and E2E, (replications, requests) as ``shape`` says, of queues that start empty."""
    gaps, service = queue.draw(rng, load, shape)
    if queue.servers == 1:  # Lindley
        walk = np.zeros_like(gaps)
        np.cumsum(service[:, :-1] - gaps[:, 1:], axis=1, out=walk[:, 1:])
        wait = walk - np.minimum.accumulate(walk, axis=1)
    else:  # Kiefer and Wolfowitz: the work that each server has left, in order
        wait, left = np.empty_like(gaps), np.zeros((shape[0], queue.servers))
        for i in range(shape[1]):
            left = np.maximum(left - gaps[:, i, None], 0.0)
            left.sort(axis=1)
            wait[:, i] = left[:, 0]
            left[:, 0] += service[:, i]
    return wait, wait + service


def of_tails(wait_mean_s: float, wait: Tail, e2e: Tail, servers: int = 1) -> dict[str, float]:
    """Return means and quantiles."""
    found = {"queue_mean_s": wait_mean_s, "e2e_mean_s": wait_mean_s + servers}
    for name, tail in (("queue", wait), ("e2e", e2e)):
        found |= {f"{name}_p50_s": quantile(tail, 0.5), f"{name}_p99_s": quantile(tail, 0.99)}
    return found


def quantile(tail: Tail, q: float) -> float:
    """Return a quantile of the law with this tail; 0 where that many don't wait."""
    if sum(weight for weight, _ in tail) <= 1 - q:
        return 0.0
    slowest = min(rate for _, rate in tail)
    return float(brentq(lambda t: sum(w * math.exp(-rate * t) for w, rate in tail) - (1 - q), 0, 100 / slowest))


def _hyper(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    first = rng.uniform(size=shape) < _P
    return rng.exponential(1.0, shape) / np.where(first, 2 * _P, 2 * (1 - _P))


_P = (1 + math.sqrt((SCV - 1) / (SCV + 1))) / 2
"""Share of the short times of a hyperexponential law of mean 1 with balanced means: its rates are 2 p and 2 (1 - p)."""
_SIGMA = math.sqrt(math.log(1 + SCV))


def _poisson(rng: np.random.Generator, load: float, shape: tuple[int, int]) -> Floats:
    return rng.exponential(1 / load, shape)


def _batches(rng: np.random.Generator, load: float, shape: tuple[int, int]) -> Floats:
    """Return gaps of Poisson batches: nothing before those that come with the one before."""
    return np.where(rng.uniform(size=shape) < 1 / BATCH, rng.exponential(BATCH / load, shape), 0.0)


def _khinchine(load: float, scv: float) -> float:
    return load * (1 + scv) / (2 * (1 - load))


def _hyper_service(load: float) -> tuple[Tail, Tail]:
    """Return the tails of wait and E2E of M/H2/1: Pollaczek and Khinchine's transform has two poles."""
    p, fast, slow = (_P, 1 - _P), 2 * _P, 2 * (1 - _P)
    mixed = np.array([p[0] * fast + p[1] * slow, fast * slow])  # B(s) (s + fast) (s + slow) = mixed[0] s + mixed[1]
    both = np.array([1.0, fast + slow, fast * slow])
    below = np.polyadd(np.polymul([1.0, -load], both), load * np.concatenate(([0.0, 0.0], mixed)))[:-1]
    tails = []
    for above in (both, mixed):
        poles = np.roots(below)
        weights = (1 - load) * np.polyval(above, poles) / np.polyval(np.polyder(below), poles) / -poles
        tails.append([(float(w), float(-pole)) for w, pole in zip(weights.real, poles.real, strict=True)])
    return tails[0], tails[1]


def _root(transform: Callable[[float, float], float], load: float) -> float:
    """Return the share that waits in GI/M/1: the root below 1 of x = A(1 - x)."""
    return float(brentq(lambda x: transform(1 - x, load) - x, 0.0, 1 - 1e-9))


def _erlang2(s: float, load: float) -> float:
    return (2 * load / (2 * load + s)) ** 2


def _hyper_gaps(s: float, load: float) -> float:
    return sum(p * rate / (rate + s) for p, rate in ((_P, 2 * _P * load), (1 - _P, 2 * (1 - _P) * load)))


def _gim1(transform: Callable[[float, float], float]) -> Callable[[float], dict[str, float]]:
    def known(load: float) -> dict[str, float]:
        waits = _root(transform, load)
        return of_tails(waits / (1 - waits), [(waits, 1 - waits)], [(1.0, 1 - waits)])

    return known


def _batches_known(load: float) -> dict[str, float]:
    """Return what is known: a batch is served in an exponential time, and so is its part up to a request."""
    rate = (1 - load) / BATCH
    return of_tails(1 / rate - 1, [(1 - rate, rate)], [(1.0, rate)])


def _mmc(servers: int) -> Queue:
    def known(load: float) -> dict[str, float]:
        offered, own, rest = load * servers, 1 / servers, 1 - load
        last = offered**servers / math.factorial(servers) / rest
        waits = last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)  # Erlang's C
        e2e = [(1 - waits + waits * rest / (rest - own), own), (-waits * own / (rest - own), rest)]
        return of_tails(waits / rest, [(waits, rest)], e2e, servers)

    def draw(rng: np.random.Generator, load: float, shape: tuple[int, int]) -> tuple[Floats, Floats]:
        return _poisson(rng, load, shape), rng.exponential(servers, shape)

    return Queue(draw, known, servers)


QUEUES = {
    "M/M/1": Queue(
        lambda rng, load, shape: (_poisson(rng, load, shape), rng.exponential(1.0, shape)), lambda x: mm1(x, 1)
    ),
    "M/D/1": Queue(lambda rng, load, shape: (_poisson(rng, load, shape), np.ones(shape)), lambda x: md1(x, 1)),
    "M/H2/1": Queue(
        lambda rng, load, shape: (_poisson(rng, load, shape), _hyper(rng, shape)),
        lambda load: of_tails(_khinchine(load, SCV), *_hyper_service(load)),
    ),
    "M/LN/1": Queue(
        lambda rng, load, shape: (_poisson(rng, load, shape), rng.lognormal(-(_SIGMA**2) / 2, _SIGMA, shape)),
        lambda load: {"queue_mean_s": _khinchine(load, SCV), "e2e_mean_s": _khinchine(load, SCV) + 1},
    ),
    "E2/M/1": Queue(
        lambda rng, load, shape: (rng.gamma(2, 1 / (2 * load), shape), rng.exponential(1.0, shape)), _gim1(_erlang2)
    ),
    "H2/M/1": Queue(
        lambda rng, load, shape: (_hyper(rng, shape) / load, rng.exponential(1.0, shape)), _gim1(_hyper_gaps)
    ),
    "batches/M/1": Queue(
        lambda rng, load, shape: (_batches(rng, load, shape), rng.exponential(1.0, shape)), _batches_known
    ),
    "M/M/4": _mmc(4),
    "M/M/3": _mmc(3),
    "D/M/1": Queue(
        lambda rng, load, shape: (np.full(shape, 1 / load), rng.exponential(1.0, shape)),
        _gim1(lambda s, load: math.exp(-s / load)),
    ),
}
"""Laws H2 and LN have a squared coefficient of variation of ``SCV``; of LN only means are known."""
