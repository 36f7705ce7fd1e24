"""A plug-in outside the package runs the same kits: a sound one passes, a broken one does not."""

import subprocess
import sys
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.xdist_group("kits")

SOUND = '''
"""Each token's own projection: the plainest mixer there is."""

from archloop.blocks.base import MixerConfig, SequenceMixer
from archloop.blocks.linear import Linear


class Own(SequenceMixer):
    class Config(MixerConfig):
        def sizes(self, d_model): return {}
        def param_terms(self, d_model, *, consumer=False): return {"proj": d_model**2}
        def state_layout(self, d_model, context): return {}
        def flop_terms(self, d_model, num_tokens, context, *, consumer=False):
            return {"proj": 2 * num_tokens * d_model**2}

    packs = True

    def __init__(self, config, d_model, block_index, num_blocks, consumer):
        super().__init__(config, d_model)
        self.proj = Linear(d_model, d_model)

    def mix(self, x_BTD, state, span):
        return self.proj(x_BTD)

    def mix_step(self, x_BD, state, positions_B):
        return self.proj(x_BD)
'''
KITS = """
from pathlib import Path
from archloop.testing import MixerContract

class TestMine(MixerContract):
    folder = Path(__file__).parent / "plugins"

class TestNone(MixerContract):
    pass
"""
BROKEN = {
    "leaky": (
        "self.proj(x_BTD)",
        "self.proj(x_BTD.roll(-1, 1))",
        "test_later_tokens_have_no_influence",
    ),
    "unequal": ("self.proj(x_BD)", "1.01 * self.proj(x_BD)", "test_is_trained_as_it_decodes"),
    "uncounted": ('{"proj": d_model**2}', "{}", "test_parameters_and_state_are_counted"),
}
"""By name: what of the sound mixer is replaced, by what, and the test that must find it."""


class Said(NamedTuple):
    """Names of the kits' tests that passed and that failed, and all that was printed."""

    passed: list[str]
    failed: list[str]
    printed: str


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """The whole kit over the sound mixer, and of each broken one the test that must find it.

    All in one process, since starting one takes longer than most of them.
    """
    folder = tmp_path_factory.mktemp("kits")
    (folder / "plugins" / "mixers").mkdir(parents=True)
    sources = {"sound": SOUND} | {
        name: SOUND.replace(right, wrong) for name, (right, wrong, _) in BROKEN.items()
    }
    for name, source in sources.items():
        (folder / "plugins" / "mixers" / f"{name}.py").write_text(source)
    (folder / "test_mine.py").write_text(KITS)
    wanted = " or ".join(["sound", *(f"({name} and {b[2]})" for name, b in BROKEN.items())])
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted]
    call += ["--continue-on-collection-errors", "--junitxml=found.xml", "."]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    passed, failed = [], []
    for case in ElementTree.parse(folder / "found.xml").iter("testcase"):
        (failed if len(case) else passed).append(case.get("name", ""))
    return Said(passed, failed, done.stdout)


@pytest.mark.ci
def test_a_sound_mixer_passes_the_whole_kit(said: Said) -> None:
    assert not [name for name in said.failed if "sound" in name], said.printed
    assert sum("sound" in name for name in said.passed) > 30


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.ci
def test_a_broken_one_fails_where_it_is_broken(name: str, said: Said) -> None:
    assert [each for each in said.failed if each.startswith(BROKEN[name][2]) and name in each]


@pytest.mark.ci
def test_a_kit_without_plugins_says_what_to_set(said: Said) -> None:
    assert "set folder to one with mixers/*.py" in said.printed
