"""What is wrong with a recipe, in one line: the key's path, the problem, the remedy."""

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from archloop.errors import UserError, reason, shown, suggest


class RecipeError(UserError):
    """The user's recipe is wrong; the message names file and key."""


def describe(error: ValidationError, model: type[BaseModel], data: Any) -> str:
    """One line on the first problem that pydantic found in `data`.

    An unknown key comes before all others: it is often the cause of a missing one.
    """
    problems = error.errors(include_url=False, include_context=False)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    keys = _keys(first["loc"], data)
    path = _path(keys)
    if first["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, first["loc"][:-1]))
        near = suggest(str(keys[-1]), known) if known else "remove it"
        return f"{path}: unknown key; {near}"
    if first["type"] == "missing":
        return f"{path}: missing; add it"
    if first["type"] == "invalid_key":
        return f"{path}: the key {first['input']!r} is not text; correct it, or put it in quotes"
    problem = _problem(first)
    if first["type"] in ("model_type", "dict_type"):
        known = sorted(_fields_at(model, first["loc"]))
        problem += f": {', '.join(known)}" if known else ""
    return f"{path or 'recipe'}: {problem}"


def _problem(details: ErrorDetails) -> str:
    value, message = details["input"], reason(details)
    if details["type"] in ("value_error", "assertion_error"):
        return f"{value!r}: {message}" if isinstance(value, (str, int, float)) else message
    return f"{shown(value)} {message}"


def _keys(loc: tuple[int | str, ...], data: Any) -> list[int | str]:
    """The part of an error's location that the recipe itself has.

    Pydantic adds names of union members, and index 0 where one item stood for a list of one.
    """
    keys: list[int | str] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(data, dict) and isinstance(part, str) and (part in data or last):
            keys.append(part)
            data = data.get(part)
        elif isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data):
            keys.append(part)
            data = data[part]
    return keys


def _path(keys: list[int | str]) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    """Field names of the models that stand at a location."""
    here: list[Any] = [model]
    for part in loc:
        here = [inner for kind in here for inner in _inner(kind, part)]
    return {name for kind in here for found in _models(kind) for name in found.model_fields}


def _inner(kind: Any, part: int | str) -> Iterator[Any]:
    """Types one step further down."""
    for found in _models(kind):
        if part in found.model_fields:
            yield found.model_fields[str(part)].annotation
            return
    yield from (argument for argument in typing.get_args(kind) if argument is not Ellipsis)


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        for argument in typing.get_args(kind):
            yield from _models(argument)
