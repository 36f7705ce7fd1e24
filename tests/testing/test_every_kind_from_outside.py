"""Each kind of the table "To add ..." is added from outside, as one file, and passes its own kit.

The plug-ins are thin variants of the library's: what is tested is that nothing but their file is
needed, neither for the registry nor for the kit.
"""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import archloop

pytestmark = pytest.mark.xdist_group("every kind from outside")

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
NEEDS_ITS_FAMILY = "test_logits_are_those_of_transformers"
"""Of an invented model type, transformers has no model to compare with."""


def test_the_table_has_no_row_but_these() -> None:
    """Each row's file, such as `stack/presets/<name>.yaml`, lies in the folder of a kind."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    files = re.findall(r"^\| an? [^|]+ \| `([^`]+)/<name>\.(py|yaml)` \|", readme, re.M)
    package = Path(archloop.__file__).parent
    assert {folder.rpartition("/")[2] for folder, _ in files} == FILES.keys()
    assert all((package / folder).is_dir() for folder, _ in files)
    assert len(files) == len(FILES) == 8


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the kits said of the files: by kit, "passed" or what was wrong, one for each test.

    One process runs all kits, since starting one takes longer than most of them.
    """
    folder = tmp_path_factory.mktemp("outside")
    classes = []
    for kind, (kits, source) in FILES.items():
        (folder / "plugins" / kind).mkdir(parents=True)
        end = "yaml" if kind == "presets" else "py"
        (folder / "plugins" / kind / f"mine.{end}").write_text(source)
        for kit in kits.split(", "):
            plugins = "Path(__file__).parent / 'plugins'"
            classes.append(f"class Test{kit}(testing.{kit}):\n    folder = {plugins}\n\n")
    head = "from pathlib import Path\nfrom archloop import testing\n\n"
    (folder / "test_mine.py").write_text(head + "".join(classes))
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    call += ["--junitxml=found.xml", "-k", f"not {NEEDS_ITS_FAMILY}"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    assert (folder / "found.xml").exists(), done.stdout[-3000:]
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(folder / "found.xml").iter("testcase"):
        # Without a child it passed; a test that does not apply has one that says it was skipped.
        said = [f"{case.get('name')}: {each.get('message')}" for each in case.iter("failure")]
        said += [f"{case.get('name')}: {each.get('message')}" for each in case.iter("error")]
        kit = case.get("classname", "").rpartition("Test")[2]
        found.setdefault(kit, []).extend(said if len(case) else ["passed"])
    return found


@pytest.mark.ci
@pytest.mark.parametrize("kind", FILES)
def test_one_file_is_all_that_it_takes(kind: str, outcomes: dict[str, list[str]]) -> None:
    for kit in FILES[kind][0].split(", "):
        said = outcomes[kit]
        assert set(said) == {"passed"}
        assert len(said) >= 3
