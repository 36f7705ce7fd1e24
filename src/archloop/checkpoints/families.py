"""From a `config.json` to the layout that reads it, and from a spec to one that can say it."""

from collections.abc import Mapping
from typing import Any

from archloop import registry
from archloop.checkpoints.layouts.base import Layout, UnsayableError
from archloop.errors import UserError
from archloop.stack.spec import StackSpec


def layout(name: str) -> Layout:
    """A layout by name.

    Raises:
        UserError: there is none; near matches are named.
    """
    found: Layout = registry.get("layouts", name)()
    return found


def reading(config: Mapping[str, Any]) -> Layout:
    """The layout of a configuration.

    Raises:
        UserError: none knows its ``model_type``.
    """
    model_type = config.get("model_type")
    known: list[str] = []
    for name in registry.names("layouts"):
        candidate = layout(name)
        if model_type in tuple(candidate.model_types):
            return candidate
        known += candidate.model_types
    raise UserError(
        f"model_type={model_type!r}: only checkpoints of {', '.join(sorted(known))} can be loaded"
    )


def saying(spec: StackSpec) -> tuple[Layout, dict[str, Any]]:
    """The first layout with words for all of a spec, and its configuration.

    Raises:
        UserError: none has; says what each lacks.
    """
    lacking = []
    for name in registry.names("layouts"):
        candidate = layout(name)
        try:
            return candidate, candidate.write(spec)
        except UnsayableError as error:
            lacking.append(f"{name}: {error}")
    raise UserError(
        f"this stack is of no family that transformers loads ({'; '.join(lacking)}); "
        "save it with layout='archloop'"
    )
