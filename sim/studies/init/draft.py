"""Drafts a scenario from settings with their origin, and leaves out those that can't be simulated, with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sim.errors import InputError, SeveralErrors
from sim.results.run_directory.result_files import write_text
from sim.spec.engine_flags.command_lines import ReadCommand, Setting
from sim.spec.engines import (
    DEFAULT_ENGINE,
    batch_limits,
    from_mem_fraction_static,
    is_vllm_since,
    nearest_version,
    prefill_chunk,
    preset_value,
)
from sim.spec.files.yaml_tree import flow_text
from sim.spec.gpus import DEFAULT_GPU
from sim.spec.profile import load_profile
from sim.spec.profile_choice import (
    DEFAULT_MODEL,
    MOST_GPUS,
    build_command,
    built_profile,
    has_profile,
    is_model,
    profile_of,
)
from sim.spec.scenario import Scenario
from sim.spec.scenario_file import load_scenario
from sim.studies.design import check_points
from sim.training.files.engine_checks import ServingTarget, check_serving_target

EXAMPLE = "an example: put your own here"
_SECTIONS = ("workload", "tenants", "adapters", "fleet", "cache", "storage", "router", "slo", "plan")
_TRAFFIC = (
    Setting("workload.requests", 20000, EXAMPLE),
    Setting("workload.arrivals", {"process": "poisson", "rate": "6/s"}, f"{EXAMPLE}; loraplan trace reads your log"),
    Setting("workload.popularity", {"law": "zipf", "exponent": 0.9}, EXAMPLE),
    Setting("workload.tokens.prompt", {"law": "lognormal", "mean": 300, "p99": 2000, "max": 4096}, EXAMPLE),
    Setting("workload.tokens.output", {"law": "lognormal", "mean": 120, "p99": 600, "max": 2048}, EXAMPLE),
)
_ADAPTERS = (Setting("adapters.count", 100, EXAMPLE), Setting("adapters.rank", 16, EXAMPLE))
_GOALS = (Setting("slo.ttft_p99", "1 s", EXAMPLE),)
_BATCH_KEYS = ("max_num_seqs", "max_num_batched_tokens")
_LARGER_SHARE_FROM = (0, 25)
_MODEL, _GPU, _GPUS = "adapters.base_model", "fleet.gpu", "fleet.tensor_parallel"
_SHARE = "fleet.gpu_memory_utilization"


@dataclass(slots=True)
class Draft:
    """What is known of a deployment.

    :ivar name: of the scenario.
    :ivar settings: by key; the first that was given counts.
    :ivar lines: whole sections that a reader wrote, by section: they are in place of examples.
    :ivar comments: what the command line says that no key holds.
    :ivar names: of the adapters in a trace; None: there is none, or it names none.
    :ivar engine_name: which engine a command line starts; its defaults fill what that leaves out.
    :ivar made_by: the command that drafts it.
    :ivar extends: the scenario that it builds on, as the file names it; nothing is filled with examples then.
    :ivar refused: by key, why a setting is commented out.
    """

    name: str
    settings: dict[str, Setting] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)
    names: tuple[str, ...] | None = None
    engine_name: str = ""
    made_by: str = "loraplan init"
    extends: str | None = None
    refused: dict[str, str] = field(default_factory=dict)

    def add(self, settings: Sequence[Setting]) -> None:
        """Take settings whose key has none yet, and that no whole section contradicts."""
        for setting in settings:
            section = setting.key.partition(".")[0]
            ours = section in self.lines and not (section == "adapters" and setting.key == _MODEL)
            if not ours:
                self.settings.setdefault(setting.key, setting)

    def add_command(self, command: ReadCommand) -> None:
        """Take what a command line says, unless the engine refuses its largest rank."""
        row = nearest_version(command.engine)
        engine = command.engine if row.simulated else row.preset
        check_serving_target(ServingTarget(engine, command.value("adapters.rank")), "--max-lora-rank")
        newest = "" if "-" in command.engine else " without a version: the newest rules"
        self.add([Setting("fleet.engine", engine, f"a command line of {command.name}{newest}"), *command.settings])
        if not row.simulated:
            self.comments.append(f"{engine} stands for {command.engine}: {command.name} {row.words} {row.about}")
        if command.model:
            self.add([Setting(_MODEL, command.model, "the command line's model")])
        elif _MODEL not in self.settings:
            self.comments.append(f"The command line names no model: {DEFAULT_MODEL} is assumed (adapters.base_model).")
        if not command.loras:
            self.comments.append("The command line doesn't enable LoRA; this scenario serves adapters all the same.")
        self.comments += [f"Not translated: {said}: {why}" for said, why in command.untranslated]
        self.comments += [f"Unknown option: {said}" for said in command.unknown]
        if command.of_server:
            self.comments.append(f"Of the server, without effect here: {' '.join(command.of_server)}")
        self.engine_name = command.name
        missing = [key for key in _BATCH_KEYS if f"fleet.{key}" not in self.settings]
        if missing and command.name not in ("vLLM", "SGLang"):  # of which each GPU's are known
            keys = " and ".join(f"fleet.{key}" for key in missing)
            self.comments.append(
                f"The command line leaves {keys} to {command.name}, whose default depends on its version and GPU; "
                "set what its log prints at the start."
            )

    def complete(self) -> None:
        """Fill what is not known with examples."""
        if self.extends is not None:
            return
        self.add([Setting("fleet.gpu", DEFAULT_GPU, "not given: yours may be another (loraplan profiles list)")])
        if self.engine_name == "vLLM":
            limits = batch_limits(str(self.settings["fleet.gpu"].value))
            self._add_limits(limits, "the default of vllm serve on this GPU; its log says it at the start")
            if "fleet.kv_tokens" not in self.settings:
                self.add([_memory_share(str(self.settings["fleet.engine"].value))])
        if self.engine_name == "SGLang":
            chunk = prefill_chunk(str(self.settings["fleet.gpu"].value))
            limits = dict(zip(_BATCH_KEYS, (preset_value("sglang", "fleet.max_num_seqs"), chunk), strict=True))
            self._add_limits(limits, "SGLang's default on this GPU")
        if "workload" not in self.lines:
            self.add(_TRAFFIC)
        if "adapters" not in self.lines:
            self.add(_ADAPTERS if self.names is None else _ADAPTERS[1:])
        if not any(key.startswith("slo.") for key in self.settings):
            self.add(_GOALS)

    def _add_limits(self, limits: Mapping[str, int], said: str) -> None:
        """Take an engine's limits of a step, with no more sequences than tokens that the command line gives it."""
        budget = self.settings.get("fleet.max_num_batched_tokens")
        if budget is not None and int(str(budget.value)) < limits["max_num_seqs"]:
            self.add([Setting("fleet.max_num_seqs", budget.value, f"each needs a token of a step ({budget.said})")])
        self.add([Setting(f"fleet.{key}", value, said) for key, value in limits.items()])

    def take_built_profile(self, folder: Path) -> None:
        """Take the profile that the user built, where none is bundled.

        :param folder: of the scenario.
        """
        wanted = self._wanted()
        if wanted is not None and not has_profile(*wanted) and (file := built_profile(*wanted)) is not None:
            named = Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
            said = f"{load_profile(f'./{file}')[0].name}: none is bundled for this GPU and model, and this one is here"
            self.add([Setting("fleet.profile", named if named.startswith("../") else f"./{named}", said)])

    def _wanted(self) -> tuple[str, str, str, int] | None:
        """Return the GPU, model, engine and GPUs of a replica that a profile is for; None without a profile to find."""
        if "fleet.profile" in self.settings.keys() - self.refused or self.extends is not None:
            return None
        defaults = {_GPU: DEFAULT_GPU, _MODEL: DEFAULT_MODEL, "fleet.engine": DEFAULT_ENGINE, _GPUS: 1}
        gpu, model, engine, gpus = (
            str(self.settings[key].value if key in self.settings else default) for key, default in defaults.items()
        )
        return gpu, model, engine, int(gpus) if int(gpus) <= MOST_GPUS else 1

    def next_step(self, path: Path) -> str:
        """Return the command that follows: what builds the profile that is missing, or else what runs the scenario."""
        wanted = self._wanted() if any("profiles build" in why for why in self.refused.values()) else None
        if wanted is None:
            return f"loraplan run {path}"
        return f"{build_command(*wanted)}; then remove {path} and draft it again, which takes that profile"

    def convert_share(self, scenario: Scenario) -> bool:
        """Put SGLang's share of the memory in terms of the profile, and return whether that changed the draft.

        :param scenario: as drafted so far.
        """
        given = self.settings.get(_SHARE)
        if given is None or not given.said.startswith("--mem-fraction-static") or _SHARE in self.refused:
            return False
        profile, _ = profile_of(scenario)
        assert profile is not None, "SGLang's steps have costs"
        share = from_mem_fraction_static(profile.memory, float(str(given.value)), profile.tensor_parallel)
        self.settings[_SHARE] = Setting(_SHARE, round(share, 3), f"as {given.said}, and what else the engine allocates")
        return True

    def notes(self) -> list[str]:
        """Return the comments; the first say if another base model, GPU or number of GPUs is simulated than given."""
        notes, refused = [*self.comments], self.refused
        if _GPUS in refused:
            given = self.settings[_GPUS]
            notes.insert(0, f"This draft is for 1 GPU a replica, not {given.value} ({given.said}): {refused[_GPUS]}")
        if _GPU in refused:
            given = self.settings[_GPU]
            other = f"Not your GPU: this simulates {DEFAULT_GPU}, not {given.value} ({given.said})"
            notes.insert(0, f"{other}: {refused[_GPU]}")
        if _MODEL in refused and not is_model(str(self.settings[_MODEL].value), DEFAULT_MODEL):
            simulated = "that of fleet.profile" if "fleet.profile" in self.settings.keys() - refused else DEFAULT_MODEL
            other = f"Not your model: this simulates {simulated}, not {self.settings[_MODEL].value}"
            notes.insert(0, f"{other}: {refused[_MODEL]}")
        return notes


def _memory_share(engine: str) -> Setting:
    larger = is_vllm_since(engine, _LARGER_SHARE_FROM)
    said = f"the default of vllm serve {'from 0.25 on' if larger else 'before 0.25'}"
    return Setting(_SHARE, 0.92 if larger else 0.9, said)


def write_draft(draft: Draft, path: Path) -> list[str]:
    """Write the scenario, without what can't be simulated, and return notes on that.

    A setting that the checks refuse stays as a comment, with the reason.
    """
    draft.complete()
    draft.take_built_profile(path.parent)
    refused = draft.refused
    hopeless: list[str] = []
    while not hopeless:
        write_text(path, scenario_text(draft))
        try:
            scenario = load_scenario(str(path), [])
            if draft.convert_share(scenario.scenario):
                continue
            check_points(scenario)
        except InputError as error:
            several = error.errors if isinstance(error, SeveralErrors) else [error]
            # One setting at a time: without it, what else was wrong may be right.
            pairs = ((key, each) for each in several for key in _named(each))
            key, found = next((pair for pair in pairs if pair[0] in draft.settings.keys() - refused), ("", error))
            if key:
                refused[key] = "; ".join(part for part in (found.problem, found.hint) if part)
            else:
                hopeless.append(f"the scenario is written, but can't be simulated as it stands: {error}")
        else:
            break
    others = [key for key in refused if key not in (_MODEL, _GPU, _GPUS)]
    left_out = [f"left out {key} ({draft.settings[key].said}): {refused[key]}" for key in others]
    return [*draft.notes(), *left_out, *hopeless]


def scenario_text(draft: Draft) -> str:
    """Return the text of the scenario file: every value has a comment that says where it comes from."""
    lines = [
        f"# Drafted by {draft.made_by}. Every value says where it comes from.",
        *(f"# {_one_line(note)}" for note in draft.notes()),
        "schema_version: 1",
        *([f"extends: {flow_text(draft.extends)}"] if draft.extends is not None else ()),
        f"name: {flow_text(draft.name)}",
    ]
    for section in _SECTIONS:
        own = [setting for key, setting in draft.settings.items() if key.partition(".")[0] == section]
        body = [*_yaml(own, draft.refused), *draft.lines.get(section, ())]
        if any(not line.lstrip().startswith("#") for line in body):
            lines += [f"{section}:", *body]
        else:
            lines += [line.strip() for line in body]
    return "\n".join(lines) + "\n"


def _yaml(settings: Sequence[Setting], refused: Mapping[str, str]) -> Iterator[str]:
    above: tuple[str, ...] = ()
    for setting in sorted(settings, key=lambda each: each.key.split(".")[1:-1]):
        _, *tables, last = setting.key.split(".")
        if setting.key in refused:
            yield (
                f"  # {'.'.join([*tables, last])}: {flow_text(setting.value)}   # {_one_line(setting.said)}; left out: "
                + (_one_line(refused[setting.key]))
            )
            continue
        for depth, table in enumerate(tables):
            if tuple(tables[: depth + 1]) != above[: depth + 1]:
                yield f"{'  ' * (depth + 1)}{table}:"
        above = tuple(tables)
        yield f"{'  ' * (len(tables) + 1)}{last}: {flow_text(setting.value)}   # {_one_line(setting.said)}"


_CHOOSE_PROFILE = (_MODEL, _GPUS, "fleet.gpu")
"""Keys that choose the profile, the most specific first."""


def _named(error: InputError) -> Iterator[str]:
    """Yield the keys that an error may be about: its own, and those that hold it."""
    key = error.key or ""
    yield key
    if key in _CHOOSE_PROFILE:  # none fits all of them: leave out the most specific
        yield from _CHOOSE_PROFILE
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
