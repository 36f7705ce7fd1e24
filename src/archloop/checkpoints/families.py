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
    """The layout with words for all of a spec, and its configuration.

    Of several that have, the one that fewest of its own mixers are idle in, so that attention alone
    is a Llama and no hybrid without its other half.

    Raises:
        UnsayableError: none has; says which is nearest, and what stands in the way there.
    """
    used = {mixer for joined in spec.layout for mixer in joined.split("+")}
    able: list[tuple[int, str, dict[str, Any]]] = []
    lacking: list[tuple[tuple[int, bool, int, int], str, str]] = []
    for name in registry.names("layouts"):
        candidate = layout(name)
        config, obstacles = candidate.draft(spec)
        idle = len(candidate.mixers() - used)
        if obstacles:
            distance = candidate.num_foreign(spec), not config, len(obstacles), idle
            lacking.append((distance, name, obstacles[0]))
        else:
            able.append((idle, name, config))
    if able:
        _, name, config = min(able, key=lambda entry: entry[:2])
        return layout(name), config
    _, name, obstacle = min(lacking)
    raise UnsayableError(
        f"this stack is of no family that transformers loads; the nearest is {name}: {obstacle}"
    )
