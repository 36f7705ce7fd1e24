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


@contextmanager
def scripted_adb(folder: Path) -> Iterator[dict[str, Any]]:
    """Settings of a device whose adb is the scripted one; ``folder / "says"`` makes it fail."""
    tools = folder / "bin"
    tools.mkdir()
    shutil.copy(Path(__file__).with_name("adb.py"), tools / "adb")
    cases = "".join(f"{key}) echo '{value}';;\n" for key, value in PROPERTIES.items())
    (tools / "getprop").write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\n')
    for name in ("adb", "getprop"):
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
