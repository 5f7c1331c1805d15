"""The profile of a scenario, and whether the two fit together."""

from __future__ import annotations

from sim.errors import ScenarioError
from sim.spec.engine_versions import has_version, is_same_engine, versions_of
from sim.spec.engines import ENGINES
from sim.spec.profile import Profile, load_profile
from sim.spec.scenario import DEFAULT_PROFILE, Scenario
from sim.spec.sibling_profiles import fleet_profile


def profile_of(scenario: Scenario) -> tuple[Profile | None, str]:
    """Return the profile that a scenario names, and the SHA-256 of its file; None if all its times are given.

    With ``fleet.tensor_parallel``, it is the sibling of that profile for so many GPUs.

    :raises ScenarioError: if there is no such profile, or it can't be read.
    """
    storage = scenario.storage
    loads_given = storage.load is not None and (not scenario.has_host_tier or storage.host_load is not None)
    if scenario.fleet.engine == "fixed" and loads_given:
        return None, ""
    return load_profile(fleet_profile(scenario.fleet))


def base_model_of(scenario: Scenario, profile: Profile | None) -> str:
    """Return the base model that adapters belong to.

    :raises ScenarioError: if the profile was made for another one.
    """
    given = scenario.adapters.base_model
    if profile is None:
        return given or "llama-3.1-8b"
    if given is not None and given != profile.model:
        raise ScenarioError(
            "the profile was made for another base model",
            key="adapters.base_model",
            got=given,
            allowed=f"{profile.model} (profile {profile.name})",
            hint="choose a profile of this model with fleet.profile"
            if scenario.fleet.profile != DEFAULT_PROFILE
            else "set fleet.profile to a profile of this model",
        )
    return profile.model


def disturbance_notes(profile: Profile) -> list[str]:
    """Return a note on what disturbed the measurements of a profile."""
    flags = profile.provenance.device.get("flags", "none") if profile.provenance else "none"
    return [] if flags == "none" else [f"the profile {profile.name} was measured on a disturbed device: {flags}"]


def engine_notes(engine: str, profile: Profile) -> list[str]:
    """Return notes on whose rules a version of an engine gets, and on step costs of another engine or version."""
    preset, notes = ENGINES[engine], []
    versions = versions_of(engine)
    if versions is not None and engine != preset.name and has_version(engine):
        notes.append(f"engine {engine} has the rules of {versions.words} (preset {preset.name})")
    made = profile.conditions.engine if profile.conditions else engine
    if preset.preset and not is_same_engine(engine, made):
        of = (
            engine
            if versions is None
            else f"{preset.name.partition('-')[0]} {versions.words}, whose rules are simulated"
        )
        notes.append(f"step and load costs are those of {made} (profile {profile.name}), not of {of}")
    return notes
