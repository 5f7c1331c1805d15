"""Turns what metrics show into a scenario, whose comments say what was measured, what is assumed, what to choose."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from reports.formatting import plural
from sim.arrays import Ints
from sim.results.run_directory.result_files import write_text
from sim.rng import stream
from sim.spec.engine_flags.command_lines import Setting
from sim.spec.files.yaml_tree import flow_text
from sim.spec.gpus import DEFAULT_GPU
from sim.spec.needs import words_of
from sim.spec.scenario_file import LoadedScenario
from sim.spec.sections.laws import MAX_TOKENS
from sim.spec.units import human_seconds
from sim.studies.init.draft import Draft, write_draft
from sim.studies.observe.engine_metrics import Labels, counter_name
from sim.studies.observe.readings import FLEET, Readings, server_of
from sim.studies.observe.study import BucketHistogram, ObservedService

# Laws of prompt and output lengths from histograms of tokens, or from their mean.

ROWS = 2000
"""Lengths in the file: enough that its p99 is that of the buckets."""

_SEED = 1


def without_prefix(tokens: Ints, prefix: int) -> Ints:
    """Return what follows a text of so many tokens in each prompt, so that the mean with that text stays.

    Nothing can be shorter than one token. Where prompts are shorter than the text, what others have beyond one token
    shrinks by as much as these grow.
    """
    rest = np.maximum(tokens - prefix, 1)
    beyond = float(rest.mean()) - 1
    wanted = max(float(tokens.mean()) - prefix - 1, 0.0)
    ends = np.cumsum((rest - 1) * (wanted / beyond if beyond > 0 else 0.0))
    whole = np.diff(np.rint(ends), prepend=0.0)  # rounds the sum, so that the mean doesn't drift
    return np.asarray(1 + whole.astype(np.int64))


def lengths_of(histogram: BucketHistogram, purpose: str) -> Ints:
    """Return lengths with the histogram's counts and its mean, in random order.

    Whole numbers are at most a bucket's bound, so 0.5 to 1.5 tokens are one.

    :param purpose: ``prompt`` or ``output``; their orders are independent, because metrics have each alone.
    """
    finite = [bound for bound in histogram.bounds if np.isfinite(bound)]
    highest = min(2 * max(finite, default=1.0), float(MAX_TOKENS) / 2)
    tokens = np.clip(np.rint(histogram.spread(ROWS, highest)), 1, MAX_TOKENS // 2).astype(np.int64)
    return stream(_SEED, 0, f"observed-{purpose}").permutation(tokens)


# The scenario.

REQUESTS = 20_000
_FEWEST_CACHED = 0.01
_ASSUMED_ADAPTERS = 100
_TAIL = 5.0
_KV_DIFFERS = 0.02


def lengths_file(scenario: Path) -> Path:
    """Return the file for lengths of a scenario file."""
    return scenario.with_name(f"{scenario.stem}-lengths.csv")


def write_observed(
    path: Path, service: ObservedService, readings: Readings, base: LoadedScenario | None, draft: Draft
) -> list[str]:
    """Write a scenario and its lengths, and return notes beside ``source_of``.

    :param base: the scenario that it builds on; None: fleet and adapters are drafted too.
    :param draft: with what is known besides, such as a command line; metrics come after it for the fleet, before it
        for the traffic.
    """
    draft.made_by = "loraplan observe"
    draft.comments.insert(0, source_of(readings))
    draft.comments += [*_late_servers(readings), *_fleets(readings)]
    count = _count(service, base)
    draft.add([*_traffic(service, base, count), *_lengths(service, lengths_file(path))])
    if base is None:
        said = "measured: names of adapters; assumed: there are no others"
        said = said if count else "assumed: the metrics name no adapter"
        draft.add([Setting("adapters.count", count or _ASSUMED_ADAPTERS, said)])
        measured = [*_fleet(service)]
        for setting in measured:
            given = draft.settings.get(setting.key)
            known = setting.key in _OF_SERVER and setting.said.startswith("measured")
            if known and given is not None and given.value != setting.value:
                said = f"The server reports {setting.key} {words_of(setting.value)}"
                draft.comments.append(f"{said}; this scenario has {words_of(given.value)}, from the command line.")
        draft.add([Setting("adapters.rank", 16, "assumed: metrics have no ranks"), *measured])
    else:
        draft.extends = base.source
        if (source := Path(base.source)).is_file():
            draft.extends = os.path.relpath(source.resolve(), path.parent.resolve())
        if count != (base.scenario.adapters.count or 0):
            draft.add([Setting("adapters.count", count, f"measured: names of adapters, more than {base.source} has")])
        draft.comments += _differences(service, base)
        if rates := _scaled_rates(service, base):
            draft.lines["tenants"] = [
                f"  - {flow_text({**tenant, 'rate': f'{rate:.9g}/s'} if rate else tenant)}"
                "   # measured: the total of the rates; assumed: their proportions"
                for tenant, rate in zip(base.data["tenants"], rates, strict=True)
            ]
            draft.comments.append(
                f"The tenants' rates of {base.source} are scaled to the measured total, {sum(rates):.6g}/s: "
                "the metrics don't say whose requests they are."
            )
    return [note for note in write_draft(draft, path) if note != source_of(readings)]


def source_of(readings: Readings) -> str:
    """Return where readings come from, and how their time is known."""
    time = "" if readings.seconds is None else f"; {human_seconds(readings.seconds)}, {readings.timing}"
    return f"From {readings.source}{time}."


def _late_servers(readings: Readings) -> Iterator[str]:
    name = counter_name("finished", readings.names)
    for labels in () if name is None or readings.since_start else readings.late_servers(name):
        server = _words(server_of(labels)) or "The server"
        if readings.began((name or "", labels)):
            yield f"{server} began after the first reading: its counters count from 0."
        else:
            yield f"{server} is missing from the first reading: its counters count from its own first one."


def _fleets(readings: Readings) -> Iterator[str]:
    """Yield notes on servers that may not be of one fleet."""
    if idle := "; ".join(map(_words, readings.idle)):
        left_out = f"Left out, because no request finished there: {idle}."
        yield f"{left_out} If it is a replica without traffic, raise fleet.replicas."
    name = counter_name("finished", readings.names) or ""
    for label in FLEET:
        values, query = readings.parts(name, label)
        if len(values) > 1:
            yield f"Servers of several {label}s ({', '.join(values)}) count as one fleet; to read only one: {query}"


def _words(server: Labels) -> str:
    return ", ".join(f"{key} {value}" for key, value in server)


def _count(service: ObservedService, base: LoadedScenario | None) -> int:
    """Return how many adapters the scenario has: all that metrics name, or the base's, if more or fixed otherwise."""
    named = len(service.adapters.names)
    if base is None:
        return named
    scenario, own = base.scenario, base.scenario.adapters.count or 0
    fixed = scenario.workload.popularity.fixes_count and not service.adapters.shares
    return own if fixed or scenario.tenants or scenario.adapters.base_alone else max(named, own)


def _traffic(service: ObservedService, base: LoadedScenario | None, count: int) -> Iterator[Setting]:
    for source in ("trace", "client"):
        if base is not None and getattr(base.scenario.workload, source) is not None:
            yield Setting(f"workload.{source}", None, f"the traffic below replaces the {source}")
    if base is None or base.scenario.workload.requests is None:
        yield Setting("workload.requests", REQUESTS, "how much to simulate: choose")
    grown = service.offered - service.ended
    aborted = f" ({service.aborted:,.0f} of them aborted)" if service.aborted >= 1 else ""
    more = f", {abs(grown):,.0f} {'more' if grown > 0 else 'fewer'} in flight at the end," if abs(grown) >= 1 else ""
    ended = f"{service.ended:,.0f} requests ended{aborted}{more} in {service.seconds:,.0f} s"
    full = ", and answers as long as all others instead of aborted ones" if aborted else ""
    comment = f"measured: {ended}; assumed: independent users{full}"
    rate = sum(_scaled_rates(service, base)) or float(f"{service.offered_rps:.6g}")
    yield Setting("workload.arrivals", {"process": "poisson", "rate": f"{rate:.9g}/s"}, comment)
    shares, others = service.adapters.shares, count - len(service.adapters.shares)
    if shares and others >= 0 and not (base is not None and base.scenario.tenants):
        always = len(service.adapters.always)
        larger = f"; {always} had one in every reading, and may have a larger share" if always else ""
        unseen = min(service.adapters.unseen, others / count) if others else 0.0  # none above the average
        groups = [{"adapters": 1, "weight": (1 - unseen) * share} for share in sorted(shares.values(), reverse=True)]
        if others:
            groups.append({"adapters": others, "weight": unseen / others})
            larger += f"; assumed: the other {others} have {unseen:.1%} together, by how many were in one reading only"
        yield Setting(
            "workload.popularity",
            {"law": "groups", "groups": groups},
            "measured: how often each adapter had a running request; assumed: its requests come independently, and "
            f"answers of all are equally long{larger}",
        )
    elif base is None:
        yield Setting(
            "workload.popularity",
            {"law": "zipf", "exponent": 0.9},
            "assumed: the metrics don't say which adapter a request was for; a log does (loraplan trace)",
        )


def _scaled_rates(service: ObservedService, base: LoadedScenario | None) -> list[float]:
    """Return the rates of the base's tenants in 1/s, as large together as measured; 0 for one without adapters, and
    [] where they have none of their own."""
    rates = [tenant.rate or 0.0 for tenant in base.scenario.tenants] if base is not None else []
    total = sum(rates)
    return [float(f"{rate / total * service.offered_rps:.6g}") for rate in rates] if total else []


def _lengths(service: ObservedService, file: Path) -> Iterator[Setting]:
    """Yield the laws of lengths, and write the file that they name."""
    prompt, output = (service.histograms.get(role) for role in ("prompt_tokens", "output_tokens"))
    if prompt is None or output is None:
        yield from _assumed_lengths(service)
        return
    prompts, outputs = lengths_of(prompt, "prompt"), lengths_of(output, "output")
    # The shared text that would give the measured hits; none where there were hardly any.
    hits = service.prefix_hits or 0.0
    prefix = round(hits * float(prompts.mean())) if hits >= _FEWEST_CACHED else 0
    rows = zip(without_prefix(prompts, prefix).tolist(), outputs.tolist(), strict=True)
    write_text(file, "\n".join(["input_tokens,output_tokens", *(f"{one},{two}" for one, two in rows), ""]))
    shared = f", of which {prefix:,} are the prefix" if prefix else ""
    for key, column, mean, of_it in (
        ("prompt", "input_tokens", prompt.mean, shared),
        ("output", "output_tokens", output.mean, ""),
    ):
        inside = f"assumed: how they lie within the buckets{', and that all have the prefix' if of_it else ''}"
        known = "the histogram" if mean is None else f"mean {mean:,.1f} tokens{of_it}, and the histogram"
        yield Setting(
            f"workload.tokens.{key}",
            {"law": "empirical", "file": file.name, "column": column},
            f"measured: {known}; {inside}{', whose sum is missing' if mean is None else ''}",
        )
    yield Setting("workload.tokens.correlation", 0, "assumed: long prompts have answers like all others")
    if prefix:
        yield Setting(
            "workload.prefix",
            {"shared_by": "adapter", "tokens": prefix},
            f"measured: {service.prefix_hits:.1%} of the prompt tokens were cached; assumed: they are a text at the "
            "start of every prompt, one for each adapter, and the other tokens are not shared",
        )


def _assumed_lengths(service: ObservedService) -> Iterator[Setting]:
    """Yield laws from means alone; without any, the examples of every draft stay."""
    keys: tuple[Literal["prompt", "output"], ...] = ("prompt", "output")
    for key in keys:
        mean = service.mean_tokens(key)
        if mean is not None and mean >= 1:
            yield Setting(
                f"workload.tokens.{key}",
                {"law": "lognormal", "mean": round(mean, 1), "p99": round(_TAIL * mean, 1)},
                f"measured: the mean; assumed: a p99 of {_TAIL:g} times it (SGLang has histograms of them "
                "with --collect-tokens-histogram)",
            )


def _fleet(service: ObservedService) -> Iterator[Setting]:
    yield Setting("fleet.engine", service.engine, "measured: whose metrics these are; assumed: the newest version")
    yield Setting("fleet.gpu", DEFAULT_GPU, "assumed: metrics don't name the GPU (--gpu)")
    if service.servers > 1:
        yield Setting("fleet.replicas", service.servers, "measured: servers whose metrics these are")
    if service.cache.tokens is not None:
        yield Setting("fleet.kv_tokens", service.cache.tokens, "measured: the server's KV cache")
    if service.cache.block_size is not None:
        yield Setting("fleet.block_size", service.cache.block_size, "measured: cache_config_info")
    if service.cache.prefix_caching:
        yield Setting("fleet.prefix_caching", True, "measured: cache_config_info")
    if service.adapters.slots is not None:
        yield Setting("cache.gpu.slots", service.adapters.slots, "measured: max_lora")
    else:
        yield Setting("cache.gpu.slots", 8, "assumed: the metrics name no max_lora")


_OF_SERVER = ("fleet.kv_tokens", "fleet.block_size", "fleet.prefix_caching", "cache.gpu.slots")
"""What metrics may say otherwise than the command line of the same server."""


def _differences(service: ObservedService, base: LoadedScenario) -> Iterator[str]:
    scenario = base.scenario
    slots, names, count = service.adapters.slots, len(service.adapters.names), scenario.adapters.count
    if names and count is not None and names != count:
        yield f"The metrics name {names} adapters; adapters.count of {base.source} is {count}."
    if slots is not None and scenario.cache.gpu.slots != slots:
        yield f"The server has max_lora {slots}; cache.gpu.slots of {base.source} is {scenario.cache.gpu.slots}."
    tokens, known = scenario.fleet.kv_tokens, service.cache.tokens
    if known is not None and tokens is not None and abs(tokens / known - 1) > _KV_DIFFERS:
        yield f"The server has {known:,} KV tokens; fleet.kv_tokens of {base.source} is {tokens:,}."
    caches = service.cache.prefix_caching
    if caches is not None and scenario.fleet.prefix_caching != caches:
        yield f"The server {'caches' if caches else 'does not cache'} prefixes, unlike {base.source}."
    fleet = scenario.fleet
    if service.servers != fleet.total:
        servers = f"{service.servers} server{'s' if service.servers != 1 else ''}"
        here = f"fleet.replicas of {base.source} is {fleet.replicas}"
        here = f"the pools of {base.source} have {plural(fleet.total, 'replica')}" if fleet.pools else here
        yield f"The metrics are of {servers}; {here}."
