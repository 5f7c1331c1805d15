"""Eight questions in place of a file: an answer is checked as the value of a scenario that it becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.errors import InputError, SeveralErrors
from sim.results.model import MemoryUse
from sim.spec.engine_flags.command_lines import Setting
from sim.spec.engines import DEFAULT_ENGINE
from sim.spec.files.tree import value_at
from sim.spec.files.yaml_tree import flow_text
from sim.spec.gpus import DEFAULT_GPU
from sim.spec.profile_choice import DEFAULT_MODEL, is_model, profiles_of_known_gpus
from sim.spec.scenario_file import LoadedScenario, scenario_of_text
from sim.spec.units import human_bytes
from sim.studies.design import check_points
from sim.studies.init.draft import Draft, scenario_text
from sim.studies.plan.screen import screen
from sim.world.memory.gpu_memory import memory_use

_MODEL, _GPU, _RATE = "adapters.base_model", "fleet.gpu", "workload.arrivals.rate"
_TTFT = "slo.ttft_p99"
_NOTHING = "none"
_NAMED = re.compile(r"([a-z0-9]+_[a-z0-9_]+)[\s=:]+(.+)")
"""A term of an SLO, such as ``itl_p99 60 ms``."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question. Its answer has a part for each key, with commas between; the second may be absent."""

    text: str
    default: str
    keys: tuple[str, ...]


QUESTIONS = (
    Question("Base model, such as qwen2.5-7b, or the file of a profile", DEFAULT_MODEL, (_MODEL,)),
    Question("GPU, such as h200, a100-80gb or l40s", DEFAULT_GPU, (_GPU,)),
    Question("How many adapters there are", "100", ("adapters.count",)),
    Question("Their rank, the largest if they differ", "16", ("adapters.rank",)),
    Question("Requests to all adapters; if bursty, with a cv: 50/s, 4", "6/s", (_RATE, "workload.arrivals.cv")),
    Question(
        "Mean tokens of a prompt, and of an answer",
        "300, 120",
        ("workload.tokens.prompt.mean", "workload.tokens.output.mean"),
    ),
    Question("SLO: p99 TTFT, E2E: 1 s, 20 s; or named: ttft_p95 1 s, itl_p99 60 ms", "1 s", (_TTFT, "slo.e2e_p99")),
    Question("Price of a GPU, such as 2.50 USD/h", _NOTHING, ("fleet.price",)),
)
_CHOSEN = ("cache.gpu.slots", "cache.host.slots", "fleet.engine", "fleet.tensor_parallel", "workload.popularity")
"""Keys that the answer depends on, and that no question is about."""
_P99, _MAX = 5, 15
"""99th percentile and maximum of lengths, over their mean."""
_ENOUGH_SLOTS, _MOST_SLOTS = 16, 64
"""Slots with which no more GPUs of a replica are tried, and slots at most."""
_MOST_COPIES_BYTES = 128 * 10**9  # in host memory, for each GPU
_LEAST_S, _LEAST_REQUESTS, _MOST_REQUESTS = 200, 20_000, 200_000
"""Seconds of traffic in a run, within these numbers of requests."""
_LEAST_REPLICAS, _MOST_REPLICAS, _SPARE = 16, 1024, 8
"""Replicas that a plan may try, over those that formulas want."""


def ask(draft: Draft, answer: Callable[[Question, str], str], refuse: Callable[[InputError], None]) -> None:
    """Add to a draft what the answers say, and what follows from them.

    :param answer: returns the answer to a question with this default; empty: the default.
    :param refuse: gets what is wrong with an answer; unless it raises, the question comes again.
    """
    example = Draft("answers")
    example.complete()
    base = scenario_of_text(scenario_text(example).encode(), "", Path())
    given = [f"{setting.key}={setting.value}" for setting in draft.settings.values()]
    origins: dict[str, str] = {}
    loaded = base
    for question in QUESTIONS:
        if any(each.startswith(f"{question.keys[0]}=") for each in given):
            continue
        default = str(loaded.scenario.fleet.gpu) if question.keys == (_GPU,) else question.default
        while True:
            typed = answer(question, default).strip()
            text = typed or default
            try:
                new = _settings(question, text)
                loaded, memory = _designed(base, [*given, *new])
            except InputError as error:
                several = error.errors if isinstance(error, SeveralErrors) else [error]
                own = next((each for each in several if each.key in question.keys), several[0])
                own.file = own.line = None  # it is in no file yet
                refuse(own)
            else:
                break
        given += new
        whose = "your answer" if typed else "the default"
        for key in (each.partition("=")[0] for each in new):
            origins[key.rpartition(".")[0] if key.startswith("workload.") else key] = whose  # arrivals, lengths: tables
    for key, whose in origins.items():
        value = value_at(loaded.data, key)
        if value is None:  # the example's SLO, in place of which others were named
            continue
        more = f"; p99 and max are assumed: {_P99} and {_MAX} times the mean" if ".tokens." in key else ""
        draft.add([Setting(key, value, whose + more)])
    draft.add(_derived(loaded, memory))
    draft.complete()
    chosen = [f"{key} {flow_text(draft.settings[key].value)}" for key in _CHOSEN if key in draft.settings]
    draft.comments.append(f"Chosen without asking you: {', '.join(chosen)}. Change what you know better.")


def _settings(question: Question, text: str) -> list[str]:
    """Return what an answer sets, as ``--set`` has it."""
    if text == question.default == _NOTHING:
        return []
    if question.keys == (_MODEL,) and text.endswith(".json"):  # it says which GPU it is of
        return [f"fleet.profile={text}", f"{_GPU}=null"]
    parts = [part.strip() for part in text.split(",")]
    named = [_NAMED.fullmatch(part) for part in parts]
    if question.keys[0] == _TTFT and any(named) and len({each and each[1] for each in named} - {None}) < len(parts):
        raise InputError("not an answer to this question", key=_TTFT, got=text, allowed="every term by name, each once")
    if question.keys[0] == _TTFT and all(named):
        terms = {f"slo.{each[1]}": each[2] for each in named if each}
        return [f"{key}={value}" for key, value in ({_TTFT: "null"} | terms).items()]
    if len(parts) > len(question.keys) or not all(parts):
        allowed = "one value" if len(question.keys) == 1 else "one value, or two with a comma between"
        raise InputError("not an answer to this question", key=question.keys[0], got=text, allowed=allowed)
    settings = ["workload.arrivals.process=gamma"] if question.keys[0] == _RATE and len(parts) > 1 else []
    for key, part in zip(question.keys, parts, strict=False):
        settings.append(f"{key}={part}")
        if key.endswith(".mean") and part.isdecimal():
            table = key.removesuffix(".mean")
            settings += [f"{table}.p99={_P99 * int(part)}", f"{table}.max={_MAX * int(part)}"]
    return settings


def _designed(base: LoadedScenario, given: Sequence[str]) -> tuple[LoadedScenario, MemoryUse]:
    """Return a scenario that runs: the fewest GPUs of a replica, and slots that leave room for a KV cache."""
    loaded = base.with_settings(given)
    model = loaded.scenario.adapters.base_model or DEFAULT_MODEL
    shelf = [each for each in profiles_of_known_gpus() if is_model(model, each.model)]
    gpus = [each.gpu for each in shelf]
    if gpus and loaded.scenario.fleet.gpu not in gpus and not any(each.startswith(f"{_GPU}=") for each in given):
        loaded = loaded.with_settings([f"fleet.gpu={gpus[0]}"])
    adapters = loaded.scenario.adapters.count or 1
    found: list[tuple[bool, int, LoadedScenario, MemoryUse]] = []
    failures: list[InputError] = []
    for count in sorted({each.gpus for each in shelf if each.gpu == loaded.scenario.fleet.gpu}) or [1]:
        split = [f"fleet.tensor_parallel={count}"] if count > 1 else []
        slots = min(_MOST_SLOTS, adapters)
        while slots:
            try:
                tried = loaded.with_settings([*split, f"cache.gpu.slots={slots}", f"cache.host.slots={adapters}"])
                memory = memory_use(check_points(tried)[0].pools[0])
            except InputError as error:
                failures.append(error)
            else:
                assert memory is not None, "vLLM keeps adapters and a KV cache on its GPUs"
                roomy = 2 * memory.adapters <= memory.kv
                if roomy and slots >= min(_ENOUGH_SLOTS, adapters):
                    return tried, memory
                found.append((roomy, slots if roomy else -slots, tried, memory))
            slots //= 2
    if not found:
        raise failures[-1]
    return max(found, key=lambda each: each[:2])[2:]


def _derived(loaded: LoadedScenario, memory: MemoryUse) -> list[Setting]:
    gpus, adapters = loaded.scenario.fleet.tensor_parallel or 1, memory.copies
    copies = min(adapters, max(_MOST_COPIES_BYTES * gpus * adapters // memory.host, memory.slots or 0))
    held = human_bytes(memory.host * copies / adapters)
    which = (
        "all"
        if copies == adapters
        else f"of {adapters:,}, what {human_bytes(_MOST_COPIES_BYTES)} a GPU hold, more if yours have it"
    )
    most, load = _LEAST_REPLICAS // 2, 1.0
    while most < _MOST_REPLICAS and load * _SPARE > 1:
        most *= 2
        world = check_points(loaded.with_settings([f"fleet.replicas={most}"]))[0]
        load = screen(world).gpu_load or 0.0
    requests = max(_LEAST_REQUESTS, min(_MOST_REQUESTS, round(_LEAST_S * (world.traffic.rate or 0))))
    found = [
        Setting("workload.requests", requests, "simulated in each run; loraplan plan takes more where it is close"),
        Setting("fleet.engine", DEFAULT_ENGINE, "assumed: the newest vLLM whose rules are known"),
        Setting("fleet.replicas", 1, "to begin with; loraplan plan finds how many are enough"),
        Setting("cache.gpu.slots", memory.slots, f"max_loras: up to {_MOST_SLOTS}, in a third of what weights leave"),
        Setting("cache.host.slots", copies, f"max_cpu_loras: {which}; {held} of host memory for each replica"),
        Setting("plan.minimize", "fleet.replicas", "how many GPUs are enough?"),
        Setting("plan.range", [1, most], f"chosen by formulas; for others: --minimize fleet.replicas=1..{4 * most}"),
    ]
    if gpus > 1:
        found.append(Setting("fleet.tensor_parallel", gpus, "the fewest GPUs that hold the model and have a profile"))
    return found
