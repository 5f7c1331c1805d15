"""Checks a census against an engine: which adapters it refuses, serves wrongly, or pads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sim.errors import InputError
from sim.spec.engines import ENGINES
from sim.spec.units import human_bytes
from sim.traffic.adapters import DTYPE_BYTES, MODULES, SHAPES, parameters_per_rank
from sim.training.files.census import Census, Copies, Entry, known_model
from sim.training.files.engine_rules import EXTRAS, EngineRules, Verdict

ConcernLevel = Literal["refused", "wrong", "waste", "unknown", "note"]
LEVELS: tuple[ConcernLevel, ...] = ("refused", "wrong", "waste", "unknown", "note")
"""By severity: not served, served wrongly, served at a cost, unknown, good to know."""

EXAMPLES = 3
_CHECKPOINT = "checkpoint-"
_SLOT_WIDTH = 2  # bytes of fp16 and bf16, in which engines keep adapters, whatever the file has
_PADDING_WORTH_SAYING = 0.25
_LEVEL_OF: dict[Verdict, ConcernLevel] = {"refused": "refused", "wrong": "wrong", "unknown": "unknown"}


@dataclass(frozen=True, slots=True)
class Concern:
    """A finding of a check.

    :ivar check: short name of the check.
    :ivar count: adapters concerned; ``folders``: the first few.
    :ivar source: the engine's source file that says so, or "".
    """

    check: str
    level: ConcernLevel
    words: str
    count: int
    folders: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True, slots=True)
class ServingTarget:
    """What the adapters of a census should be served with.

    :ivar engine: a name in ``ENGINES``; None: check only what holds for all engines.
    :ivar max_rank: the engine's largest rank; None: what the adapters need.
    :ivar base_model: the base model that is served; None: the one that most adapters name.
    """

    engine: str | None = None
    max_rank: int | None = None
    base_model: str | None = None

    @property
    def rules(self) -> EngineRules:
        """The rules of the engine; empty without an engine."""
        return EngineRules() if self.engine is None else rules_of(self.engine)


def rules_of(engine: str) -> EngineRules:
    """Return what an engine makes of adapters."""
    rules: EngineRules = ENGINES[engine].load()
    return rules


def check_serving_target(target: ServingTarget, option: str = "--max-rank") -> None:
    """Refuse an unknown engine, a largest rank that it doesn't allow, and a base model that can't be printed.

    :param option: that gives the rank.
    :raises InputError: naming the option.
    """
    if target.engine is not None and target.engine not in ENGINES:
        raise ENGINES.unknown(target.engine, "--engine")
    if target.base_model is not None and not target.base_model.isprintable():
        raise InputError("not a model's name", key="--base-model", got=target.base_model)
    choices = target.rules.rank_choices
    if target.max_rank is not None and choices and target.max_rank not in choices:
        raise InputError(
            f"{target.engine} has no such largest rank",
            key=option,
            got=target.max_rank,
            allowed=", ".join(map(str, choices)),
        )


def check_census(census: Census, target: ServingTarget, copies: Copies) -> list[Concern]:
    """Return the findings for the user, the most severe first."""
    entries = census.entries
    found = [
        *_base_models(entries, target),
        *_misfits(entries),
        *above_rank(entries, target),
        *_modules(entries, target),
        *_extras(entries, target),
        *_padding(entries, target),
        *_dtypes(entries),
        *_copies(copies),
        *_checkpoints(entries),
    ]
    return sorted(found, key=lambda concern: LEVELS.index(concern.level))


def served_base(entries: Sequence[Entry], target: ServingTarget) -> str | None:
    """Return the base model that is served: the given one, or the one that most adapters name."""
    if target.base_model is not None:
        return target.base_model
    named = Counter(entry.base_model for entry in entries if entry.base_model is not None)
    return min(named, key=lambda name: (-named[name], name), default=None)


def is_served(entry: Entry, base: str | None) -> bool:
    """Return whether an adapter names the base model that is served; one without a name counts as served.

    Our own name of a model, such as ``llama-3.1-8b``, stands for all of its versions.
    """
    return entry.base_model is None or base is None or base.rstrip("/") in (entry.base_model.rstrip("/"), entry.model)


def needed_rank(entries: Sequence[Entry], target: ServingTarget) -> int:
    """Return the rank of slots: the given one, or the smallest choice that fits every adapter."""
    if target.max_rank is not None:
        return target.max_rank
    largest = max(entry.rank for entry in entries)
    choices = target.rules.rank_choices
    return next((choice for choice in choices if choice >= largest), choices[-1] if choices else largest)


def _concern(check: str, level: ConcernLevel, words: str, concerned: Sequence[Entry], source: str = "") -> Concern:
    return Concern(check, level, words, len(concerned), tuple(e.folder for e in concerned[:EXAMPLES]), source)


def _base_models(entries: Sequence[Entry], target: ServingTarget) -> Iterator[Concern]:
    base = served_base(entries, target)
    others = [entry for entry in entries if not is_served(entry, base)]
    if others:
        names = Counter(entry.base_model for entry in others)
        listed = ", ".join(f"{name} ({count})" for name, count in names.most_common(EXAMPLES))
        most = "the base model asked for" if target.base_model else "what most name"
        words = f"another base model than {base}, {most}: {listed}; engines don't compare names and serve what fits"
        yield _concern("base-model", "wrong", words, others)
    nameless = [entry for entry in entries if entry.base_model is None]
    if nameless:
        yield _concern("base-model", "unknown", "the configuration names no base model", nameless)


def _misfits(entries: Sequence[Entry]) -> Iterator[Concern]:
    """Yield adapters whose matrices don't fit the model that they name."""
    wrong = [entry for entry in entries if _is_plain(entry) and entry.fits is False]
    if wrong:
        yield _concern(
            "shape",
            "wrong",
            f"the matrices are not as large as {wrong[0].model}'s layers ask for: the base model "
            "named is not the one it was trained on, or has other layers",
            wrong,
        )


def _is_plain(entry: Entry) -> bool:
    return set(entry.modules) <= set(MODULES) and "part of the layers" not in entry.extras


def above_rank(entries: Sequence[Entry], target: ServingTarget) -> Iterator[Concern]:
    """Yield adapters whose rank is above the largest asked for, or that the engine can have."""
    limit = target.max_rank
    if limit is None and target.rules.rank_choices:
        limit = target.rules.rank_choices[-1]
    above = [entry for entry in entries if limit is not None and entry.rank > limit]
    if above:
        what = "asked for" if target.max_rank else f"that {target.engine} can have"
        yield _concern(
            "rank",
            "refused",
            f"a rank up to {max(e.rank for e in above)}, above {limit}, the largest {what}",
            above,
            target.rules.source,
        )


def _modules(entries: Sequence[Entry], target: ServingTarget) -> Iterator[Concern]:
    rules = target.rules
    if rules.modules:
        odd = [entry for entry in entries if not set(entry.targets) <= set(rules.modules)]
        if odd:
            names = sorted({name for entry in odd for name in entry.targets} - set(rules.modules))
            level = _LEVEL_OF.get(rules.other_modules, "unknown")
            fate = {"refused": "refuses", "wrong": "leaves out"}.get(rules.other_modules, "may not know")
            words = f"modules that {target.engine} {fate}: {', '.join(names[:8])}"
            yield _concern("modules", level, words, odd, rules.source)
    lacking = [entry for entry in entries if not set(rules.needed_modules) <= set(entry.targets)]
    if lacking:
        words = f"{target.engine} needs all of {', '.join(rules.needed_modules)}, and they have fewer"
        yield _concern("modules", "refused", words, lacking, rules.source)


def _extras(entries: Sequence[Entry], target: ServingTarget) -> Iterator[Concern]:
    for extra in EXTRAS:
        having = [entry for entry in entries if extra in entry.extras]
        if not having:
            continue
        rule = target.rules.rule(extra)
        if not target.rules.extras:
            yield _concern("extras", "note", f"{extra}: engines differ; give --engine, such as vllm-0.32", having)
        elif rule.verdict != "served":
            words = f"{extra}: {target.engine} {rule.words}"
            yield _concern("extras", _LEVEL_OF[rule.verdict], words, having, rule.source)


def _padding(entries: Sequence[Entry], target: ServingTarget) -> Iterator[Concern]:
    """Yield padding of slots, where the engine pads and the model's layers are known."""
    base = served_base(entries, target)
    model = known_model(base or "")
    rules = target.rules
    if target.engine is None or rules.slots_hold not in ("all", "targets") or model is None:
        return
    rank = needed_rank(entries, target)
    served = [e for e in entries if is_served(e, base) and e.rank <= rank and _is_plain(e)]
    if not served:
        return
    modules = "all-linear" if rules.slots_hold == "all" else tuple(sorted({name for e in served for name in e.modules}))
    per_rank = parameters_per_rank(SHAPES[model], modules) * _SLOT_WIDTH  # type: ignore[arg-type]
    slot = rank * per_rank
    filled = sum(entry.lora_parameters for entry in served) * _SLOT_WIDTH / len(served)
    if filled > (1 - _PADDING_WORTH_SAYING) * slot:
        return
    what = "every linear module" if rules.slots_hold == "all" else "every module that any of them has"
    words = (
        f"a slot takes {human_bytes(slot)}, {what} at rank {rank}, and an adapter fills {100 * filled / slot:.0f} % "
        f"of it on average; 32 such slots would hold {human_bytes(32 * (slot - filled))} of padding"
    )
    yield _concern("padding", "waste", words + _cheaper(served, target, rank, per_rank), served, rules.source)


def _cheaper(served: Sequence[Entry], target: ServingTarget, rank: int, per_rank: int) -> str:
    """Return, in words, the slot size without the adapters of the highest rank, if these are few."""
    if target.max_rank is not None:
        return ""
    top = max(entry.rank for entry in served)
    rest = [entry for entry in served if entry.rank < top]
    few = len(served) - len(rest)
    if not rest or few > len(served) / 4:
        return ""
    smaller = needed_rank(rest, target)
    if smaller >= rank:
        return ""
    whose = "the one adapter" if few == 1 else f"the {few:,} adapters"
    return f"; without {whose} of rank {top} it would take {human_bytes(smaller * per_rank)}"


def _dtypes(entries: Sequence[Entry]) -> Iterator[Concern]:
    mixed = [entry for entry in entries if len(entry.dtypes) > 1]
    if mixed:
        words = f"several number formats in one adapter: {', '.join(mixed[0].dtypes)}"
        yield _concern("dtype", "note", words + "; engines convert them as they load", mixed)
    whole = [entry for entry in entries if len(entry.dtypes) == 1]
    counts = Counter(entry.dtypes[0] for entry in whole)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        others = [entry for entry in whole if entry.dtypes[0] != usual]
        listed = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common())
        yield _concern("dtype", "note", f"number formats differ over the fleet: {listed}", others)
    wide = [entry for entry in whole if DTYPE_BYTES.get(entry.dtypes[0], 0) > _SLOT_WIDTH]
    if wide:
        words = "fp32 files: twice the bytes to store and to load, and engines keep 16 bits of each number"
        yield _concern("dtype", "waste", words, wide)


def _copies(copies: Copies) -> Iterator[Concern]:
    if copies.sets:
        spare = sum(len(equal) - 1 for equal in copies.sets)
        what = "1 is a copy" if spare == 1 else f"{spare:,} are copies"
        words = f"{what} under another name (same weights, same settings); each name takes a slot"
        example = tuple(" = ".join(equal[:EXAMPLES]) for equal in copies.sets[:EXAMPLES])
        yield Concern("copies", "waste", words, sum(map(len, copies.sets)), example)
    if copies.unread:
        yield Concern("copies", "unknown", "likely copies that were too many bytes to compare", copies.unread, ())


def _checkpoints(entries: Sequence[Entry]) -> Iterator[Concern]:
    between = [entry for entry in entries if any(part.startswith(_CHECKPOINT) for part in entry.folder.split("/"))]
    if between:
        yield _concern("checkpoints", "note", "states between of a training (checkpoint-N), and counted", between)
