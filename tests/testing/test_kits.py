"""A plug-in outside the package runs the same kits: a sound one passes, a broken one does not."""

import subprocess
import sys
from pathlib import Path

import pytest

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
KIT = """
from pathlib import Path
from archloop.testing import MixerContract

class TestMine(MixerContract):
    folder = Path(__file__).parent / "plugins"
"""


def run_kit(folder: Path, source: str, *selected: str) -> subprocess.CompletedProcess[str]:
    (folder / "plugins" / "mixers").mkdir(parents=True)
    (folder / "plugins" / "mixers" / "own.py").write_text(source)
    (folder / "test_mine.py").write_text(KIT)
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selected, "."]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True)


def test_a_sound_mixer_passes_the_whole_kit(tmp_path: Path) -> None:
    done = run_kit(tmp_path, SOUND)
    assert done.returncode == 0, done.stdout
    assert " failed" not in done.stdout
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 30


@pytest.mark.parametrize(
    ("right", "wrong", "fails"),
    [
        ("self.proj(x_BTD)", "self.proj(x_BTD.roll(-1, 1))", "test_later_tokens_have_no_influence"),
        ("self.proj(x_BD)", "1.01 * self.proj(x_BD)", "test_is_trained_as_it_decodes"),
        ('{"proj": d_model**2}', "{}", "test_parameters_and_state_are_counted"),
    ],
)
def test_a_broken_one_fails_where_it_is_broken(
    tmp_path: Path, right: str, wrong: str, fails: str
) -> None:
    done = run_kit(tmp_path, SOUND.replace(right, wrong), "-k", fails)
    assert done.returncode == 1
    assert f"FAILED test_mine.py::TestMine::{fails}" in done.stdout


def test_a_kit_without_plugins_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "test_none.py").write_text(
        "from archloop.testing import MixerContract\nclass TestNone(MixerContract):\n    pass\n"
    )
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "set folder to one with mixers/*.py" in done.stdout
