"""The fused GPU runtime: refuses what it cannot run, and agrees with eager PyTorch where it can."""

import numpy as np
import pytest
import torch

from archloop.runtimes import _torch_weights
from archloop.runtimes.exporting import build_random, export
from archloop.runtimes.parity import session_rows
from archloop.runtimes.torch_cuda import TorchCuda
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.stack.tensors import leaves
from runtimes.test_any_stack import STACKS, decoder_of


def spec(d_model=256):
    dense = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
    mixers = [MixerSpec(name="short_conv"), MixerSpec(name="gqa"), MixerSpec(name="short_conv")]
    blocks = tuple(BlockSpec(mixers=(mixer,), channel_mixer=dense) for mixer in mixers)
    return StackSpec(d_model=d_model, vocab_size=512, blocks=blocks)


def test_runs_every_stack():
    assert TorchCuda().unsupported(spec()) is None
    assert TorchCuda().unsupported(spec(192)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_names_the_missing_gpu():
    assert "NVIDIA GPU" in TorchCuda().missing_to_run()


@pytest.mark.parametrize("name", STACKS)
def test_weights_read_onto_a_device_are_all_there(name, tmp_path):
    decoder = decoder_of(name).to(torch.bfloat16)
    _torch_weights.save(decoder, tmp_path)
    read = _torch_weights.load_onto(torch.device("cpu"), tmp_path, torch.bfloat16)
    assert not read.training
    found = {leaf.name: leaf.tensor for leaf in leaves(read)}
    for leaf in leaves(decoder):
        assert torch.equal(found[leaf.name], leaf.tensor), leaf.name
    # Nothing that a pass needs was left behind in making the decoder without numbers.
    ids = torch.arange(9)[None]
    logits = [each.prefill(ids, each.init_state(1, 12)) for each in (decoder, read)]
    assert torch.equal(*logits)


@pytest.mark.gpu
def test_continues_from_prompts_steps_and_fills(tmp_path):
    runtime, decoder = TorchCuda(), build_random(spec(), seed=0)
    manifest = export(runtime, decoder, tmp_path, "bf16")
    assert manifest.parity_error <= manifest.parity_bound
    session = runtime.open(tmp_path, threads=1, max_context=64)
    ids = np.random.default_rng(0).integers(512, size=24).tolist()
    (together,) = session_rows(session, [ids], [])
    *_, stepped = session_rows(session, [ids[:20]], ids[20:])
    assert np.linalg.norm(stepped - together) <= 0.05 * np.linalg.norm(together)
    session.fill(60, seed=1)
    session.decode_step(3)
    assert np.isfinite(session.logits()).all()
    assert session.state_bytes == session.state.nbytes
    for _ in range(3):
        session.decode_step(3)
    with pytest.raises(ValueError, match="room for 64"):
        session.decode_step(3)
