"""Command lines of engines: the one that starts what a scenario simulates, and what one means in a scenario."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import InputError, did_you_mean
from sim.spec.engine_flags.options import EngineFlags, Flag, Replica, bare, flag_tables, whole_number
from sim.spec.engines import ENGINES, fill
from sim.spec.files.tree import plain, value_at
from sim.spec.files.yaml_tree import read_yaml
from sim.spec.needs import value_of, words_of
from sim.spec.sections.serving import Cache, Fleet, Storage

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario


# What a command line that starts vLLM or SGLang means in a scenario.

_STARTS = (
    ("vLLM", "vllm", re.compile(r"(^|/)vllm$|vllm\.entrypoints|vllm-openai")),
    ("SGLang", "sglang", re.compile(r"(^|/)sglang$|sglang\.launch_server|lmsysorg/sglang")),
)
_SERVES = re.compile(r"^serve$|vllm\.entrypoints|vllm-openai|launch_server|lmsysorg/sglang|(^|/)(ba|da|z)?sh$")
"""Words of a command that serves, or whose script may."""
_VERSION = re.compile(r":v?(\d+\.\d+(?:\.\d+)?)")
_SWITCHES = re.compile(r"(enable|disable)-.*|trust-remote-code|skip-tokenizer-init|allow-credentials")
"""Options outside the tables that take no value: the word behind one of them may be the model."""
_DETAIL = re.compile(r"\..*|(?<=^o)\d$")
"""What ``--compilation-config.level`` and ``-O0`` have behind the option."""
_SHELL = re.compile(r"(^|/)(ba|da|z)?sh$")
_SECRET = re.compile(r"(?is)((?<![a-z])(?:keys?|token|secrets?|passwords?)(?![a-z])[\w-]*)(?:=|\s+)[^\s-].*?(?=\s-|$)")


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for a key of a scenario.

    :ivar said: what it was read from, such as ``--max-loras 8``.
    """

    key: str
    value: object
    said: str


@dataclass(frozen=True, slots=True)
class ReadCommand:
    """A command line in a scenario's words.

    :ivar engine: as ``fleet.engine`` has it, with the version that an image names.
    :ivar name: the engine's name.
    :ivar model: the base model, as it is written; empty: it is not.
    :ivar settings: what its options mean.
    :ivar untranslated: options that no key can hold, with the reason.
    :ivar unknown: options that are in no table; ``of_server`` those of them that say nothing of speed or memory.
    :ivar loras: whether it enables LoRA.
    """

    engine: str
    name: str
    model: str
    settings: tuple[Setting, ...]
    untranslated: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]
    of_server: tuple[str, ...]
    loras: bool

    def value(self, key: str) -> Any:
        """Return what it means for a key of a scenario; None: nothing."""
        return next((setting.value for setting in self.settings if setting.key == key), None)


def _without_secrets(text: str) -> str:
    """Return a command line, or an option of one, with … for the values of keys, tokens, secrets and passwords."""
    return _SECRET.sub(r"\1 …", text)


def starts_engine(words: Sequence[str]) -> bool:
    """Return whether words are a command line that starts vLLM or SGLang."""
    return any(mark.search(word.partition(":")[0]) for word in words for _, _, mark in _STARTS)


def read_command(text: str | Sequence[str]) -> ReadCommand:
    """Read a command line, as a shell has it or split into words.

    :raises InputError: if it starts neither vLLM nor SGLang, or can't be split.
    """
    try:
        words = engine_words_of(_started(_commands(text)) if isinstance(text, str) else text)
    except ValueError as error:
        raise InputError("not a command line", got=_without_secrets(str(text))[:80], hint=str(error)) from None
    for place, word in enumerate(words):
        for table, engine, mark in _STARTS:
            if mark.search(word.partition(":")[0]):
                version = _VERSION.search(word)
                rest = words[place + 1 :]
                while (rest and rest[0] in ("serve", "vllm", "python", "python3", "-m", "sglang", "launch_server")) or (
                    rest and re.search(r"vllm\.entrypoints|sglang\.launch_server", rest[0])
                ):
                    rest.pop(0)
                if len(rest) > 1 and not rest[1].startswith("-") and (hint := did_you_mean(rest[0], ["serve"])):
                    raise InputError("unknown command of an engine", got=rest[0], allowed="serve", hint=hint)
                rest = _with_config_file(rest)
                return _read(flag_tables()[table], f"{engine}-{version[1]}" if version else engine, rest)
    raise InputError(
        "no command line of vLLM or SGLang",
        got=_without_secrets(" ".join(words))[:80],
        allowed='"vllm serve MODEL --enable-lora ..." or "python -m sglang.launch_server --model-path MODEL ..."',
    )


def engine_words_of(words: Sequence[str]) -> list[str]:
    """Replace ``sh -c "cd /models && exec vllm serve ..."`` by the command in it that starts the engine; without a
    shell, return the words as they are.

    :raises ValueError: for quotes that don't end.
    """
    found = script_of_shell(words)
    if found is None:
        return list(words)
    shell, script = found
    started = _started(_commands(words[script]))
    return [*words[:shell], *started[started[:1] == ["exec"] :], *words[script + 1 :]]


def script_of_shell(words: Sequence[str]) -> tuple[int, int] | None:
    """Return which words are a shell and its script, as in ``bash -euo pipefail -c SCRIPT``; None: there is none."""
    shell = next((number for number, word in enumerate(words) if _SHELL.search(word)), None)
    if shell is None:
        return None
    options = (number for number in range(shell + 1, len(words) - 1) if re.fullmatch(r"-\w*c", words[number]))
    option = next(options, None)
    return None if option is None else (shell, option + 1)


_COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)
_REDIRECTED = re.compile(r"\s\d*>&\d")
_ENDS = ";&|\n"


def _commands(text: str) -> list[list[str]]:
    """Return the words of each command of a shell's line or script."""
    text = _REDIRECTED.sub(" ", _COMMENT.sub(r"\1", text.replace("\\\n", " ")))
    words = shlex.shlex(text, posix=True, punctuation_chars=_ENDS)
    words.whitespace, words.whitespace_split, words.commenters = " \t\r", True, ""
    groups = itertools.groupby(words, lambda word: bool(word) and set(word) <= set(_ENDS))
    commands: list[list[str]] = []
    arguments: list[str] = []  # of the script: what "set --" makes them
    for command in (list(group) for is_end, group in groups if not is_end):
        said = [inner for word in command for inner in (arguments if word in ("$@", "${@}") else [word])]
        if said[0] == "set" and "--" in said:
            arguments = said[said.index("--") + 1 :]
        else:
            commands.append(said)
    return commands or [arguments]


def _started(commands: list[list[str]]) -> list[str]:
    """Return the command that starts an engine: one that serves, rather than one that installs it or enters its folder.

    If none does, the last.
    """
    engines = [command for command in commands if starts_engine(command)]
    if not engines:
        return commands[-1] if commands else []
    return next((command for command in engines if any(map(_SERVES.search, command))), engines[0])


def _with_config_file(words: Sequence[str]) -> list[str]:
    """Replace ``--config FILE`` by the options in that file, where it is here; those on the command line come last and
    so count, as in ``FlexibleArgumentParser`` of vLLM 0.32.

    :raises InputError: if it is no YAML mapping.
    """
    place = next((number for number, word in enumerate(words) if re.match("--config(=|$)", word)), None)
    if place is None:
        return list(words)
    _, equals, name = words[place].partition("=")
    after = place + 1 if equals else place + 2
    path = Path(name if equals else "".join(words[place + 1 : after]))
    if not path.is_file():
        return list(words)
    options: list[str] = []
    for key, value in plain(read_yaml(path, str(path))).items():
        if isinstance(value, bool):
            options.append(f"--{'' if value else 'no-'}{key}")
        elif isinstance(value, list):
            options += [f"--{key}", *map(str, value)] if value else []
        else:
            options.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    head = 1 if words[0] != words[place] and not words[0].startswith("-") else 0  # the model
    return [*words[:head], *options, *words[head:place], *words[after:]]


def _read(table: EngineFlags, engine: str, words: list[str]) -> ReadCommand:
    flags = {bare(name): flag for flag in table.flags for name in (flag.name, *flag.also)}
    given, said, model = _options(flags, words)
    settings: dict[str, Setting] = {}
    untranslated: list[tuple[str, str]] = []
    unknown: list[str] = []
    of_server: list[str] = []
    for name, values in given.items():
        flag = flags.get(name) or flags.get(name.removeprefix("no-")) or flags.get(_DETAIL.sub("", name))
        if flag is None:
            place = of_server if name.removeprefix("no-").startswith(table.of_server) else unknown
            near = None if place is of_server else did_you_mean(f"--{name}", [each.name for each in table.flags])
            place.append(_without_secrets(said[name]) + (f" ({near})" if near else ""))
            continue
        if flag.name in ("--model", "--model-path"):
            model = model or "".join(values[:1])
            continue
        found = _meaning(flag, name, values, given)
        for key, value in found.items():
            settings[key] = Setting(key, value, said[name])
        if not found and flag.name != "--enable-lora":
            untranslated.append((said[name], flag.about or f"no value of {flag.sets[0]}"))
    for flag in table.flags:
        if flag.unset is not None and flag.keys[0] not in settings:
            settings[flag.keys[0]] = Setting(flag.keys[0], flag.unset, f"{table.name}'s default without {flag.name}")
    loras = "enable-lora" in given or "lora-paths" in given
    return ReadCommand(
        engine=engine,
        name=table.name,
        model=model,
        settings=tuple(settings.values()),
        untranslated=tuple(untranslated),
        unknown=tuple(unknown),
        of_server=tuple(of_server),
        loras=loras,
    )


def _options(flags: dict[str, Flag], words: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str], str]:
    """Return the options by bare name with the words behind them, the same as written, and a word of no option."""
    given: dict[str, list[str]] = {}
    said: dict[str, str] = {}
    model, name = "", ""
    for word in words:
        if word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word):
            option, equals, value = word.partition("=")
            name = bare(option)
            given[name], said[name] = ([value] if equals else []), word
            flag = flags.get(name) or flags.get(name.removeprefix("no-"))
            is_switch = _SWITCHES.fullmatch(name) is not None if flag is None else flag.is_switch
            if equals or is_switch or name.startswith("no-"):
                name = ""
        elif name:
            given[name].append(word)
            said[name] += f" {word}"
            flag = flags.get(name)
            if flag is not None and flag.sets and flag.reads is None:
                name = ""  # one number, and what follows is the model
        else:
            model = model or word
    return given, said, model


def _meaning(flag: Flag, name: str, values: list[str], given: dict[str, list[str]]) -> dict[str, object]:
    if flag.reads is not None:
        return dict(flag.reads(values, given))
    if not flag.sets:
        return {}
    pairs = [setting.partition(": ")[::2] for setting in flag.sets]
    if flag.is_switch:
        off = name.startswith("no-") or values == ["false"]
        if any(value for _, value in pairs):
            return {} if off else {key: _scalar(value) for key, value in pairs}
        return {pairs[0][0]: not off}
    word = values[0] if values else "nothing"
    if word in ("auto", "None", "-1"):
        return {}
    number = _scalar(word)
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not number > 0:
        raise InputError("not a number above zero", key=flag.name, got=word)
    return {pairs[0][0]: number}


def _scalar(word: str) -> object:
    if word in ("true", "false"):
        return word == "true"
    whole = whole_number([word])
    if whole is not None and "." not in word:
        return whole
    try:
        return float(word)
    except ValueError:
        return word


# The command line that starts an engine as a scenario simulates it, or why there is none.

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
    *(f"fleet.kv_offload.{key}" for key in ("host_memory", "policy", "answers", "store_from")),
    *(f"fleet.{key}" for key in ("kv_check", "schedule_conservativeness", "overlap_schedule", "drain_wait")),
)
"""Keys that say how an engine works, rather than what it runs on or what it serves."""


_VLLM_BLOCKS = (1, 8, 16, 32, 64, 128, 256)
"""What ``--block-size`` takes: config/cache.py, BlockSize."""


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
    if engine == "vLLM" and scenario.fleet.block_size not in _VLLM_BLOCKS:
        return f"No command line is given: vLLM has no KV blocks of {scenario.fleet.block_size} tokens."
    read_back = _read_back(scenario, flag_tables()[engine])
    for key in _RULES:
        value = value_of(scenario, key)
        if value not in (None, value_of(read_back, key)):
            return f"No command line is given: no option of {engine} sets {key} to {words_of(value)}."
    return ""


def as_started(scenario: Scenario, host_kv: int) -> Scenario:
    """Return the scenario as a command line can say it: with a size for KV, not a sum that copies of adapters share.

    :param host_kv: bytes of host memory that a replica has for KV.
    """
    offload = scenario.fleet.kv_offload
    if offload is None or offload.host_memory is None:
        return scenario
    split = offload.model_copy(update={"size": host_kv, "host_memory": None})
    return scenario.model_copy(update={"fleet": scenario.fleet.model_copy(update={"kv_offload": split})})


def _read_back(scenario: Scenario, engine: EngineFlags) -> Scenario:
    """Return the scenario with the rules that its engine follows when started with the command line alone."""
    replica = Replica(scenario)
    data: dict[str, Any] = {"fleet": {"engine": scenario.fleet.engine}, "cache": {}, "storage": {}}
    written = scenario.model_dump(mode="json")
    for key in (key for flag in engine.flags if flag.text(replica) is not None for key in flag.keys):
        section, *path, last = key.split(".")
        if section in data and value_of(scenario, key) is not None:
            place = data[section]
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value_at(written, key)  # with its unit
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
    fleet, policy = scenario.fleet, scenario.router.policy
    router = f"behind {'an' if policy[0] in 'aeio' else 'a'} {policy} router"
    if fleet.autoscale is not None:
        bounds = f"{fleet.autoscale.min} to {fleet.autoscale.max} replicas"
        found.append(f"an autoscaler ({fleet.autoscale.policy}, {bounds}) {router}")
    elif fleet.replicas > 1:
        found.append(f"{fleet.replicas} replicas {router}")
    if fleet.scheduling == "priority" and scenario.tenants:
        priorities = ", ".join(f"{tenant.name} {tenant.priority}" for tenant in scenario.tenants)
        found.append(f"priorities of the tenants: each request must carry its own (priority: {priorities})")
    limited = [tenant.name for tenant in scenario.tenants if tenant.bucket is not None]
    if limited:
        found.append(f"token buckets of {', '.join(limited)}: a gateway in front of the engine has to limit them")
    if fleet.full_models is not None:
        found.append("replicas of full models, each started like this with its own MODEL and without LoRA")
    if fleet.speculation is not None and fleet.speculation.method != "ngram":
        found.append("DRAFT, the repository or path of the model that drafts")
    if scenario.adapters.base_quantization != "bf16":
        found.append(f"base weights in {scenario.adapters.base_quantization}: start from a checkpoint in this format")
    return found
