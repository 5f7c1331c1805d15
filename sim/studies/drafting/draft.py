"""Drafts a scenario from settings with their origin, and leaves out those that can't be simulated, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sim.errors import InputError, SeveralErrors
from sim.results.run_directory.result_files import write_text
from sim.spec.engine_flags.command_lines import ReadCommand, Setting
from sim.spec.engines import batch_limits, nearest_version, release_of
from sim.spec.files.yaml_tree import flow_text
from sim.spec.gpus import DEFAULT_GPU
from sim.spec.profile_choice import DEFAULT_MODEL
from sim.spec.scenario_file import load_scenario
from sim.studies.sweep import check_points

EXAMPLE = "an example: put your own here"
_SECTIONS = ("workload", "tenants", "adapters", "fleet", "cache", "storage", "router", "slo")
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
_MOST_TRIES = 8


@dataclass(slots=True)
class Draft:
    """What is known of a deployment.

    :ivar name: of the scenario.
    :ivar settings: by key; the first that was given counts.
    :ivar lines: whole sections that a reader wrote, by section: they are in place of examples.
    :ivar comments: what the command line says that no key holds.
    :ivar names_adapters: whether a trace says which adapters there are.
    :ivar runs_vllm: whether a command line says that vLLM serves, so that its defaults fill what it leaves out.
    :ivar made_by: the command that drafts it.
    :ivar extends: the scenario that it builds on, as the file names it; nothing is filled with examples then.
    """

    name: str
    settings: dict[str, Setting] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    comments: list[str] = field(default_factory=list)
    names_adapters: bool = False
    runs_vllm: bool = False
    made_by: str = "loraplan init"
    extends: str | None = None

    def add(self, settings: Sequence[Setting]) -> None:
        """Take settings whose key has none yet, and that no whole section contradicts."""
        for setting in settings:
            section = setting.key.partition(".")[0]
            ours = section in self.lines and not (section == "adapters" and setting.key == "adapters.base_model")
            if not ours:
                self.settings.setdefault(setting.key, setting)

    def add_command(self, command: ReadCommand) -> None:
        """Take what a command line says."""
        row = nearest_version(command.engine)
        engine = command.engine if row.simulated else row.preset
        self.add([Setting("fleet.engine", engine, f"a command line of {command.name}"), *command.settings])
        if not row.simulated:
            self.comments.append(f"{engine} stands for {command.engine}: {command.name} {row.words} {row.about}")
        if command.model:
            self.add([Setting("adapters.base_model", command.model, "the command line's model")])
        elif "adapters.base_model" not in self.settings:
            self.comments.append(f"The command line names no model: {DEFAULT_MODEL} is assumed (adapters.base_model).")
        if not command.loras:
            self.comments.append("The command line doesn't enable LoRA; this scenario serves adapters all the same.")
        self.comments += [f"Not translated: {said}: {why}" for said, why in command.untranslated]
        self.comments += [f"Unknown option: {said}" for said in command.unknown]
        if command.of_server:
            self.comments.append(f"Of the server, without effect here: {' '.join(command.of_server)}")
        missing = [key for key in _BATCH_KEYS if f"fleet.{key}" not in self.settings]
        self.runs_vllm = command.name == "vLLM"
        if missing and not self.runs_vllm:
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
        if self.runs_vllm:
            limits = batch_limits(str(self.settings["fleet.gpu"].value))
            said = "the default of vllm serve on this GPU; its log says it at the start"
            self.add([Setting(f"fleet.{key}", value, said) for key, value in limits.items()])
            if "fleet.kv_tokens" not in self.settings:
                self.add([_memory_share(str(self.settings["fleet.engine"].value))])
        if "workload" not in self.lines:
            self.add(_TRAFFIC)
        if "adapters" not in self.lines:
            self.add(_ADAPTERS[1:] if self.names_adapters else _ADAPTERS)
        self.add(_GOALS)


def _memory_share(engine: str) -> Setting:
    """Return the share of the GPU's memory that a version of vLLM takes where its command line doesn't say."""
    larger = tuple(map(int, (release_of(engine) or "0").split(".")[:2])) >= _LARGER_SHARE_FROM
    said = f"the default of vllm serve {'from 0.25 on' if larger else 'before 0.25'}"
    return Setting("fleet.gpu_memory_utilization", 0.92 if larger else 0.9, said)


def write_draft(draft: Draft, path: Path) -> list[str]:
    """Write the scenario, without what can't be simulated, and return notes on that.

    A setting that the checks refuse stays as a comment, with the reason.
    """
    draft.complete()
    refused: dict[str, str] = {}
    for _ in range(_MOST_TRIES):
        write_text(path, scenario_text(draft, refused))
        try:
            check_points(load_scenario(str(path), []))
        except InputError as error:
            first = error.errors[0] if isinstance(error, SeveralErrors) else error
            key = next((key for key in _named(first) if key in draft.settings and key not in refused), None)
            if key is None:
                return [
                    *_notes(draft, refused),
                    f"the scenario is written, but can't be simulated as it stands: {error}",
                ]
            refused[key] = "; ".join(part for part in (first.problem, first.hint) if part)
        else:
            break
    return _notes(draft, refused)


def scenario_text(draft: Draft, refused: dict[str, str]) -> str:
    """Return the text of the scenario file: every value has a comment that says where it comes from.

    :param refused: by key, why a setting is commented out.
    """
    lines = [
        f"# Drafted by {draft.made_by}. Every value says where it comes from.",
        *(f"# {_one_line(comment)}" for comment in draft.comments),
        "schema_version: 1",
        *([f"extends: {flow_text(draft.extends)}"] if draft.extends is not None else ()),
        f"name: {draft.name}",
    ]
    for section in _SECTIONS:
        own = [setting for key, setting in draft.settings.items() if key.partition(".")[0] == section]
        body = [*_yaml(own, refused), *draft.lines.get(section, ())]
        if any(not line.lstrip().startswith("#") for line in body):
            lines += [f"{section}:", *body]
        else:
            lines += [line.strip() for line in body]
    return "\n".join(lines) + "\n"


def _yaml(settings: Sequence[Setting], refused: dict[str, str]) -> Iterator[str]:
    """Yield the lines below a section; keys of one table stand together."""
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


_CHOOSE_PROFILE = ("adapters.base_model", "fleet.tensor_parallel", "fleet.gpu")
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


def _notes(draft: Draft, refused: dict[str, str]) -> list[str]:
    left_out = [f"left out {key} ({draft.settings[key].said}): {why}" for key, why in refused.items()]
    return [*draft.comments, *left_out]


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
