"""The method of timing: how often, in which order and with which checks (docs/calibrate.md).

Every configuration is visited once a round, in a new random order. A visit warms up, then samples
until the median over all its samples is known well enough or its time is up. Before every few visits a canary, always
the same work, shows whether the device has changed. No sample is ever left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from calibrate.device.devices import Call, Device, UnavailableError, out_of_memory
from calibrate.device.hardware import DisturbanceMonitor
from calibrate.samples import Configuration, SampleLog, Visit
from sim.errors import InputError

CANARY = "canary"
_CANARY_EVERY = 8
_DRIFT = 0.03
_MAX_SAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Method:
    """How long to sample.

    :ivar rounds: visits to each configuration.
    :ivar least: samples of a configuration over all rounds, at least.
    :ivar half_width: wanted half-width of the median's 95 % interval, relative to the median.
    :ivar limit_s: seconds in samples of one configuration over all rounds, at most; time between samples doesn't
        count, and one sample a round is taken whatever it lasts.
    :ivar warmup: calls before the first sample of a visit.
    """

    rounds: int = 3
    least: int = 20
    half_width: float = 0.01
    limit_s: float = 6.0
    warmup: int = 3


QUICK = Method(rounds=3, least=20, half_width=0.05, limit_s=0.25, warmup=1)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration ready to be timed.

    :ivar call: what is timed.
    :ivar before: runs before every sample, untimed (puts things back; drops caches).
    :ivar seconds: in place of timing ``call``: runs it and returns (seconds, wall seconds), for work that must stop
        its own clock.
    """

    call: Call
    before: Call | None = None
    seconds: Callable[[], tuple[float, float]] | None = None


Open = Callable[[Configuration], AbstractContextManager[Prepared]]
"""Sets a configuration up, and tears it down at the end of the visit."""


def median_half_width(samples: Sequence[float]) -> float:
    """Return the relative half-width of a 95 % interval of the median from order statistics; inf below 6 samples.

    The interval runs between the ranks n/2 ± 0.98·√n (normal approximation of the binomial; David and Nagaraja, Order
    Statistics, 7.1).
    """
    count = len(samples)
    if count < 6:
        return float("inf")
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    reach = 0.98 * np.sqrt(count)
    lo = ordered[max(int(np.floor(count / 2 - reach)), 0)]
    hi = ordered[min(int(np.ceil(count / 2 + reach)), count - 1)]
    return float((hi - lo) / 2 / np.median(ordered))


@dataclass(frozen=True, slots=True)
class TimedWork:
    """What is to be timed.

    :ivar opens: sets a configuration up; if it fails for lack of memory, or because the device can't do it, the
        configuration is skipped and the log says so.
    :ivar canary: the same work throughout the run, to notice that the device changes.
    :ivar flush: push data out of the caches before every sample.
    """

    configurations: Sequence[Configuration]
    opens: Open
    canary: Prepared
    flush: bool = True


def measure(
    work: TimedWork,
    device: Device,
    log: SampleLog,
    method: Method,
    *,
    seed: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Time all configurations, each once a round in random order; those that the log has are not timed again.

    :returns: flags over the whole run, in words: drift, throttling, a busy device, what was skipped.
    :raises InputError: if not one configuration could be timed.
    """
    configurations = work.configurations
    rng = np.random.default_rng(seed)
    monitor, done = DisturbanceMonitor(device), log.done
    kept: dict[str, list[float]] = {}
    for visit in log.visits:
        kept.setdefault(visit.configuration.key, []).extend(visit.seconds)
    order = len(log.visits)
    skipped: dict[str, str] = {}
    total, count = method.rounds * len(configurations), 0
    for turn in range(method.rounds):
        for place, index in enumerate(rng.permutation(len(configurations))):
            one, count = configurations[index], count + 1
            if place % _CANARY_EVERY == 0 and (one.key, turn) not in done:
                log.add(_canary_visit(work.canary, device, monitor, turn, order))
                order += 1
            if (one.key, turn) not in done and one.key not in skipped:
                try:
                    with work.opens(one) as prepared:
                        samples = _sample(prepared, device, method, turn, kept.get(one.key, []), work.flush)
                except Exception as error:
                    if not out_of_memory(error) and not isinstance(error, UnavailableError):
                        raise
                    skipped[one.key] = "too little memory" if out_of_memory(error) else str(error)
                    device.release()
                    continue
                kept.setdefault(one.key, []).extend(seconds for seconds, _ in samples)
                log.add(_visit(one, turn, order, samples, monitor))
                order += 1
            progress(count, total)
    if skipped and len(skipped) == len(configurations):
        raise InputError(
            f"not one configuration could be timed: {next(iter(skipped.values()))}",
            key="--model",
            hint="choose a smaller model or fewer layers",
        )
    few = sum(len(kept.get(one.key, ())) < method.least for one in configurations if one.key not in skipped)
    flags = [*drift(log.visits), *_disturbed(log.visits)]
    if few:
        flags.append(f"few samples: {few} of {len(configurations)} configurations have fewer than {method.least}")
    flags += [f"skipped, {why}: {key}" for key, why in skipped.items()]
    log.note(flags=flags, skipped=list(skipped))
    return flags


def drift(visits: Sequence[Visit]) -> list[str]:
    """Return a sentence if the canary's median in some round differs from that of all rounds."""
    rounds: dict[int, list[float]] = {}
    for visit in visits:
        if visit.configuration.kind == CANARY:
            rounds.setdefault(visit.round, []).extend(visit.seconds)
    if not rounds:
        return []
    middle = float(np.median(np.concatenate([np.asarray(samples) for samples in rounds.values()])))
    off = {turn: float(np.median(samples)) / middle - 1 for turn, samples in rounds.items()}
    worst = max(off, key=lambda turn: abs(off[turn]))
    if abs(off[worst]) <= _DRIFT:
        return []
    return [f"drift: the canary ran {off[worst]:+.1%} off its median in round {worst + 1} of {len(rounds)}"]


def _disturbed(visits: Sequence[Visit]) -> list[str]:
    """Return a sentence for every kind of disturbance, with the share of visits it was seen in."""
    counts: dict[str, int] = {}
    for visit in visits:
        for flag in visit.flags:
            word = flag.partition(":")[0]
            counts[word] = counts.get(word, 0) + 1
    return [f"{word}: in {count} of {len(visits)} visits" for word, count in counts.items()]


def _sample(
    prepared: Prepared, device: Device, method: Method, turn: int, before: Sequence[float], flush: bool
) -> list[tuple[float, float]]:
    """Sample one visit: at least its share, then until the median is known or the time is up."""
    for _ in range(method.warmup):
        if prepared.before is not None:
            prepared.before()
        _once(prepared, device)
    samples: list[tuple[float, float]] = []
    share = -(-method.least // method.rounds)
    left_s = method.limit_s / method.rounds
    while len(samples) < _MAX_SAMPLES:
        if prepared.before is not None:
            prepared.before()
        if flush:
            device.flush()
        samples.append(_once(prepared, device))
        left_s -= samples[-1][1]
        enough = len(samples) >= share and len(before) + len(samples) >= min(method.least, share * (turn + 1))
        known = enough and median_half_width([*before, *(s for s, _ in samples)]) <= method.half_width
        if known or left_s <= 0:
            break
    return samples


def _once(prepared: Prepared, device: Device) -> tuple[float, float]:
    return prepared.seconds() if prepared.seconds is not None else device.time(prepared.call)


def _visit(
    one: Configuration, turn: int, order: int, samples: Sequence[tuple[float, float]], monitor: DisturbanceMonitor
) -> Visit:
    seen = monitor.check()
    flags = [f"throttled: {seen.what}"] * seen.throttled + [f"busy device: {seen.what}"] * seen.busy
    return Visit(one, turn, order, [s for s, _ in samples], [w for _, w in samples], flags)


def _canary_visit(canary: Prepared, device: Device, monitor: DisturbanceMonitor, turn: int, order: int) -> Visit:
    _once(canary, device)
    samples = [_once(canary, device) for _ in range(5)]
    return _visit(Configuration(CANARY, CANARY, {}), turn, order, samples, monitor)
