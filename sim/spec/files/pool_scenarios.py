"""The scenario of each pool: what ``fleet``, ``cache`` and ``storage`` say for all, with what the pool says instead.

Each is checked as a scenario of its own. What is wrong in it is reported at the key that the user wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from sim.spec.base import located, several
from sim.spec.files import tree
from sim.spec.files.tree import Origin, join, value_at

_OWN = ("name", "replicas", "serves", "role", "weight", "cache", "storage")
"""Keys of a pool that its scenario doesn't have, or not in its fleet."""
_SECTIONS = ("cache", "storage")
_LEFT_OUT = ("sweep", "plan", "slo", "rollouts", "faults")
_ORIGIN = Origin("pool")

Model = TypeVar("Model", bound=BaseModel)


def pool_scenarios(model: type[Model], data: Mapping[str, Any], context: Any) -> tuple[Model, ...]:
    """Return the checked scenario of each pool, in order.

    :param model: of a scenario.
    :param data: a scenario with pools, as it was given.
    :raises ValidationError: with every problem, at the keys of ``data``.
    """
    found: list[Model] = []
    problems: dict[str, dict[int, PydanticCustomError]] = {}  # by what they say, and by pool
    for number, pool in enumerate(data["fleet"]["pools"]):
        try:
            found.append(model.model_validate(pool_data(data, pool), context=context))
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                problem = _problem(detail, number, pool)
                said = str(problem.context).replace(_of_pool(pool), "")
                problems.setdefault(said, {})[number] = problem
    if problems:
        raise several(model, [_of_all(same, data["fleet"]["pools"]) for same in problems.values()])
    return tuple(found)


def _of_all(same: Mapping[int, PydanticCustomError], pools: Sequence[Mapping[str, Any]]) -> PydanticCustomError:
    """Return the problem of some pools as the first of them has it, without its name where all have it."""
    number, problem = next(iter(same.items()))
    if len(same) == len(pools) > 1 and problem.context is not None:
        problem.context["problem"] = problem.context["problem"].removesuffix(_of_pool(pools[number]))
    return problem


def _of_pool(pool: Mapping[str, Any]) -> str:
    return f" (pool {pool['name']})"


def pool_data(data: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a scenario whose whole fleet is one pool of another scenario."""
    base = {key: value for key, value in data.items() if key not in _LEFT_OUT}
    base["fleet"] = {key: value for key, value in data["fleet"].items() if key not in ("pools", "kv_transfer")}
    base["router"] = {
        key: value for key, value in (data.get("router") or {}).items() if key not in ("pools", "spill", "copies")
    }
    own: dict[str, Any] = {"fleet": {key: value for key, value in pool.items() if key not in _OWN}}
    own["fleet"]["replicas"] = pool.get("replicas") or 1  # a pool without replicas is checked, but not built
    own |= {key: pool[key] for key in _SECTIONS if pool.get(key) is not None}
    merged = tree.plain(tree.merge(tree.planted(base, _ORIGIN), tree.planted(own, _ORIGIN)))
    assert isinstance(merged, dict)
    return merged


def key_in_fleet(key: str, number: int, pool: Mapping[str, Any]) -> str:
    """Return the key of a scenario with pools at which a key of a pool's scenario was given.

    :param number: of the pool, from 0; ``pool``: its own data.
    """
    section, _, rest = key.partition(".")
    path = rest if section == "fleet" else key if section in _SECTIONS else ""
    return join(f"fleet.pools.{number}", path) if path and value_at(pool, path) is not None else key


def _problem(detail: Any, number: int, pool: Mapping[str, Any]) -> PydanticCustomError:
    """Return what the error of a pool's scenario says, at the key of the whole scenario."""
    context = dict(detail.get("ctx") or {}) if detail["type"] == "quantity" else {"problem": detail["msg"]}
    where = join(".".join(map(str, detail["loc"])), context.get("key") or "").strip(".")
    key = key_in_fleet(where, number, pool)
    problem = context["problem"] if key != where else context["problem"] + _of_pool(pool)
    got = context.get("got")
    text = f"{got:g}" if isinstance(got, float) else got
    return located(key, problem, got=text, allowed=context.get("allowed", ""), hint=context.get("hint", ""))
