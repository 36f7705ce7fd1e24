"""What libraries warn of at import, and no user can mend, stays off a command's standard error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec


@pytest.mark.ci
def test_an_export_for_transformers_says_nothing_on_standard_error(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    block = BlockSpec(
        mixers=(MixerSpec(name="short_conv", config={"kernel": 3}),),
        channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": 2.0}),
    )
    whole = block.model_copy(update={"mixers": (MixerSpec(name="gqa", config={"head_dim": 32}),)})
    spec = StackSpec(d_model=64, vocab_size=64, blocks=(block, whole))
    (tmp_path / "spec.json").write_text(spec.to_json())
    call = ["export", "spec.json", "--format", "transformers", "-o", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "archloop", *call],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "transformers' logits are within" in done.stdout
