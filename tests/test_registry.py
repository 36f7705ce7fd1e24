"""Plug-ins by file name: found, refused with a hint, and added from a folder."""

from pathlib import Path

import pytest

from archloop import registry
from archloop.errors import UserError


def test_names_are_files() -> None:
    assert {"gqa", "short_conv"} <= set(registry.names("mixers"))
    assert {"swiglu", "moe"} <= set(registry.names("channel_mixers"))


def test_get_returns_the_class_with_its_name() -> None:
    assert registry.get("mixers", "gqa").name == "gqa"


@pytest.mark.parametrize(
    ("kind", "name", "hint"), [("mixers", "gqq", "gqa"), ("mixer", "x", "mixers")]
)
def test_wrong_names_are_refused_with_a_hint(kind: str, name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"unknown.*{hint}"):
        registry.get(kind, name)


def test_folder_adds_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_folders", {})
    (tmp_path / "channel_mixers").mkdir()
    source = "from archloop.blocks.base import ChannelMixer\n\nclass {}(ChannelMixer):\n    pass\n"
    (tmp_path / "channel_mixers" / "mine.py").write_text(source.format("Mine"))
    (tmp_path / "channel_mixers" / "two.py").write_text(source.format("A") + source.format("B"))
    registry.add_folder(tmp_path)
    assert registry.get("channel_mixers", "mine").__name__ == "Mine"
    with pytest.raises(ValueError, match=r"exactly one ChannelMixer.*'A', 'B'"):
        registry.get("channel_mixers", "two")


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        registry.add_folder(tmp_path / "nowhere")


def test_a_file_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_folders", {})
    (tmp_path / "mixers").mkdir()
    (tmp_path / "mixers" / "broken.py").write_text("import nowhere_at_all\n")
    registry.add_folder(tmp_path)
    with pytest.raises(UserError, match=r"broken.py cannot be imported: .*nowhere_at_all"):
        registry.get("mixers", "broken")
