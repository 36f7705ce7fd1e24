"""What Linux tells of a machine, from the text of its own files, wherever they were read.

The host reads them from its disk; a device elsewhere sends them in one answer to one command.
Whatever a kernel leaves out is None.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence

from archloop.devices.base import Accelerator, Readings

CPUINFO, MEMINFO, STAT, VMSTAT = "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/vmstat"
CLOCKS = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
CAPS = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq"
GOVERNORS = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
LOADAVG = "/proc/loadavg"
SENSORS = "/sys/class/thermal/thermal_zone*/temp"
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")

Files = Mapping[str, str]
"""Content by path; a file that does not exist is absent."""


_HEAD = "== "
"""Begins the line that names the section below it."""


def script(
    files: Sequence[str] = (),
    patterns: Mapping[str, str] | None = None,
    commands: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Shell commands that print files, and what programs print, as sections.

    Args:
        files: each a section under its own path.
        patterns: by the section's name, what the shell expands to many files.
        commands: by the section's name, programs that may be absent.
    """
    lines = [f"echo '{_HEAD}{path}'; cat {path} 2>/dev/null" for path in files]
    for name, pattern in (patterns or {}).items():
        lines.append(f"echo '{_HEAD}{name}'; cat {pattern} 2>/dev/null")
    for name, argv in (commands or {}).items():
        lines.append(f"echo '{_HEAD}{name}'; {shlex.join(argv)} 2>/dev/null")
    return "\n".join([*lines, "true"])


def sections(printed: str) -> dict[str, str]:
    """What a `script` printed, by section."""
    found: dict[str, str] = {}
    for part in ("\n" + printed).split("\n" + _HEAD)[1:]:
        name, _, content = part.partition("\n")
        found[name.strip()] = content
    return found


def readings(
    files: Files,
    clocks: Iterable[str],
    sensors: Iterable[str],
    governors: Iterable[str] = (),
    *,
    time_s: float,
    ticks: int,
) -> Readings:
    """Load, clock and temperature.

    Args:
        files: `STAT`, `MEMINFO`, `VMSTAT` and `LOADAVG`, as far as they exist.
        clocks: contents of the files that `CLOCKS` matches, in kHz.
        sensors: contents of those that `SENSORS` matches, in thousandths of a degree.
        governors: contents of those that `GOVERNORS` matches.
        time_s: when they were read.
        ticks: of the kernel's clock a second (``getconf CLK_TCK``).
    """
    busy_s, steal_s = _cpu_seconds(files, ticks)
    kills = table(files.get(VMSTAT, ""), " ").get("oom_kill", "")
    return Readings(
        time_s=time_s,
        busy_s=busy_s,
        steal_s=steal_s,
        clock_mhz=mean_mhz(clocks),
        temperature_c=max(_thousandths(sensors), default=None),
        available_memory_bytes=_kib(files, "MemAvailable"),
        oom_kills=int(kills) if kills.isdigit() else None,
        load=_load(files.get(LOADAVG, "")),
        governor=",".join(sorted({word.strip() for word in governors} - {""})) or None,
    )


def mean_mhz(clocks: Iterable[str]) -> float | None:
    """Of files in kHz; None where there are none."""
    mhz = _thousandths(clocks)
    return sum(mhz) / len(mhz) if mhz else None


def processor(files: Files) -> str | None:
    """Model of the processor."""
    found = table(files.get(CPUINFO, ""))
    model = found.get("model name") or found.get("Hardware") or found.get("uarch")
    return " ".join(model.split()) if model else None


def memory_bytes(files: Files) -> int | None:
    """Of the whole machine."""
    return _kib(files, "MemTotal")


def accelerators(listing: str) -> tuple[Accelerator, ...]:
    """Graphics cards from what `NVIDIA_SMI` printed; none from anything else."""
    found = []
    for line in listing.splitlines():
        name, comma, mebibytes = line.rpartition(",")
        if comma:
            # A card that shares the machine's memory answers "[N/A]".
            own = int(mebibytes) * 2**20 if mebibytes.strip().isdigit() else None
            found.append(Accelerator(name=name.strip(), memory_bytes=own))
    return tuple(found)


def table(text: str, separator: str = ":") -> dict[str, str]:
    """``key<separator>value`` lines; of a key that comes several times, the last."""
    pairs = (line.partition(separator) for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _kib(files: Files, field: str) -> int | None:
    """Bytes of a field of `MEMINFO`, which counts in KiB."""
    words = table(files.get(MEMINFO, "")).get(field, "").split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def _cpu_seconds(files: Files, ticks: int) -> tuple[float | None, float | None]:
    """Busy and stolen seconds since boot, over all cores."""
    fields = table(files.get(STAT, ""), " ").get("cpu", "").split()
    if len(fields) < 7 or not all(field.isdigit() for field in fields):
        return None, None
    user, nice, system, _idle, _iowait, irq, softirq, *rest = map(int, fields)
    steal = rest[0] if rest else 0
    return (user + nice + system + irq + softirq) / ticks, steal / ticks


def _load(text: str) -> float | None:
    """The first number of `LOADAVG`."""
    try:
        return float(text.split()[0])
    except (IndexError, ValueError):
        return None


def _thousandths(texts: Iterable[str]) -> list[float]:
    """Readings in thousands; a core or sensor that is off says "<unsupported>" and is left out."""
    return [int(text) / 1000 for text in texts if text.strip().lstrip("-").isdigit()]
