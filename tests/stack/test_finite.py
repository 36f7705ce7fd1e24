"""The first part of a decoder that gives numbers which are not finite is found by name."""

from pathlib import Path

import pytest
import torch

from archloop.errors import UserError
from archloop.runtimes.exporting import export
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.decoder import Decoder
from archloop.stack.finite import first_not_finite
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

SPEC = StackSpec(
    d_model=64,
    vocab_size=50,
    blocks=tuple(
        BlockSpec(mixers=(MixerSpec(name=name),), channel_mixer=ChannelMixerSpec(name="swiglu"))
        for name in ("short_conv", "gla", "short_conv")
    ),
)
IDS = torch.arange(12)[None]


def broken(name: str, value: float = float("nan")) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(SPEC).eval()
    with torch.no_grad():
        decoder.get_parameter(name).view(-1)[0] = value
    return decoder


@pytest.mark.parametrize(
    ("parameter", "part"),
    [
        ("embedding.weight", "the embedding"),
        ("blocks.1.mixers.0.out_proj.weight", "mixer gla of blocks[1]"),
        ("blocks.1.channel_mixer.down_proj.weight", "channel mixer swiglu of blocks[1]"),
        ("blocks.2.mixers.0.out_proj.weight", "mixer short_conv of blocks[2]"),
        ("norm.weight", "the last norm or the head"),
    ],
)
def test_the_part_at_fault_is_named(parameter: str, part: str) -> None:
    assert first_not_finite(broken(parameter), IDS) == part


def test_of_blocks_that_share_norms_the_right_one_is_named() -> None:
    spec = SPEC.replace(
        blocks=(*SPEC.blocks[:2], SPEC.blocks[2].model_copy(update={"norms_from": 0}))
    )
    torch.manual_seed(0)
    decoder = Decoder(spec).eval()
    with torch.no_grad():
        decoder.get_parameter("blocks.1.channel_mixer.down_proj.weight")[0, 0] = float("nan")
    assert first_not_finite(decoder, IDS) == "channel mixer swiglu of blocks[1]"


def test_a_sound_decoder_has_none() -> None:
    assert first_not_finite(broken("norm.weight", 1.0), IDS) is None


def test_an_export_of_it_blames_the_mixer_and_not_the_runtime(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        export(TorchEager(), broken("blocks.1.mixers.0.out_proj.weight"), tmp_path, "fp32")
    assert str(refused.value).startswith("mixer gla of blocks[1] gives numbers")
    assert "choose another runtime" not in str(refused.value)
