"""What Linux tells of a machine, from the text of its own files, wherever they were read.

The host reads them from its disk; a device elsewhere sends them in one answer to one command.
Whatever a kernel leaves out is None.
"""

from collections.abc import Iterable, Mapping

from archloop.devices.base import Accelerator, Readings

CPUINFO, MEMINFO, STAT, VMSTAT = "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/vmstat"
CLOCKS = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
SENSORS = "/sys/class/thermal/thermal_zone*/temp"
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")

Files = Mapping[str, str]
"""Content by path; a file that does not exist is absent."""


def readings(
    files: Files, clocks: Iterable[str], sensors: Iterable[str], *, time_s: float, ticks: int
) -> Readings:
    """Load, clock and temperature.

    Args:
        files: `STAT`, `MEMINFO` and `VMSTAT`, as far as they exist.
        clocks: contents of the files that `CLOCKS` matches, in kHz.
        sensors: contents of those that `SENSORS` matches, in thousandths of a degree.
        time_s: when they were read.
        ticks: of the kernel's clock a second (``getconf CLK_TCK``).
    """
    busy_s, steal_s = _cpu_seconds(files, ticks)
    available = table(files.get(MEMINFO, "")).get("MemAvailable")
    kills = table(files.get(VMSTAT, ""), " ").get("oom_kill")
    mhz = _thousandths(clocks)
    return Readings(
        time_s=time_s,
        busy_s=busy_s,
        steal_s=steal_s,
        clock_mhz=sum(mhz) / len(mhz) if mhz else None,
        temperature_c=max(_thousandths(sensors), default=None),
        available_memory_bytes=None if available is None else _kib(available),
        oom_kills=None if kills is None else int(kills),
    )


def processor(files: Files) -> str | None:
    """Model of the processor."""
    found = table(files.get(CPUINFO, ""))
    model = found.get("model name") or found.get("Hardware") or found.get("uarch")
    return " ".join(model.split()) if model else None


def memory_bytes(files: Files) -> int | None:
    """Of the whole machine."""
    total = table(files.get(MEMINFO, "")).get("MemTotal")
    return None if total is None else _kib(total)


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


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


def _cpu_seconds(files: Files, ticks: int) -> tuple[float | None, float | None]:
    """Busy and stolen seconds since boot, over all cores."""
    cpu = table(files.get(STAT, ""), " ").get("cpu")
    if cpu is None:
        return None, None
    user, nice, system, _idle, _iowait, irq, softirq, *rest = (int(field) for field in cpu.split())
    steal = rest[0] if rest else 0
    return (user + nice + system + irq + softirq) / ticks, steal / ticks


def _thousandths(texts: Iterable[str]) -> list[float]:
    """Readings in thousands; a core or sensor that is off says "<unsupported>" and is left out."""
    return [int(text) / 1000 for text in texts if text.strip().lstrip("-").isdigit()]
