"""Kept figures count for the very same question: code of plug-ins is a part of it."""

from pathlib import Path

import pytest

from archloop import load_preset, registry
from archloop.profiling import ProfileConfig, Target, remembered


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
