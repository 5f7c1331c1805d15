"""The strict base of every model that a user writes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """A frozen model that refuses unknown keys; docstrings under fields become their description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def located(key: str, problem: str, *, got: object = None, allowed: str = "", hint: str = "") -> Exception:
    """Return the error of a check that spans fields, pointing at ``key`` (relative to the model)."""
    context = {"key": key, "problem": problem, "got": got, "allowed": allowed, "hint": hint}
    return PydanticCustomError("quantity", "{problem}", context)
