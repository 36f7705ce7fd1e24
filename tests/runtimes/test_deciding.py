"""Routers without a selection bias are decided too, and a wrong export of theirs is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from archloop.blocks.channel_mixers.moe import MoE
from archloop.runtimes.base import Session
from archloop.runtimes.deciding import decided_experts
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.parity import case_tokens, distance, eager_logits
from archloop.runtimes.torch_eager import TorchEager, TorchSession
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

GRANITE = {"router": "granite"}
SIGMOID = {"router": "kimi", "use_bias": False}


def deep(**router: Any) -> Decoder:
    """One expert of many acts, in so many blocks that one chosen otherwise spoils all logits."""
    config = {
        "num_experts": 16, "top_k": 1, "expansion": 0.5, "shared_expansion": 0.5, **router,
    }  # fmt: skip
    block = BlockSpec(
        mixers=(MixerSpec(name="short_conv"),),
        channel_mixer=ChannelMixerSpec(name="moe", config=config),
    )
    spec = StackSpec(d_model=128, vocab_size=256, blocks=(block,) * 8, norm_offset=True)
    return build_random(spec, seed=0)


def rounding(decoder: Decoder) -> float:
    """How far eager PyTorch in bfloat16 lies from the same weights in float32."""
    ids = case_tokens(decoder.spec.vocab_size)
    rounded = eager_logits(decoder, ids[:40], ids[40:], "bfloat16")
    exact = eager_logits(decoder, ids[:40], ids[40:], "float32", weights="bfloat16")
    return distance(rounded, exact)


@pytest.mark.parametrize("router", [GRANITE, SIGMOID])
def test_rounding_swaps_no_experts_where_no_bias_chooses(
    router: dict[str, Any], tmp_path: Path
) -> None:
    decoder = deep(**router)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    assert rounding(decoder) > 1.5
    with decided_experts(decoder) as is_changed:
        assert is_changed
        assert rounding(decoder) < 0.3
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[name])
    manifest = export(TorchEager(), decoder, tmp_path, "bf16")
    assert manifest.parity_bound is not None
    assert manifest.parity_bound < 0.6


def test_a_decoder_that_cannot_be_decided_is_left_as_it_was() -> None:
    decoder = deep(**GRANITE).train()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    last = [module for module in decoder.modules() if isinstance(module, MoE)][-1]
    last.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"), decided_experts(decoder):
        pass
    assert decoder.training
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_all_experts_that_act_are_left_as_they_are() -> None:
    decoder = deep(router="granite", num_experts=2, top_k=2)
    with decided_experts(decoder) as is_changed:
        assert not is_changed


@pytest.mark.parametrize("fault", ["another expert's matrix", "the lowest scores", "no shared"])
def test_a_wrong_export_of_one_block_of_experts_is_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = TorchEager.load

    def wrong(self: TorchEager, *args: Any) -> Session:
        session = load(self, *args)
        assert isinstance(session, TorchSession)
        moe = session.decoder.blocks[4].channel_mixer
        assert isinstance(moe, MoE)
        with torch.no_grad():
            if fault == "another expert's matrix":
                moe.down.copy_(moe.down.roll(1, 0))
            elif fault == "the lowest scores":
                moe.router.weight.neg_()
            else:
                moe.shared = None
        return session

    monkeypatch.setattr(TorchEager, "load", wrong)
    with pytest.raises(ValueError, match="logits differ from eager PyTorch"):
        export(TorchEager(), deep(**GRANITE), tmp_path / "artifact", "bf16")
    assert not list(tmp_path.iterdir())
