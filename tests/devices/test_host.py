"""This machine: its cards, its readings, and sensors that do not answer."""

import os
from pathlib import Path

import pytest

from archloop.devices import host as module
from archloop.devices import linux
from archloop.devices.base import Accelerator, Readings
from archloop.devices.host import Host

SMI = "NVIDIA H100 80GB HBM3, 81559\nNVIDIA H200, 143771\nNVIDIA GB10, [N/A]\n"
CARDS = linux.accelerators(SMI)


def test_cards_are_read_from_nvidia_smi() -> None:
    assert (
        Accelerator(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 * 2**20),
        Accelerator(name="NVIDIA H200", memory_bytes=143771 * 2**20),
        Accelerator(name="NVIDIA GB10"),
    ) == CARDS
    assert linux.accelerators("NVIDIA-SMI has failed because it could not talk to the driver") == ()


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "_cards", lambda: CARDS[:2])
    return monkeypatch


def test_one_card_is_never_taken_for_another(cards: pytest.MonkeyPatch) -> None:
    first, second = (Host(Host.Config(gpu=index)).describe().label for index in (0, 1))
    assert first != second
    assert first.endswith("NVIDIA H100 80GB HBM3")
    assert second.endswith("NVIDIA H200")
    assert Host().describe().accelerators == CARDS[:2]
    with pytest.raises(ValueError, match="no gpu 2; nvidia-smi lists 2"):
        Host(Host.Config(gpu=2)).describe()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("1", CARDS[1:2]), ("1,0", (CARDS[1], CARDS[0])), ("", ()), ("GPU-5ab1", CARDS[:2])],
)
def test_hidden_cards_are_not_the_devices(
    cards: pytest.MonkeyPatch, visible: str, expected: tuple[Accelerator, ...]
) -> None:
    cards.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Host().describe().accelerators == expected


def test_a_program_sees_the_chosen_card_alone(tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as stderr:
        process = Host(Host.Config(gpu=3)).run(["env"], env={}, stderr=stderr)
        told, _ = process.communicate(timeout=10)
    lines = told.decode().splitlines()
    assert "CUDA_VISIBLE_DEVICES=3" in lines
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in lines


def test_waits_for_quiet_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    host, real = Host(), Host().readings()
    ticks = iter(range(1000))

    def readings(cores: float) -> Readings:
        now = next(ticks)
        return real.model_copy(update={"time_s": float(now), "busy_s": cores * now})

    monkeypatch.setattr(host, "readings", lambda: readings(0.0))
    assert host.wait_until_ready(0.0)
    monkeypatch.setattr(host, "readings", lambda: readings(2.0))
    assert not host.wait_until_ready(0.3)


def test_sensors_that_do_not_answer_are_left_out() -> None:
    found = linux.readings(
        {}, ["2400000\n", "<unsupported>\n"], ["-1500\n", "41000\n", ""], time_s=1.0, ticks=100
    )
    assert found == Readings(time_s=1.0, clock_mhz=2400.0, temperature_c=41.0)


def test_what_the_kernel_tells() -> None:
    files = {
        linux.STAT: "cpu  100 10 50 9000 5 3 2 20 0 0\ncpu0 1 2 3\n",
        linux.MEMINFO: "MemTotal:  2048 kB\nMemAvailable:  1024 kB\n",
        linux.VMSTAT: "nr_free_pages 7\noom_kill 3\n",
        linux.LOADAVG: "1.75 0.9 0.5 2/345 6789\n",
        linux.CPUINFO: "processor : 0\nmodel name : A   Fine\tCPU\n\nprocessor : 1\n",
    }
    governors = ["powersave\n", "performance\n", "powersave\n", ""]
    found = linux.readings(files, [], [], governors, time_s=2.0, ticks=10)
    assert found == Readings(
        time_s=2.0,
        busy_s=16.5,
        steal_s=2.0,
        available_memory_bytes=1 << 20,
        oom_kills=3,
        load=1.75,
        governor="performance,powersave",
    )
    assert Host().readings().affinity == tuple(sorted(os.sched_getaffinity(0)))
    assert linux.processor(files) == "A Fine CPU"
    assert linux.memory_bytes(files) == 2 << 20
    assert os.sysconf("SC_CLK_TCK") > 0
