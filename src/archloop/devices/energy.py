"""Joules that this machine has used, from the counters of its processor or of a graphics card.

Both count from some moment in the past, so that two readings say what was used in between: the
processor's packages in files of the kernel (RAPL, which wraps around), a card through NVIDIA's
management library. Where neither can be read there is no energy, and nobody guesses one.
"""

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ZONES = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"(intel|amd)-rapl:\d+")
"""A whole processor; zones below it (cores, memory) have a second number."""
_PLATFORM = "psys"
"""Name of a zone beside the packages that counts the whole machine, and so them too."""
_MICRO, _MILLI = 1e-6, 1e-3


class Counters(NamedTuple):
    """Readings of one moment.

    Attributes:
        joules: by counter.
        ranges: by counter, the joules after which it begins anew; absent where it does not.
    """

    joules: Mapping[str, float]
    ranges: Mapping[str, float]


def spent(before: Counters | None, after: Counters | None) -> float | None:
    """Joules between two readings; None where one is missing or they are of different counters."""
    if before is None or after is None or before.joules.keys() != after.joules.keys():
        return None
    total = 0.0
    for name, value in after.joules.items():
        used = value - before.joules[name]
        total += used if used >= 0 else used + after.ranges.get(name, 0.0)
    return total


def of_processor(zones: Path = ZONES) -> Counters | None:
    """Of all packages; None where the kernel does not tell, or not this user."""
    joules, ranges = {}, {}
    try:
        for zone in sorted(zones.iterdir()):
            if _PACKAGE.fullmatch(zone.name) and _called(zone) != _PLATFORM:
                joules[zone.name] = int((zone / "energy_uj").read_text()) * _MICRO
                ranges[zone.name] = int((zone / "max_energy_range_uj").read_text()) * _MICRO
    except (OSError, ValueError):
        return None
    return Counters(joules, ranges) if joules else None


def _called(zone: Path) -> str:
    """What the kernel calls a zone, such as ``package-0``; empty where it does not say."""
    try:
        return (zone / "name").read_text().strip()
    except FileNotFoundError:
        return ""


def of_card(index: int) -> Counters | None:
    """Of a graphics card, counted as nvidia-smi does; None where it does not tell."""
    library = _library()
    if library is None:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
        return None
    if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return None
    return Counters({f"card {index}": millijoules.value * _MILLI}, {})


@cache
def _library() -> Any:
    """NVIDIA's library, begun; None where it is not installed or finds no driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return None if library.nvmlInit_v2() else library
