"""Plug-ins, found by file name and imported only when asked for.

A plug-in is one Python file in the folder of its kind; the file's name is the plug-in's name and
the file defines exactly one concrete subclass of the kind's base. Besides the files shipped here,
plug-ins come from entry points (group ``archloop.<kind>``) and from folders given to `add_folder`.

    >>> from archloop import registry
    >>> "short_conv" in registry.names("mixers")
    True
"""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import threading
import traceback
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from archloop.errors import UserError, suggest

__all__ = ["KINDS", "Kind", "add_folder", "folders", "get", "names", "suggest"]


class Kind(NamedTuple):
    """What one plug-in of a kind is called, where they live and what they must subclass.

    Attributes:
        shared: files of the package that plug-ins share and that are none themselves.
    """

    noun: str
    package: str
    base: str
    shared: tuple[str, ...] = ("base",)


KINDS = {
    "mixers": Kind("mixer", "archloop.blocks.mixers", "archloop.blocks.base:SequenceMixer"),
    "channel_mixers": Kind(
        "channel mixer", "archloop.blocks.channel_mixers", "archloop.blocks.base:ChannelMixer"
    ),
    "layouts": Kind(
        "checkpoint layout",
        "archloop.checkpoints.layouts",
        "archloop.checkpoints.layouts.base:Layout",
        shared=("base", "parts"),
    ),
    "runtimes": Kind(
        "runtime",
        "archloop.runtimes",
        "archloop.runtimes.base:Runtime",
        shared=(
            "artifact",
            "base",
            "benchmark",
            "block_cache",
            "deciding",
            "exporting",
            "graphs",
            "openvino_attention",
            "openvino_linking",
            "openvino_weights",
            "parity",
            "piece_products",
            "pieces",
            "random_weights",
            "rounding",
            "streamed",
        ),
    ),
    "devices": Kind(
        "device",
        "archloop.devices",
        "archloop.devices.base:Device",
        shared=("base", "choice", "cores", "energy", "holders", "lease", "linux", "remote"),
    ),
    "tasks": Kind("task", "archloop.evals.tasks", "archloop.evals.base:Evaluation"),
    "strategies": Kind("strategy", "archloop.search.strategies", "archloop.search.base:Strategy"),
}

_folders: dict[Path, None] = {}
_of_files = threading.RLock()
"""Held while a plug-in of a folder is loaded, which would else be a class for each thread."""


class _Importing(threading.local):
    """Plug-ins whose files this thread runs, the outermost first."""

    def __init__(self) -> None:
        self.locations: list[str | Path] = []


_importing = _Importing()


def names(kind: str) -> list[str]:
    """Sorted names of the plug-ins of a kind, without importing any of them."""
    return sorted(_locations(kind))


def shipped(kind: str) -> list[str]:
    """As `names`, of those that are part of archloop itself."""
    return sorted(_shipped(kind))


def get(kind: str, name: str) -> Any:
    """The class that plug-in `name` of `kind` defines.

    Raises:
        UserError: the kind or name is unknown (near matches are named), or its file cannot be
            imported or does not define exactly one subclass of the kind's base.
    """
    locations = _locations(kind)
    if name not in locations:
        raise UserError(f"unknown {_kind(kind).noun} {name!r}; {suggest(name, sorted(locations))}")
    location = locations[name]
    if isinstance(location, str):
        # Python itself has a module imported by one thread, for which others wait.
        return _load(kind, name, location)
    with _of_files:
        return _load(kind, name, location)


def add_folder(folder: Path) -> None:
    """Also look for plug-ins in ``folder/<kind>/<name>.py``.

    Raises:
        UserError: the folder does not exist.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise UserError(f"plugins folder {folder} does not exist")
    _folders[folder] = None


def folders() -> list[Path]:
    """The folders given to `add_folder`, for a process that must see the same plug-ins."""
    return list(_folders)


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UserError(f"unknown plug-in kind {kind!r}; {suggest(kind, sorted(KINDS))}")
    return KINDS[kind]


def _locations(kind: str) -> dict[str, str | Path]:
    """Plug-in name -> "module:attribute-less module path" or file; nothing is imported."""
    found: dict[str, str | Path] = dict(_shipped(kind))
    found |= _installed(kind, tuple((path, _changed(path)) for path in sys.path))
    for folder in _folders:
        for file in sorted((folder / kind).glob("[!_]*.py")):
            found[file.stem] = file
    return found


@cache
def _installed(kind: str, search_path: tuple[tuple[str, int | None], ...]) -> dict[str, str]:
    """Plug-in name -> module, of the entry points of every installed package.

    Reading them opens a file of each package, which takes tens of milliseconds, so it is done
    again only if `search_path`, the folders of `sys.path` and when each was last changed, differs:
    installing a package changes its folder.
    """
    points = metadata.entry_points(group=f"archloop.{kind}")
    return {point.name: point.module for point in points}


def _changed(path: str) -> int | None:
    """When a folder was last changed, in nanoseconds; None if there is none."""
    try:
        return Path(path or ".").stat().st_mtime_ns
    except OSError:
        return None


def _shipped(kind: str) -> dict[str, str]:
    package, shared = _kind(kind).package, _kind(kind).shared
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    return {
        module.name: f"{package}.{module.name}"
        for module in pkgutil.iter_modules(spec.submodule_search_locations)
        if module.name not in shared and not module.name.startswith("_") and not module.ispkg
    }


@cache
def _load(kind: str, name: str, location: str | Path) -> Any:
    module = _imported(kind, location)
    base_module, base_name = _kind(kind).base.split(":")
    base = getattr(importlib.import_module(base_module), base_name)
    defined = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    if len(defined) > 1:
        defined = [value for value in defined if not inspect.isabstract(value)]
    if len(defined) != 1:
        raise UserError(
            f"{kind} file {module.__file__} must define exactly one {base_name}, "
            f"found {[c.__name__ for c in defined]}"
        )
    plugin: Any = defined[0]
    if missing := _missing_members(plugin, base):
        raise UserError(
            f"{kind} file {module.__file__}: {plugin.__name__} must define {', '.join(missing)}, "
            f"as {base_name} says"
        )
    plugin.name = name
    return plugin


def _missing_members(plugin: Any, base: Any) -> list[str]:
    """Members of the contract that a plug-in has not written, its nested `Config`'s included.

    Bases that are PyTorch modules have no abstract methods, and tell by `missing_members`.
    """
    missing = sorted(getattr(plugin, "__abstractmethods__", ()))
    if hasattr(base, "missing_members"):
        missing += base.missing_members(plugin)
    config = getattr(plugin, "Config", None)
    return missing + [f"Config.{name}" for name in sorted(_abstract(config))]


def _abstract(config: Any) -> frozenset[str]:
    return getattr(config, "__abstractmethods__", None) or frozenset()


def _imported(kind: str, location: str | Path) -> ModuleType:
    """A plug-in's module; what goes wrong in it is told with its file and line.

    Raises:
        UserError: its own code raised, ended the process, or asks for itself.
    """
    where = location if isinstance(location, Path) else f"module {location}"
    if location in _importing.locations:
        raise UserError(f"plug-in {where} asks for itself while it is imported; remove that import")
    _importing.locations.append(location)
    try:
        return _import_file(kind, location) if isinstance(location, Path) else _import(location)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(location, str) and location.startswith("archloop."):
            # A plug-in that archloop ships fails to import: that is no mistake of the user's, so
            # its traceback is shown.
            raise
        line = _line(error, location)
        raise UserError(
            f"plug-in {where}{line} cannot be imported: {error!r}; correct it"
        ) from error
    finally:
        _importing.locations.remove(location)


def _line(error: BaseException, location: str | Path) -> str:
    """The line of the plug-in's own file at which the error passed, as ", line 3"."""
    if isinstance(error, SyntaxError) and error.filename == str(location):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(location)]
    return f", line {own[-1].lineno}" if own else ""


def _import(module: str) -> ModuleType:
    return importlib.import_module(module)


def _import_file(kind: str, file: Path) -> ModuleType:
    name = f"archloop_plugins.{kind}.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
