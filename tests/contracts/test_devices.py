"""Every device keeps its contract: this machine, and it again over an sshd and a scripted adb."""

from collections.abc import Iterator

import pytest

from archloop.devices.base import Device
from archloop.devices.choice import DeviceChoice
from archloop.testing import DeviceContract
from services.phone import scripted_adb
from services.sshd import running_sshd


class TestHost(DeviceContract):
    names = ("host",)


class TestAndroid(DeviceContract):
    names = ("android",)

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
        with scripted_adb(tmp_path_factory.mktemp("phone")) as settings:
            yield DeviceChoice(name="android", **settings).open()


@pytest.mark.ci
class TestSsh(DeviceContract):
    names = ("ssh",)

    @pytest.fixture(scope="class")
    @classmethod
    def device(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
        with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
            yield DeviceChoice(name="ssh", **server.settings).open()
