"""The method of timing: how often, in which order and with which checks (docs/calibrate.md).

Every configuration is visited once a round, in a new random order. A visit warms up, then samples
until the median over all its samples is known well enough or its time is up. Before every few visits a canary, always
the same work, shows whether the device has changed. No sample is ever left out. Where the whole run has a time limit,
no visit starts after it, except the first few, and the log knows what is left.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.device.devices import Call, Device, UnavailableError, out_of_memory
from calibrate.device.hardware import DisturbanceMonitor
from calibrate.samples import Configuration, SampleLog, Visit
from reports.document import Report
from reports.table import Table
from sim.errors import InputError
from sim.spec.units import human_seconds

CANARY = "canary"
_CANARY_EVERY = 8
_DRIFT = 0.03
_MAX_SAMPLES = 2000
_LEAST_VISITS = 8
"""Of a run with a time limit, however short: each call of the same command gets further."""


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
class Sampling:
    """How a suite is timed.

    :ivar seed: of the order, and of what is random in the grid.
    :ivar method: in place of that of a quick or of a full run.
    :ivar parts: of the suite: what this run times, in this order; none: everything, in random order.
    :ivar ends_at: on ``time.monotonic``: no visit starts later, after the first few.
    """

    quick: bool = False
    seed: int = 1
    method: Method | None = None
    parts: tuple[str, ...] = ()
    ends_at: float = math.inf
    overwrite: bool = False

    @property
    def how(self) -> Method:
        """The method."""
        return self.method or (QUICK if self.quick else Method())


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration ready to be timed.

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
    :ivar parts: what this run times, one part after the other; none: all configurations as one part.
    """

    configurations: Sequence[Configuration]
    opens: Open
    canary: Prepared
    parts: Sequence[Sequence[Configuration]] = ()
    flush: bool = True


class _TimeIsUpError(Exception):
    """The time for the whole run is over."""


def measure(
    work: TimedWork,
    device: Device,
    log: SampleLog,
    sampling: Sampling,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Time all configurations part by part, each once a round in random order; what the log has is not timed again.

    The log's manifest then has ``flags`` (drift, throttling, a busy device, what was skipped), ``skipped`` (the reason
    by key) and ``untimed`` (how many configurations miss a visit); ``log.cut_short`` says whether time ran out.

    :raises InputError: if no configuration could be timed.
    """
    parts, rounds = work.parts or [work.configurations], sampling.how.rounds
    visits = _Visits(work, device, log, sampling, {one.key for part in parts for one in part})
    total, count = rounds * sum(len(part) for part in parts), 0
    try:
        for part in parts:
            rng = np.random.default_rng(sampling.seed)
            for turn in range(rounds):
                for place, index in enumerate(rng.permutation(len(part))):
                    visits.visit(part[index], turn, canary=place % _CANARY_EVERY == 0)
                    count += 1
                    progress(count, total)
    except _TimeIsUpError:
        log.cut_short = True
    return visits.flags()


class _Visits:
    """Visits configurations, unless the log has them, and knows what was skipped.

    :param chosen: keys of those that are tried now, whatever earlier runs skipped.
    """

    def __init__(
        self, work: TimedWork, device: Device, log: SampleLog, sampling: Sampling, chosen: Collection[str]
    ) -> None:
        self._work, self._device, self._log, self._method = work, device, log, sampling.how
        self._ends_at = sampling.ends_at
        earlier = log.manifest.get("skipped", {})
        self.skipped = {str(key): str(why) for key, why in earlier.items() if key not in chosen}
        self._done = log.done
        self._monitor, self._order = DisturbanceMonitor(device), len(log.visits)
        self._made = 0
        self._kept: dict[str, list[float]] = {}
        for visit in log.visits:
            self._kept.setdefault(visit.configuration.key, []).extend(visit.seconds)

    def visit(self, one: Configuration, turn: int, *, canary: bool) -> None:
        """Visit a configuration unless that has been done, after the canary where it is due.

        :raises _TimeIsUpError: if the time for the whole run is over.
        """
        if (one.key, turn) in self._done:
            return
        if time.monotonic() >= self._ends_at and self._made >= _LEAST_VISITS:
            raise _TimeIsUpError
        self._made += 1
        if canary:
            _once(self._work.canary, self._device)
            samples = [_once(self._work.canary, self._device) for _ in range(5)]
            self._add(_visit(Configuration(CANARY, CANARY, {}), turn, self._order, samples, self._monitor))
        if one.key in self.skipped:
            return
        before = self._kept.setdefault(one.key, [])
        try:
            with self._work.opens(one) as prepared:
                samples = _sample(prepared, self._device, self._method, turn, before, self._work.flush)
        except Exception as error:
            if not out_of_memory(error) and not isinstance(error, UnavailableError):
                raise
            self.skipped[one.key] = "too little memory" if out_of_memory(error) else str(error)
            self._device.release()
            return
        before.extend(seconds for seconds, _ in samples)
        self._add(_visit(one, turn, self._order, samples, self._monitor))

    def _add(self, visit: Visit) -> None:
        self._log.add(visit)
        self._order += 1

    def flags(self) -> list[str]:
        """Return what a reader of the samples must know, and note it in the log.

        :raises InputError: if no configuration could be timed.
        """
        suite, counts = self._work.configurations, {key: len(samples) for key, samples in self._kept.items() if samples}
        if self.skipped and not any(one.key in counts for one in suite):
            raise InputError(
                f"no configuration could be timed: {next(iter(self.skipped.values()))}",
                key="--model",
                hint="choose a smaller model or fewer layers",
            )
        tried = [one for one in suite if one.key not in self.skipped]
        done, rounds = self._log.done, range(self._method.rounds)
        untimed = sum(any((one.key, turn) not in done for turn in rounds) for one in tried)
        few = sum(0 < counts.get(one.key, 0) < self._method.least for one in tried)
        visits = self._log.visits
        disturbed = Counter(flag.partition(":")[0] for visit in visits for flag in visit.flags)
        flags = drift(visits) + [f"{word}: in {count} of {len(visits)} visits" for word, count in disturbed.items()]
        if untimed:
            flags.append(f"not finished: {untimed} of {len(suite)} configurations were not visited in every round")
        if few:
            flags.append(f"few samples: {few} of {len(suite)} configurations have fewer than {self._method.least}")
        flags += [f"skipped, {why}: {key}" for key, why in self.skipped.items()]
        self._log.note(flags=flags, skipped=self.skipped, untimed=untimed)
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


def _sample(
    prepared: Prepared, device: Device, method: Method, turn: int, before: Sequence[float], flush: bool
) -> list[tuple[float, float]]:
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


def samples_report(log: SampleLog) -> Report:
    """Return a row for each kind and backend (or stage of a load): how many, how long, how well known, how far off
    the floor; of steps the device's measured ceilings, and how far backends are from float32."""
    samples: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, dict[str, Configuration]] = defaultdict(dict)
    for visit in log.visits:
        one = visit.configuration
        samples[one.key] += visit.seconds
        kinds[_kind(one)][one.key] = one
    rows = []
    for kind, members in sorted(kinds.items(), key=lambda row: (row[0] == CANARY, row[0])):
        medians = [float(np.median(samples[key])) for key in members]
        width = float(np.median([median_half_width(samples[key]) for key in members]))
        over = np.array(medians) / [float(one.parameters.get("floor_s", math.nan)) for one in members.values()]
        rows.append(
            [
                kind,
                f"{len(members):,}",
                f"{sum(len(samples[key]) for key in members):,}",
                human_seconds(min(medians)),
                human_seconds(max(medians)),
                f"{width:.1%}" if math.isfinite(width) else "unknown",
                f"{np.nanmedian(over):.1f}" if np.isfinite(over).any() else "",
            ]
        )
    head = ["what", "configurations", "samples", "fastest", "slowest", "half-width of the median", "times the floor"]
    ceilings = [_ceilings(log.manifest)] if log.suite == "steps" else []
    return Report(
        kind=f"calibrate {log.suite}",
        name=str(log.folder),
        data=log.manifest,
        terminal=[Table("Samples", head, rows), "", *ceilings, f"samples  {log.folder / f'{log.suite}.parquet'}"],
        notes=log.manifest.get("flags", ()),
    )


def _ceilings(manifest: Mapping[str, Any]) -> str:
    ceilings = manifest["ceilings"]
    errors = ", ".join(f"{name} {error:.1e}" for name, error in manifest["backend_errors"].items())
    return (
        f"ceilings: {ceilings['bytes_per_s'] / 1e9:,.4g} GB/s, {ceilings['flops_per_s'] / 1e12:,.4g} TFLOP/s in bf16; "
        f"relative error against float32: {errors}"
    )


def _kind(one: Configuration) -> str:
    if one.kind == CANARY:
        return CANARY
    how = ", graph" if one.parameters.get("graph") else ""
    lora = f", LoRA by {one.parameters['backend']}" if one.parameters.get("backend") else ""
    base = ", base" if "backend" in one.parameters and not lora and one.kind != "head" else ""
    return f"{one.kind}{base}{lora}{how}"
