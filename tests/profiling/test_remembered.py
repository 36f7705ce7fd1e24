"""Kept figures count for the very same question: code of plug-ins is a part of it."""

from pathlib import Path

import pytest

from archloop import load_preset, registry
from archloop.devices.choice import DeviceChoice
from archloop.profiling import ProfileConfig, Target, remembered
from archloop.runtimes.torch_eager import TorchEager
from services.phone import scripted_adb


def test_an_edited_plugin_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_folders", {})
    mine = tmp_path / "mixers" / "mine.py"
    mine.parent.mkdir()
    spec, target, config = load_preset("lfm2-350m"), Target(contexts=(64,)), ProfileConfig()
    without = remembered.folder(spec, target, config)
    mine.write_text("RATE = 1")
    registry.add_folder(tmp_path)
    before = remembered.folder(spec, target, config)
    assert before == remembered.folder(spec, target, config)
    mine.write_text("RATE = 2")
    assert len({without, before, remembered.folder(spec, target, config)}) == 3


def test_another_exporter_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, target, config = load_preset("lfm2-350m"), Target(contexts=(64,)), ProfileConfig()
    before = remembered.folder(spec, target, config)
    monkeypatch.setattr(TorchEager, "writers", ("numpy",))
    assert remembered.folder(spec, target, config) != before


def test_a_program_that_was_built_anew_is_measured_anew(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    found = []
    with scripted_adb(tmp_path) as settings:
        device = DeviceChoice(name="android", programs=str(programs), **settings)
        for build in ("one", "two", "two"):
            (programs / "llama-bench").write_text(build)
            target = Target(device=device, contexts=(64,))
            found.append(remembered.circumstances(target, ProfileConfig()))
    assert found[0] != found[1] == found[2]
