"""Plug-ins by file name: found, refused with a hint, and added from a folder."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    source = (
        "from archloop.blocks.channel_mixers.relu2 import ReLU2\n\n"
        "class {}(ReLU2):\n    class Config(ReLU2.Config):\n        pass\n"
    )
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
    with pytest.raises(UserError, match=r"broken.py, line 1 cannot be imported: .*nowhere_at_all"):
        registry.get("mixers", "broken")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Path]:
    """Writes a plug-in's file into a folder that the registry looks in."""
    monkeypatch.setattr(registry, "_folders", {})
    registry.add_folder(tmp_path)

    def write(kind: str, name: str, source: str) -> Path:
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / f"{name}.py").write_text(source)
        return tmp_path / kind / f"{name}.py"

    return write


def refusal(kind: str, name: str) -> str:
    with pytest.raises(UserError) as refused:
        registry.get(kind, name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_wrong_import_is_told_with_file_and_line(plugin: Any) -> None:
    file = plugin("mixers", "wrong", "import math\n\nfrom archloop.blocks import GQQA\n")
    text = refusal("mixers", "wrong")
    assert f"{file}, line 3 cannot be imported" in text
    assert len(text) < 400


def test_a_syntax_error_is_told_with_file_and_line(plugin: Any) -> None:
    file = plugin("mixers", "slip", "import math\nclass Slip(:\n")
    assert f"{file}, line 2 cannot be imported" in refusal("mixers", "slip")


def test_a_plugin_that_ends_the_process_keeps_its_name(plugin: Any) -> None:
    file = plugin("mixers", "leaver", "import sys\nsys.exit(3)\n")
    assert f"{file}, line 2 cannot be imported: SystemExit(3)" in refusal("mixers", "leaver")


@pytest.mark.parametrize("where", ["folder", "archloop"])
def test_threads_that_ask_at_once_get_one_class(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    name = "s5" if where == "archloop" else "slow"
    source = "import time\ntime.sleep(0.2)\nfrom archloop.blocks.mixers.s5 import S5\n"
    plugin("mixers", "slow", f"{source}class Slow(S5):\n    class Config(S5.Config): pass\n")
    imported = registry._import

    def slowly(module: str) -> Any:
        time.sleep(0.2)
        return imported(module)

    monkeypatch.setattr(registry, "_import", slowly)
    registry._load.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: registry.get("mixers", name), range(4)))
    assert len(set(found)) == 1


def test_a_plugin_that_asks_for_itself_is_told_so(plugin: Any) -> None:
    plugin("mixers", "narcissus", "from archloop.blocks import Narcissus\n")
    assert "asks for itself" in refusal("mixers", "narcissus")


@pytest.mark.parametrize(
    ("kind", "source", "missing"),
    [
        (
            "mixers",
            "from archloop.blocks.base import SequenceMixer as B\n",
            "Config, mix, mix_step",
        ),
        (
            "channel_mixers",
            "from archloop.blocks.base import ChannelMixer as B\n",
            "Config, forward",
        ),
        ("runtimes", "from archloop.runtimes.base import Runtime as B\n", "load"),
        ("devices", "from archloop.devices.base import Device as B\n", "describe"),
    ],
)
def test_a_missing_member_of_the_contract_is_named(
    plugin: Any, kind: str, source: str, missing: str
) -> None:
    file = plugin(kind, "bare", f"{source}class Bare(B):\n    pass\n")
    text = refusal(kind, "bare")
    assert str(file) in text
    assert "Bare must define" in text
    assert missing in text


def test_a_missing_member_of_a_config_is_named(plugin: Any) -> None:
    plugin(
        "mixers",
        "half",
        "from archloop.blocks.base import MixerConfig, SequenceMixer\n"
        "class Half(SequenceMixer):\n"
        "    class Config(MixerConfig):\n"
        "        def sizes(self, d_model): return {}\n"
        "    def mix(self, x, state, span): return x\n"
        "    def mix_step(self, x, state, positions): return x\n",
    )
    assert "Config.flop_terms" in refusal("mixers", "half")


def test_an_installed_package_brings_its_plugins_while_the_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entry points are remembered, but not past the installation of a package."""
    monkeypatch.syspath_prepend(tmp_path)
    assert "of_a_package" not in registry.names("mixers")
    (tmp_path / "of_a_package-1.0.dist-info").mkdir()
    (tmp_path / "of_a_package-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: of-a-package\nVersion: 1.0\n"
    )
    (tmp_path / "of_a_package-1.0.dist-info" / "entry_points.txt").write_text(
        "[archloop.mixers]\nof_a_package = of_a_package_code\n"
    )
    (tmp_path / "of_a_package_code.py").write_text(
        "from archloop.blocks.mixers.short_conv import ShortConv\n\n"
        "class Mine(ShortConv):\n    class Config(ShortConv.Config):\n        pass\n"
    )
    assert registry.get("mixers", "of_a_package").__name__ == "Mine"
