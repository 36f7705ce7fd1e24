"""Each kind of the table "To add ..." is added from outside, as one file, and passes its own kit.

The plug-ins are thin variants of the library's: what is tested is that nothing but their file is
needed, neither for the registry nor for the kit.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import archloop

FILES = {
    "mixers": (
        "MixerContract",
        '''
from archloop.blocks.mixers.short_conv import ShortConv

class Mine(ShortConv):
    """A short convolution of five taps."""

    class Config(ShortConv.Config):
        kernel: int = 5
''',
    ),
    "channel_mixers": (
        "ChannelMixerContract",
        '''
from archloop.blocks.channel_mixers.relu2 import ReLU2

class Mine(ReLU2):
    """As relu2."""

    class Config(ReLU2.Config):
        pass
''',
    ),
    "runtimes": (
        "RuntimeContract",
        '''
from archloop.runtimes.torch_eager import TorchEager

class Mine(TorchEager):
    """Eager PyTorch in float32 alone."""

    quants = ("fp32",)
''',
    ),
    "devices": (
        "DeviceContract",
        '''
from archloop.devices.host import Host

class Mine(Host):
    """This machine under another name."""
''',
    ),
    "tasks": (
        "EvaluationContract, TaskContract",
        '''
from archloop.evals.tasks.in_context_recall import InContextRecall

class Mine(InContextRecall):
    """Recall under another name."""
''',
    ),
    "strategies": (
        "StrategyContract",
        '''
from archloop.search.strategies.random import RandomSearch

class Mine(RandomSearch):
    """Random search under another name."""
''',
    ),
    "layouts": (
        "LayoutContract",
        '''
from archloop.checkpoints.layouts.llama import Llama

class Mine(Llama):
    """Llama's layout under another name, for a model type of its own."""

    model_types = {"mine": "MineForCausalLM"}
    examples = tuple({**example, "model_type": "mine"} for example in Llama.examples)

    def from_spec(self, spec):
        return super().from_spec(spec) | {"model_type": "mine"}
''',
    ),
}
FILES["presets"] = (
    "PresetContract",
    """
d_model: 128
vocab_size: 512
block_types:
  C: {mixer: {name: short_conv}, channel_mixer: {name: swiglu, config: {expansion: 2.0}}}
  A: {mixer: {name: gqa}, channel_mixer: {name: swiglu, config: {expansion: 2.0}}}
pattern: CCAC
""",
)
NEEDS_ITS_FAMILY = ("test_logits_are_those_of_transformers",)
"""Of an invented model type, transformers has no model to compare with."""


def test_the_table_has_no_row_but_these() -> None:
    """Each row's file, such as `stack/presets/<name>.yaml`, lies in the folder of a kind."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    files = re.findall(r"^\| an? [^|]+ \| `([^`]+)/<name>\.(py|yaml)` \|", readme, re.M)
    package = Path(archloop.__file__).parent
    assert {folder.rpartition("/")[2] for folder, _ in files} == FILES.keys()
    assert all((package / folder).is_dir() for folder, _ in files)
    assert len(files) == len(FILES) == 8


@pytest.mark.parametrize("kind", FILES)
def test_one_file_is_all_that_it_takes(kind: str, tmp_path: Path) -> None:
    kits, source = FILES[kind]
    (tmp_path / "plugins" / kind).mkdir(parents=True)
    end = "yaml" if kind == "presets" else "py"
    (tmp_path / "plugins" / kind / f"mine.{end}").write_text(source)
    classes = "".join(
        f"class Test{kit}({kit}):\n    folder = Path(__file__).parent / 'plugins'\n\n"
        for kit in kits.split(", ")
    )
    (tmp_path / "test_mine.py").write_text(
        f"from pathlib import Path\nfrom archloop.testing import {kits}\n\n{classes}"
    )
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    for name in NEEDS_ITS_FAMILY:
        call += ["--deselect", f"test_mine.py::TestLayoutContract::{name}", "-k", f"not {name}"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) >= 3
