"""``--emit KIND=DIR``: which manifests there are, and how they are written."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.errors import InputError, OutputError, did_you_mean
from sim.reading import open_regular
from sim.results.run_directory.result_files import write_text
from sim.spec.scenario import Scenario
from sim.studies.deploy.deployment import (
    ADAPTERS_FOLDER,
    PORT,
    Commented,
    Deployment,
    check_deployment,
    comment_lines,
    engine_of,
    yaml_documents,
)
from sim.studies.deploy.kubernetes import FILE as AUTOSCALER_FILE
from sim.studies.deploy.kubernetes import (
    MAY_LOAD,
    NOT_SIMULATED,
    argument_lines,
    autoscaler_file,
    check_router,
    deployment_file,
    inference_service_file,
    picker_file,
    pool_file,
    servers_file,
    why_no_autoscaler,
)
from sim.version import __version__

# A shell script that starts one replica.

ADAPTERS_HERE = "adapters"
"""The folder of adapters beside the script."""


def shell_script(found: Deployment, head: list[str]) -> str:
    """Return the script, with the run behind every option."""
    program, *rest = found.program
    lines = [f"{shlex.join(['set', '--', *rest, *found.model_words()])} # {found.model_note}"]
    if found.several:
        scale = found.autoscale
        count = f"{scale.min} to {scale.max}" if scale else f"{found.replicas}"
        many = f"{count} replicas behind a router with policy {found.router.policy}"
        head = [*head, f"It starts one of {many}; give each a --port and GPUs of its own."]
    if found.adapters:
        head = [
            *head,
            f"It finds the adapters in the folder named by ADAPTERS; unset: {ADAPTERS_HERE}, beside this file.",
        ]
        lines.insert(0, f'ADAPTERS="${{ADAPTERS:-$(dirname -- "$0")/{ADAPTERS_HERE}}}"')
    for words, note in found.options("$ADAPTERS"):
        lines.append(f'set -- "$@" {" ".join(map(_quoted, words))}' + (f" # {note}" if note else ""))
    exports = [
        f"export {key}={shlex.quote(value)} # lets clients load adapters" for key, value in found.environment.items()
    ]
    start = f'exec {shlex.quote(program)} "$@"'
    return "#!/bin/sh\n" + comment_lines(head) + "\n".join(["set -eu", *exports, *lines, start]) + "\n"


def _quoted(word: str) -> str:
    """Return a word as the shell reads it; the folder of adapters stays a variable."""
    name, equals, path = word.partition("=$ADAPTERS")
    return f'{shlex.quote(name)}="$ADAPTERS"{shlex.quote(path) if path else ""}' if equals else shlex.quote(word)


# A Compose file: one service for each replica, all on one machine (https://github.com/compose-spec/compose-spec).


def compose_file(found: Deployment, head: list[str]) -> str:
    """Return the Compose file; replicas take the GPUs of the machine in order, and ports from 8000 on."""
    services = {
        found.name if found.replicas == 1 else f"{found.name}-{number}": _service(found, number)
        for number in range(found.replicas)
    }
    gpus = found.replicas * found.gpus
    lines = [*head, f"It needs {gpus} GPU{'s' if gpus > 1 else ''} in this machine."]
    if found.replicas > 1:
        lines.append(
            f"{found.replicas} services; put a router with policy {found.router.policy} in front, as was simulated."
        )
    return yaml_documents(lines, [{"name": found.name, "services": services}])


def _service(found: Deployment, number: int) -> dict[str, Any]:
    server = found.server
    first = number * found.gpus
    devices = [Commented(str(first + place), found.run.of(found.gpus_key)) for place in range(found.gpus)]
    service: dict[str, Any] = {
        "image": Commented(found.image, found.run.of("fleet.engine")),
        "entrypoint": list(found.program),
        "command": argument_lines(found),
        "ports": [Commented(f"{PORT + number}:{PORT}", NOT_SIMULATED)],
        "ipc": "host",
        "volumes": ["${HOME}/.cache/huggingface:/root/.cache/huggingface"],
        "healthcheck": {
            "test": ["CMD", "curl", "-f", Commented(f"http://localhost:{PORT}{server.health}", NOT_SIMULATED)],
            "interval": Commented("10s", NOT_SIMULATED),
            "start_period": Commented("10m", "not simulated; time to load the model"),
        },
        "deploy": {
            "resources": {
                "reservations": {"devices": [{"driver": "nvidia", "device_ids": devices, "capabilities": ["gpu"]}]}
            }
        },
    }
    environment: dict[str, Any] = {"HF_TOKEN": "${HF_TOKEN:-}"}
    environment |= {key: Commented(value, MAY_LOAD) for key, value in found.environment.items()}
    service["environment"] = environment
    if found.adapters:
        service["volumes"].append(f"./adapters:{ADAPTERS_FOLDER}:ro")
    return service


Writer = Callable[[Deployment, list[str]], str]
"""Makes a file of what a run simulated; the lines are the comment at its top. Where a text is empty, there is nothing
to say, and no file is written."""
_MARK = "Written by loraplan"
_FIRST_BYTES = 400


@dataclass(frozen=True, slots=True)
class ManifestKind:
    """One kind of manifests.

    :ivar files: what writes each file, by its name.
    :ivar engines: those that have such a manifest.
    :ivar check: refuses what else such a manifest can't say.
    :ivar fixed: whether it starts a number of replicas, and nothing that changes it.
    """

    files: Mapping[str, Writer]
    engines: tuple[str, ...] = ("vLLM", "SGLang")
    check: Callable[[Scenario], None] = lambda scenario: None
    fixed: bool = False


KINDS: Mapping[str, ManifestKind] = {
    "vllm": ManifestKind({"serve.sh": shell_script}, ("vLLM",)),
    "sglang": ManifestKind({"serve.sh": shell_script}, ("SGLang",)),
    "compose": ManifestKind({"compose.yaml": compose_file}, fixed=True),
    "k8s": ManifestKind({"deployment.yaml": deployment_file, AUTOSCALER_FILE: autoscaler_file}),
    "kserve": ManifestKind({"inference-service.yaml": inference_service_file}, fixed=True),
    "llm-d": ManifestKind(
        {"deployment.yaml": servers_file, "pool.yaml": pool_file, "endpoint-picker.yaml": picker_file},
        ("vLLM",),
        check_router,
        fixed=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Emission:
    """One ``--emit``: a kind of manifests and the folder for them."""

    kind: str
    folder: Path


def parse_emissions(texts: list[str]) -> list[Emission]:
    """Return what the options ask for.

    :raises InputError: if one is no kind of manifest and its folder, or two have the same folder or nested ones.
    """
    found: list[Emission] = []
    for text in texts:
        kind, equals, folder = text.partition("=")
        if not equals or not folder.strip() or kind not in KINDS:
            raise InputError(
                "not a kind of manifest and its folder",
                key="--emit",
                got=text,
                allowed=f"KIND=DIR, with a KIND of {', '.join(KINDS)}",
                hint=did_you_mean(kind, KINDS) if kind not in KINDS else f"such as {kind}=deploy/",
            )
        _check_apart(Path(folder), [each.folder for each in found])
        found.append(Emission(kind, Path(folder)))
    return found


def _check_apart(folder: Path, others: list[Path]) -> None:
    """Refuse a folder that is another one's, or inside it: the next run would find files there that are not its own."""
    place = folder.resolve()
    for other in others:
        there = other.resolve()
        if place == there:
            raise InputError("two kinds of manifests have the same folder", key="--emit", got=str(folder))
        if place.is_relative_to(there) or there.is_relative_to(place):
            raise InputError(
                "one folder of manifests is inside another",
                key="--emit",
                got=f"{other} and {folder}",
                hint="give folders beside each other",
            )


def check_emission(emission: Emission, scenario: Scenario) -> None:
    """Refuse what can't be emitted, before anything is simulated.

    :raises InputError: if the scenario has no such manifest, or the folder holds files of others.
    """
    check_deployment(scenario)
    engine, kind = engine_of(scenario), KINDS[emission.kind]
    if engine not in kind.engines:
        raise InputError(
            f"this scenario simulates {engine}, and nothing is emitted for an engine that was not simulated",
            key="--emit",
            got=emission.kind,
            allowed=", ".join(name for name, each in KINDS.items() if engine in each.engines),
            hint=f"or simulate it: --set fleet.engine={kind.engines[0].lower()}",
        )
    if scenario.fleet.autoscale is not None and kind.fixed:
        raise InputError(
            "an autoscaler was simulated, and these manifests have none",
            key="--emit",
            got=emission.kind,
            allowed=", ".join(name for name, each in KINDS.items() if engine in each.engines and not each.fixed),
        )
    kind.check(scenario)
    _check_folder(emission)


def emit(emission: Emission, deployment: Deployment) -> list[Path]:
    """Write the files of one kind and return their paths; only files of the same kind are overwritten.

    :raises OutputError: if the folder holds other files, or can't be written.
    """
    _check_folder(emission)
    run = deployment.run
    head = [
        f"{_first_line(emission.kind)}(version {__version__}) from {run.command} {run.name}, digest {run.digest}: "
        f"{run.verdict}.",
        f"Simulated: {deployment.engine} {deployment.release} on {run.setup}.",
        *(f"Not in this file: {remark}." for remark in deployment.remarks),
        *_autoscaler_lines(emission.kind, deployment),
        *_adapter_lines(deployment),
    ]
    texts = {name: write(deployment, head) for name, write in KINDS[emission.kind].files.items()}
    try:
        emission.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError("can't make this folder", file=str(emission.folder), got=error.strerror) from None
    for name, text in texts.items():
        if text:
            write_text(emission.folder / name, text)
        else:  # one of before, from a fleet that had it
            (emission.folder / name).unlink(missing_ok=True)
    return [emission.folder / name for name, text in texts.items() if text]


def _autoscaler_lines(kind: str, deployment: Deployment) -> list[str]:
    if deployment.autoscale is None:
        return []
    why = why_no_autoscaler(deployment)
    if not why and AUTOSCALER_FILE not in KINDS[kind].files:
        why = "the autoscaler (fleet.autoscale)"
    return [f"Not in this file: {why}."] if why else []


def _adapter_lines(deployment: Deployment) -> list[str]:
    if deployment.adapters or not deployment.lora:
        return []
    into = " into every replica" if deployment.several else ""
    path = deployment.server.load_path
    lines = [f"Adapters are not listed: load each{into} with POST {path}, or give --adapters FOLDER."]
    if deployment.environment:
        lines.append("Clients can then load any file: keep the port inside your network.")
    return lines


def _first_line(kind: str) -> str:
    return f"{_MARK} --emit {kind} "


def _check_folder(emission: Emission) -> None:
    """Refuse a folder with files that no earlier emission of this kind wrote."""
    folder = emission.folder
    if folder.is_symlink():
        raise OutputError("is a link", file=str(folder), hint="give the folder itself, or another DIR")
    if folder.exists() and not folder.is_dir():
        raise OutputError("is not a folder", file=str(folder), hint="give another DIR")
    for file in sorted(folder.iterdir()) if folder.exists() else []:
        ours = file.name in KINDS[emission.kind].files and _is_ours(file, emission.kind)
        if not ours:
            raise OutputError(
                f"this folder holds a file that --emit {emission.kind} did not write",
                file=str(folder),
                got=file.name,
                hint="give an empty or a new folder",
            )


def _is_ours(file: Path, kind: str) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    with open_regular(file) as opened:
        return _first_line(kind).encode() in opened.read(_FIRST_BYTES)
