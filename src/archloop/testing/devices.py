"""The contract of devices: a device describes itself, runs a program with pipes, takes files."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from archloop import registry
from archloop.devices.base import Device, DeviceInfo
from archloop.devices.choice import DeviceChoice
from archloop.testing.contract import Contract


class DeviceContract(Contract):
    """Tests of devices, opened with default settings; override `device` to give others."""

    kind: ClassVar[str] = "devices"

    @pytest.fixture
    def device(self, name: str) -> Device:
        """The device at hand."""
        return DeviceChoice(name=name).open()

    def test_settings_are_frozen_and_closed(self, name: str) -> None:
        device_class = registry.get("devices", name)
        assert device_class.Config.model_config["frozen"]
        with pytest.raises(ValidationError, match="nonsense"):
            device_class.Config(nonsense=1)

    def test_describes_itself(self, device: Device) -> None:
        about = device.describe()
        assert about.processor
        assert about.num_cores >= 1
        assert about.os
        assert about.processor in about.label
        assert all(card.name in about.label for card in about.accelerators)
        assert DeviceInfo.model_validate_json(about.model_dump_json()) == about

    def test_readings_advance(self, device: Device) -> None:
        before = device.readings()
        deadline = time.process_time() + 0.05
        while time.process_time() < deadline:
            pass
        after = device.readings()
        assert after.time_s > before.time_s
        if before.busy_s is not None:
            assert after.busy_s is not None
            assert after.busy_s >= before.busy_s + 0.03
        assert before.available_memory_bytes is None or before.available_memory_bytes > 0

    def test_runs_a_program_with_pipes_in_a_group_of_its_own(
        self, device: Device, tmp_path: Path
    ) -> None:
        code = "import os; print(input() + os.environ['GREETING'], flush=True); 1/0"
        with (tmp_path / "err").open("wb") as stderr:
            process = device.run([sys.executable, "-c", code], env={"GREETING": "!"}, stderr=stderr)
        assert process.stdin is not None
        assert process.stdout is not None
        assert os.getpgid(process.pid) == process.pid
        process.stdin.write(b"hello\n")
        assert process.stdout.readline() == b"hello!\n"
        assert process.wait(10) == 1
        assert b"ZeroDivisionError" in (tmp_path / "err").read_bytes()
        process.stdin.close()
        process.stdout.close()

    def test_arguments_and_settings_arrive_as_they_are(
        self, device: Device, tmp_path: Path
    ) -> None:
        """No shell takes a part of them for its own."""
        odd = ["a b", "$HOME", "`id`", "'", '"', "*", ";", "\\", "", "-n", "\u00e9"]
        code = "import os, sys; sys.stdout.write(repr((sys.argv[1:], os.environ['ODD'])))"
        with (tmp_path / "err").open("wb") as stderr:
            process = device.run(
                [sys.executable, "-c", code, *odd], env={"ODD": "$(id) '\""}, stderr=stderr
            )
            told, _ = process.communicate(timeout=30)
        assert told.decode() == repr((odd, "$(id) '\""))

    def test_group_can_be_killed(self, device: Device, tmp_path: Path) -> None:
        with (tmp_path / "err").open("wb") as stderr:
            process = device.run(["sleep", "100"], env={}, stderr=stderr)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def test_push_gives_a_path_that_works_there(self, device: Device, tmp_path: Path) -> None:
        folder = tmp_path / "of $odd name"
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "file").write_text("content")
        there = device.push(folder)
        assert device.push(folder) == there
        with (tmp_path / "err").open("wb") as stderr:
            process = device.run(["cat", f"{there}/inner/file"], env={}, stderr=stderr)
            told, _ = process.communicate(timeout=30)
        assert told == b"content"
        device.remove(there)
        with (tmp_path / "err").open("wb") as stderr:
            process = device.run(["test", "-e", there], env={}, stderr=stderr)
            process.communicate(timeout=30)
        assert (process.returncode == 0) == (there == str(folder))
        assert (folder / "inner" / "file").read_text() == "content"

    def test_waits_until_it_is_quiet_or_the_time_is_over(self, device: Device) -> None:
        assert device.wait_until_ready(0.0) in (True, False)
