"""What names the results of a study, and whether a folder holds them already.

Nothing here builds a world, so that a finished run is read again without importing the simulator.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sim.errors import InputError
from sim.results.point import Point
from sim.results.run_directory.result_files import digest_file, json_ready, point_key, scenario_hash
from sim.results.run_directory.store import RunData, holds_nothing_else, read_finished
from sim.spec.files.tree import files_of, without_indexes
from sim.spec.profile_choice import profiles_digest
from sim.spec.scenario_file import LoadedScenario
from sim.version import __version__


@dataclass(frozen=True)
class StudyOutcome:
    """The result of a study: its run directory, and how many of its points were there already (``reused``).

    :ivar run: as ``read_run`` would read it.
    :ivar unchanged: whether the folder is as it was: it held this very run, finished.
    """

    run: RunData
    reused: int
    unchanged: bool = False

    @property
    def path(self) -> Path:
        """The folder."""
        return self.run.path

    @property
    def points(self) -> list[Point]:
        """Its points, in the order of their keys."""
        return self.run.points


def finished_study(
    loaded: LoadedScenario, sets: list[dict[str, Any]], out: Path, *, headroom: bool = False
) -> StudyOutcome | None:
    """Return what a folder holds if it is this very study, finished, with no file missing; None otherwise.

    No world is built to find out: a point of this name was simulated by this code from the same scenario and files.

    :param headroom: whether it must say how much more traffic fits.
    """
    try:
        data = read_finished(out)
        if data is None or (headroom and not data.manifest.get("headroom")):
            return None
        inputs = [digests_of(loaded.with_values(set_) if set_ else loaded) for set_ in sets]
    except InputError:
        return None  # preparing the study says what is wrong, and where
    asked = json_ready(study_record(loaded, sets, inputs, study_keys(loaded, sets, inputs)))
    if any(data.manifest.get(key) != value for key, value in asked.items()):
        return None
    return StudyOutcome(data, len(data.points), unchanged=True)


def free_folder(loaded: LoadedScenario, sets: list[dict[str, Any]], root: Path = Path("runs")) -> Path:
    """Return ``runs/NAME`` (a sweep: ``runs/NAME-sweep``), with ``-2``, ``-3``, … if it holds other results."""
    name = loaded.scenario.name + ("-sweep" if any(sets) else "")
    try:
        wanted = scenario_hash(loaded.data, digests_of(loaded))
    except InputError:
        return root / name  # preparing the study says which file can't be read, before it makes a folder
    for number in itertools.count(1):
        folder = root / (name if number == 1 else f"{name}-{number}")
        if holds_nothing_else(folder, wanted, sets):
            return folder
    raise AssertionError("numbers don't end")


def digests_of(point: LoadedScenario) -> dict[str, str]:
    """Return ``input_digests`` of a point, whose profile is read for that.

    :raises InputError: if a file can't be read.
    """
    return input_digests(point, profiles_digest(point.scenario))


def input_digests(point: LoadedScenario, profile_sha256: str) -> dict[str, str]:
    """Return the hash of every file that the point's numbers depend on, by its key, and of policies from outside.

    :param profile_sha256: of its profile; empty where it has none.
    """
    scenario = point.scenario
    policies = {"cache.eviction": scenario.eviction_policy, "router.policy": scenario.router_policy}
    policies |= {f"fleet.pools.{i}.cache.eviction": pool.eviction_policy for i, pool in enumerate(scenario.pools)}
    digests = {key: entry.digest() for key, entry in policies.items() if entry.origin}
    for key, file in files_of(point.data):
        if without_indexes(key) == "rollouts.weights":
            from sim.studies.vetting_gate import digest_weights

            digests[key] = digest_weights(Path(file))
        elif without_indexes(key) not in ("fleet.profile", "fleet.pools.profile"):
            digests[key] = digest_file(Path(file))
    if profile_sha256:
        digests["fleet.profile"] = profile_sha256
    return digests


def study_keys(
    loaded: LoadedScenario, sets: Iterable[Mapping[str, Any]], inputs: Iterable[Mapping[str, str]]
) -> list[str]:
    """Return the names of the points' files.

    :param inputs: ``input_digests`` of each point.
    """
    return [point_key(loaded.data, set_, code_version(), digests) for set_, digests in zip(sets, inputs, strict=True)]


def study_record(
    loaded: LoadedScenario, sets: Sequence[Mapping[str, Any]], inputs: Iterable[Mapping[str, str]], keys: Sequence[str]
) -> dict[str, Any]:
    """Return what a manifest says of a study before its worlds are built: what is asked, of which code.

    :param inputs: ``input_digests`` of each point; ``keys``: the names of their files.
    """
    digests = {key: digest for point in inputs for key, digest in point.items()}
    return {
        "kind": "sweep" if any(sets) else "run",
        "name": loaded.scenario.name,
        "description": loaded.scenario.description,
        "scenario": loaded.data,
        "scenario_source": loaded.source,
        "scenario_hash": scenario_hash(loaded.data, digests),
        "seed": loaded.scenario.run.seed,
        "code": code_version(),
        "versions": {
            "loraplan": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("numpy", "simpy")},
        },
        "inputs": digests,
        "point_keys": list(keys),
        "sets": [dict(set_) for set_ in sets],
        "points_total": len(keys),
    }


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return the version with a short hash of the simulator's code, so that results of other code are not reused."""
    digest, files = hashlib.sha256(), list[str]()
    for folder, _, names in os.walk(Path(__file__).resolve().parents[1]):  # in half the time that pathlib takes
        files += [os.path.join(folder, name) for name in names if name.endswith((".py", ".toml"))]
    for file in sorted(files):
        with open(file, "rb", buffering=0) as read:
            digest.update(read.read())
    return f"{__version__}+{digest.hexdigest()[:8]}"
