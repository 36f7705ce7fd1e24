"""A phone for tests: `services/adb.py` in place of adb, and a folder in place of the phone."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROPERTIES = {
    "ro.product.model": "Pixel 9",
    "ro.soc.model": "Tensor G4",
    "ro.build.version.release": "15",
}
BATTERY = """\
Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  health: 2
  present: true
  level: 43
  scale: 50
  temperature: 312
"""
HEAT = """\
Thermal Status: 1
Cached temperatures:
\tTemperature{mValue=99.0, mType=0, mName=CPU0, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=41.5, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=44.25, mType=0, mName=CPU1, mStatus=1}
\tTemperature{mValue=60.0, mType=3, mName=skin, mStatus=0}
"""
"""What `dumpsys` prints of a battery that is being charged and a processor that is warm."""


@contextmanager
def scripted_adb(folder: Path) -> Iterator[dict[str, Any]]:
    """Settings of a device whose adb is the scripted one; ``folder / "says"`` makes it fail."""
    tools = folder / "bin"
    tools.mkdir()
    shutil.copy(Path(__file__).with_name("adb.py"), tools / "adb")
    cases = "".join(f"{key}) echo '{value}';;\n" for key, value in PROPERTIES.items())
    (tools / "getprop").write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\n')
    services = "".join(
        f"{name}) cat <<'END'\n{text}END\n;;\n"
        for name, text in (("battery", BATTERY), ("thermalservice", HEAT))
    )
    (tools / "dumpsys").write_text(f'#!/bin/sh\ncase "$1" in\n{services}esac\n')
    for name in ("adb", "getprop", "dumpsys"):
        (tools / name).chmod(0o755)
    before = {name: os.environ.get(name) for name in ("PATH", "ADB_PHONE")}
    os.environ["PATH"] = f"{tools}:{before['PATH']}"
    os.environ["ADB_PHONE"] = str(folder)
    try:
        yield {"serial": "emulator-5554", "folder": str(folder / "data")}
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
