"""Side blocks, norms and adapters as Zamba2 has them: against plain equations, counted, refused."""

import pytest
import torch
from torch.nn import functional as F

from archloop.blocks.ops.rope import rotate
from archloop.errors import UserError
from archloop.stack import cost, weights
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

HEADS = {"head_dim": 8, "num_heads": 5, "queries_per_kv": 5, "qk_norm": False}
ATTENTION = MixerSpec(name="gqa", config=HEADS | {"beside_embedding": True, "adapter_rank": 3})
GEGLU = ChannelMixerSpec(name="geglu", config={"expansion": 2, "gelu": "exact", "adapter_rank": 2})
CONV = BlockSpec(mixers=(MixerSpec(name="short_conv"),))
FIRST = BlockSpec(
    mixers=(ATTENTION,), channel_mixer=GEGLU, side=True, residual_multiplier=0.5, post_norms=True
)


def using(block: BlockSpec, lender: int) -> BlockSpec:
    """A further use of a block's weights and norms."""
    assert block.channel_mixer is not None
    return block.model_copy(
        update={
            "mixers": (block.mixers[0].model_copy(update={"weights_from": lender}),),
            "channel_mixer": block.channel_mixer.model_copy(update={"weights_from": lender}),
            "norms_from": lender,
        }
    )


def stack(*blocks: BlockSpec) -> StackSpec:
    return StackSpec(d_model=24, vocab_size=31, blocks=blocks)


def built(spec: StackSpec) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(spec).double().eval()
    with torch.no_grad():
        for name, tensor in weights.tensors(decoder).items():
            tensor.normal_(std=0.3).add_(float("norm" in name))
    return decoder


SPEC = stack(CONV, FIRST, CONV, using(FIRST, 1), CONV)


def test_a_side_block_is_what_its_equations_say() -> None:
    decoder, ids_BT = built(SPEC), torch.arange(22).view(2, 11)
    parts, e_BTD = decoder.state_dict(), decoder.embed(ids_BT)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), parts[f"{name}.weight"], 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ parts[f"{name}.weight"].T

    def side(x_BTD: torch.Tensor, index: int) -> torch.Tensor:
        at = f"blocks.{index}."
        h = norm(torch.cat([x_BTD, e_BTD], -1), f"{at}mixer_norm")
        mixer = f"{at}mixers.0."
        low = linear(h, f"{mixer}adapter.down").split(3, -1)
        qkv = linear(h, f"{mixer}qkv_proj") + torch.cat(
            [linear(part, f"{mixer}adapter.up.{i}") for i, part in enumerate(low)], -1
        )
        q, k, v = qkv.split([40, 8, 8], -1)
        positions_BT = torch.arange(11).expand(2, 11)
        q, k = (rotate(x.unflatten(-1, (-1, 8)).transpose(1, 2), positions_BT, 1e6) for x in (q, k))
        y = F.scaled_dot_product_attention(q, k, v[:, None], is_causal=True, enable_gqa=True)
        y = linear(y.transpose(1, 2).flatten(2), f"{mixer}out_proj")
        y = 0.5 * norm(y, f"{at}mixer_post_norm")
        h, channel = norm(y, f"{at}channel_norm"), f"{at}channel_mixer."
        low = linear(h, f"{channel}adapter.down")
        gate, up = (
            linear(h, f"{channel}gate_up_proj") + linear(low, f"{channel}adapter.up.0")
        ).chunk(2, -1)
        y = linear(F.gelu(gate) * up, f"{channel}down_proj")
        return linear(0.5 * norm(y, f"{at}channel_post_norm"), f"{at}side_proj")

    def conv(x: torch.Tensor, read: torch.Tensor, index: int) -> torch.Tensor:
        return x + decoder.mixer(index, 0)(norm(read, f"blocks.{index}.mixer_norm"))[0]

    with torch.no_grad():
        x_BTD = conv(e_BTD, e_BTD, 0)
        for index in (1, 3):
            x_BTD = conv(x_BTD, x_BTD + side(x_BTD, index), index + 1)
        wanted_BTV = norm(x_BTD, "norm") @ parts["embedding.weight"].T
        torch.testing.assert_close(decoder(ids_BT), wanted_BTV, rtol=0, atol=1e-12)


def test_steps_chunks_padding_and_packing_agree() -> None:
    decoder, ids_BT = built(SPEC), torch.arange(26).view(2, 13)
    with torch.no_grad():
        wanted_BTV = decoder(ids_BT)
        state = decoder.init_state(2, 13)
        found = [decoder(ids_BT[:, :4], state)]
        found += [decoder.step(ids_BT[:, at], state)[:, None] for at in range(4, 9)]
        found.append(decoder(ids_BT[:, 9:], state))
        torch.testing.assert_close(torch.cat(found, 1), wanted_BTV, rtol=0, atol=1e-12)
        padded_BT = F.pad(ids_BT, (3, 0))
        found_BTV = decoder(padded_BT, mask_BT=torch.arange(16).expand(2, 16) >= 3)
        torch.testing.assert_close(found_BTV[:, 3:], wanted_BTV, rtol=0, atol=1e-12)
        segments_1T = torch.arange(2).repeat_interleave(13)[None]
        packed_1TV = decoder(ids_BT.reshape(1, -1), segments_BT=segments_1T)
        torch.testing.assert_close(packed_1TV.view_as(wanted_BTV), wanted_BTV, rtol=0, atol=1e-12)


def test_all_but_adapters_is_shared_and_counted_once() -> None:
    decoder = built(SPEC)
    first, again = (decoder.mixer(index, 0) for index in (1, 3))
    assert again.qkv_proj is first.qkv_proj
    assert again.adapter is not first.adapter
    assert decoder.blocks[3].mixer_norm is decoder.blocks[1].mixer_norm
    assert decoder.blocks[3].side_proj is not decoder.blocks[1].side_proj
    assert sum(p.numel() for p in decoder.parameters()) == cost.num_params(SPEC)
    more = cost.num_params(SPEC) - cost.num_params(stack(CONV, FIRST, CONV, CONV))
    # A matrix behind the block, and adapters: of q, k, v from 48 wide, and of both hidden halves.
    assert more == 24 * 24 + 3 * (3 * 48 + 40 + 8 + 8) + 2 * (24 + 96)
    loss = decoder(torch.arange(20).view(2, 10)).square().mean()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in decoder.parameters())


def test_flops_are_those_of_matrices_that_a_token_meets() -> None:
    spec = stack(CONV, FIRST, CONV)
    alone = stack(CONV, CONV)
    met = cost.num_params(spec) - cost.num_params(alone) - 48 - 3 * 24
    scores = 2 * 2 * 40
    assert cost.decode_flops(spec, 0) - cost.decode_flops(alone, 0) == 2 * met + scores


def test_two_side_blocks_add_up_and_one_at_the_end_reaches_the_last_norm() -> None:
    ids_BT = torch.arange(10).view(2, 5)
    plain, ends = built(stack(CONV)), built(stack(CONV, FIRST))
    both = built(stack(CONV, FIRST, FIRST, CONV))
    with torch.no_grad():
        ends.load_state_dict(plain.state_dict(), strict=False)
        assert not torch.allclose(ends(ids_BT), plain(ids_BT))
        state = both.init_state(2, 5)
        steps = torch.stack([both.step(ids_BT[:, at], state) for at in range(5)], 1)
        torch.testing.assert_close(steps, both(ids_BT), rtol=0, atol=1e-12)


def test_what_cannot_be_is_refused_by_name() -> None:
    plain = MixerSpec(name="short_conv")
    with pytest.raises(UserError, match=r"blocks\[0\].*all or none"):
        cost.check(stack(BlockSpec(mixers=(ATTENTION, plain))))
    with pytest.raises(ValueError, match=r"norms_from=1: must be an earlier block"):
        stack(CONV, FIRST.model_copy(update={"norms_from": 1}))
    with pytest.raises(ValueError, match=r"norms_from=0: block 0 has other norms"):
        stack(CONV, FIRST.model_copy(update={"norms_from": 0}))
    narrow = BlockSpec(mixers=(MixerSpec(name="gqa"),))
    wide = BlockSpec(mixers=(ATTENTION,), norms_from=0)
    with pytest.raises(UserError, match=r"norms_from=0: the norms are of another width"):
        cost.check(stack(narrow, wide).replace(d_model=64))


def test_specs_from_before_side_blocks_keep_their_text() -> None:
    assert "side" not in stack(CONV).to_json()
    assert "norms_from" not in stack(CONV).to_json()
    assert StackSpec.from_json(SPEC.to_json()) == SPEC != stack(CONV, FIRST, CONV, FIRST, CONV)
