"""Measuring on devices: protocol, statistics, and the records that come of it.

    >>> from archloop.profiling import Target, profile, table  # doctest: +SKIP

Names are loaded when first used: reading a stored profile needs no engine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archloop.profiling.config import ProfileConfig
    from archloop.profiling.protocol import extend, noise_floor, profile
    from archloop.profiling.samples import read_samples
    from archloop.profiling.summary import profile_from_samples
    from archloop.profiling.tables import table
    from archloop.profiling.target import Target

_HOMES = {
    "ProfileConfig": "config",
    "extend": "protocol",
    "noise_floor": "protocol",
    "profile": "protocol",
    "profile_from_samples": "summary",
    "read_samples": "samples",
    "table": "tables",
    "Target": "target",
}

__all__ = [
    "ProfileConfig",
    "Target",
    "extend",
    "noise_floor",
    "profile",
    "profile_from_samples",
    "read_samples",
    "table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'archloop.profiling' has no attribute {name!r}")
    return getattr(import_module(f"archloop.profiling.{_HOMES[name]}"), name)
