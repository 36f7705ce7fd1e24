"""The reference of recipes, from the models: every key's meaning, what it takes, its default.

    python -m archloop.search.recipe.reference

The meanings are those that the models' own docstrings give, so that what is checked and what is
told lie in one place; a test fails where a key has none.
"""

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from archloop.search.recipe.recipe import Recipe
from archloop.space.config import ByScale
from archloop.stack.spec import StackSpec

INTRODUCTION = """# Recipes

A recipe is a study as one YAML file. `archloop init` writes one to begin from, `archloop plan` says
what it would do, and what is wrong with one is told in a line that names the key and the remedy.
Every key that there is stands below; keys that are left out have their defaults. Units are part of
names: `_ms` milliseconds, `_s` seconds, `_bytes` bytes.

Budgets are of two sorts. `budgets:` are limits on what is measured on a device: a stack that
breaks one is never trained. `space.budget` is a number of parameters that every stack has, to
within `space.budget.tolerance` (1% unless said otherwise), so that a better stack is no larger one;
several sizes are several studies, which `archloop compare` shows together.

Genes of mixers and channel mixers (under `space.mixers` and `space.channel_mixers`) are their own:
`archloop plugins mixers` lists them. A gene takes one value, or several to choose from; a value
`{ship: 256, proxy: 32}` is another number at proxy width. Settings of devices and strategies
(`archloop plugins devices`) stand beside their `name`.

`python -m archloop.search.recipe.reference` prints this page.
"""


_LEAVES: dict[Any, str] = {StackSpec: "a whole spec", ByScale: "{ship: value, proxy: value}"}
"""Models that have no section of their own, and what they are called."""


class Key(NamedTuple):
    """One key of a recipe."""

    path: str
    meaning: str
    takes: str
    default: str


def keys(model: type[BaseModel] = Recipe, path: str = "") -> Iterator[tuple[str, list[Key]]]:
    """Sections by path, each with its keys; those inside it follow."""
    meanings = attributes(model)
    rows, inner = [], []
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        sections = [(here + mark, model) for mark, model in _models(field.annotation)]
        meaning = meanings.get(name) or " ".join(map(_first_line, dict(sections[:1]).values()))
        rows.append(Key(here, meaning, _takes(field), _default(field)))
        inner += sections
    yield path, rows
    for here, model in inner:
        yield from keys(model, here)


def attributes(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a model and its bases say of each field."""
    found: dict[str, str] = {}
    ours = [base for base in model.__mro__ if not base.__module__.startswith("pydantic")]
    for base in reversed(ours):
        _, _, block = (inspect.cleandoc(vars(base).get("__doc__") or "")).partition("Attributes:")
        for match in re.finditer(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", block, re.MULTILINE):
            for name in match[1].split(", "):
                found[name] = " ".join(match[2].split())
    return found


def markdown() -> str:
    """The page."""
    parts = [INTRODUCTION]
    for path, rows in keys():
        title = f"## `{path}:`" if path else "## Top level"
        table = ["| key | meaning | takes | default |", "|---|---|---|---|"]
        for row in rows:
            name = row.path.rpartition(".")[2]
            cells = (f"`{name}`", row.meaning, row.takes, row.default)
            table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join([title, "", *table]) + "\n")
    return "\n".join(parts)


def _models(annotation: Any, mark: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Sections inside a field, each with what stands between: ``[]`` of a list, ``.<name>``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in _LEAVES:
            yield mark, annotation
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (list, tuple):
        mark = f"{mark}[]"
    elif origin is dict:
        mark, arguments = f"{mark}.<name>", arguments[1:]
    if origin in (list, tuple, dict, typing.Union, types.UnionType, typing.Annotated):
        for argument in arguments:
            yield from _models(argument, mark)


def _first_line(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "").partition("\n")[0]


def _takes(field: FieldInfo) -> str:
    return _type(field.annotation) + _bounds(field.metadata)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0]) + _bounds(annotation.__metadata__)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, arguments)))
    if origin in (list, tuple):
        inner = " or ".join(dict.fromkeys(_type(each) for each in arguments if each is not ...))
        return f"list of {inner}"
    if origin is dict:
        return f"mapping of names to {_type(arguments[1])}"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if annotation in words:
        return words[annotation]
    return _LEAVES.get(annotation, "section")


def _bounds(metadata: Any) -> str:
    words = (
        (Ge, "ge", "at least"),
        (Gt, "gt", "above"),
        (Le, "le", "at most"),
        (Lt, "lt", "below"),
    )
    told = [
        f"{word} {getattr(mark, name):g}"
        for mark in metadata
        for bound, name, word in words
        if isinstance(mark, bound)
    ]
    return f", {', '.join(told)}" if told else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    return _said(field.get_default(call_default_factory=True))


def _said(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "its own defaults"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        if any(isinstance(each, BaseModel) for each in value):
            names = [str(getattr(each, "name", "...")) for each in value]
            return f"[{', '.join(names)}]"
        return f"[{', '.join(map(_said, value))}]"
    if isinstance(value, dict):
        return f"one called {', '.join(value)}" if value else "none"
    return f"{value:g}" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(markdown())
