"""An Android phone over adb: programs run in its shell, artifacts lie where a shell may run them.

There is no Python there, so a runtime needs a program of its own for the phone's processor
(`Runtime.runner`). The phone's own files and services tell load, clock, temperature and charge; a
phone that is charging, or hot, is flagged like any other device, and not refused.
"""

import re
import shlex
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from archloop.devices import linux
from archloop.devices.base import DeviceInfo, Readings
from archloop.devices.lease import Claim
from archloop.devices.remote import READINGS, RemoteDevice, digest_of, parsed, sending_s

_UNNAMED = "android the only one"
"""Address of the one phone that is connected, by whatever serial number."""
_GONE = ("device offline", "no devices", "not found", "unauthorized", "device still", "closed")
"""What adb says when it cannot reach the phone; its exit status is 1 for anything."""

_ABOUT = linux.script(
    files=(linux.CPUINFO, linux.MEMINFO),
    commands={
        "cores": ("nproc",),
        "model": ("getprop", "ro.product.model"),
        "chip": ("getprop", "ro.soc.model"),
        "release": ("getprop", "ro.build.version.release"),
        "kernel": ("uname", "-r"),
    },
)
_STATE = linux.script(
    patterns={"caps": linux.CAPS},
    commands={"battery": ("dumpsys", "battery"), "heat": ("dumpsys", "thermalservice")},
)
_CHARGING = "2"
"""Of Android's `BatteryManager`: BATTERY_STATUS_CHARGING."""
_CPU_HEAT = re.compile(r"mValue=(-?\d+(?:\.\d+)?), mType=0,")
"""A sensor of the processor, as the thermal service lists it."""


class Android(RemoteDevice):
    """A phone with USB debugging switched on, or an emulator."""

    class Config(RemoteDevice.Config):
        """Which phone.

        Attributes:
            serial: as ``adb devices`` lists it; None where one is connected only.
            folder: there, gets what is pushed; programs may be run from it.
        """

        serial: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$")] | None = None
        folder: Annotated[str, Field(pattern=r"^/.")] = "/data/local/tmp/archloop"

    config: Config

    @property
    def address(self) -> str:
        return _UNNAMED if self.config.serial is None else f"android {self.config.serial}"

    def claims(self, on_card: bool) -> tuple[Claim, ...]:
        claims = super().claims(on_card)
        if self.config.serial is None:
            return claims
        # A phone that others do not name may be this one, so that nobody measures on such a phone
        # meanwhile; phones that all name are measured at once.
        return (*claims, Claim(_UNNAMED, alone=False))

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("adb"):
            return None
        return "needs the adb command; apt-get install adb"

    def describe(self) -> DeviceInfo:
        told = linux.sections(self.ask(_ABOUT))
        cores = told.get("cores", "").strip()
        model, chip = told.get("model", "").strip(), told.get("chip", "").strip()
        return DeviceInfo(
            processor=" ".join(word for word in (model, chip or linux.processor(told)) if word),
            num_cores=int(cores) if cores.isdigit() else 1,
            memory_bytes=linux.memory_bytes(told),
            os=f"Android {told.get('release', '').strip()}, {told.get('kernel', '').strip()}",
        )

    def readings(self) -> Readings:
        printed = self.ask(f"{READINGS}\n{_STATE}")
        state = _state(linux.sections(printed))
        return parsed(printed, time.monotonic()).model_copy(update=state)

    def push(self, local: Path) -> str:
        there = self.place(digest_of(local))
        marked = f"{there}/.whole"
        if self.ask(f"test -e {shlex.quote(marked)} && echo yes; true").strip() == "yes":
            return there
        # adb copies a folder into one that is there, and under its new name into one that is not.
        self.ask(f"rm -rf -- {shlex.quote(there)}; mkdir -p {shlex.quote(self.config.folder)}")
        try:
            self.told([*self._adb(), "push", str(local), there], limit_s=sending_s(local))
            self.ask(f"touch {shlex.quote(marked)}")
        except BaseException:
            # Also when the user stops it: nobody else knows of what is there by now.
            self.forget(there)
            raise
        return there

    def is_gone(self, status: int, last_line: str) -> bool:
        return status != 0 and _says_gone(last_line)

    def client(self, line: str) -> list[str]:
        # -T: no terminal, so that bytes arrive as they are and both streams stay apart.
        return [*self._adb(), "shell", "-T", line]

    def _adb(self) -> list[str]:
        return ["adb", *(["-s", self.config.serial] if self.config.serial else [])]

    @property
    def pushed_to(self) -> str:
        return self.config.folder

    @property
    def reach_it(self) -> str:
        return "connect it, and look at what `adb devices` says"

    @property
    def label(self) -> str:
        return f"device android:{self.config.serial or 'the one connected'}"


def _state(told: linux.Files) -> dict[str, Any]:
    """Fields of readings that only a phone has, or tells in its own way; nonsense is left out."""
    battery, heat = linux.table(told.get("battery", "")), told.get("heat", "")
    level, scale = battery.get("level", ""), battery.get("scale", "")
    status = battery.get("status", "")
    throttling = linux.table(heat).get("Thermal Status", "")
    # What is listed last is read from the sensors now; what is above it was kept from before.
    now = heat.rpartition("Current temperatures from HAL")[2]
    sensors = [float(value) for value in _CPU_HEAT.findall(now)]
    state = {
        # Phones end programs when memory runs short by one of their own, which no kernel counts.
        "oom_kills": None,
        "clock_cap_mhz": linux.mean_mhz(told.get("caps", "").split("\n")),
        "throttling": int(throttling) if throttling.isdigit() else None,
        "charging": status == _CHARGING if status.isdigit() else None,
    }
    if level.isdigit() and scale.isdigit() and int(scale):
        state["battery_percent"] = 100 * int(level) / int(scale)
    # The files of a phone's sensors have no unit in common, so that the service goes first.
    return state | ({"temperature_c": max(sensors)} if sensors else {})


def _says_gone(line: str) -> bool:
    return line.startswith(("adb:", "error:")) and any(word in line for word in _GONE)
