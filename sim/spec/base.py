"""The strict base of every model that a user writes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError


class Strict(BaseModel):
    """A frozen model that refuses unknown keys; docstrings under fields are their descriptions.

    Fields one under the other with the same type and default share the docstring under the last of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the model's JSON Schema with the descriptions of its fields."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in descriptions(cls).items():
            field = properties[cls.model_fields[name].alias or name]
            if handler.resolve_ref_schema(field).get("description") != text:  # else the model it refers to says it
                field["description"] = text
        return schema


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return the description of every field that has one: as given, or the docstring under the field.

    This reads the source when somebody wants to know: the schema, the documentation, an error message. Pydantic's
    ``use_attribute_docstrings`` reads it at import, which took a sixth of the time of ``loraplan check``.
    """
    found: dict[str, str] = {}
    documented = {owner: _docstrings(owner) for owner in model.__mro__ if issubclass(owner, Strict)}
    for name, field in model.model_fields.items():
        owner = next((each for each in documented if name in inspect.get_annotations(each)), None)
        text = field.description or (documented[owner].get(name) if owner else None)
        if text is not None:
            found[name] = text
    return found


def _docstrings(model: type) -> dict[str, str]:
    """Return the docstrings under the fields of a class; none where its source isn't there."""
    import textwrap

    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    except (OSError, TypeError):
        return {}
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    alike: list[ast.AnnAssign] = []
    for each in body.body:
        if isinstance(each, ast.AnnAssign):
            alike = [*(field for field in alike if _made_of(field) == _made_of(each)), each]
        elif isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) and isinstance(each.value.value, str):
            found |= {ast.unparse(field.target): inspect.cleandoc(each.value.value) for field in alike}
            alike = []
    return found


def _made_of(field: ast.AnnAssign) -> str:
    """Return the type and the default of a field."""
    return f"{ast.unparse(field.annotation)} = {field.value and ast.unparse(field.value)}"


def located(key: str, problem: str, *, got: object = None, allowed: str = "", hint: str = "") -> PydanticCustomError:
    """Return the error of a check that spans fields, pointing at ``key`` (relative to the model)."""
    context = {"key": key, "problem": problem, "got": got, "allowed": allowed, "hint": hint}
    return PydanticCustomError("quantity", "{problem}", context)


Errors = Iterator[PydanticCustomError]
"""What is wrong with a model, as ``located`` says it."""


def refuse(model: type[BaseModel], errors: Iterable[PydanticCustomError]) -> None:
    """Raise errors of a model together, if there are any: for each key the first one.

    :raises ValidationError: with all of them.
    """
    by_key: dict[str, PydanticCustomError] = {}
    for error in errors:
        by_key.setdefault((error.context or {})["key"], error)
    if by_key:
        raise several(model, by_key.values())


def several(model: type[BaseModel], errors: Iterable[PydanticCustomError]) -> ValidationError:
    """Return errors of a model as one."""
    details = [InitErrorDetails(type=error, loc=(), input=None) for error in errors]
    return ValidationError.from_exception_data(model.__name__, details)


def checks(errors_of: Callable[[Any], Errors]) -> Any:
    """Turn a method of a model that yields what is wrong with it into a check of the model."""

    def check(model: Strict) -> Strict:
        refuse(type(model), errors_of(model))
        return model

    return model_validator(mode="after")(check)
