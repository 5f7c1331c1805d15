"""Turns pydantic's errors into our messages: the key as the user wrote it, the problem, what is allowed.

A location from pydantic is followed along the models' annotations. That separates keys from the tags and type names
that pydantic puts between them, and finds the model that an unknown key belongs to.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sim.errors import SYNONYMS, InputError, ScenarioError, UnknownKeyError, did_you_mean
from sim.spec.base import descriptions
from sim.spec.engine_flags.options import flag_hint
from sim.spec.files.tree import TAGS, join, without_indexes

_MOST_KEYS = 12
_IN_LISTS = ("tenants.", "fleet.pools.", "adapters.mix.", "faults.", "rollouts.", "plan.fleets.")
"""Starts of keys of which there may be several, each in an entry of a list."""
_A_TYPO = 0.88
"""How alike a word and a key of the section are that a hint prefers to the same word in another section."""
_RANGE = re.compile(r"\s*(\d+)\s*(?:-|:|to|…)\s*(\d+)\s*")
"""A range as people write it before they know how."""
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a location leads: its keys, the model that holds the last one, and the type it should have."""

    path: tuple[str | int, ...]
    owner: type[BaseModel] | None
    kind: Any
    matches: bool  # False on the branch of a union that the user did not mean

    @property
    def key(self) -> str:
        return ".".join(str(part) for part in self.path)


def problems(error: ValidationError, model: type[BaseModel], data: Any) -> list[InputError]:
    """Return every problem pydantic found in ``data`` as our error, with its dotted key."""
    found: list[InputError] = []
    details = error.errors(include_url=False)
    places = [detail["loc"] for detail in details]
    spots = [_as_written(_walk(place, model, data), data) for place in places]
    kinds = {(spot.path, detail["type"]) for spot, detail in zip(spots, details, strict=True)}
    for place, detail, spot in zip(places, details, spots, strict=True):
        # of a number or a word, either says it all
        if detail["type"] in _WANTED and (spot.path, "literal_error") in kinds:
            continue
        if detail["type"] == "literal_error" and any((spot.path, bound) in kinds for bound in _BOUNDS):
            continue
        # pydantic counts only the entries of a list in which it found nothing wrong
        within = detail["type"] == "too_short" and any(each[:-1][: len(place)] == place for each in places)
        if spot.matches and not within:
            found.append(_explain(detail, spot, model, data))
    if not found:  # the value fits none of the choices: report the first
        found.append(_explain(details[0], spots[0], model, data))
    return found


def _as_written(spot: _Spot, data: Any) -> _Spot:
    """Return a spot without the keys below a single value, which stands for a mapping or a list: ``prompt: 0``."""
    path = spot.path
    while path and isinstance(_value(data, path[:-1]), (str, int, float)):
        path = path[:-1]
    return replace(spot, path=path)


def value_problem(error: ValidationError) -> str:
    """Return what is wrong with a single value outside a scenario, such as that of an option."""
    detail = error.errors(include_url=False)[0]
    kind, got = detail["type"], detail["input"]
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        return str(InputError("out of range", got=got, allowed=f"{word} {_bound(detail['ctx'][name])}"))
    problem = f"must be {_WANTED[kind]}" if kind in _WANTED else detail["msg"].replace("Input should", "should")
    return str(InputError(problem, got=got))


def misplaced_flags(model: type[BaseModel], data: Any) -> list[InputError]:
    """Return an error for each true or false where a number belongs: pydantic would read it as 1 or 0."""
    flags = [(path, value) for path, value in _leaves(data, "") if isinstance(value, bool)]
    return [
        ScenarioError("must be a number", key=path, got=value)
        for path, value in flags
        if without_indexes(path) in _numbers(model)
    ]


def known_keys(model: type[BaseModel]) -> list[str]:
    """Return the dotted path of every key that a model can hold, sections included; those of pools come last."""
    return sorted((path for path, _ in _known(model)), key=lambda path: path.startswith("fleet.pools."))


def keys_ending(word: str, known: Iterable[str]) -> list[str]:
    """Return the keys whose last part, or parts, are this word, or what stands for it here, the likeliest first."""
    words = [word, SYNONYMS.get(word, word).replace(".", "_")]
    found = [
        (place, path)
        for path in known
        for place, each in enumerate(words)
        if path.rpartition(".")[2] == each or ("_" in each and f"_{path.replace('.', '_')}".endswith(f"_{each}"))
    ]
    found.sort(key=lambda each: (each[0], each[1].startswith(_IN_LISTS), each[1].count(".")))
    return [path for _, path in found]


def longer_key(word: str, siblings: Iterable[str]) -> str | None:
    """Return the first key of a section that ends with a word: ``ttft_p99`` for ``p99``; None where one is alike."""
    keys = list(siblings)
    return None if did_you_mean(word, keys, 0.75) else next((key for key in keys if key.endswith(f"_{word}")), None)


def _explain(detail: Any, spot: _Spot, model: type[BaseModel], data: Any) -> InputError:
    got = _value(data, spot.path)
    kind, context = detail["type"], detail.get("ctx") or {}
    if kind == "quantity":
        return _own_error(context, spot, data)
    if kind in _BOUNDS:
        name, word = _BOUNDS[kind]
        return ScenarioError("out of range", key=spot.key, got=got, allowed=f"{word} {_bound(context[name])}")
    if kind in _WANTED:
        return ScenarioError(f"must be {_WANTED[kind]}", key=spot.key, got=got, hint=_type_hint(kind, got))
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        allowed = f"at {'least' if least else 'most'} {context['min_length' if least else 'max_length']:,}"
        return ScenarioError(
            f"too {'few' if least else 'many'} entries", key=spot.key, got=context["actual_length"], allowed=allowed
        )
    rare: dict[str, Callable[[], InputError]] = {
        "extra_forbidden": lambda: _unknown_key(spot, model, got),
        "missing": lambda: ScenarioError(
            "is missing",
            key=spot.key,
            allowed=_describe(spot.kind) or None,
            hint=None if _literals(spot.kind) else _about(spot),
        ),
        "union_tag_not_found": lambda: _no_tag(spot, got),
        "union_tag_invalid": lambda: _no_tag(spot, got),
        "model_type": lambda: _not_a_section(spot, got),
        "model_attributes_type": lambda: _not_a_section(spot, got),
        "literal_error": lambda: _not_allowed(spot, got),
        "string_pattern_mismatch": lambda: _not_a_name(spot, got, context),
    }
    if kind in rare:
        return rare[kind]()
    return ScenarioError(detail["msg"].replace("Input should", "should"), key=spot.key, got=got)


def _own_error(context: Mapping[str, Any], spot: _Spot, data: Any) -> InputError:
    key = join(spot.key, context["key"]) if context.get("key") else spot.key
    allowed, hint, got = context.get("allowed") or None, context.get("hint") or None, context.get("got")
    if isinstance(got, (float, tuple)):
        # The model's own value is 0.01 where the file says 10 ms, and a tuple where it has a list.
        below = (int(part) if part.isdigit() else part for part in str(context.get("key") or "").split("."))
        written = _value(data, (*spot.path, *below))
        got = written if written is not None else _number(got) if isinstance(got, float) else got
    return ScenarioError(context["problem"], key=key, got=got, allowed=allowed, hint=hint)


def _unknown_key(spot: _Spot, model: type[BaseModel], got: Any) -> InputError:
    allowed = _keys(spot.owner)
    word = str(spot.path[-1])
    longer = longer_key(word, allowed)
    hint = (
        did_you_mean(word, allowed, _A_TYPO)
        or _of_another_kind(spot, model)
        or (longer and f"did you mean {longer!r}?")
        or _elsewhere(word, spot.key, model, section=isinstance(got, dict))
        or flag_hint(spot.key, got)
        or did_you_mean(word, allowed)
    )
    more = ", ..." if len(allowed) > 2 * _MOST_KEYS else ""
    listed = None if hint and len(allowed) > _MOST_KEYS else ", ".join(allowed[: 2 * _MOST_KEYS]) + more or None
    return UnknownKeyError("unknown key", key=spot.key, allowed=listed, hint=hint)


def _of_another_kind(spot: _Spot, model: type[BaseModel]) -> str | None:
    """Return a hint on the laws or processes that do have the key."""
    tagged = _tagged(_walk(spot.path[:-1], model, {}).kind) if len(spot.path) > 1 else None
    if tagged is None:
        return None
    tag, kinds = tagged
    having = [name for name, kind in kinds.items() if spot.path[-1] in _keys(kind)]
    return f"only {tag} {', '.join(having)} {'has' if len(having) == 1 else 'have'} it" if having else None


def _elsewhere(word: str, key: str, model: type[BaseModel], *, section: bool) -> str | None:
    """Return a hint on a key of that name in another section: users remember ``slots``, not ``cache.gpu.slots``.

    :param section: whether keys were given below it, so that a section of that name comes first.
    """
    known = known_keys(model)
    found = [path for path in keys_ending(word, known) if path != without_indexes(key)]
    sections = [path for path in found if any(each.startswith(f"{path}.") for each in known)]
    meant = next(iter(sections if section and sections else found), None)
    return None if meant is None else f"did you mean {meant!r}?"


def _no_tag(spot: _Spot, got: Any) -> InputError:
    tag, kinds = _tagged(spot.kind) or ("law", {})
    allowed, key = ", ".join(kinds), join(spot.key, tag)
    given = got.get(tag) if isinstance(got, Mapping) else None
    if given is None:
        return ScenarioError("is missing", key=key, allowed=allowed)
    return ScenarioError(f"unknown {tag}", key=key, got=given, allowed=allowed, hint=did_you_mean(str(given), kinds))


def _not_a_section(spot: _Spot, got: Any) -> InputError:
    tagged = _tagged(spot.kind)
    if tagged is not None:
        allowed = f"{{{tagged[0]}: ...}} with one of {', '.join(tagged[1])}"
    else:
        model = next(iter(_members(spot.kind)), None)
        names = _keys(model)
        allowed = f"the keys {', '.join(names[:_MOST_KEYS])}" + (", ..." if len(names) > _MOST_KEYS else "")
    return ScenarioError("must be a section with keys of its own", key=spot.key, got=got, allowed=allowed)


def _not_allowed(spot: _Spot, got: Any) -> InputError:
    words = [str(word) for word in _literals(spot.kind)]
    hint = did_you_mean(got, words) if isinstance(got, str) else None
    return ScenarioError("not one of the known values", key=spot.key, got=got, allowed=_describe(spot.kind), hint=hint)


def _not_a_name(spot: _Spot, got: Any, context: Mapping[str, Any]) -> InputError:
    allowed = f"text that matches {context['pattern']}"
    if spot.key == "name":
        allowed = "a to z, A to Z, digits, and . _ - inside, at most 64 of them"
    return ScenarioError(
        "not a usable name" if spot.key == "name" else "not in the right form", key=spot.key, got=got, allowed=allowed
    )


def _type_hint(kind: str, got: Any) -> str | None:
    if kind == "string_type" and isinstance(got, (int, float)):
        return "put it in quotes"
    if kind == "tuple_type" and isinstance(got, (str, int, float)):
        return f"write [{got}]"
    if kind.startswith(("int_", "float_")) and isinstance(got, str) and (found := _RANGE.fullmatch(got)):
        return f"a range is written {found[1]}..{found[2]}, behind --over"
    if kind == "tuple_type" and isinstance(got, Mapping):
        return "write '- ' before its first key"
    return None


def _about(spot: _Spot) -> str | None:
    """Return the first sentence of the field's description, as a hint."""
    for name, description in descriptions(spot.owner).items() if spot.owner and spot.path else ():
        if _alias(spot.owner, name) == spot.path[-1]:
            text = " ".join(description.replace("``", "").split()).split(". ")[0]
            is_section = len(spot.path) == 1 and any(map(_is_model, _members(spot.kind)))
            example = " (for an example: loraplan scenarios copy quickstart)" if is_section else ""
            return text.rstrip(".")[:1].lower() + text.rstrip(".")[1:] + example
    return None


def _walk(location: Sequence[str | int], model: type[BaseModel], data: Any) -> _Spot:
    path: list[str | int] = []
    owner: type[BaseModel] | None = model
    kind: Any = model
    matches = True
    for part in location:
        tagged, members = _tagged(kind), _members(kind)
        if tagged is not None and part in tagged[1]:
            owner = kind = tagged[1][str(part)]
        elif len(members) > 1:
            branch = _branch(str(part), members)
            got = _value(data, path)
            matches = matches and _is_list(branch) == isinstance(got, (list, tuple))
            if any(map(_is_model, members)):
                matches = matches and _is_model(branch) == isinstance(got, Mapping)
            # At the union itself the whole choice is what may stand there, not only this branch.
            kind = branch if _is_list(branch) or _is_model(branch) else kind
            owner = branch if _is_model(branch) else owner
        else:
            owner = members[0] if members and _is_model(members[0]) else owner
            kind = _below(members[0] if members else None, part)
            path.append(part)
    return _Spot(tuple(path), owner, kind, matches)


def _below(kind: Any, part: str | int) -> Any:
    """Return the annotation of a field of a model, or of what a list or mapping holds."""
    if _is_model(kind):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
        return None
    arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
    return arguments[-1] if arguments else None


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation, without None and annotations."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(member for part in get_args(kind) for member in _members(part))
    return () if kind is None or kind is type(None) else (kind,)


def _tagged(kind: Any) -> tuple[str, dict[str, type[BaseModel]]] | None:
    """Return the tag and the models it chooses between, or None where the annotation is no such choice."""
    members = _members(kind)
    if len(members) < 2 or not all(_is_model(member) for member in members):
        return None
    tag = next((tag for tag in TAGS if all(tag in member.model_fields for member in members)), None)
    if tag is None:
        return None
    return tag, {str(value): member for member in members for value in _literals(member.model_fields[tag].annotation)}


def _branch(label: str, members: Sequence[Any]) -> Any:
    wants_list = label.startswith(("tuple[", "list["))
    named = [member for member in members if _is_model(member) and member.__name__ in label]
    return named[0] if named else next((member for member in members if _is_list(member) == wants_list), members[0])


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _literals(kind: Any) -> list[Any]:
    return [word for member in _members(kind) if get_origin(member) is Literal for word in get_args(member)]


def _describe(kind: Any) -> str:
    words = [str(word) for word in _literals(kind)]
    items = [_describe(get_args(member)[0]) for member in _members(kind) if _is_list(member)]
    lists = [f"a list of {item}" if item else "a list" for item in items]
    sections = [f"a section with {' or '.join(_keys(member))}" for member in _members(kind) if _is_model(member)]
    whole = ["a whole number"] if words and int in _members(kind) else []
    return " or ".join(([", ".join(words)] if words else []) + whole + lists + (sections if words else []))


def _keys(model: Any) -> list[str]:
    return [_alias(model, name) for name in model.model_fields] if _is_model(model) else []


def _alias(model: Any, name: str) -> str:
    return model.model_fields[name].alias or name


def _value(data: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _bound(bound: Any) -> str:
    """Return a bound as 10,000,000 rather than 1e+07."""
    return f"{bound:,.0f}" if 10_000 <= abs(bound) < 1e15 and bound == int(bound) else _number(bound)


def _number(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


@lru_cache(maxsize=8)
def _known(model: type[BaseModel]) -> tuple[tuple[str, Any], ...]:
    return tuple(_paths(model, ""))


@lru_cache(maxsize=8)
def _numbers(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(path for path, kind in _known(model) if {int, float} & set(_plain_kinds(kind)))


def _paths(kind: Any, path: str) -> Iterator[tuple[str, Any]]:
    for member in _members(kind):
        if _is_list(member):
            yield from _paths(get_args(member)[0], path)
        elif _is_model(member):
            for name, field in member.model_fields.items():
                here = join(path, _alias(member, name))
                yield here, field.annotation
                yield from _paths(field.annotation, here)


def _plain_kinds(kind: Any) -> Iterator[Any]:
    for member in _members(kind):
        yield from _plain_kinds(get_args(member)[0]) if _is_list(member) else (member,)


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _leaves(value, join(path, key))
    elif isinstance(data, (list, tuple)):
        for index, value in enumerate(data):
            yield from _leaves(value, join(path, index))
    else:
        yield path, data
