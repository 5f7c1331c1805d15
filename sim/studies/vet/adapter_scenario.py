"""Writes a scenario with the adapters of a census: true counts and sizes, and example traffic."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sim.errors import InputError, OutputError
from sim.results.run_directory.result_files import write_text
from sim.spec.engines import DEFAULT_ENGINE, preset_value
from sim.spec.files.yaml_tree import flow_text
from sim.spec.gpus import DEFAULT_GPU
from sim.spec.profile_choice import DEFAULT_MODEL, has_profile
from sim.spec.scenario_file import bundled_folder, load_scenario
from sim.studies.design import check_points
from sim.training.files.census import Census, Entry, MixKind, kinds_of, known_model
from sim.training.files.engine_checks import ServingTarget, is_served, served_base

SLOTS = 32
"""Slots of a written scenario, at most; a smaller fleet gets one per adapter."""

_DTYPES = ("fp16", "bf16", "fp8")
_WORKLOAD = """\
workload:   # an example's: put your own here
  requests: 20000
  arrivals: {process: poisson, rate: 6/s}
  popularity: {law: zipf, exponent: 0.9}
  tokens:
    prompt: {law: lognormal, mean: 300, p99: 2000, max: 4096}
    output: {law: lognormal, mean: 120, p99: 600, max: 2048}
"""


def check_target(path: Path, hint: str = "remove it or give another path") -> None:
    """Refuse to overwrite.

    :raises OutputError: if there is a file, a folder or a link.
    """
    if path.exists() or path.is_symlink():
        raise OutputError("already exists and is not overwritten", file=str(path), hint=hint)


def write_scenario(census: Census, target: ServingTarget, path: Path) -> list[str]:
    """Write the scenario and return notes for the user; one of them if ``loraplan check`` would refuse it.

    :raises OutputError: if the file exists or can't be written.
    :raises InputError: if no adapter belongs to the base model.
    """
    check_target(path)
    base = served_base(census.entries, target)
    served = [entry for entry in census.entries if is_served(entry, base)]
    if not served:
        raise InputError("no adapter belongs to this base model", key="--base-model", got=base)
    notes = []
    left_out = len(census.entries) - len(served)
    if left_out:
        what = "1 adapter of another base model is" if left_out == 1 else f"{left_out:,} of other base models are"
        notes.append(f"{what} left out of the scenario")
    model = known_model(base or "")
    costs = _costs_of(model, target.engine or DEFAULT_ENGINE)
    if costs is None:
        what = f"no bundled profile is of {base}" if base else "the adapters name no base model"
        notes.append(
            f"{what}: the scenario's costs and memory are those of {DEFAULT_MODEL} on {DEFAULT_GPU}; give fleet.profile"
        )
    write_text(path, scenario_text(census.root, served, target, model if costs else None, costs))
    try:
        check_points(load_scenario(str(path), []))
    except InputError as error:  # such as a rank far beyond what any profile was measured with
        notes.append(f"the scenario is written, but can't be simulated as it stands: {error}")
    return notes


def scenario_text(
    root: Path, served: Sequence[Entry], target: ServingTarget, model: str | None, costs: str | None
) -> str:
    """Return the text of the scenario file.

    :param model: our name of the base model, None where no profile is of it.
    :param costs: the line of ``fleet`` that gives its costs, None where there are none.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("-._")
    name = (stem or "adapters")[:64].rstrip("-._")
    lines = [
        f"# {len(served):,} adapters counted by loraplan adapters; counts and sizes are those of the files.",
        "schema_version: 1",
        f"name: {flow_text(name)}",
        f"description: {len(served):,} adapters as they are on disk, with an example's traffic",
        *_WORKLOAD.splitlines(),
        "adapters:",
    ]
    if model is not None:
        lines.append(f"  base_model: {model}")
    lines += adapter_lines(served)
    engine = target.engine if target.engine not in (None, "fixed") else None
    lines += ["fleet:", f"  {costs or f'gpu: {DEFAULT_GPU}'}"]
    if engine is not None:
        lines.append(f"  engine: {engine}")
    if engine is None or preset_value(engine, "cache.gpu") is None:
        lines += ["cache:", f"  gpu: {{slots: {min(SLOTS, len(served))}}}"]
    lines += ["slo: {ttft_p99: 1 s, e2e_p99: 20 s}   # and your own here"]
    return "\n".join(lines) + "\n"


def adapter_lines(served: Sequence[Entry]) -> list[str]:
    """Return the lines below ``adapters`` that describe these adapters: how many, their format, and their kinds."""
    kinds = [_kind(kind, len(served)) for kind in kinds_of(served)]
    usual = Counter(name for entry in served for name in entry.dtypes).most_common(1)[0][0]
    # Slots have the most common format of the files, but 16 bits where these have more.
    dtype = usual if usual in _DTYPES else f"bf16   # of the slots; the files are {usual}"
    return [f"  count: {len(served)}", f"  dtype: {dtype}", "  mix:", *kinds]


def _kind(kind: MixKind, total: int) -> str:
    targets = kind.targets if isinstance(kind.targets, str) else f"[{', '.join(kind.targets)}]"
    said = f"{kind.count:,} adapters" if kind.count > 1 else "1 adapter"
    mean = "" if kind.exact else ", their mean size and largest rank"
    share = repr(kind.count / total)
    return f"    - {{share: {share}, rank: {kind.rank}, targets: {targets}, size: {kind.size} B}}   # {said}{mean}"


def _costs_of(model: str | None, engine: str) -> str | None:
    """Return the line of ``fleet`` that gives the costs of a model: a GPU that has a profile, or any profile of it."""
    if model is None:
        return None
    if has_profile(DEFAULT_GPU, model, engine):
        return f"gpu: {DEFAULT_GPU}   # yours: loraplan profiles list"
    folder = bundled_folder() / "profiles"
    found = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob(f"*/{model}*/*.json"))
    return next((f"profile: {name}" for name in found), None)
