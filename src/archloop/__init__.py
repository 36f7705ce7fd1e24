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
    "StackSpec": "archloop.stack.spec:StackSpec",
    "Study": "archloop.search.study:Study",
    "build": "archloop.stack.decoder:build",
    "load_preset": "archloop.stack.presets:load",
    "load_recipe": "archloop.search.recipe.recipe:load",
    "profile": "archloop.profiling.protocol:profile",
}

__all__ = [
    "StackSpec",
    "Study",
    "__version__",
    "build",
    "load_preset",
    "load_recipe",
    "profile",
]

if TYPE_CHECKING:
    from archloop.profiling.protocol import profile
    from archloop.search.recipe.recipe import load as load_recipe
    from archloop.search.study import Study
    from archloop.stack.decoder import build
    from archloop.stack.presets import load as load_preset
    from archloop.stack.spec import StackSpec


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
