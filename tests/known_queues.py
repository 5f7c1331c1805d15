"""Queues with one server and Poisson arrivals whose waits are known exactly: M/M/1 and M/D/1."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import poisson

Floats = NDArray[np.float64]


def mm1(load: float, service_s: float) -> dict[str, float]:
    """Return the metrics of M/M/1: the time in the system is exponential, at rate (1 - load) / service."""
    mean_s = service_s / (1 - load)

    def wait_s(q: float) -> float:
        return max(0.0, mean_s * math.log(load / (1 - q)))

    return {
        "queue_mean_s": load * mean_s,
        "queue_p50_s": wait_s(0.5),
        "queue_p99_s": wait_s(0.99),
        "e2e_mean_s": mean_s,
        "e2e_p50_s": mean_s * math.log(2),
        "e2e_p99_s": mean_s * math.log(100),
    }


def md1(load: float, service_s: float) -> dict[str, float]:
    """Return the metrics of M/D/1: its mean wait by Pollaczek and Khinchine, its quantiles by Franx."""
    mean_s = load * service_s / (2 * (1 - load))
    median_s, p99_s = (md1_wait_quantile_s(load, service_s, q) for q in (0.5, 0.99))
    return {
        "queue_mean_s": mean_s,
        "queue_p50_s": median_s,
        "queue_p99_s": p99_s,
        "e2e_mean_s": mean_s + service_s,
        "e2e_p50_s": median_s + service_s,
        "e2e_p99_s": p99_s + service_s,
    }


def md1_wait_quantile_s(load: float, service_s: float, q: float) -> float:
    """Return a quantile of the wait in M/D/1; 0 where that many don't wait."""
    if q <= 1 - load:
        return 0.0
    # The tail falls at least as fast as that of M/M/1, so this is beyond the quantile.
    beyond = math.log(1 / (1 - q)) / (1 - load)
    waiting = np.cumsum(_md1_numbers(load, math.ceil(beyond) + 2))[1:]
    return service_s * brentq(lambda services: md1_waits_at_most(services, load, waiting) - q, 0.0, beyond, xtol=1e-12)


def md1_waits_at_most(services: float, load: float, waiting: Floats) -> float:
    """Return the probability of a wait of at most so many services (Franx, Operations Research Letters 29, 2001).

    With services = k - u and 0 < u <= 1 it is the sum over j < k of P(at most k - 1 - j wait) and Poisson's P(j) of
    mean load u. All terms are positive; Erlang's formula alternates and loses every digit where queues are long.

    :param waiting: (n,) probabilities that at most 0, 1, … requests wait.
    """
    k = math.floor(services) + 1
    return float(np.dot(waiting[:k][::-1], poisson.pmf(np.arange(k), load * (k - services))))


def _md1_numbers(load: float, count: int) -> Floats:
    """Return the probabilities that 0, 1, … requests are in an M/D/1 system, seen by who comes or goes.

    A recursion without subtractions (Ramaswami, Stochastic Models 4, 1988): with N arrivals during a service,
    p(i) P(N = 0) = p(0) P(N > i - 1) + the sum over 0 < j < i of p(j) P(N > i - j).
    """
    ns = np.arange(count)
    none, more = math.exp(-load), poisson.sf(ns, load)  # more[n]: more than n come
    p = np.zeros(count)
    p[0] = 1 - load
    for i in range(1, count):
        p[i] = (p[0] * more[i - 1] + np.dot(p[1:i], more[i - 1 : 0 : -1])) / none
    return p
