"""A device as a recipe names it: the plug-in's name and the settings of its `Config`."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from archloop import registry
from archloop.devices.base import Device
from archloop.errors import invalid


class DeviceChoice(BaseModel):
    """Which device, and how it is reached; a bare word is the plug-in's name.

    All keys but `name` belong to the `Config` of that device, so which there are is known only
    once plug-ins are loaded: `open` checks them.

    Attributes:
        name: of the plug-in, as `archloop plugins devices` lists it with its settings.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str = "host"

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """What the device's `Config` is made of."""
        return dict(self.model_extra or {})

    def open(self) -> Device:
        """The device, not reached yet.

        Raises:
            UserError: no plug-in has the name, or a setting is wrong.
        """
        device_class: type[Device] = registry.get("devices", self.name)
        try:
            config = device_class.Config(**self.settings)
        except ValidationError as error:
            raise invalid(
                error, list(device_class.Config.model_fields), f"device {self.name}"
            ) from error
        return device_class(config)
