"""A captured step of a mixer without kernels is compiled, once a kind of block, and says the same.

On a CPU with the compiler's first half alone, which traces as on a GPU and generates no code;
`test_any_stack.py` has every mixer on a GPU.
"""

from functools import cache, partial

import pytest
import torch

from archloop.runtimes.cuda import compiled
from archloop.runtimes.cuda.compiled import CompiledChannel, CompiledMixer
from archloop.runtimes.cuda.fused import FusedDecoder
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec


def decoder_of(*mixers: str, **fields) -> Decoder:
    torch.manual_seed(0)
    blocks = tuple(BlockSpec(mixers=(MixerSpec(name=name),), **fields) for name in mixers)
    return Decoder(StackSpec(d_model=64, vocab_size=50, blocks=blocks)).eval()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Graphs that were traced, which then run as they are."""
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiler = cache(partial(torch.compile, dynamic=False, fullgraph=True, backend=keep))
    monkeypatch.setattr(compiled, "_compiler", lambda: compiler)
    monkeypatch.setattr(compiled, "_worth", lambda x_BD: True)
    return graphs


def steps(decoder: Decoder, static: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of three steps behind a prompt, and the state after them."""
    fused = FusedDecoder(decoder, kernels=False)
    ids = torch.arange(24).reshape(2, 12)
    state = fused.init_state(2, 16)
    fused.prefill(ids[:, :9], state)
    found = []
    for t in range(9, 12):
        for own in state.mixers.values():
            own.static = static
        found.append(fused.step(ids[:, t], state))
    return found, [t for own in state.mixers.values() for t in own.tensors.values()]


@pytest.mark.parametrize("name", ["gla", "linear_cfc", "gqa"])
@pytest.mark.parametrize("post_norms", [False, True])
def test_blocks_of_one_kind_share_a_step_that_says_the_same(name, post_norms, traced) -> None:
    decoder = decoder_of(name, name, name, post_norms=post_norms).double()
    logits, state = steps(decoder, static=True)
    assert len(traced) == 1
    expected, expected_state = steps(decoder, static=False)
    assert len(traced) == 1
    for out, ref in zip([*logits, *state], [*expected, *expected_state], strict=True):
        assert torch.allclose(out, ref, rtol=1e-12, atol=1e-12)


def test_a_mixer_that_cannot_be_compiled_runs_as_written(
    traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> torch.Tensor:
        raise torch._dynamo.exc.Unsupported("this is not known\nand more")

    monkeypatch.setattr(compiled, "_compiler", lambda: lambda step: refuse)
    monkeypatch.setattr(compiled, "_uncompilable", set())
    decoder = decoder_of("linear_cfc", "linear_cfc")
    with pytest.warns(UserWarning, match="linear_cfc runs as written: this is not known$") as seen:
        logits, _ = steps(decoder, static=True)
    assert len(seen) == 1
    expected, _ = steps(decoder, static=False)
    assert all(torch.equal(a, b) for a, b in zip(logits, expected, strict=True))


def test_what_is_compiled() -> None:
    def kinds(decoder: Decoder) -> list[bool]:
        halves = FusedDecoder(decoder, kernels=False).of_mixers.values()
        return [isinstance(half, CompiledMixer) for half in halves]

    assert kinds(decoder_of("gla", "mamba2")) == [True, True]
    # What it computes depends on its place, so each block would be compiled anew.
    assert kinds(decoder_of("hgrn2", "gla")) == [False, True]
    assert kinds(decoder_of("gla", residual_multiplier=0.5)) == [True]
    assert kinds(decoder_of("gla", post_norms=True)) == [True]
    # What another block reads of it leaves the compiled step.
    shared = decoder_of("gqa", "gla").spec.blocks
    reader = BlockSpec(mixers=(MixerSpec(name="gqa", state_from=0),))
    stack = StackSpec(d_model=64, vocab_size=50, blocks=(*shared, reader))
    assert kinds(Decoder(stack).eval()) == [False, True, False]


@pytest.mark.parametrize(
    "fields",
    [
        {"mixers": "gla gqa", "combine": "mean"},
        {"mixers": "mamba2 gqa", "combine": "normed_mean"},
        {"mixers": "gqa", "residual_multiplier": 0.25, "channel": "relu2"},
    ],
)
def test_parallel_mixers_multipliers_and_channels_are_compiled_too(fields, traced) -> None:
    mixers = [
        MixerSpec(name=name, multiplier=0.5, input_multiplier=2.0)
        for name in fields.pop("mixers").split()
    ]
    channel = fields.pop("channel", None)
    more = {} if channel is None else {"channel_mixer": ChannelMixerSpec(name=channel)}
    block = BlockSpec(mixers=tuple(mixers), **more, **fields)
    torch.manual_seed(0)
    decoder = Decoder(StackSpec(d_model=64, vocab_size=50, blocks=(block, block))).eval().double()
    logits, state = steps(decoder, static=True)
    assert len(traced) == (1 if channel is None else 2)
    expected, expected_state = steps(decoder, static=False)
    for out, ref in zip([*logits, *state], [*expected, *expected_state], strict=True):
        assert torch.allclose(out, ref, rtol=1e-12, atol=1e-12)
    if channel is not None:
        halves = FusedDecoder(decoder, kernels=False).of_channels.values()
        assert all(isinstance(half, CompiledChannel) for half in halves)
