"""The vetting gate: holds back a new version whose training went wrong; the others go out.

It reads the folder that a scenario names for a version. The simulated world has only the rollouts that happen: with one
held back, it is the same world as without that rollout. ``make_design`` in ``evaluate`` builds it, with the worlds
that it is compared with: without what changes, and with what is held back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sim.cells import printable
from sim.errors import InputError, OutputError, ScenarioError
from sim.reading import inside, open_regular
from sim.results.model import HeldBackRollout
from sim.spec.scenario import Scenario
from sim.spec.sections.changes import NamedPrefixes, Rollout
from sim.training.files.adapter_folder import CONFIG, WEIGHTS
from sim.training.logs.training_log import LOG_LIMIT, STATE, find_log

if TYPE_CHECKING:
    from sim.training.vet_results import Vetted


_SWAPS = ("in-place", "unload-then-load", "drain-then-swap")
_READ = (CONFIG, STATE, WEIGHTS, "config.json")
"""The files that a vetting reads."""
_HEADER = 1 << 20
"""Bytes of the weights that go into a digest: enough for most headers; vetting doesn't use the tensors."""


@dataclass(frozen=True, slots=True)
class Vetting:
    """The vetting of a rollout's folder.

    :ivar number: of the rollout in the scenario; ``rollout``: with rank and size from its folder.
    """

    number: int
    rollout: Rollout
    vetted: tuple[Vetted, ...]

    @property
    def held_back(self) -> bool:
        """Whether the version must not go out."""
        return self.rollout.require == "vet" and not all(each.passes for each in self.vetted)


@dataclass(frozen=True, slots=True)
class Released:
    """A scenario after its rollouts were vetted.

    :ivar scenario: without the rollouts that are held back.
    :ivar otherwise: with them; None where none is held back.
    :ivar held_back: the rollouts that are held back; ``notes``: sentences for the user.
    """

    scenario: Scenario
    otherwise: Scenario | None
    held_back: tuple[Vetting, ...]
    notes: tuple[str, ...]


def release(scenario: Scenario) -> Released:
    """Vet the new versions of a scenario's rollouts that name a folder.

    :raises ScenarioError: for a missing folder, or unreadable files in it.
    """
    if all(rollout.weights is None for rollout in scenario.rollouts):
        return Released(scenario, None, (), ())
    vettings = [_vetting(i, rollout) for i, rollout in enumerate(scenario.rollouts)]
    held = tuple(each for each in vettings if each.held_back)
    everything = scenario.model_copy(update={"rollouts": tuple(each.rollout for each in vettings)})
    notes = tuple(note for each in vettings if each.rollout.require == "vet" for note in _notes(each))
    if not held:
        return Released(everything, None, (), notes)
    rest = tuple(each.rollout for each in vettings if not each.held_back)
    faults = scenario.faults
    if not any(rollout.strategy in _SWAPS for rollout in rest):  # no weights are swapped under a cached prefix
        faults = tuple(fault for fault in faults if not isinstance(fault, NamedPrefixes))
    happens = scenario.model_copy(update={"rollouts": rest, "faults": faults})
    return Released(happens, everything, held, notes)


def held_back_record(held: tuple[Vetting, ...]) -> list[HeldBackRollout]:
    """Return which rollouts are held back, and why."""
    return [
        HeldBackRollout(
            rollout=each.number,
            strategy=each.rollout.strategy,
            at_s=each.rollout.at,
            weights=each.rollout.weights,
            vetted=[{**one.to_json(), "path": _name(each, one)} for one in each.vetted],
        )
        for each in held
    ]


def digest_weights(folder: Path) -> str:
    """Return the SHA-256 of what a vetting reads: configurations, logs, headers and sizes of weights.

    :raises OutputError: if a file can't be read.
    """
    digest = hashlib.sha256()
    try:
        for file in _files(folder):
            with open_regular(file) as opened:
                size = os.fstat(opened.fileno()).st_size
                digest.update(f"{os.path.relpath(file, folder)}\0{size}\0".encode(errors="surrogateescape"))
                digest.update(opened.read(_HEADER if file.name == WEIGHTS else LOG_LIMIT + 1))
    except OSError as error:
        raise OutputError(f"can't read this file: {error.strerror or error}", file=str(error.filename)) from None
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files that a vetting reads, sorted; the log may be next to the folder. Pipes and devices are
    skipped."""
    log = find_log(folder)
    if log is not None and folder not in log.parents:
        yield log
    for place, names, files in os.walk(folder):
        names.sort()
        # Readers refuse links out of the folder, and pipes; here they are skipped.
        found = (Path(place) / name for name in _READ if name in files)
        yield from (file for file in found if file.is_file() and inside(file, folder))


def _vetting(number: int, rollout: Rollout) -> Vetting:
    """Vet a rollout's folder; without one, the result is empty."""
    if rollout.weights is None:
        return Vetting(number, rollout, ())
    folder = Path(rollout.weights)
    key = f"rollouts.{number}.weights"
    if not folder.is_dir():
        problem = "this is a file, not an adapter folder" if folder.exists() else "no such folder"
        raise ScenarioError(problem, key=key, got=rollout.weights)
    try:
        vetted = _vetted(folder, digest_weights(folder))
        if rollout.strategy == "new-name" and rollout.rank is None and rollout.size is None:
            rollout = rollout.model_copy(update=_shape(vetted, key, folder))
    except ScenarioError:
        raise
    except InputError as error:
        raise ScenarioError(
            f"the new version can't be vetted: {error}",
            key=key,
            got=rollout.weights,
            hint="a folder as PEFT writes it, with the trainer_state.json of its training",
        ) from None
    return Vetting(number, rollout, vetted)


@lru_cache(maxsize=64)
def _vetted(folder: Path, digest: str) -> tuple[Vetted, ...]:
    """Vet a folder with this content.

    :raises InputError: if its files can't be read: an unreadable version must not pass.
    """
    from sim.training.vet_adapters import vet_path

    return vet_path(folder, strict=True)


def _shape(vetted: tuple[Vetted, ...], key: str, folder: Path) -> dict[str, int]:
    """Return rank and size of the new versions, as far as their files say.

    :raises ScenarioError: if they differ: the versions of one rollout have one shape.
    """
    ranks = {each.current.rank for each in vetted if each.current is not None and each.current.rank is not None}
    sizes = {each.adapter.bytes for each in vetted if each.adapter is not None}
    if len(ranks) > 1 or len(sizes) > 1:
        raise ScenarioError(
            "the adapters in this folder differ in shape",
            key=key,
            got=str(folder),
            hint="give each shape a rollout and folder of its own, or set rank and size",
        )
    found = {"rank": next(iter(ranks), None), "size": next(iter(sizes), None)}
    return {name: value for name, value in found.items() if value is not None}


def _notes(vetting: Vetting) -> Iterator[str]:
    """Yield notes for the user: what happens to the version, and what could not be judged."""
    failing = [each for each in vetting.vetted if not each.passes]
    for each in failing:
        yield printable(f"rollouts.{vetting.number} is held back: {_name(vetting, each)} {_why_not(each)}", 400)
    if failing:
        return
    yield f"rollouts.{vetting.number} vetted: passes"
    for each in vetting.vetted:
        possible = [f"{finding.mode} is possible" for finding in each.findings]
        thin = [f"too little is known to judge {', '.join(each.unjudged)}"] if each.unjudged else []
        if possible or thin:
            said = "; ".join([*possible, *thin])
            yield printable(f"rollouts.{vetting.number}: {_name(vetting, each)}: {said}", 400)


def _why_not(failing: Vetted) -> str:
    """Return why a version doesn't pass; if it can't be judged, the last notes say what is missing."""
    if not failing.judged:
        return f"can't be judged, so it doesn't pass (require: none sends it out): {'; '.join(failing.notes[::-1])}"
    finding = failing.findings[0]
    why = f": {finding.evidence[0].what}" if finding.evidence else ""
    return f"shows {finding.mode} ({finding.confidence}){why}"


def _name(vetting: Vetting, vetted: Vetted) -> str:
    """Return an adapter's path relative to the parent of the rollout's folder, as scenarios and reports get moved."""
    return os.path.relpath(vetted.path, Path(vetting.rollout.weights or ".").parent)
