"""The engine runs every mixer and channel mixer, alone and between fused ones, as the decoder does.

Without kernels on a CPU; on a GPU (marked) through kernels where there are some, and captured.
"""

import importlib.util
import os

import pytest
import torch

from archloop import registry
from archloop.runtimes.cuda.fused import FusedDecoder
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

MIXERS, CHANNELS = registry.shipped("mixers"), registry.shipped("channel_mixers")
DENSE = ChannelMixerSpec(name="swiglu", config={"expansion": 2.0})
SPARSE = {"num_experts": 4, "top_k": 2, "expansion": 1.0}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_KERNELS = importlib.util.find_spec("triton") is not None


def channel(name: str) -> ChannelMixerSpec:
    return ChannelMixerSpec(name=name, config=SPARSE if name == "moe" else {})


def block(mixer: str, channel_mixer: ChannelMixerSpec | None = DENSE, **fields) -> BlockSpec:
    return BlockSpec(mixers=(MixerSpec(name=mixer),), channel_mixer=channel_mixer, **fields)


ALONE = {name: (block(name), block(name)) for name in MIXERS}
BETWEEN = {f"conv-{name}-gqa": (block("short_conv"), block(name), block("gqa")) for name in MIXERS}
OF_CHANNELS = {f"channel-{name}": (block("gqa", channel(name)),) * 2 for name in CHANNELS}
PARALLEL = BlockSpec(
    mixers=(MixerSpec(name="gqa", multiplier=0.5), MixerSpec(name="mamba2")), channel_mixer=DENSE
)
ODD = {
    "parallel": (PARALLEL, block("short_conv")),
    "single-branch": (
        BlockSpec(mixers=(MixerSpec(name="gla"),)),
        BlockSpec(channel_mixer=DENSE),
        BlockSpec(mixers=(MixerSpec(name="short_conv"),)),
    ),
    "side": (
        block("short_conv"),
        block("gqa", side=True),
        block("mamba2", None),
        BlockSpec(mixers=(MixerSpec(name="gqa", weights_from=1),), side=True),
    ),
    "ends-in-channels": (block("short_conv"), BlockSpec(channel_mixer=DENSE)),
    "shared-state": (
        block("gqa"),
        BlockSpec(mixers=(MixerSpec(name="gqa", state_from=0),), channel_mixer=DENSE),
        block("short_conv"),
    ),
    "shared-weights": (
        block("gqa"),
        BlockSpec(mixers=(MixerSpec(name="gqa", weights_from=0),), channel_mixer=DENSE),
    ),
    "post-norms": (block("gqa", post_norms=True), block("short_conv", residual_multiplier=0.3)),
    "granite-router": (
        block("gqa", ChannelMixerSpec(name="moe", config={**SPARSE, "router": "granite"})),
    ),
    "shared-expert": (
        block("swa", ChannelMixerSpec(name="moe", config={**SPARSE, "shared_expansion": 1.0})),
    ),
    "experts-in-a-narrower-stream": (
        block(
            "mamba2",
            ChannelMixerSpec(
                name="moe",
                config={
                    **SPARSE,
                    "router": "kimi",
                    "activation": "relu2",
                    "shared_expansion": 1.0,
                    "shared_gate": True,
                    "latent_ratio": 0.5,
                },
            ),
        ),
    ),
}
LLAMA_ROPE = {"rope_factor": 8.0, "rope_trained_context": 32, "rope_theta": 1e4}
ODD |= {
    "partial-rope": (BlockSpec(mixers=(MixerSpec(name="gqa", config={"rope_fraction": 0.5}),)),),
    "slowed-rope": (BlockSpec(mixers=(MixerSpec(name="gqa", config=LLAMA_ROPE),)),),
    # Narrower than the texts below: the ring of slots goes round.
    "narrow-window": (
        BlockSpec(mixers=(MixerSpec(name="swa", config={"window": 8}),), channel_mixer=DENSE),
        block("short_conv"),
    ),
    "beside-embedding": (
        block("short_conv"),
        BlockSpec(
            mixers=(MixerSpec(name="gqa", config={"beside_embedding": True}),), channel_mixer=DENSE
        ),
    ),
    "gated-heads": (BlockSpec(mixers=(MixerSpec(name="gqa", config={"head_gate": True}),)),),
}
STACKS = ALONE | BETWEEN | OF_CHANNELS | ODD


def decoder_of(name: str, width: int = 128, **fields) -> Decoder:
    torch.manual_seed(0)
    spec = StackSpec(d_model=width, vocab_size=300, blocks=STACKS[name], **fields)
    decoder = Decoder(spec).eval()
    with torch.no_grad():
        for parameter_name, parameter in decoder.named_parameters():
            if parameter_name.endswith("norm.weight"):
                parameter.normal_(1, 0.1)
        for buffer_name, buffer in decoder.named_buffers():
            # Biases this far apart decide every choice: no near tie falls differently.
            if buffer_name.endswith("expert_bias"):
                buffer.copy_(torch.randperm(buffer.shape[0]) * 2.0)
    return decoder


def error(out: torch.Tensor, ref: torch.Tensor) -> float:
    assert torch.isfinite(out).all()
    return float((out.double() - ref.double()).norm() / ref.double().norm().clamp(min=1e-6))


def compare(decoder: Decoder, fused: FusedDecoder, batch: int, tolerance: float, captured: bool):
    """A prompt in row groups, more of it, steps; outputs and states against the decoder's own."""
    device = decoder.embedding.weight.device
    # Triton's interpreter takes a second a token and block.
    first, second, end = (9, 13, 15) if INTERPRETED else (71, 84, 90)
    ids = torch.randint(0, 300, (batch, end), device=device)
    plain, mine = decoder.init_state(batch, 96), fused.init_state(batch, 96)
    ref = decoder.prefill(ids[:, :first], plain)
    assert error(fused.prefill(ids[:, :first], mine, tokens_per_pass=2 * first), ref) < tolerance
    ref = decoder.prefill(ids[:, first:second], plain)
    assert error(fused.prefill(ids[:, first:second], mine), ref) < tolerance
    step = fused.capture(mine).step if captured else lambda ids_B: fused.step(ids_B, mine)
    for t in range(second, end):
        ref = decoder.step(ids[:, t], plain)
        assert error(step(ids[:, t]), ref) < tolerance
    assert mine.lengths_B.tolist() == plain.lengths_B.tolist() == [end] * batch
    assert mine.num_tokens == plain.num_tokens == end
    for key, state in mine.mixers.items():
        assert state.num_tokens == end
        assert not state.static
        for name, tensor in state.tensors.items():
            assert error(tensor, plain.mixers[key][name]) < tolerance, (key, name)


@pytest.mark.parametrize("name", STACKS)
def test_equals_the_decoder_without_kernels(name: str) -> None:
    decoder = decoder_of(name).double()
    fused = FusedDecoder(decoder, kernels=False)
    assert not any(half.is_fused for half in fused.halves)
    compare(decoder, fused, 3, 1e-12, captured=False)


@pytest.mark.parametrize(
    "fields", [{"embedding_multiplier": 3.0}, {"logits_divisor": 4.0}], ids=str
)
def test_multipliers_of_the_stack_count(fields: dict[str, float]) -> None:
    decoder = decoder_of("gqa", **fields).double()
    compare(decoder, FusedDecoder(decoder, kernels=False), 1, 1e-12, captured=False)


def test_a_step_of_many_contexts_touches_the_first_slot_alone() -> None:
    decoder = decoder_of("conv-mla-gqa").double()
    fused = FusedDecoder(decoder, kernels=False)
    state = fused.init_state(2, 500)
    before = state.snapshot()
    touched = [tensor for half in fused.halves for tensor in half.touched(state)]
    assert (
        sum(t.numel() for t in touched)
        < sum(t.numel() for s in state.mixers.values() for t in s.tensors.values()) / 100
    )
    kept = [t.clone() for t in touched]
    fused.step(torch.tensor([5, 7]), state)
    for tensor, old in zip(touched, kept, strict=True):
        tensor.copy_(old)
    for key, own in state.mixers.items():
        for name, tensor in own.tensors.items():
            assert torch.equal(tensor, before.mixers[key][name]), (key, name)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_KERNELS, reason="needs Triton")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", STACKS)
def test_equals_the_decoder_with_kernels(name: str, batch: int) -> None:
    from accelerator import DEVICE

    decoder = decoder_of(name).to(DEVICE, torch.float32 if INTERPRETED else torch.bfloat16)
    fused = FusedDecoder(decoder, overlap=not INTERPRETED)
    compare(decoder, fused, batch, 1e-4 if INTERPRETED else 5e-2, captured=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a CUDA device")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", STACKS)
def test_captured_steps_equal_the_decoder(name: str, batch: int) -> None:
    decoder = decoder_of(name).to("cuda", torch.bfloat16)
    compare(decoder, FusedDecoder(decoder), batch, 5e-2, captured=True)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_KERNELS, reason="needs Triton")
def test_kernels_run_what_has_a_form_and_nothing_else() -> None:
    from accelerator import DEVICE

    def fused(name: str) -> list[bool]:
        decoder = decoder_of(name, width=256).to(DEVICE)
        return [half.is_fused for half in FusedDecoder(decoder).halves]

    assert fused("conv-gla-gqa") == [True, True, False, True, True, True]
    assert fused("post-norms") == [True, True, False, False]
    assert fused("channel-moe") == [True, True, True, True]
    assert fused("granite-router") == [True, False]
    assert fused("partial-rope") == fused("slowed-rope") == [True]
    assert fused("gated-heads") == [True]
    assert fused("narrow-window") == [True] * 4
    assert fused("shared-state") == [False, True, False, True, True, True]
