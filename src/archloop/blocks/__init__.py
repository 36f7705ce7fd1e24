"""Blocks: sequence mixers, channel mixers, and the algorithms they share.

Mixers are re-exported by class name and loaded when first used:

    >>> from archloop.blocks import GQA
    >>> GQA.Config(head_dim=64).build(d_model=256)  # doctest: +SKIP
"""

from typing import Any

from archloop import registry


def __getattr__(name: str) -> Any:
    for kind in ("mixers", "channel_mixers"):
        for plugin in registry.names(kind):
            if plugin.replace("_", "") == name.lower():
                found = registry.get(kind, plugin)
                if found.__name__ == name:
                    return found
                raise AttributeError(_unknown(name, [found.__name__]))
    # Tools such as debuggers ask every module for names with an underscore. No mixer has such a
    # name, so none is looked up to suggest a near one.
    raise AttributeError(_unknown(name, [] if "_" in name else __dir__()))


def _unknown(name: str, known: list[str]) -> str:
    text = f"module 'archloop.blocks' has no attribute {name!r}"
    return f"{text}; {registry.suggest(name, known)}" if known else text


def __dir__() -> list[str]:
    # Only mixers of the library: to list a plug-in is to import it, and one that asks this module
    # for a wrong name while it is being imported must not be imported once more.
    kinds = ("mixers", "channel_mixers")
    return sorted(
        registry.get(kind, name).__name__ for kind in kinds for name in registry.shipped(kind)
    )
