"""What a candidate is measured on: a device, a runtime and a quantisation under one name.

A study may have many targets. Their names key every record, budget and figure, so that two engines
on one host, two phones, or a processor and a graphics card stand side by side.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from archloop import registry
from archloop.devices.choice import DeviceChoice
from archloop.devices.lease import Claim
from archloop.errors import UserError
from archloop.runtimes.base import Runtime

MAX_THREADS = 1024


class Target(BaseModel):
    """One thing to measure on; its name stands outside, as the key of a recipe's `targets:`.

    Attributes:
        device: plug-in name and settings of the device; a bare word is the name.
        runtime: plug-in name of the engine.
        quant: one of the runtime's quantisations.
        threads: of the engine; None takes one per core of the device.
        contexts: prompt lengths, and depths at which decode steps are timed; kept ascending.
        optional: a candidate that cannot run here is measured on the other targets alone; by
            default it is rejected.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceChoice = DeviceChoice()
    runtime: str = "torch_eager"
    quant: str = "fp32"
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)] | None = None
    contexts: tuple[Annotated[int, Field(ge=1, le=2**24)], ...] = Field((4096, 32768), min_length=1)
    optional: bool = False

    @field_validator("contexts")
    @classmethod
    def _ascending(cls, contexts: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(contexts)))

    def claims(self) -> tuple[Claim, ...]:
        """What measuring on it takes; names must have been checked."""
        runtime: Runtime = registry.get("runtimes", self.runtime)()
        return self.device.open().claims(runtime.on_card)

    def check(self, where: str = "") -> None:
        """Refuse names, settings and quantisations that there are not; nothing is reached.

        Args:
            where: the recipe's key, before each field in messages.

        Raises:
            UserError: names field and remedy.
        """
        for field, kind, name in (
            ("device", "devices", self.device.name),
            ("runtime", "runtimes", self.runtime),
        ):
            known = registry.names(kind)
            if name not in known:
                raise UserError(
                    f"{where}{field}={name!r}: unknown; {registry.suggest(name, known)}"
                )
        try:
            self.device.open()
        except UserError as error:
            raise UserError(f"{where}{error}") from error
        quants = list(registry.get("runtimes", self.runtime).quants)
        if self.quant not in quants:
            near = registry.suggest(self.quant, quants)
            raise UserError(f"{where}quant: {self.runtime} has no {self.quant!r}; {near}")
