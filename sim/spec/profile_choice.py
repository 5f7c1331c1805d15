"""The profile of a scenario: the one it names, or the nearest to its GPU, base model and engine."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sim.errors import ScenarioError, did_you_mean
from sim.spec.engines import (
    ENGINES,
    engine_words,
    has_version,
    is_same_engine,
    schedules_ahead,
    version_distance,
    versions_of,
)
from sim.spec.gpus import DEFAULT_GPU, gpu_named
from sim.spec.profile import Profile, bundled_profiles, load_profile
from sim.spec.units import human_bytes

if TYPE_CHECKING:
    from sim.spec.scenario import Scenario
    from sim.spec.sections.serving import ReplicaKeys


# Bundled profiles by what their names say: ``GPU/MODEL[-FORMAT][-tpN]/ENGINE-VERSION``.

_ENGINE_NAMES = {"trtllm": "tensorrt-llm"}
"""Engines in names of profiles that scenarios name otherwise."""
_FORMATS = ("fp8", "fp8-block", "int8", "int4", "nvfp4", "mxfp4")


@dataclass(frozen=True, slots=True)
class Shelved:
    """A profile by its name.

    :ivar device: the first part of the name.
    :ivar gpu: the same as ``fleet.gpu`` has it; empty for a device that ``fleet.gpu`` doesn't take.
    :ivar engine: as scenarios write it; empty where the name has none.
    """

    name: str
    device: str
    gpu: str
    model: str
    weights: str
    gpus: int
    engine: str


def profiles_of_known_gpus() -> tuple[Shelved, ...]:
    """Return the bundled profiles that a choice is made from."""
    named = (shelved(name) for name in bundled_profiles())
    return tuple(each for each in named if each.gpu)


def shelved(name: str) -> Shelved:
    """Return what a name says; one that is not that of a bundled profile says little."""
    device, middle, made = (*name.split("/"), "", "")[:3]
    found = re.fullmatch(rf"(.+?)(?:-({'|'.join(_FORMATS)}))?(?:-tp(\d+))?", middle)
    model, weights, gpus = found.groups() if found else (middle, None, None)
    gpu = gpu_named(device)
    family, dash, version = made.partition("-")
    engine = "" if made == "assumed" else f"{_ENGINE_NAMES.get(family, family)}{dash}{version}"
    return Shelved(name, device, "" if gpu is None else gpu.name, str(model), weights or "", int(gpus or 1), engine)


def siblings(name: str) -> dict[int, str]:
    """Return the bundled profiles of the same device, model, weights and engine, by the GPUs of a replica.

    :param name: a bundled name, such as ``h100-80gb/llama-3.1-70b-tp4/vllm-0.24.0``; others have no siblings.
    """
    wanted = replace(shelved(name), name="", gpus=1)
    found = {
        each.gpus: each.name for each in map(shelved, bundled_profiles()) if replace(each, name="", gpus=1) == wanted
    }
    return dict(sorted(found.items()))


def sibling_profile(name: str, gpus: int | None) -> str:
    """Return the name of a profile, or of its sibling for so many GPUs of a replica; None: as many as it has.

    :raises ScenarioError: if there is no profile for so many GPUs; key ``fleet.tensor_parallel``.
    """
    if gpus is None:
        return name
    profile, _ = load_profile(name)
    if profile.tensor_parallel == gpus:
        return name
    known = siblings(name)
    if gpus in known:
        return known[gpus]
    there, hint = {profile.tensor_parallel: name} | known, _build_hint(profile, gpus)
    problem = f"there is no profile of {profile.model} for so many GPUs on this device and engine"
    if not known:
        problem = "the profile that the scenario names is for another number of GPUs"
        hint = f"remove fleet.profile (null) to take a bundled one; or {hint}"
    raise ScenarioError(
        problem,
        key="fleet.tensor_parallel",
        got=gpus,
        allowed=", ".join(f"{number} ({each})" for number, each in sorted(there.items())),
        hint=hint,
    )


def _build_hint(profile: Profile, gpus: int) -> str:
    """Return how to get the profile: the command that made this one, for other GPUs, if it was built."""
    command = shlex.split(profile.provenance.command) if profile.provenance else []
    if command[:3] != ["loraplan", "profiles", "build"]:
        return "fleet.profile takes a profile of your own"
    if "--tp" in command:
        del command[command.index("--tp") : command.index("--tp") + 2]
    more = ["--tp", str(gpus)] if gpus > 1 else []
    return f"build it: {shlex.join([*command, *more])}, and give its path as fleet.profile"


DEFAULT_MODEL = "llama-3.1-8b"
"""What a scenario is simulated with that names neither a base model nor a profile."""
BASE_MODELS = (
    "codellama-34b",
    "gpt-oss-120b",
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "llama-3-70b",
    "llama-3-8b",
    "llama-3.1-70b",
    "llama-3.1-8b",
    "mistral-7b",
    "qwen2.5-0.5b",
    "qwen2.5-7b",
    "qwen2.5-14b",
    "qwen2.5-32b",
    "qwen3-8b",
    "qwen3-14b",
    "qwen3-32b",
)
"""Base models whose shapes are known (``sim/traffic/adapters.py``), so that a profile is built by their name."""
MIXTURES = ("gpt-oss-120b",)
"""Those of them that are mixtures of experts."""
MOST_GPUS = 16
"""GPUs of a replica that a profile is built for."""
_STATUSES = ("measured", "derived", "assumed")
_BUILT_FOR = {"vllm": "", "sglang": "sglang", "tensorrt-llm": "trtllm"}
"""By engine, what ``loraplan profiles build --engine`` takes; the default is left out."""
_MOST_NEAR = 4
_TUNED = re.compile(r"(-(instruct|chat|base|it|hf|v\d[\d.]*))+$")
"""Endings of names that leave a model's layers as they are."""
_FOUR_BITS = re.compile(r"(-quantized)?[-.](awq|gptq|w4a16|int4|4bit|bnb-4bit|autoround)\b.*")
"""Endings of names of checkpoints whose kernels are in no table of vLLM or SGLang."""
ANCHOR_STEP = "correct the profile of the 16-bit checkpoint by a run of your server (loraplan profiles adjust --anchor)"
"""What is left for a format of weights whose kernels nobody measured."""


@dataclass(frozen=True, slots=True)
class ProfileChoice:
    """The profile of a scenario, and why it is this one.

    :ivar name: a bundled name, or a path.
    :ivar why: how near the profile's engine is; empty where the scenario names the profile.
    :ivar others: the other profiles of this GPU and model, nearest first, without assumed ones.
    :ivar assumed: what the scenario doesn't name: ``GPU``, ``base model``.
    """

    name: str
    why: str = ""
    others: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def profile_choice(scenario: Scenario) -> ProfileChoice:
    """Return which profile a scenario names, or which one fits its GPU, base model and engine.

    Of several, the engine's own version comes before its nearest, and measured before derived before assumed.

    :raises ScenarioError: if none fits, or the profile that it names is of another GPU.
    """
    fleet, model = scenario.fleet, scenario.adapters.base_model
    if fleet.profile is not None:
        if fleet.gpu is not None:
            _check_gpu(fleet.gpu, fleet.profile)
        return ProfileChoice(sibling_profile(fleet.profile, fleet.tensor_parallel))
    return _chosen(fleet.gpu, model, fleet.engine, fleet.tensor_parallel or 1)


def has_profile(gpu: str, model: str, engine: str, gpus: int = 1) -> bool:
    """Return whether there is a profile of a model on so many GPUs."""
    try:
        _chosen(gpu, model, engine, gpus)
    except ScenarioError:
        return False
    return True


def built_profile(gpu: str, model: str, engine: str, gpus: int = 1) -> Path | None:
    """Return the profile for these below ``profiles/``, where ``loraplan profiles build`` writes; None without one.

    One of 16-bit weights comes before others, and one of the engine before those of others. Files that are no profiles
    are passed over.
    """
    found: list[tuple[bool, bool, Path]] = []
    for file in sorted(Path("profiles").glob("*/*/*.json")):
        with contextlib.suppress(ScenarioError):
            profile, _ = load_profile(f"./{file.as_posix()}")
            if (gpu_of(profile), profile.tensor_parallel) == (gpu, gpus) and is_model(model, profile.model):
                made = shelved(profile.name)
                found.append((bool(made.weights), not made.engine.startswith(_family(engine)), file))
    return min(found)[-1] if found else None


def profile_of(scenario: Scenario) -> tuple[Profile | None, str]:
    """Return the profile of a scenario, and the SHA-256 of its file; None if all its times are given.

    With ``fleet.tensor_parallel``, it is the sibling of that profile for so many GPUs; with ``fleet.gpu_memory``, its
    GPUs have so much memory.

    :raises ScenarioError: if there is no such profile, it can't be read, or it is of another number of GPUs.
    """
    storage = scenario.storage
    loads_given = storage.load is not None and (not scenario.has_host_tier or storage.host_load is not None)
    if scenario.fleet.engine == "fixed" and loads_given:
        return None, ""
    profile, digest = load_profile(profile_choice(scenario).name)
    _check_gpus(scenario.fleet.gpus_per_replica, profile)
    if (of_gpu := scenario.fleet.gpu_memory) is not None:
        memory = profile.memory.model_copy(update={"total_bytes": of_gpu * profile.tensor_parallel})
        device = f"{profile.device} (with {human_bytes(of_gpu)})"
        profile = profile.model_copy(update={"memory": memory, "device": device})
    if storage.bandwidth is not None:
        profile = profile.reading_at(storage.bandwidth)
    return profile, digest


FRONT_END_S = 0.007
"""Median of measured TTFT less simulated over the stages of vLLM 0.15 and 0.23 (docs/validation.md)."""


def front_end_s(fleet: ReplicaKeys, profile: Profile | None) -> float:
    """Return the seconds of a request between client and engine."""
    if fleet.front_end_time is not None:
        return fleet.front_end_time
    if profile is None or fleet.front_end != "none":
        return 0.0
    if profile.front_end_s is not None:
        return profile.front_end_s
    return FRONT_END_S if schedules_ahead(fleet.engine) else 0.0


def gpus_per_replica(scenario: Scenario, profile: Profile | None) -> int:
    """Return the GPUs of one replica.

    :param profile: of the scenario; None: all its times are given.
    """
    return scenario.fleet.gpus_per_replica or (1 if profile is None else profile.tensor_parallel)


class Prices(NamedTuple):
    """What is paid in a scenario, in US dollars.

    :ivar gpu: for a GPU and hour, in a fleet of pools on average; None: there is no price, or not of every pool.
    :ivar pools: for a GPU and hour of each pool; () without.
    :ivar tenants: by each tenant, by what it pays for: ``input`` and ``output``, a million tokens, and ``request``; {}
        for one without a price, () where none has any.
    """

    gpu: float | None
    pools: tuple[float, ...] = ()
    tenants: tuple[dict[str, float], ...] = ()


def prices_of(scenario: Scenario) -> Prices:
    """Return what GPUs cost and tenants pay."""
    pay = tuple({} if each.price is None else each.price.model_dump() for each in scenario.tenants)
    pay = pay if any(pay) else ()
    if not scenario.pools:
        return Prices(scenario.fleet.price, (), pay)
    prices = tuple(pool.fleet.price for pool in scenario.pools if pool.fleet.price is not None)
    if len(prices) < len(scenario.pools):
        return Prices(None, (), pay)
    gpus = [pool.fleet.replicas * gpus_per_replica(pool, profile_of(pool)[0]) for pool in scenario.pools]
    return Prices(sum(price * count for price, count in zip(prices, gpus, strict=True)) / sum(gpus), prices, pay)


def replica_prices(scenario: Scenario) -> dict[str, float]:
    """Return what a replica of each pool costs per hour, by the key of its replicas; {} if a pool has no price."""
    names = [pool.name for pool in scenario.fleet.open_pools]
    prices = prices_of(scenario).pools
    return {
        f"fleet.pools.{name}.replicas": price * gpus_per_replica(pool, profile_of(pool)[0])
        for name, price, pool in zip(names, prices, scenario.pools, strict=bool(prices))
    }


def profiles_digest(scenario: Scenario) -> str:
    """Return the SHA-256 of a scenario's profile, or of its pools' profiles together; empty where it has none."""
    digests = dict.fromkeys(profile_of(each)[1] for each in scenario.pools or (scenario,))
    return "".join(digests) if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _check_gpus(given: int | None, profile: Profile) -> None:
    """Refuse another number of GPUs than that of a profile with several."""
    if given is not None and profile.tensor_parallel not in (1, given):
        raise ScenarioError(
            f"a replica of the profile {profile.name} has another number of GPUs",
            key="fleet.gpus_per_replica",
            got=given,
            allowed=str(profile.tensor_parallel),
            hint="remove it: the number is that of the profile",
        )


def base_model_of(scenario: Scenario, profile: Profile | None) -> str:
    """Return the base model that adapters belong to.

    :raises ScenarioError: if the profile was made for another one.
    """
    given = scenario.adapters.base_model
    if profile is None:
        return given or DEFAULT_MODEL
    if given is not None and not is_model(given, profile.model):
        raise ScenarioError(
            "the profile was made for another base model",
            key="adapters.base_model",
            got=given,
            allowed=f"{profile.model} (profile {profile.name})",
            hint=f"set adapters.base_model to {profile.model}"
            + ("" if scenario.fleet.profile is None else ", or give fleet.gpu instead of fleet.profile"),
        )
    return profile.model


def choice_notes(choice: ProfileChoice, scenario: Scenario, profile: Profile) -> list[str]:
    """Return a note on why a profile was chosen, where there were others or it is of another engine.

    Where it is of another version of the engine, ``other_costs`` says so.
    """
    made = shelved(profile.name).engine
    another = _family(scenario.fleet.engine) in _BUILT_FOR and _family(scenario.fleet.engine) != _family(made)
    if not choice.why or not (choice.others or another):
        return []
    gpus = f" over {profile.tensor_parallel} GPUs" if profile.tensor_parallel > 1 else ""
    more = f"; there is also {', '.join(choice.others)} (fleet.profile)" if choice.others else ""
    engine, gpu = scenario.fleet.engine, gpu_of(profile) or ""
    if another and gpu:
        more += f"; to build one: {build_command(gpu, profile.model, engine, profile.tensor_parallel)}"
    what = f"{profile.model} on {gpu or profile.device}{gpus} under {engine_words(engine)}"
    return [f"{choice.name} is the profile for {what}: {profile.status}, {choice.why}{more}"]


def disturbance_notes(profile: Profile) -> list[str]:
    """Return a note on what disturbed the measurements of a profile."""
    flags = profile.provenance.device.get("flags", "none") if profile.provenance else "none"
    return [] if flags == "none" else [f"the profile {profile.name} was measured on a disturbed device: {flags}"]


def fitness_notes(profile: Profile) -> list[str]:
    """Return a note where a profile's class of deployments is off too far to plan with."""
    return [f"the profile {profile.name} is {profile.stated}"] if profile.unfit_to_plan else []


def engine_notes(engine: str) -> list[str]:
    """Return a note on whose rules a version of an engine gets, where they are those of another one."""
    preset, versions = ENGINES[engine], versions_of(engine)
    if versions is None or engine == preset.name or not has_version(engine):
        return []
    return [f"engine {engine} has the rules of {versions.words} (preset {preset.name})"]


def other_costs(engine: str, profile: Profile) -> str:
    """Return whose step and load times a profile has in place of an engine's: ``vLLM 0.8.5, not 0.33``.

    :return: empty where they are the engine's own. Those of an anchored profile are: its runs were the user's server.
    """
    conditions = profile.conditions
    if not ENGINES[engine].preset or conditions is None or profile.is_anchored:
        return ""
    if is_same_engine(engine, conditions.engine):
        return ""
    made, versions = re.split(r",| \(", conditions.engine)[0], versions_of(engine)
    same = versions is not None and _family(made) == _family(engine)
    return f"{made}, not {versions.words if same and versions else engine_words(engine)}"


def build_command(gpu: str, model: str, engine: str, gpus: int) -> str:
    """Return the command that builds the profile of a GPU, a base model, an engine and a number of GPUs.

    A model whose shape is not known is built from its ``config.json``.
    """
    built = _BUILT_FOR.get(_family(engine), "")
    words = ["loraplan", "profiles", "build", "--gpu", gpu, "--model"]
    words += [model] if _is_known(model) else ["config.json", "--name", plain_name(model)]
    words += ["--tp", str(gpus)] if gpus > 1 else []
    words += ["--engine", built] if built else []
    return shlex.join(words)


@lru_cache(maxsize=256)
def _chosen(given_gpu: str | None, given_model: str | None, engine: str, gpus: int) -> ProfileChoice:
    gpu, model = given_gpu or DEFAULT_GPU, given_model or DEFAULT_MODEL
    shelf = profiles_of_known_gpus()
    found = [each for each in shelf if each.gpu == gpu and each.gpus == gpus and is_model(model, each.model)]
    found = [each for each in found if not each.weights] or found  # other formats only where a model has no 16 bits
    if not found:
        raise _no_profile(shelf, Shelved("", gpu, gpu, model, "", gpus, engine))
    found.sort(key=lambda each: _distance(each, engine, alone=len(found) == 1))
    first = found[0]
    unnamed = {"GPU": given_gpu, "base model": given_model}
    return ProfileChoice(
        first.name,
        _nearness(engine, first.engine),
        tuple(each.name for each in found[1:] if each.engine),
        tuple(what for what, value in unnamed.items() if value is None),
    )


def _nearness(engine: str, made: str) -> str:
    """Return how near the engine of a profile is to a scenario's, in words."""
    if not made:
        return "for no engine in particular"
    if _family(made) != _family(engine):
        return f"made with {_family(made)}, as there is none made with {_family(engine)}"
    if not is_same_engine(engine, made):
        return "nearest version of the engine"
    return "same version of the engine" if versions_of(engine) else "same engine"


def _distance(profile: Shelved, engine: str, *, alone: bool) -> tuple[bool, bool, int, float, str]:
    """Return how far a profile's engine is from a scenario's, for sorting; its file is read only where it matters."""
    status = "" if alone else load_profile(profile.name)[0].status
    other = _family(profile.engine) != _family(engine)
    return (
        other,
        other or not is_same_engine(engine, profile.engine),
        0 if alone else _STATUSES.index(status),
        0.0 if other else version_distance(engine, profile.engine),
        profile.name,
    )


def _no_profile(shelf: Sequence[Shelved], wanted: Shelved) -> ScenarioError:
    """Return the error for a GPU and model without a profile: the nearest ones, and how to build it."""

    def unlike(each: Shelved) -> tuple[int, float, int]:
        same = (each.gpu == wanted.gpu, is_model(wanted.model, each.model))
        likeness = difflib.SequenceMatcher(None, plain_name(wanted.model), each.model).ratio()
        return -sum(same), -likeness, abs(each.gpus - wanted.gpus)

    near = sorted(shelf, key=unlike)
    split = [each for each in near if each.gpu == wanted.gpu and is_model(wanted.model, each.model)]
    steps = []
    elsewhere = [each.gpu for each in shelf if is_model(wanted.model, each.model) and each.gpus == wanted.gpus]
    if elsewhere:
        steps.append(f"set fleet.gpu to one that has a profile of it ({', '.join(dict.fromkeys(elsewhere))})")
    if not split or wanted.gpus > 1:  # else one GPU is probably too small
        steps.append(_build_step(wanted))
    if split:
        counts = " or ".join(map(str, sorted({each.gpus for each in split})))
        steps.append(f"set fleet.tensor_parallel to {counts}")
    gpus = "1 GPU" if wanted.gpus == 1 else f"{wanted.gpus} GPUs"
    key, got = ("fleet.gpu", wanted.gpu) if elsewhere else ("adapters.base_model", wanted.model)
    return ScenarioError(
        f"there is no profile of {wanted.model} on {gpus} of kind {wanted.gpu}",
        key="fleet.tensor_parallel" if split else key,
        got=wanted.gpus if split else got,
        allowed=f"the nearest are {', '.join(each.name for each in (split or near)[:_MOST_NEAR])}",
        hint="; or ".join(steps),
    )


def _is_known(model: str) -> bool:
    return any(is_model(model, each) for each in BASE_MODELS)


def _build_step(wanted: Shelved) -> str:
    """Return how to build a profile: by the model's name, or where it is not known from its ``config.json``."""
    if four := _FOUR_BITS.search(named := plain_name(wanted.model)):
        whole, log = plain_name(named[: four.start()]), "fleet.kv_tokens is what your server's log says"
        slower = f"set adapters.base_model to {whole}, which decodes more slowly and has a smaller KV cache ({log})"
        return f"nobody measured kernels of {four[2]} weights: {slower}; or {ANCHOR_STEP}"
    command = build_command(wanted.gpu, wanted.model, wanted.engine, wanted.gpus)
    if _is_known(wanted.model):
        return f"build it: {command} (--model also takes a config.json), and give its file as fleet.profile"
    near = did_you_mean(plain_name(wanted.model), BASE_MODELS)
    step = f"build it from the model's config.json: {command}, and give its file as fleet.profile"
    return f"{near} Or {step}" if near else step


def _check_gpu(gpu: str, name: str) -> None:
    """Refuse a profile of another GPU than the scenario names."""
    profile, _ = load_profile(name)
    found = gpu_of(profile)
    if found != gpu:
        raise ScenarioError(
            "the profile is of another GPU",
            key="fleet.gpu",
            got=gpu,
            allowed=f"{found or profile.device} (profile {profile.name})",
            hint="give fleet.gpu or fleet.profile, not both",
        )


def gpu_of(profile: Profile) -> str | None:
    """Return the GPU that a profile is of, as ``fleet.gpu`` has it; None: another device."""
    found = gpu_named(profile.device) or gpu_named(profile.name.partition("/")[0])
    return None if found is None else found.name


def is_mixture(profile: Profile) -> bool:
    """Return whether a profile's model is a mixture of experts."""
    return profile.model in MIXTURES if profile.shape is None else profile.shape.experts > 0


def is_model(given: str, known: str) -> bool:
    """Return whether a name is that of a model: ``Qwen/Qwen2.5-14B-Instruct`` has the layers of ``qwen2.5-14b``."""
    return plain_name(given) == plain_name(known)


def known_model(given: str) -> str | None:
    """Return which of ``BASE_MODELS`` a name is of; None for a name of one's own."""
    return next((known for known in BASE_MODELS if is_model(given.strip(), known)), None)


def plain_name(name: str) -> str:
    """Return a model's name without its owner, and without the endings that leave its layers as they are."""
    last = name.rstrip("/").rpartition("/")[2].lower().replace("_", "-").removeprefix("meta-")
    return _TUNED.sub("", last)


def _family(engine: str) -> str:
    """Return an engine without its version: ``vllm`` of ``vllm-0.12``."""
    preset = ENGINES.get(engine)
    known = preset.name if preset is not None else engine
    return re.sub(r"[ =_-]*v?\d.*$", "", known.lower())
