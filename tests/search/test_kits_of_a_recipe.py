"""A recipe's plug-ins of every kind pass their kits before a study, or are refused by name."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import archloop.testing
from archloop.cli import app
from archloop.search import kits
from search.stand_in import settings

STRATEGY = """
from archloop.search.strategies.random import RandomSearch

class Mine(RandomSearch):
    \"\"\"Random search under another name.\"\"\"
"""
FORGETFUL = (
    STRATEGY
    + """
    calls = 0

    def propose(self, number, rng, told, pending):
        Mine.calls += 1
        rng.random(Mine.calls)
        return super().propose(number, rng, told, pending)
"""
)
PRESET = """
d_model: 128
vocab_size: 512
block_types:
  C: {mixer: {name: short_conv}, channel_mixer: {name: swiglu, config: {expansion: 2.0}}}
pattern: CCCC
"""


def write(folder: Path, strategy: str) -> Path:
    for kind, name in (("strategies", "mine.py"), ("presets", "small.yaml")):
        (folder / "plugins" / kind).mkdir(parents=True)
        content = strategy if kind == "strategies" else PRESET
        (folder / "plugins" / kind / name).write_text(content)
    recipe = folder / "recipe.yaml"
    changes = {"plugins": "plugins", "strategy": {"name": "mine"}}
    recipe.write_text(json.dumps(settings(**changes)))
    return recipe


def test_every_kit_is_known_by_its_kind() -> None:
    known = {kit for each in kits.KITS.values() for kit in each}
    assert known == set(archloop.testing.__all__)


@pytest.mark.ci
def test_plugins_of_every_kind_are_tested(tmp_path: Path) -> None:
    recipe = write(tmp_path, STRATEGY)
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--no-probe", "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)["kits"]
    assert found["plugins"] == {"strategies": ["mine"], "presets": ["small"]}
    assert found["num_passed"] >= 6
    assert found["failures"] == []


@pytest.mark.ci
def test_a_plugin_that_breaks_its_contract_is_refused(tmp_path: Path) -> None:
    recipe = write(tmp_path, FORGETFUL)
    shown = CliRunner().invoke(app, ["plan", str(recipe), "--no-probe"])
    assert shown.exit_code == 2
    assert "plugins: Strategy" in shown.output
    assert "[mine]" in shown.output
    assert CliRunner().invoke(app, ["plan", str(recipe), "--no-probe", "--no-kits"]).exit_code == 0


def test_without_pytest_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kits, "find_spec", lambda name: None)
    assert kits.missing() == "pip install 'archloop[test]'"
