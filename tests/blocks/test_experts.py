"""The fast ways of running experts equal the plain one, outputs and gradients."""

import pytest
import torch
from torch import Tensor

from archloop.blocks.channel_mixers.moe import MoE
from archloop.blocks.ops import experts


@pytest.mark.parametrize("fast", [experts.gathered_experts, experts.sorted_experts])
@pytest.mark.parametrize("hidden", [6, 12], ids=["relu2", "swiglu"])
@pytest.mark.parametrize("tokens", [1, 17])
def test_fast_forms_equal_the_plain_one(fast: experts.Experts, hidden: int, tokens: int) -> None:
    torch.manual_seed(tokens)
    num_experts, width, inner, top_k = 5, 8, 6, 2
    inputs = [
        torch.randn(tokens, width, dtype=torch.float64),
        torch.rand(tokens, top_k, dtype=torch.float64),
        torch.randn(num_experts, hidden, width, dtype=torch.float64),
        torch.randn(num_experts, width, inner, dtype=torch.float64),
    ]
    for tensor in inputs:
        tensor.requires_grad_()
    x_XD, weights_XK, gate_up, down = inputs
    # The last expert acts on no token.
    experts_XK = torch.rand(tokens, num_experts - 1).topk(top_k).indices
    outputs = [
        form(x_XD, weights_XK, experts_XK, gate_up, down) for form in (fast, experts.dense_experts)
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    weight_XD = torch.randn_like(outputs[0])
    mine, plain = (torch.autograd.grad((y * weight_XD).sum(), inputs) for y in outputs)
    for got, expected in zip(mine, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def drawn(
    tokens: int, hidden: int, width: int, inner: int, num_experts: int = 7
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `experts.Experts`; the first expert acts on no token."""
    generator = torch.Generator().manual_seed(tokens)
    chosen_XK = 1 + torch.rand(tokens, num_experts - 1, generator=generator).topk(3).indices
    shapes = (tokens, width), (tokens, 3), (num_experts, hidden, width), (num_experts, width, inner)
    x, weights, gate_up, down = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weights.sigmoid(), chosen_XK, gate_up / width**0.5, down / inner**0.5


@pytest.mark.parametrize("hidden", [24, 48], ids=["relu2", "swiglu"])
@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_groups_at_once_equal_one_after_another(hidden: int, tokens: int) -> None:
    x, weights, chosen, gate_up, down = drawn(tokens, hidden, 16, 24)
    own = [each.requires_grad_() for each in (x, weights, gate_up, down)]
    outputs = [
        form(x, weights, chosen, gate_up, down)
        for form in (experts.grouped_experts, experts.sorted_experts)
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=2e-6)
    weight = torch.randn_like(outputs[0])
    grads = [torch.autograd.grad((y * weight).sum(), own) for y in outputs]
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_groups_are_multiplied_at_once_on_a_card_alone() -> None:
    mixer = MoE.Config(num_experts=4).build(64).bfloat16()
    assert not experts.multiplies_groups(mixer.gate_up, mixer.down)
    assert mixer.asks_host


@pytest.mark.parametrize(
    ("capability", "has_kernel"),
    [((8, 9), False), ((9, 0), True), ((10, 3), True), ((12, 0), False)],
)
def test_groups_are_multiplied_at_once_where_pytorch_has_a_kernel(
    capability: tuple[int, int], has_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere PyTorch asks the card for the groups, which a CUDA graph cannot hold."""
    mixer = MoE.Config(num_experts=4).build(64).bfloat16()
    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert experts.multiplies_groups(mixer.gate_up, mixer.down) is has_kernel
    assert mixer.asks_host is not has_kernel


def test_what_is_compiled_does_not_ask_whether_it_is_being_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def untraceable() -> bool:
        raise AssertionError("the compiler cannot trace this")

    mixer = MoE.Config(num_experts=4).build(64)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", untraceable)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    with pytest.raises(AssertionError, match="cannot trace"):
        mixer._form(3)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert mixer._form(1) is experts.gathered_experts
    assert mixer._form(3) is experts.dense_experts


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="one kernel for groups needs a card")
@pytest.mark.parametrize("hidden", [72, 144], ids=["relu2", "swiglu"])
@pytest.mark.parametrize("tokens", [2, 33, 1000])
def test_groups_on_a_card_are_held_by_a_graph(hidden: int, tokens: int) -> None:
    arguments = [each.cuda() for each in drawn(tokens, hidden, 120, 72)]
    x, weights, chosen, gate_up, down = (
        each.bfloat16() if each.is_floating_point() else each for each in arguments
    )
    if not experts.multiplies_groups(gate_up, down):
        pytest.skip("this card multiplies one group after another")
    experts.grouped_experts(x, weights, chosen, gate_up, down)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = experts.grouped_experts(x, weights, chosen, gate_up, down)
    for turned in range(2):
        # Another routing than the one that was recorded.
        chosen.copy_((chosen + turned) % gate_up.shape[0])
        graph.replay()
        x64, weights64, gate_up64, down64 = (each.double() for each in (x, weights, gate_up, down))
        wanted = experts.sorted_experts(x64, weights64, chosen, gate_up64, down64)
        # What bfloat16 itself costs here is told by the plain form: of a sum's terms some are ten
        # times as large as most, so a share of the standard deviation would not say it.
        plain = experts.dense_experts(x, weights, chosen, gate_up, down)
        rounding = (plain.double() - wanted).abs().max()
        assert (y.double() - wanted).abs().max() <= 2 * rounding
        assert rounding < 0.1 * wanted.std()


def test_float32_logits_are_float32_under_autocast_too() -> None:
    torch.manual_seed(0)
    mixer, x_XD = MoE.Config(router="kimi").build(64), torch.randn(50, 64)
    weights_XK, experts_XK = mixer.route(x_XD)
    with torch.autocast("cpu", torch.bfloat16):
        same_XK, the_same_XK = mixer.route(x_XD)
    assert torch.equal(same_XK, weights_XK)
    assert torch.equal(the_same_XK, experts_XK)
