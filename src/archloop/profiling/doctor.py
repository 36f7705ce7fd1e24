"""What of archloop works on this machine, and the one command that mends what does not.

Each runtime is asked what it lacks to write artifacts and to run them here, each device what this
machine lacks to reach one. Nothing is measured, and no device elsewhere is contacted.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from archloop import registry
from archloop.devices.base import Device
from archloop.errors import UserError
from archloop.runtimes.base import Runtime


class Finding(BaseModel):
    """One runtime or device.

    Attributes:
        exports: a runtime can write artifacts here; None for devices.
        works: a runtime can run them here; a device can be reached from here.
        remedy: what is missing, with the command that mends it; None when nothing is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["runtime", "device"]
    name: str
    exports: bool | None = None
    works: bool
    remedy: str | None = None


def examine() -> list[Finding]:
    """Every runtime and every device by name."""
    runtimes = [_runtime(name) for name in registry.names("runtimes")]
    return runtimes + [_device(name) for name in registry.names("devices")]


def _runtime(name: str) -> Finding:
    try:
        runtime: Runtime = registry.get("runtimes", name)()
    except UserError as error:
        return Finding(kind="runtime", name=name, exports=False, works=False, remedy=str(error))
    exports, runs = runtime.missing_to_export(), runtime.missing_to_run()
    return Finding(
        kind="runtime",
        name=name,
        exports=exports is None,
        works=runs is None,
        remedy=exports or runs,
    )


def _device(name: str) -> Finding:
    try:
        device_class: type[Device] = registry.get("devices", name)
    except UserError as error:
        return Finding(kind="device", name=name, works=False, remedy=str(error))
    missing = device_class.missing()
    return Finding(kind="device", name=name, works=missing is None, remedy=missing)
