"""What a manifest starts: the engine, replicas and options of one run, each with where it comes from."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.formatting import plural
from sim.cells import one_line
from sim.errors import InputError
from sim.results.point import Point
from sim.results.slo_terms import all_terms
from sim.results.verdict import NO_SLO, grade, met_probability
from sim.spec.engine_flags.command_lines import (
    MODEL,
    EngineCommand,
    as_started,
    beyond_flags,
    engine_commands,
    served_model,
    why_no_flags,
)
from sim.spec.engines import ENGINES, release_of
from sim.spec.gpus import gpu_named
from sim.spec.profile_choice import gpus_per_replica, profile_of
from sim.spec.sections.control_plane import Router
from sim.spec.units import human_bytes
from sim.studies.design import build
from sim.training.files.census import Copies, take_census
from sim.training.files.engine_checks import ServingTarget, check_census
from sim.world.memory.gpu_memory import host_kv_bytes

if TYPE_CHECKING:
    from sim.results.run_directory.store import RunData
    from sim.spec.scenario import Scenario
    from sim.spec.sections.control_plane import Autoscale


# YAML whose values have comments.


@dataclass(frozen=True, slots=True)
class Commented:
    """A value with the comment behind it."""

    value: str | int | float | bool
    comment: str


def yaml_documents(head: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> str:
    """Return documents of one file.

    :param head: lines of the comment at its top.
    :param documents: plain data, in which a ``Commented`` may stand for any value.
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 10_000  # a comment belongs to the line before it
    parts = []
    for document in documents:
        target = io.StringIO()
        yaml.dump(_node(document), target)
        parts.append(target.getvalue())
    return comment_lines(head) + "---\n".join(parts)


def comment_lines(lines: Sequence[str]) -> str:
    """Return lines as comments of YAML or of a shell; none can end its comment, whatever a profile has in its texts."""
    return "".join(f"# {one_line(line)}".rstrip() + "\n" for line in lines)


def _node(value: Any) -> Any:
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(value, Mapping):
        mapping = CommentedMap()
        for key, item in value.items():
            mapping[key] = _node(item.value if isinstance(item, Commented) else item)
            if isinstance(item, Commented) and item.comment:
                mapping.yaml_add_eol_comment(item.comment, key, column=0)
        return mapping
    if isinstance(value, (list, tuple)):
        sequence = CommentedSeq()
        for place, item in enumerate(value):
            sequence.append(_node(item.value if isinstance(item, Commented) else item))
            if isinstance(item, Commented) and item.comment:
                sequence.yaml_add_eol_comment(item.comment, place, column=0)
        return sequence
    return value.value if isinstance(value, Commented) else value


# Adapters that a server registers at its start: read from a folder, checked against what was simulated.

MOST_LISTED = 1000
"""Adapters on one command line, at most; Linux allows 2 MB for all of it."""
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def list_adapters(folder: Path, scenario: Scenario) -> dict[str, str]:
    """Return the adapters of a folder by the names that requests give them, each with its own folder in there.

    :raises InputError: if one can't be read, is refused by the engine, has a name that command lines can't hold or a
        larger rank than was simulated, or their number is not the one that was simulated.
    """
    census, key = take_census(folder), "--adapters"
    if census.failures:
        first = census.failures[0]
        raise InputError("this is no LoRA adapter", key=key, got=f"{folder / first.folder}: {first.problem}")
    count, simulated = len(census.entries), scenario.adapters.count
    if simulated is not None and count != simulated:
        raise InputError(
            "another number of adapters was simulated",
            key=key,
            got=f"{count:,} in {folder}",
            allowed=f"{simulated:,} (adapters.count)",
            hint=f"--set adapters.count={count}, or leave --adapters out and load adapters while the server runs",
        )
    if count > MOST_LISTED:
        raise InputError(
            "too many adapters for a command line",
            key=key,
            got=f"{count:,}",
            allowed=f"up to {MOST_LISTED:,}",
            hint="leave --adapters out and load them while the server runs",
        )
    limit = scenario.slot_rank
    found = {}
    for entry in census.entries:
        name = folder.resolve().name if entry.folder == "." else entry.folder
        if max(entry.ranks, default=0) > limit:
            raise InputError(
                "an adapter has a larger rank than was simulated",
                key=key,
                got=f"{entry.folder} with rank {max(entry.ranks)}",
                allowed=f"up to {limit} (adapters.rank)",
                hint=f"--set adapters.rank={max(entry.ranks)}",
            )
        if _ADAPTER_NAME.fullmatch(name) is None:
            raise InputError(
                "an adapter's folder has a name that command lines can't hold",
                key=key,
                got=entry.folder,
                allowed="letters, digits, dots, dashes and underscores, a letter or digit first",
                hint="rename the folder",
            )
        found[name] = entry.folder
    for concern in check_census(census, ServingTarget(scenario.fleet.engine, limit), Copies((), 0)):
        if concern.level == "refused":
            raise InputError(
                f"{engine_of(scenario)} would not start with {plural(concern.count, 'adapter')} of this folder",
                key=key,
                got=f"{', '.join(concern.folders)}: {concern.words}",
                hint=f"all that is wrong: loraplan adapters {folder} --engine {scenario.fleet.engine}",
            )
    return found


PORT = 8000
ADAPTERS_FOLDER = "/adapters"
"""Where containers have the folder of adapters."""
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MOST_LETTERS = 50
"""Of a scenario's name: Kubernetes allows 63, and names of parts append to it."""


@dataclass(frozen=True, slots=True)
class Server:
    """How an engine is installed and watched.

    :ivar image: its container image without the tag.
    :ivar adapters_option: the option that lists adapters, each as ``name=path``.
    :ivar runtime_loading: environment that lets a running server load further adapters.
    :ivar load_path: the HTTP path that loads one.
    :ivar default_port: where it listens without an option.
    :ivar listen: options with which it listens on every address of its container, at ``PORT``; empty: it does anyway.
    """

    image: str
    adapters_option: str
    runtime_loading: Mapping[str, str]
    load_path: str
    listen: tuple[str, ...] = ()
    default_port: int = PORT
    health: str = "/health"


SERVERS = {
    # docs.vllm.ai: deployment/docker.html, features/lora.html (dynamic serving).
    "vLLM": Server(
        "vllm/vllm-openai", "--lora-modules", {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}, "/v1/load_lora_adapter"
    ),
    # docs.sglang.ai: get_started/install.html, advanced_features/lora.html (dynamic LoRA loading).
    # server_args.py: host 127.0.0.1, port 30000.
    "SGLang": Server(
        "lmsysorg/sglang",
        "--lora-paths",
        {},
        "/load_lora_adapter",
        ("--host=0.0.0.0", f"--port={PORT}"),
        default_port=30000,
    ),
}


@dataclass(frozen=True, slots=True)
class RunReference:
    """The run that numbers of a manifest come from.

    :ivar command: ``plan`` or ``run``; ``digest``: of what its scenario simulates.
    :ivar verdict: on the SLO; ``setup``: device, model, engine, profile and its status.
    """

    command: str
    name: str
    digest: str
    verdict: str
    setup: str

    def of(self, what: str) -> str:
        """Return the comment of a number: the key it follows from, and the run."""
        return f"{what}; {self.command} {self.name} {self.digest}, {self.verdict}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a manifest starts.

    :ivar engine: ``vLLM`` or ``SGLang``; ``release``: the version whose rules were simulated.
    :ivar command: starts one replica. ``model``: in place of ``MODEL``; that itself if the scenario names none.
    :ivar gpus: of one replica; ``gpus_key``: the key they follow from; ``gpu``: as its driver calls it.
    :ivar adapters: names and folders of those to register at the start; empty: all are loaded while the server runs.
    :ivar remarks: what the simulated fleet has and no manifest can say.
    :ivar autoscale: what scales the fleet; None: there are always ``replicas``.
    """

    name: str
    engine: str
    release: str
    command: EngineCommand
    model: str
    replicas: int
    gpus: int
    gpus_key: str
    gpu: str
    router: Router
    lora: bool
    adapters: Mapping[str, str]
    run: RunReference
    remarks: tuple[str, ...]
    autoscale: Autoscale | None = None

    @property
    def server(self) -> Server:
        """How its engine is installed and watched."""
        return SERVERS[self.engine]

    @property
    def image(self) -> str:
        """The container image of the release that was simulated."""
        return f"{self.server.image}:v{self.release}"

    @property
    def several(self) -> bool:
        """Whether requests are spread over several replicas, at least at times."""
        return self.replicas > 1 or (self.autoscale is not None and self.autoscale.max > 1)

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables of the server."""
        return self.server.runtime_loading if self.lora and not self.adapters else {}

    @property
    def model_note(self) -> str:
        """What to know of the base model."""
        if self.model == MODEL:
            return "replace MODEL with the base model's repository or path"
        return self.run.of("adapters.base_model")

    @property
    def port_comment(self) -> str:
        """Where the port comes from."""
        default = self.server.default_port
        own = f"{self.engine}'s default" if default == PORT else f"{self.engine} listens on {default} by default"
        return f"not simulated; {own}"

    @property
    def program(self) -> tuple[str, ...]:
        """The words that start the server, without the model."""
        words = (word for word in self.command.start.split() if word not in (MODEL, "--model-path"))
        return tuple("python3" if word == "python" else word for word in words)

    def model_words(self) -> tuple[str, ...]:
        """Return the words that name the model."""
        return ("--model-path", self.model) if "--model-path" in self.command.start else (self.model,)

    def options(self, adapters_in: str) -> list[tuple[list[str], str]]:
        """Return the options after the model: the words of each and its comment.

        :param adapters_in: the folder in which the server finds the adapters.
        """
        found = [
            (shlex.split(option.text), self.run.of(" and ".join(option.keys)) if option.keys else "")
            for option in self.command.options
        ]
        if self.adapters:
            named = [f"{name}={adapters_in}/{folder}".removesuffix("/.") for name, folder in self.adapters.items()]
            found.append(([self.server.adapters_option, *named], "from --adapters"))
        return found


def check_deployment(scenario: Scenario) -> None:
    """Refuse a scenario that has no manifest, before it is simulated.

    :raises InputError: saying what stands in the way.
    """
    if scenario.fleet.pools:
        raise InputError(
            "a fleet of pools has no manifest: each pool is a deployment of its own",
            key="--emit",
            got="fleet.pools",
            hint="run a scenario with one of the pools to emit its manifest",
        )
    offload = scenario.fleet.kv_offload
    if reason := why_no_flags(as_started(scenario, (offload and offload.host_memory) or 0)):
        raise InputError("this engine has no manifest", key="--emit", got=scenario.fleet.engine, hint=reason)
    if scenario.fleet.full_models is not None:
        raise InputError(
            "full models have no manifest: each is a deployment of its own",
            key="--emit",
            got="fleet.full_models",
            hint="plan them apart from the adapters",
        )
    name = scenario.name
    if _NAME.fullmatch(name) is None or len(name) > _MOST_LETTERS:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_MOST_LETTERS].strip("-")
        better = plain if _NAME.fullmatch(plain) else f"fleet-{plain}"[:_MOST_LETTERS].strip("-")
        raise InputError(
            "Kubernetes refuses this name",
            key="name",
            got=name,
            allowed=f"lower-case letters, digits and dashes, a letter first, at most {_MOST_LETTERS} characters",
            hint=f"--set name={better}",
        )
    model = scenario.adapters.base_model or ""
    if "/" in model and served_model(scenario) == MODEL:
        raise InputError(
            "a manifest can't hold this repository or path of a model",
            key="adapters.base_model",
            got=model,
            allowed="letters, digits, dots, dashes, underscores and slashes, no dash at the start of a part",
            hint="rename the folder, or use a link to it",
        )
    if scenario.fleet.gpu_memory is not None:
        raise InputError(
            "manifests are written for known GPUs, and this one's memory is not that of its model",
            key="fleet.gpu_memory",
            got=human_bytes(scenario.fleet.gpu_memory),
            hint="remove it, or emit for a GPU that loraplan profiles list shows",
        )
    profile, _ = profile_of(scenario)
    if profile is not None and gpu_named(profile.device) is None:
        raise InputError(
            "manifests are written for known GPUs, and this profile is of another device",
            key="fleet.profile",
            got=profile.device,
            hint="loraplan profiles list shows profiles of GPUs",
        )


def engine_of(scenario: Scenario) -> str:
    """Return whose command line starts a scenario's replicas: ``vLLM`` or ``SGLang``."""
    (engine,) = ENGINES[scenario.fleet.engine].flags
    return engine


def make_deployment(scenario: Scenario, data: RunData, point: Point, adapters: Mapping[str, str]) -> Deployment:
    """Return what starts the fleet of a point.

    :param scenario: of the point.
    :raises InputError: as ``check_deployment``.
    """
    check_deployment(scenario)
    offload = scenario.fleet.kv_offload
    if offload is not None and offload.host_memory is not None:
        scenario = as_started(scenario, host_kv_bytes(build(scenario).pools[0]))
    kv = point.capacity.kv
    (command,) = engine_commands(scenario, None if kv is None else kv.tokens)
    profile, _ = profile_of(scenario)
    assert profile is not None, "only engine fixed does without"
    gpu = gpu_named(profile.device)
    release = release_of(scenario.fleet.engine)
    assert gpu is not None, "checked"
    assert release is not None, "engines with a command line have versions"
    gpus = gpus_per_replica(scenario, profile)
    spread = f"the options that spread a replica over its {gpus} GPUs"
    # Of one replica: manifests say how many there are.
    one = scenario.model_copy(update={"fleet": scenario.fleet.model_copy(update={"replicas": 1, "autoscale": None})})
    return Deployment(
        name=scenario.name,
        engine=command.engine,
        release=release,
        command=command,
        model=served_model(scenario),
        replicas=scenario.fleet.replicas,
        gpus=gpus,
        gpus_key="fleet.tensor_parallel" if scenario.fleet.gpus_per_replica is None else "fleet.gpus_per_replica",
        gpu=gpu.label,
        router=scenario.router,
        lora=not scenario.adapters.base_alone,
        adapters=adapters,
        run=_reference(scenario, data, point),
        autoscale=scenario.fleet.autoscale,
        remarks=(*beyond_flags(one), *([] if gpus == profile.tensor_parallel else [spread])),
    )


def _reference(scenario: Scenario, data: RunData, point: Point) -> RunReference:
    terms = all_terms(scenario)
    found = grade(met_probability(point, terms)) if terms else NO_SLO
    planned = data.manifest.get("kind") == "plan"
    if found == NO_SLO:
        words = "no SLO"
    elif planned:
        words = "SLO met" if data.plan.certain else "SLO met, smaller values undecided"
    else:
        words = f"SLO {found}"
    setup = point.setup
    profile = "" if setup is None else f"{setup.device}, {setup.model}, profile {setup.profile} ({setup.status})"
    name, digest = str(data.manifest.get("name")), str(data.manifest.get("scenario_hash"))
    return RunReference("plan" if planned else "run", name, digest, words, profile)
