"""The quantised reference: it rounds as formats are defined, wherever a product is."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from archloop.blocks.ops.attention import attention
from archloop.runtimes.exporting import build_random
from archloop.runtimes.gguf.rounding import flash_attention
from archloop.runtimes.parity import distance, eager_logits, make_case, quantised_logits
from archloop.runtimes.rounding import (
    Product,
    groups_to_int4,
    groups_to_int8,
    matrices,
    rounded_products,
    rows_to_int8,
    tensor_to_uint8,
)
from archloop.stack.decoder import Decoder
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

PARTS, STEPS = [[3, 1, 4, 1, 5], [9, 2]], [6, 5, 3]
PROMPT = [*PARTS[0], *PARTS[1]]


def decoder(channel: ChannelMixerSpec | None = None) -> Decoder:
    channel = channel or ChannelMixerSpec(name="swiglu")
    mixers = (MixerSpec(name="short_conv"), MixerSpec(name="gqa", config={"head_dim": 32}))
    blocks = tuple(BlockSpec(mixers=(mixer,), channel_mixer=channel) for mixer in mixers)
    return build_random(StackSpec(d_model=64, vocab_size=32, blocks=blocks), 0)


def test_groups_of_32_are_the_blocks_of_q8_0() -> None:
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    packed = quants.quantize(x.numpy(), GGMLQuantizationType.Q8_0)
    expected = quants.dequantize(packed, GGMLQuantizationType.Q8_0)
    found = groups_to_int8(32, scale=torch.float16)(x)
    torch.testing.assert_close(found, torch.tensor(expected))
    # A short last group, as of a gate of 16 inputs, has a scale of its own.
    short = groups_to_int8(32)(x[:, :40])
    torch.testing.assert_close(short[:, :32], groups_to_int8(32)(x[:, :32]), rtol=0, atol=0)
    torch.testing.assert_close(short[:, 32:], groups_to_int8(8)(x[:, 32:40]), rtol=0, atol=0)


def test_int4_is_that_of_q4_0_but_for_the_precision_of_its_scale() -> None:
    # Numbers that float16 has: then the scales are the same.
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(0)).half().float()
    packed = quants.quantize(x.numpy(), GGMLQuantizationType.Q4_0)
    expected = torch.tensor(quants.dequantize(packed, GGMLQuantizationType.Q4_0))
    found = groups_to_int4(x, 32)
    # Numbers half way between two steps fall either way.
    assert float((found - expected).abs().gt(1e-3).float().mean()) < 0.01
    assert int(groups_to_int4(torch.zeros(1, 32), 32).count_nonzero()) == 0
    assert groups_to_int4(torch.randn(2, 40), 32).shape == (2, 40)


def test_even_steps_keep_the_largest_number_and_zero() -> None:
    x = torch.tensor([[-2.0, 0.0, 0.7, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert rows_to_int8(x)[0, 3] == 3.0
    torch.testing.assert_close(rows_to_int8(x), x, atol=3.0 / 127 / 2, rtol=0)
    torch.testing.assert_close(tensor_to_uint8(x), x, atol=5.0 / 255, rtol=0)
    assert not tensor_to_uint8(x)[1].count_nonzero()


def test_exact_products_are_eager_pytorch() -> None:
    model = decoder()
    exact = {name: Product(weight) for name, weight in matrices(model).items()}
    found = quantised_logits(model, PARTS, STEPS, exact)
    np.testing.assert_allclose(found, eager_logits(model, PROMPT, STEPS, "float32"), atol=1e-5)


@pytest.mark.parametrize("inputs", [False, True])
def test_every_matrix_and_its_other_factor_are_reached(inputs: bool) -> None:
    model = decoder()
    exact = eager_logits(model, PROMPT, STEPS, "float32")
    for name, weight in matrices(model).items():
        if "conv" in name:
            continue  # Taps are no matrix that a product is with.
        product = Product(weight if inputs else weight * 1.1, torch.round)
        found = quantised_logits(model, PARTS, STEPS, {name: product}, inputs=inputs)
        assert distance(found, exact) > 1e-3, name


def test_experts_are_reached_in_prompts_and_in_steps() -> None:
    model = decoder(ChannelMixerSpec(name="moe", config={"num_experts": 4, "top_k": 2}))
    named = dict(model.named_parameters())
    exact = eager_logits(model, PROMPT, STEPS, "float32")
    for part in ("gate_up", "down"):
        name = f"blocks.1.channel_mixer.{part}"
        found = quantised_logits(model, PARTS, STEPS, {name: Product(named[name] * 1.1)})
        rows = np.abs(found - exact).max(1) / exact.std()
        assert (rows > 1e-3).all(), part


@pytest.mark.parametrize("part", ["recurrent", "heads"])
def test_the_matrices_of_a_nonlinear_cell_are_reached_in_prompts_and_in_steps(part: str) -> None:
    """They are multiplied by as transposed views, which engines round as any other matrix."""
    block = BlockSpec(mixers=(MixerSpec(name="cfc"),))
    model = build_random(StackSpec(d_model=64, vocab_size=32, blocks=(block,)), 0)
    name = f"blocks.0.mixers.0.{part}.weight"
    doubled = {name: Product(2 * matrices(model)[name])}
    exact = eager_logits(model, PROMPT, STEPS, "float32")
    assert distance(quantised_logits(model, PARTS, STEPS, doubled), exact) > 1e-3
    named = dict(model.named_parameters())
    with rounded_products(model, doubled):
        found = eager_logits(model, PROMPT, STEPS, "float32")
    named[name].mul_(2)
    expected = eager_logits(model, PROMPT, STEPS, "float32")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_decoder_is_as_it_was_afterwards() -> None:
    model = decoder()
    before = eager_logits(model, [1, 2, 3], [4], "float32")
    halved = {name: Product(weight / 2) for name, weight in matrices(model).items()}
    with rounded_products(model, halved):
        pass
    np.testing.assert_array_equal(before, eager_logits(model, [1, 2, 3], [4], "float32"))


def test_the_bound_is_the_tolerance_unless_activations_are_rounded() -> None:
    model = decoder()
    weights = {name: Product(rows_to_int8(weight)) for name, weight in matrices(model).items()}
    assert make_case(model, "float32", 1e-4, weights).bound == 1e-4
    both = {name: Product(each.weight, tensor_to_uint8) for name, each in weights.items()}
    assert 1e-3 < make_case(model, "float32", 1e-4, both).bound < 1.0


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_llama_cpp_is_attention_but_for_float16(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q_BNTH = torch.randn(1, 4, 9, 32, generator=generator)
    k_BMSH, v_BMSH = torch.randn(2, 1, 2, 9, 32, generator=generator)
    mask = torch.ones(9, 9, dtype=torch.bool).tril().triu(-3) if masked else None
    found = flash_attention(q_BNTH, k_BMSH, v_BMSH, mask, 0.2)
    expected = attention(q_BNTH, k_BMSH, v_BMSH, mask, 0.2)
    apart = (found - expected).abs().max()
    # Half a step of float16 is 2.4e-4 between 1/2 and 1, and there are nine sums.
    assert 1e-5 < apart < 5e-3


def test_an_engine_rounds_in_attention_where_it_says_so() -> None:
    model, calls = decoder(), []

    def counted(*given: object) -> torch.Tensor:
        calls.append(len(given))
        return flash_attention(*given)

    quantised_logits(model, PARTS, STEPS, {}, attention=counted)
    # One of two mixers attends; of its keys each prompt and step is a call.
    assert calls == [5] * (len(PARTS) + len(STEPS))
    exact = quantised_logits(model, PARTS, STEPS, {})
    rounded = quantised_logits(model, PARTS, STEPS, {}, attention=flash_attention)
    assert 1e-6 < distance(rounded, exact) < 1e-2
    # What rounding in attention does widens the bound as other rounding does.
    case = make_case(model, "float32", 0.0, {}, flash_attention)
    assert case.bound == 0.0
    matrix = "embedding.weight"
    exact_products = {matrix: Product(matrices(model)[matrix])}
    case = make_case(model, "float32", 0.0, exact_products, flash_attention)
    assert 1e-6 < case.bound < 2e-2
