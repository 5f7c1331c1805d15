"""What a command line that starts vLLM or SGLang means in a scenario."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sim.errors import InputError, did_you_mean
from sim.spec.engine_flags.options import EngineFlags, Flag, bare, flag_tables, whole_number

_STARTS = (
    ("vLLM", "vllm", re.compile(r"(^|/)vllm$|vllm\.entrypoints|vllm-openai")),
    ("SGLang", "sglang", re.compile(r"(^|/)sglang$|sglang\.launch_server|lmsysorg/sglang")),
)
_VERSION = re.compile(r":v?(\d+\.\d+(?:\.\d+)?)")
_SERVING = re.compile(
    r"host|port|served-model-name|api-key|log|uvicorn|download-dir|load-format|trust-remote-code|chat-template|seed|"
    r"tokenizer|ssl|cors|root-path|allowed|disable-log|enable-log|enable-auto-tool-choice|tool-call|reasoning-parser|"
    r"metric|uds|middleware|revision|hf-|cuda-graph|compilation|enforce-eager"
)
"""Options of a server that are not about what it can serve, or how fast."""
_SWITCHES = re.compile(r"(enable|disable)-.*|trust-remote-code|enforce-eager|skip-tokenizer-init|allow-credentials")
"""Options outside the tables that take no value: the word behind one of them may be the model."""
_SHELL = re.compile(r"(^|/)(ba|da|z)?sh$")


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


def starts_engine(words: Sequence[str]) -> bool:
    """Return whether words are a command line that starts vLLM or SGLang."""
    return any(mark.search(word.partition(":")[0]) for word in words for _, _, mark in _STARTS)


def read_command(text: str | Sequence[str]) -> ReadCommand:
    """Read a command line, as a shell has it or split into words.

    :raises InputError: if it starts neither vLLM nor SGLang, or can't be split.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True) if isinstance(text, str) else list(text)
        words = _without_shell(words)
    except ValueError as error:
        raise InputError("not a command line", got=str(text)[:80], hint=str(error)) from None
    for place, word in enumerate(words):
        for table, engine, mark in _STARTS:
            if mark.search(word.partition(":")[0]):
                version = _VERSION.search(word)
                rest = words[place + 1 :]
                while (rest and rest[0] in ("serve", "vllm", "python", "python3", "-m", "sglang", "launch_server")) or (
                    rest and re.search(r"vllm\.entrypoints|sglang\.launch_server", rest[0])
                ):
                    rest.pop(0)
                return _read(flag_tables()[table], f"{engine}-{version[1]}" if version else engine, rest)
    raise InputError(
        "no command line of vLLM or SGLang",
        got=" ".join(words)[:80],
        allowed='"vllm serve MODEL --enable-lora ..." or "python -m sglang.launch_server --model-path MODEL ..."',
    )


def _without_shell(words: list[str]) -> list[str]:
    """Return the words of ``sh -c "cd /models && exec vllm serve ..."`` that start the engine; else all as they are."""
    for place, word in enumerate(words[:-2]):
        if _SHELL.search(word) and re.fullmatch(r"-\w*c", words[place + 1]):
            parts = [shlex.split(part) for part in re.split(r"&&|\|\||;|\n", words[place + 2].replace("\\\n", " "))]
            found = next((part for part in parts if starts_engine(part)), parts[-1])
            return [*words[:place], *found[found[:1] == ["exec"] :], *words[place + 3 :]]
    return words


def _read(table: EngineFlags, engine: str, words: list[str]) -> ReadCommand:
    flags = {bare(name): flag for flag in table.flags for name in (flag.name, *flag.also)}
    given, said, model = _options(flags, words)
    settings: dict[str, Setting] = {}
    untranslated: list[tuple[str, str]] = []
    unknown: list[str] = []
    of_server: list[str] = []
    for name, values in given.items():
        flag = flags.get(name) or flags.get(name.removeprefix("no-"))
        if flag is None:
            place = of_server if _SERVING.match(name) else unknown
            near = None if place is of_server else did_you_mean(f"--{name}", [each.name for each in table.flags])
            place.append(said[name] + (f" ({near})" if near else ""))
            continue
        if flag.name in ("--model", "--model-path"):
            model = values[0] if values else model
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
            if equals or _is_switch(flags, name):
                name = "" if _is_switch(flags, name) else name
        elif name:
            given[name].append(word)
            said[name] += f" {word}"
        else:
            model = model or word
    return given, said, model


def _is_switch(flags: dict[str, Flag], name: str) -> bool:
    flag = flags.get(name) or flags.get(name.removeprefix("no-"))
    if flag is None:
        return name.startswith("no-") or _SWITCHES.fullmatch(name) is not None
    return name.startswith("no-") or flag.is_switch


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
    if not values or values[0] in ("auto", "None", "-1"):
        return {}
    number = _scalar(values[0])
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not number > 0:
        raise InputError("not a number above zero", key=flag.name, got=values[0])
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
