"""Energy comes from counters, which wrap around, or from nowhere."""

from pathlib import Path

import pytest

from archloop.devices import energy
from archloop.devices.energy import Counters, of_card, of_processor, spent


def zone(folder: Path, name: str, microjoules: int) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000\n")


def test_packages_are_added_up_and_wrap_around(tmp_path):
    for name, first in (("intel-rapl:0", 900_000), ("intel-rapl:1", 100_000)):
        zone(tmp_path, name, first)
    # A core's share is part of its package's, and the folder holds other things too.
    zone(tmp_path, "intel-rapl:0:0", 1)
    (tmp_path / "intel-rapl").mkdir()
    before = of_processor(tmp_path)
    assert before is not None
    assert sorted(before.joules) == ["intel-rapl:0", "intel-rapl:1"]
    zone(tmp_path, "intel-rapl:0", 200_000)
    zone(tmp_path, "intel-rapl:1", 150_000)
    assert spent(before, of_processor(tmp_path)) == pytest.approx(0.3 + 0.05)


def test_no_counter_is_no_energy(tmp_path):
    assert of_processor(tmp_path) is None
    assert of_processor(tmp_path / "missing") is None
    zone(tmp_path, "amd-rapl:0", 5)
    (tmp_path / "amd-rapl:0" / "energy_uj").unlink()
    assert of_processor(tmp_path) is None
    some = Counters({"a": 1.0}, {})
    assert spent(None, some) is spent(some, None) is None
    assert spent(some, Counters({"b": 2.0}, {})) is None


def test_the_counter_of_the_whole_machine_is_no_package(tmp_path):
    for name, called in (("intel-rapl:0", "package-0"), ("intel-rapl:1", "psys")):
        zone(tmp_path, name, 5)
        (tmp_path / name / "name").write_text(f"{called}\n")
    found = of_processor(tmp_path)
    assert found is not None
    assert list(found.joules) == ["intel-rapl:0"]


class Library:
    """The part of NVIDIA's library that is called, for a machine with one card."""

    def __init__(self) -> None:
        self.millijoules = 7_000

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        return 0 if index.value == 0 else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, answer):
        answer._obj.value = self.millijoules
        return 0


def test_a_card_tells_by_its_library(monkeypatch):
    library = Library()
    monkeypatch.setattr(energy, "_library", lambda: library)
    before = of_card(0)
    library.millijoules += 2_500
    assert spent(before, of_card(0)) == pytest.approx(2.5)
    assert of_card(1) is None
    monkeypatch.setattr(energy, "_library", lambda: None)
    assert of_card(0) is None
