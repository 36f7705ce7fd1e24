"""Every device: describes itself, runs a program with pipes, is there or says why not."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from archloop import registry
from archloop.devices.base import Device
from archloop.devices.host import Host


@pytest.fixture
def device() -> Device:
    return registry.get("devices", "host")()


def test_describes_itself(device: Device) -> None:
    about = device.describe()
    assert about["cpu"]
    assert int(about["num_cores"] or 0) >= 1
    assert device.label.startswith("host: ")
    assert str(about["cpu"]) in device.label


def test_readings_advance(device: Device) -> None:
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


def test_runs_a_program_with_pipes_in_a_group_of_its_own(device: Device, tmp_path: Path) -> None:
    code = (
        "import os, sys; print(input() + os.environ['GREETING'], file=sys.stdout, flush=True); 1/0"
    )
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


def test_group_can_be_killed(device: Device, tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as stderr:
        process = device.run(["sleep", "100"], env={}, stderr=stderr)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_push_gives_a_path_that_works_there(device: Device, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    assert (Path(device.push(tmp_path)) / "file").read_text() == "content"


def test_waits_for_quiet_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    host, real = Host(), Host().readings()
    ticks = iter(range(1000))

    def readings(cores: float) -> object:
        now = next(ticks)
        return real.model_copy(update={"time_s": float(now), "busy_s": cores * now})

    monkeypatch.setattr(host, "readings", lambda: readings(0.0))
    assert host.wait_until_ready(0.0)
    monkeypatch.setattr(host, "readings", lambda: readings(2.0))
    assert not host.wait_until_ready(0.3)


def test_sensors_that_do_not_answer_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "0").write_text("2400000\n")
    (tmp_path / "1").write_text("<unsupported>\n")
    monkeypatch.setattr(Path, "glob", lambda *_: [tmp_path / name for name in "012"])
    readings = Host().readings()
    assert readings.clock_mhz == 2400.0
    assert readings.temperature_c == 2400.0
