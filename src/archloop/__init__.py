"""archloop finds the best hybrid language-model decoder for the device it will ship on.

The Python API mirrors the commands; each name is loaded when first used, so that importing the
package costs nothing:

    >>> import archloop
    >>> spec = archloop.load_preset("lfm2-350m")
    >>> decoder = archloop.build(spec)  # doctest: +SKIP
    >>> archloop.checkpoints.__name__
    'archloop.checkpoints'
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from archloop.version import __version__

_HOMES = {
    "BlockSpec": "archloop.stack.spec:BlockSpec",
    "Budget": "archloop.ranking.budgets:Budget",
    "ChannelMixerSpec": "archloop.stack.spec:ChannelMixerSpec",
    "MixerSpec": "archloop.stack.spec:MixerSpec",
    "Objective": "archloop.ranking.record:Objective",
    "ProfileConfig": "archloop.profiling.config:ProfileConfig",
    "Recipe": "archloop.search.recipe.recipe:Recipe",
    "StackSpec": "archloop.stack.spec:StackSpec",
    "Study": "archloop.search.study:Study",
    "Target": "archloop.profiling.target:Target",
    "build": "archloop.stack.decoder:build",
    "load_preset": "archloop.stack.presets:load",
    "load_recipe": "archloop.search.recipe.recipe:load",
    "profile": "archloop.profiling.one_call:profile",
}

__all__ = [
    "BlockSpec",
    "Budget",
    "ChannelMixerSpec",
    "MixerSpec",
    "Objective",
    "ProfileConfig",
    "Recipe",
    "StackSpec",
    "Study",
    "Target",
    "__version__",
    "build",
    "load_preset",
    "load_recipe",
    "profile",
]

if TYPE_CHECKING:
    from archloop.profiling.config import ProfileConfig
    from archloop.profiling.one_call import profile
    from archloop.profiling.target import Target
    from archloop.ranking.budgets import Budget
    from archloop.ranking.record import Objective
    from archloop.search.recipe.recipe import Recipe
    from archloop.search.recipe.recipe import load as load_recipe
    from archloop.search.study import Study
    from archloop.stack.decoder import build
    from archloop.stack.presets import load as load_preset
    from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        module, attribute = _HOMES[name].split(":")
        return getattr(import_module(module), attribute)
    if name in _parts():
        return import_module(f"archloop.{name}")
    raise AttributeError(f"module 'archloop' has no attribute {name!r}")


def _parts() -> list[str]:
    """Folders and files of the package; not `__main__`, whose import runs the command."""
    return [part.name for part in iter_modules(__path__) if not part.name.startswith("_")]


def __dir__() -> list[str]:
    return sorted({*__all__, *_parts()})
