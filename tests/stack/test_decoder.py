"""The built decoder: prefill and steps agree with one pass, whatever the stack shares or lacks."""

from typing import Any

import pytest
import torch

from archloop import registry
from archloop.blocks.base import Span
from archloop.blocks.stream import Stream
from archloop.stack import cost
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

VOCAB = 50
SHAREABLE = [n for n in registry.names("mixers") if registry.get("mixers", n).shareable]


def mixer(name: str, **more: Any) -> MixerSpec:
    return MixerSpec(name=name, **more)


def block(*mixers: MixerSpec, channel: str | None = "swiglu", **more: Any) -> BlockSpec:
    channel_mixer = None if channel is None else ChannelMixerSpec(name=channel)
    return BlockSpec(mixers=mixers, channel_mixer=channel_mixer, **more)


def stack(*blocks: BlockSpec, **more: Any) -> StackSpec:
    return StackSpec(d_model=64, vocab_size=VOCAB, blocks=blocks, **more)


def lent(source: int, **more: Any) -> BlockSpec:
    """A block whose SwiGLU is that of an earlier block."""
    channel = ChannelMixerSpec(name="swiglu", weights_from=source, **more)
    return BlockSpec(mixers=(mixer("gqa"),), channel_mixer=channel)


STACKS = {
    "lfm2": stack(block(mixer("short_conv")), block(mixer("gqa")), block(mixer("short_conv"))),
    "moe": stack(block(mixer("short_conv")), block(mixer("gqa"), channel="moe")),
    "parallel": stack(block(mixer("short_conv"), mixer("gqa"), post_norms=True)),
    "parallel-mean": stack(block(mixer("mamba2"), mixer("gqa"), combine="mean")),
    "parallel-normed-mean": stack(
        block(
            mixer("gqa", input_multiplier=2.0, multiplier=0.5),
            mixer("mamba2", multiplier=3.0),
            combine="normed_mean",
        ),
        block(mixer("gqa", input_multiplier=2.0, state_from=0)),
    ),
    "shared-blocks": stack(
        block(mixer("mamba2"), channel=None),
        block(mixer("gqa")),
        block(mixer("mamba2"), channel=None),
        BlockSpec(
            mixers=(mixer("gqa", weights_from=1),),
            channel_mixer=ChannelMixerSpec(name="swiglu", multiplier=0.5, weights_from=1),
        ),
    ),
    "mixer-only": stack(block(mixer("gqa"), channel=None), block(), block(mixer("gqa"))),
    "multipliers": stack(
        block(mixer("gqa"), residual_multiplier=0.5),
        embedding_multiplier=3.0,
        logits_divisor=2.0,
        tie_embeddings=False,
    ),
    "shared-state-parallel": stack(
        block(mixer("short_conv"), mixer("gqa")),
        block(mixer("short_conv"), mixer("gqa", state_from=0)),
    ),
    **{
        f"shared-weights-{name}": stack(
            block(mixer(name)), block(mixer("short_conv")), block(mixer(name, weights_from=0))
        )
        for name in registry.names("mixers")
    },
    **{
        f"shared-state-{name}": stack(
            block(mixer(name)),
            block(mixer(name, state_from=0)),
            block(mixer(name)),
            block(mixer(name, state_from=0)),
        )
        for name in SHAREABLE
    },
}

every_stack = pytest.mark.parametrize("spec", STACKS.values(), ids=STACKS)


def build(spec: StackSpec, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(spec).double().eval()


def tokens(batch: int, time: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < 1e-9)


@every_stack
@torch.no_grad()
def test_prefill_in_chunks_and_steps_equal_one_pass(spec: StackSpec) -> None:
    decoder, ids_BT = build(spec), tokens(2, 24)
    full_BTV = decoder(ids_BT)
    state = decoder.init_state(2, 24)
    assert close(decoder.prefill(ids_BT[:, :17], state, chunk_size=5), full_BTV[:, 16])
    for t in range(17, 24):
        assert close(decoder.step(ids_BT[:, t], state), full_BTV[:, t])
    assert state.lengths_B.tolist() == [24, 24]


@every_stack
@torch.no_grad()
def test_ragged_rows_answer_as_if_alone(spec: StackSpec) -> None:
    decoder, ids_BT = build(spec), tokens(3, 12)
    mask_BT = torch.ones(3, 12, dtype=torch.bool)
    mask_BT[0, :8] = False
    mask_BT[1, 5:] = False
    state = decoder.init_state(3, 40)
    first_BV = decoder.prefill(ids_BT, state, mask_BT=mask_BT, chunk_size=7)
    second_ids = tokens(3, 6, seed=1)
    second_mask = torch.ones(3, 6, dtype=torch.bool)
    second_mask[2, :3] = False
    second_BV = decoder.prefill(second_ids, state, mask_BT=second_mask)
    next_BV = decoder.step(torch.tensor([3, 4, 5]), state)
    for row in range(3):
        whole = torch.cat([ids_BT[row][mask_BT[row]], second_ids[row][second_mask[row]]])
        num_first = int(mask_BT[row].sum())
        alone_TV = decoder(torch.cat([whole, torch.tensor([3 + row])])[None])[0]
        assert close(first_BV[row], alone_TV[num_first - 1])
        assert close(second_BV[row], alone_TV[-2])
        assert close(next_BV[row], alone_TV[-1])


@every_stack
@torch.no_grad()
def test_packed_sequences_score_as_if_alone(spec: StackSpec) -> None:
    decoder, ids_BT = build(spec), tokens(1, 20)
    # An id met again is another sequence.
    packed = decoder(ids_BT, segments_BT=torch.tensor([[0] * 8 + [1] * 2 + [0] * 10]))
    for start, stop in ((0, 8), (8, 10), (10, 20)):
        assert close(packed[:, start:stop], decoder(ids_BT[:, start:stop]))


@every_stack
@torch.no_grad()
def test_packed_sequences_may_be_padded_anywhere(spec: StackSpec) -> None:
    decoder, ids_BT = build(spec), tokens(2, 16)
    segments_BT = torch.tensor([[0] * 9 + [1] * 7, [1] * 4 + [0] * 2 + [1] * 10])
    mask_BT = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.6
    packed = decoder(ids_BT, segments_BT=segments_BT, mask_BT=mask_BT)
    for row, start, stop in ((0, 0, 9), (0, 9, 16), (1, 0, 4), (1, 6, 16)):
        real_T = mask_BT[row, start:stop]
        alone = decoder(ids_BT[row : row + 1, start:stop][:, real_T])
        assert close(packed[row : row + 1, start:stop][:, real_T], alone)


@every_stack
def test_costs_equal_the_built_decoder(spec: StackSpec) -> None:
    decoder = Decoder(spec)
    assert sum(p.numel() for p in decoder.parameters()) == cost.num_params(spec)
    for context in (10, 100):
        state = decoder.init_state(1, context, torch.bfloat16)
        assert state.nbytes == cost.state_bytes(spec, context, torch.bfloat16)


@torch.no_grad()
def test_snapshot_restores_a_conversation() -> None:
    decoder, ids_BT = build(STACKS["lfm2"]), tokens(1, 10)
    state = decoder.init_state(1, 20)
    decoder.prefill(ids_BT, state)
    saved = state.snapshot()
    first = decoder.step(torch.tensor([1]), state)
    decoder.step(torch.tensor([2]), state)
    state.restore(saved)
    assert torch.equal(decoder.step(torch.tensor([1]), state), first)
    state.reset()
    assert close(decoder.prefill(ids_BT, state), decoder(ids_BT)[:, -1])


@every_stack
@torch.no_grad()
def test_a_prefix_goes_on_in_several_ways_from_one_state(spec: StackSpec) -> None:
    decoder = build(spec)
    prefix_BT, more_NT = tokens(2, 9), tokens(3, 4, seed=5)
    state = decoder.init_state(2, 16)
    decoder.prefill(prefix_BT, state)
    rows_N = torch.tensor([1, 0, 1])
    many = state.gathered(rows_N)
    found_NTV = decoder(more_NT, many)
    whole_NTV = decoder(torch.cat([prefix_BT[rows_N], more_NT], 1))
    assert close(found_NTV, whole_NTV[:, 9:])
    assert state.lengths_B.tolist() == [9, 9]
    assert many.lengths_B.tolist() == [13, 13, 13]


def test_a_full_state_is_refused_before_anything_is_written() -> None:
    decoder = build(STACKS["lfm2"])
    state = decoder.init_state(1, 4)
    decoder.prefill(tokens(1, 4), state)
    with pytest.raises(ValueError, match="max_context=4"):
        decoder.step(torch.tensor([1]), state)
    with pytest.raises(ValueError, match="max_context=4"):
        decoder.prefill(tokens(1, 1), state)
    assert state.lengths_B.tolist() == [4]


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_row_of_padding_alone_is_refused_before_anything_is_written(
    chunk_size: int | None,
) -> None:
    """Its logits would be those of a padding token."""
    decoder = Decoder(STACKS["lfm2"]).double().eval()
    state = decoder.init_state(3, 8)
    ids_BT = torch.ones(3, 4, dtype=torch.int64)
    mask_BT = torch.tensor([[True] * 4, [False] * 4, [False, True, False, False]])
    with pytest.raises(ValueError, match=r"no real token in row 1.*leave the row out"):
        decoder.prefill(ids_BT, state, mask_BT=mask_BT, chunk_size=chunk_size)
    with pytest.raises(ValueError, match="no real token in row 1"):
        decoder(ids_BT, mask_BT=mask_BT, logits="last")
    assert state.num_tokens == 0
    mask_BT[1, 0] = True
    assert decoder.prefill(ids_BT, state, mask_BT=mask_BT).isfinite().all()


def test_wrong_shapes_are_refused_not_broadcast() -> None:
    decoder = Decoder(STACKS["lfm2"]).eval()
    state = decoder.init_state(3, 8)
    one = torch.ones(1, 4, dtype=torch.int64)
    for call in (
        lambda: decoder.prefill(one, state),
        lambda: decoder(one, state),
        lambda: decoder.step(one[:, 0], state),
    ):
        with pytest.raises(ValueError, match="1 rows for a state of 3"):
            call()
    with pytest.raises(ValueError, match=r"shape \(3, 0\).*at least one token"):
        decoder.prefill(torch.ones(3, 0, dtype=torch.int64), state)
    with pytest.raises(ValueError, match=r"shape \(0, 3\).*at least one token"):
        decoder(torch.ones(0, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(4,\): must be \(rows, tokens\)"):
        decoder(one[0])
    with pytest.raises(ValueError, match=r"shape \(3, 1\): must be \(rows,\)"):
        decoder.step(torch.ones(3, 1, dtype=torch.int64), state)
    for name in ("mask_BT", "segments_BT"):
        with pytest.raises(ValueError, match=rf"{name} has shape \(1, 4\); must be \(3, 4\)"):
            decoder(one.expand(3, 4), **{name: torch.ones(1, 4, dtype=torch.bool)})
    with pytest.raises(ValueError, match="chunk_size=-1"):
        decoder.prefill(one, decoder.init_state(1, 8), chunk_size=-1)


def test_gradients_reach_every_parameter() -> None:
    decoder = Decoder(STACKS["moe"]).train()
    decoder(tokens(2, 16)).logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((block(mixer("gqa", state_from=0)),), "earlier block; allowed: none"),
        (
            (block(mixer("gqa")), block(mixer("gqa", state_from=2))),
            "earlier block; allowed: 0 to 0",
        ),
        ((block(mixer("gqa")), block(mixer("short_conv", weights_from=0))), "must be equal"),
        (
            (
                block(mixer("gqa")),
                block(mixer("gqa", state_from=0)),
                block(mixer("gqa", state_from=1)),
            ),
            "itself shares",
        ),
        ((block(mixer("gqa")), block(mixer("gqa", state_from=0, weights_from=0))), "exclude"),
        ((lent(0),), r"channel_mixer.weights_from=0: must be an earlier block"),
        ((block(mixer("gqa"), channel=None), lent(0)), "block 0 has no channel mixer"),
        ((block(channel="moe"), lent(0)), "must be equal"),
        ((block(), lent(0), lent(1)), "itself shares"),
    ],
)
def test_impossible_sharing_is_refused(blocks: tuple[BlockSpec, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack(*blocks)


@torch.no_grad()
def test_parallel_outputs_are_combined_as_the_spec_says() -> None:
    """Against the branches run one by one: sum, mean, and mean of each through its own norm."""
    mixers = (mixer("mamba2", input_multiplier=2.0, multiplier=0.5), mixer("gqa", multiplier=3.0))
    x_BTD = torch.randn(2, 7, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for combine in ("sum", "mean", "normed_mean"):
        decoder = build(stack(block(*mixers, channel=None, combine=combine)))
        built = decoder.blocks[0]
        h_BTD = built.mixer_norm(x_BTD)
        outputs = [built.mixers[0](2 * h_BTD)[0], built.mixers[1](h_BTD)[0]]
        if combine == "normed_mean":
            outputs = [y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() for y in outputs]
        expected = x_BTD + (0.5 * outputs[0] + 3 * outputs[1]) / (1 if combine == "sum" else 2)
        span = Span(torch.arange(7).expand(2, 7))
        stream = Stream(x_BTD)
        decoder.mix(stream, 0, built, None, span, {})
        assert close(stream.plain(), expected)


def test_a_mixer_without_features_has_no_consumers() -> None:
    spec = stack(block(mixer("short_conv")), block(mixer("short_conv", state_from=0)))
    with pytest.raises(ValueError, match=r"state_from.*allowed: None"):
        Decoder(spec)


def test_specs_are_equal_where_their_text_is() -> None:
    bias = [
        stack(block(MixerSpec(name="short_conv", config={"bias": value})))
        for value in (True, 1, 1.0)
    ]
    scale = [block(mixer("gqa"), residual_multiplier=value) for value in (0.0, -0.0)]
    for a, b in ((bias[0], bias[1]), (bias[1], bias[2]), (stack(scale[0]), stack(scale[1]))):
        assert (a == b) == (a.digest == b.digest) == (hash(a) == hash(b))
    assert bias[1] == bias[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["norm_eps", "embedding_multiplier", "logits_divisor"])
def test_factors_that_are_not_finite_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?s){field}.*finite"):
        stack(block()).replace(**{field: value})


def test_logits_are_divided_by_more_than_nothing() -> None:
    for divisor in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"(?s)logits_divisor.*greater than 0"):
            stack(block()).replace(logits_divisor=divisor)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"head_dim": 48}, "head_dim=48 does not divide d_model=64"),
        ({"head_dim": 16, "queries_per_kv": 3}, "queries_per_kv=3.*allowed"),
        ({"head_dims": 16}, "head_dim"),
        ({"head_dim": "many"}, "head_dim"),
    ],
)
def test_bad_settings_name_field_value_and_remedy(config: dict[str, Any], message: str) -> None:
    spec = stack(BlockSpec(mixers=(MixerSpec(name="gqa", config=config),)))
    with pytest.raises(ValueError, match=message):
        Decoder(spec)


def test_states_of_a_decoder_count_their_tokens_once() -> None:
    """All mixers read one clock, which copies and rows have of their own."""
    mixers = [block(mixer(name)) for name in ("gqa", "short_conv", "mamba")]
    decoder = Decoder(stack(*mixers)).eval()
    state = decoder.init_state(2, 16)
    copy = state.snapshot()
    decoder.prefill(torch.randint(VOCAB, (2, 5)), state)
    decoder.step(torch.zeros(2, dtype=torch.int64), state)
    assert {own.num_tokens for own in state.mixers.values()} == {state.num_tokens} == {6}
    assert {own.num_tokens for own in state.row(0).mixers.values()} == {6}
    assert copy.num_tokens == 0
    state.recount(3)
    assert {own.num_tokens for own in state.mixers.values()} == {3}
    state.restore(copy)
    assert {own.num_tokens for own in state.mixers.values()} == {0}
