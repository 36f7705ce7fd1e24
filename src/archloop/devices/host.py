"""This machine. Readings come from ``/proc`` and ``/sys`` where the system has them."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

from archloop.devices.base import Device, Readings
from archloop.devices.cores import usable_cores

_QUIET_CORES = 0.25
"""Other programs may keep this many cores busy before the machine counts as not ready."""
_SAMPLE_S = 0.2


class Host(Device):
    """The machine that archloop itself runs on."""

    def describe(self) -> dict[str, str | int | float | None]:
        memory = _table("/proc/meminfo").get("MemTotal")
        return {
            "cpu": _cpu_model(),
            "num_cores": usable_cores(),
            "memory_bytes": None if memory is None else _kib(memory),
            "os": platform.platform(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        }

    def readings(self) -> Readings:
        busy_s, steal_s = _cpu_seconds()
        available = _table("/proc/meminfo").get("MemAvailable")
        kills = _table("/proc/vmstat", " ").get("oom_kill")
        return Readings(
            time_s=time.monotonic(),
            busy_s=busy_s,
            steal_s=steal_s,
            clock_mhz=_clock_mhz(),
            temperature_c=_temperature_c(),
            available_memory_bytes=None if available is None else _kib(available),
            oom_kills=None if kills is None else int(kills),
        )

    def wait_until_ready(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            before = self.readings()
            if before.busy_s is None:
                return True
            time.sleep(_SAMPLE_S)
            after = self.readings()
            assert after.busy_s is not None
            if (after.busy_s - before.busy_s) / (after.time_s - before.time_s) <= _QUIET_CORES:
                return True
            if time.monotonic() >= deadline:
                return False

    def push(self, local: Path) -> str:
        return str(local.resolve())

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **env},
            start_new_session=True,
            bufsize=0,
        )

    def worker_argv(self) -> list[str]:
        # -P: a stray random.py in the working folder must not stand in for a library.
        return [sys.executable, "-P", "-m", "archloop.profiling.worker"]


def _table(path: str, separator: str = ":") -> dict[str, str]:
    """``key<separator>value`` lines of a file; empty where the system has no such file."""
    if not Path(path).exists():
        return {}
    lines = Path(path).read_text(errors="replace").splitlines()
    pairs = (line.partition(separator) for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


def _cpu_model() -> str:
    table = _table("/proc/cpuinfo")
    model = table.get("model name") or table.get("Hardware") or platform.processor()
    return " ".join((model or platform.machine()).split())


def _cpu_seconds() -> tuple[float | None, float | None]:
    """Busy and stolen seconds since boot, over all cores."""
    cpu = _table("/proc/stat", " ").get("cpu")
    if cpu is None:
        return None, None
    ticks = [int(field) for field in cpu.split()]
    user, nice, system, _idle, _iowait, irq, softirq, *rest = ticks
    per_second = os.sysconf("SC_CLK_TCK")
    steal = rest[0] if rest else 0
    return (user + nice + system + irq + softirq) / per_second, steal / per_second


def _clock_mhz() -> float | None:
    files = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks = _thousandths(files)
    return sum(clocks) / len(clocks) if clocks else None


def _temperature_c() -> float | None:
    return max(_thousandths(Path("/sys/class/thermal").glob("thermal_zone*/temp")), default=None)


def _thousandths(files: Iterable[Path]) -> list[float]:
    """Readings in thousands, each from a file of its own."""
    found = []
    for file in files:
        try:
            found.append(int(file.read_text()) / 1000)
        except (OSError, ValueError):
            # A core or sensor that is off answers with an error or "<unsupported>"; the others
            # still count.
            continue
    return found
