"""Forms of mixers that engines may have kernels for: what a mixer hands over to be run fast.

A mixer says by `fast_form` that it computes exactly one of these functions, with which weights; an
engine with a kernel for that form may run it in the mixer's place, over the same state. A mixer
without such a form, or an engine without such a kernel, runs the mixer itself.

Shape suffixes: D model width, K kernel, N query heads, H head width, E experts, F hidden width.
"""

from dataclasses import dataclass

from torch import Tensor

from archloop.blocks.ops.rope import Rope


@dataclass(frozen=True)
class GatedConv:
    """``(b, c, u) = W_in x``; ``y = W_out(c * conv_K(b * u))``; state ``conv``, the last b * u.

    Attributes:
        in_proj: (3D, D).
        taps_DK: of the depthwise causal convolution.
        out_proj: (D, D).
    """

    in_proj: Tensor
    taps_DK: Tensor
    out_proj: Tensor


@dataclass(frozen=True)
class CachedAttention:
    """Causal softmax attention over a KV cache, q and k normed and turned; state ``k``, ``v``.

    With a window each query sees that many keys at most, its own included, and the state is a ring:
    position p has slot p modulo the slots.

    Attributes:
        qkv_proj: rows of all query heads, then key heads, then value heads.
        out_proj: (D, query width).
        norms: weights of the RMS norm of each query head, (H,), and of each key head, and the
            epsilon of both; None: heads are not normed.
        num_heads: of queries.
        head_dim: H.
        scale: factor on q.k.
        rope: how pairs of a head turn; `STILL` where none does.
        window: keys that a query sees; None: all before it.
        gate_proj: (N, D); each head's output is scaled by the sigmoid of its row times the input.
    """

    qkv_proj: Tensor
    out_proj: Tensor
    norms: tuple[Tensor, Tensor, float] | None
    num_heads: int
    head_dim: int
    scale: float
    rope: Rope
    window: int | None = None
    gate_proj: Tensor | None = None


@dataclass(frozen=True)
class GatedFeedForward:
    """``W_down(silu(W_gate x) * W_up x)``.

    Attributes:
        gate_up: gate over up, (2F, D).
        down: (D, F).
    """

    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class RoutedExperts:
    """The k experts with the largest ``sigmoid(W_r x) + bias``, each a `GatedFeedForward`.

    Their outputs are weighted by the scores without bias, normalised over ``sum + 1e-6`` or not.

    Attributes:
        router: (E, D).
        bias_E: float32; zeros where the router has none.
        gate_up: (E, 2F, D).
        down: (E, D, F).
        top_k: experts of each token.
        normalize: divide the weights of a token by their sum.
        routed_scale: factor on the weights.
    """

    router: Tensor
    bias_E: Tensor
    gate_up: Tensor
    down: Tensor
    top_k: int
    normalize: bool
    routed_scale: float


MixerForm = GatedConv | CachedAttention
ChannelForm = GatedFeedForward | RoutedExperts
