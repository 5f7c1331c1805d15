"""The command line that starts an engine as a scenario simulates it, or why there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim.spec.engine_flags.options import EngineFlags, Replica, flag_tables
from sim.spec.engines import ENGINES, fill
from sim.spec.needs import value_of, words_of
from sim.spec.sections.serving import Cache, Fleet, Storage

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario

MODEL = "MODEL"
"""Stands for the base model where the scenario names neither a repository nor a path."""
_PATH = re.compile(r"/?[\w.][\w.-]*(/[\w.][\w.-]*)*/?", re.ASCII)
"""A repository or a path: no letter that a shell, Compose or Kubernetes reads as more, and no option."""
_NO_COMMAND = {
    "continuous": "engine continuous is idealised, and no server follows its rules; choose fleet.engine vllm",
    "fixed": "engine fixed is a queue with a given service time, not a server",
}
"""Why engines that are no products have no command line."""
_RULES = (
    *(f"fleet.{key}" for key in ("batching", "chunked_prefill", "admission", "admission_interval", "waiting_ratio")),
    *(f"fleet.{key}" for key in ("load_at", "passed_requests", "scheduling")),
    *(f"fleet.{key}" for key in ("adapter_limit", "self_preemption", "async_scheduling", "prefill_schedule_interval")),
    *(f"fleet.{key}" for key in ("reserved_kv_blocks", "prefix_caching", "uncached_blocks")),
    *(f"cache.gpu.{key}" for key in ("slots", "size", "unified", "base_model_slot")),
    *(f"cache.host.{key}" for key in ("slots", "size", "fill")),
    *(f"cache.{key}" for key in ("eviction", "pinned", "prefetch")),
    *(f"storage.{key}" for key in ("mode", "loaders", "host_loaders")),
    "cache.protects",
    *(f"fleet.{key}" for key in ("kv_check", "schedule_conservativeness", "overlap_schedule", "drain_wait")),
)
"""Keys that say how an engine works, rather than what it runs on or what it serves."""


@dataclass(frozen=True, slots=True)
class WrittenOption:
    """An option as a command line has it.

    :ivar text: the option with its value, such as ``--max-loras 32``.
    :ivar keys: the keys of the scenario that it follows from; empty where every scenario has it.
    """

    text: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """The command that starts one replica as it was simulated.

    :ivar engine: whose command it is, such as ``vLLM``.
    :ivar start: the words before the options; ``MODEL`` stands for the base model's path or name.
    """

    engine: str
    start: str
    options: tuple[WrittenOption, ...]

    @property
    def text(self) -> str:
        """The whole command line."""
        return " ".join([self.start, *(option.text for option in self.options)])


def engine_commands(scenario: Scenario, kv_tokens: int | None) -> tuple[EngineCommand, ...]:
    """Return the commands that start one replica as it was simulated; none where ``why_no_flags``.

    :param kv_tokens: tokens for which the replica had a KV cache.
    """
    if why_no_flags(scenario):
        return ()
    replica, without_lora = Replica(scenario, kv_tokens), scenario.adapters.base_alone
    commands = []
    for engine in (flag_tables()[name] for name in ENGINES[scenario.fleet.engine].flags):
        flags = [flag for flag in engine.flags if not (without_lora and "lora" in flag.name.lower())]
        texts = ((flag.text(replica), flag.keys) for flag in flags)
        options = tuple(WrittenOption(text, keys) for text, keys in texts if text is not None)
        commands.append(EngineCommand(engine.name, engine.command, options))
    return tuple(commands)


def engine_flags(scenario: Scenario, kv_tokens: int | None) -> dict[str, str]:
    """Return the command line that starts one replica as it was simulated, by engine; none where ``why_no_flags``.

    ``MODEL`` stands for the base model where the scenario names neither a repository nor a path.

    :param kv_tokens: tokens for which the replica had a KV cache.
    """
    model = served_model(scenario)
    return {command.engine: command.text.replace(MODEL, model, 1) for command in engine_commands(scenario, kv_tokens)}


def served_model(scenario: Scenario) -> str:
    """Return the repository or path of the base model as a command line has it; ``MODEL`` where it can't."""
    named = scenario.adapters.base_model or ""
    return named if "/" in named and _PATH.fullmatch(named) else MODEL


def why_no_flags(scenario: Scenario) -> str:
    """Return why no command line starts what was simulated, in one sentence; empty where one does.

    An engine has its own rules. A scenario that changes one of them, where no option does, simulates another engine.
    """
    name = scenario.fleet.engine
    if scenario.fleet.pools:
        return "No command line is given: each pool is started in its own way."
    if not ENGINES[name].flags:
        return f"No command line is given: {_NO_COMMAND.get(name, f'loraplan writes none for engine {name}')}."
    (engine,) = ENGINES[name].flags
    read_back = _read_back(scenario, flag_tables()[engine])
    for key in _RULES:
        value = value_of(scenario, key)
        if value not in (None, value_of(read_back, key)):
            return f"No command line is given: no option of {engine} sets {key} to {words_of(value)}."
    return ""


def _read_back(scenario: Scenario, engine: EngineFlags) -> Scenario:
    """Return the scenario with the rules that its engine follows when started with the command line alone."""
    replica = Replica(scenario)
    data: dict[str, Any] = {"fleet": {"engine": scenario.fleet.engine}, "cache": {}, "storage": {}}
    for key in (key for flag in engine.flags if flag.text(replica) is not None for key in flag.keys):
        section, *path, last = key.split(".")
        value = value_of(scenario, key)
        if section in data and value is not None:
            place = data[section]
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
    filled = fill(data)
    parts = (Fleet(**filled["fleet"]), Cache(**filled["cache"]), Storage(**filled["storage"]))
    return scenario.model_copy(update=dict(zip(data, parts, strict=True)))


def model_to_fill_in(scenario: Scenario) -> list[str]:
    """Return what ``MODEL`` stands for, where the scenario names the base model in short."""
    named = scenario.adapters.base_model
    if not named or served_model(scenario) != MODEL:
        return []
    return [f"{MODEL}, the repository or path of {named} (adapters.base_model: OWNER/NAME writes it)"]


def beyond_flags(scenario: Scenario) -> list[str]:
    """Return the parts of the scenario that these command lines can't express."""
    found = []
    fleet = scenario.fleet
    if fleet.autoscale is not None:
        bounds = f"{fleet.autoscale.min} to {fleet.autoscale.max} replicas"
        found.append(f"an autoscaler ({fleet.autoscale.policy}, {bounds}) behind a {scenario.router.policy} router")
    elif fleet.replicas > 1:
        found.append(f"{fleet.replicas} replicas behind a {scenario.router.policy} router")
    if fleet.scheduling == "priority" and scenario.tenants:
        priorities = ", ".join(f"{tenant.name} {tenant.priority}" for tenant in scenario.tenants)
        found.append(f"priorities of the tenants: each request must carry its own (priority: {priorities})")
    limited = [tenant.name for tenant in scenario.tenants if tenant.bucket is not None]
    if limited:
        found.append(f"token buckets of {', '.join(limited)}: a gateway in front of the engine has to limit them")
    if fleet.full_models is not None:
        found.append("replicas of full models, each started like this with its own MODEL and without LoRA")
    if scenario.adapters.base_quantization != "bf16":
        found.append(f"base weights in {scenario.adapters.base_quantization}: start from a checkpoint in this format")
    return found
