"""Whole profiles through engines of other packages, beside eager PyTorch's memory of a state."""

from pathlib import Path

import pytest

from archloop.profiling import ProfileConfig, Target, profile, read_samples
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

QUICK = ProfileConfig(
    processes=2, warmup_steps=2, timed_steps=10, prefill_repeats=1, ready_timeout_s=0
)


def stack(d_model: int) -> StackSpec:
    mixers = (MixerSpec(name="short_conv"), MixerSpec(name="gqa", config={"head_dim": 64}))
    blocks = tuple(
        BlockSpec(mixers=(mixer,), channel_mixer=ChannelMixerSpec(name="swiglu"))
        for mixer in mixers
    )
    return StackSpec(d_model=d_model, vocab_size=256, blocks=blocks)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("runtime", "quant"),
    [("onnx_runtime", "fp32"), ("onnx_runtime", "int8"), ("openvino", "fp32")],
)
def test_a_wider_stack_is_slower_and_larger(runtime: str, quant: str, tmp_path: Path) -> None:
    target = Target(runtime=runtime, quant=quant, threads=1, contexts=(64, 640))
    found = profile(stack(128), target, QUICK, reference=stack(768), directory=tmp_path)
    assert found.identity.runtime == runtime
    assert found.ratios["640"]["ttft_ms"].value < 0.8
    assert found.ratios["640"]["decode_p50_ms"].value < 0.9
    assert found.memory_ratio is not None
    assert found.memory_ratio.value < 1.0
    samples = read_samples(tmp_path)
    for pair in samples.pairs:
        assert pair.reference is not None
        for process in (pair.candidate, pair.reference):
            assert all(at.finite for at in process.contexts)
            short, long = process.contexts
            assert long.state_bytes > short.state_bytes
