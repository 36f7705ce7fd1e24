"""What is wrong with a recipe, in one line: the key's path, the problem, the remedy."""

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from archloop.errors import UserError, expected, reason, shown, suggest


class RecipeError(UserError):
    """The user's recipe is wrong; the message names file and key."""


def describe(error: ValidationError, model: type[BaseModel], data: Any) -> str:
    """One line on the first problem that pydantic found in `data`.

    An unknown key comes before all others: it is often the cause of a missing one.
    """
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    # Where a value may be of several types, pydantic reports a problem for each of them. The one
    # with the longest path into the value is shown: the user most likely meant that type.
    started = _keys(first, data)
    found = [p for p in problems if _keys(p, data)[: len(started)] == started]
    first = max(found, key=lambda problem: len(_keys(problem, data)))
    keys = _keys(first, data)
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
    wanted = dict.fromkeys(filter(None, (expected(p) for p in found if _keys(p, data) == keys)))
    if len(wanted) > 1:
        *others, last = wanted
        problem = f"{shown(first['input'])} must be {', '.join(others)} or {last}"
    if first["type"] in ("model_type", "dict_type"):
        known = sorted(_fields_at(model, first["loc"]))
        problem += f": {', '.join(known)}" if known else ""
    return f"{path or 'recipe'}: {problem}"


def boolean_for_number(given: Any, kept: Any, keys: tuple[int | str, ...] = ()) -> str | None:
    """Path of a `true`, or of YAML's `yes` or `on`, that was read as the number 1, if any.

    Args:
        given: plain data of a recipe.
        kept: what was read from it.
        keys: where both stand.
    """
    if isinstance(given, bool):
        return None if isinstance(kept, bool) else _path(list(keys))
    if isinstance(kept, (list, tuple)) and not isinstance(given, list):
        return boolean_for_number(given, kept[0] if kept else given, keys)
    pairs: Any = ()
    if isinstance(given, dict) and isinstance(kept, dict):
        pairs = [(key, value, kept.get(key, value)) for key, value in given.items()]
    elif isinstance(given, list) and isinstance(kept, (list, tuple)):
        # Some lists are kept without what is given twice.
        pairs = [(i, value, kept[min(i, len(kept) - 1)]) for i, value in enumerate(given) if kept]
    found = (boolean_for_number(value, other, (*keys, key)) for key, value, other in pairs)
    return next(filter(None, found), None)


def _problem(details: ErrorDetails) -> str:
    value, message = details["input"], reason(details)
    if details["type"] in ("value_error", "assertion_error"):
        return f"{value!r}: {message}" if isinstance(value, (str, int, float)) else message
    return f"{shown(value)} {message}"


def _keys(problem: ErrorDetails, data: Any) -> list[int | str]:
    """The part of an error's location that the recipe itself has, or lacks.

    Pydantic adds names of union members, and index 0 where one item stood for a list of one.
    """
    keys: list[int | str] = []
    loc = problem["loc"]
    for position, part in enumerate(loc):
        lacks = problem["type"] == "missing" and position == len(loc) - 1
        if isinstance(data, dict) and isinstance(part, str) and (part in data or lacks):
            keys.append(part)
            data = data.get(part)
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data) + lacks:
            keys.append(part)
            data = None if lacks else data[part]
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
        here = [inner for annotation in here for inner in _inner(annotation, part)]
    return {
        name for annotation in here for found in _models(annotation) for name in found.model_fields
    }


def _inner(annotation: Any, part: int | str) -> Iterator[Any]:
    """Types one step further down."""
    for found in _models(annotation):
        if part in found.model_fields:
            yield found.model_fields[str(part)].annotation
            return
    yield from (argument for argument in typing.get_args(annotation) if argument is not Ellipsis)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for argument in typing.get_args(annotation):
            yield from _models(argument)
