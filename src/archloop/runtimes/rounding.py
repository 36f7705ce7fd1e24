"""What a quantised artifact must compute: eager PyTorch with the engine's rounding of products.

A quantised engine rounds weights once, when the artifact is written, and many engines also round
what they multiply the weights by, as it comes. A `Product` says both for one matrix of a decoder,
and `rounded_products` lets eager PyTorch compute so. An artifact is compared with that: what is
left between the two is how sums are ordered, whatever the quantisation.

Shape suffixes: N outputs of a matrix, K inputs, which are summed over.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from archloop.blocks.channel_mixers.moe import MoE
from archloop.blocks.ops.experts import sorted_experts
from archloop.stack.decoder import Decoder

Rounding = Callable[[Tensor], Tensor]


class Product(NamedTuple):
    """How an engine multiplies by one matrix, or by one matrix of each expert.

    Attributes:
        weight: the numbers that it multiplies by, in the shape of the decoder's parameter.
        inputs: what it makes of the other factor (..., K) first; None: nothing.
        in_lookups: rows that are looked up are these numbers too, as those of a tied embedding
            that the artifact holds once.
    """

    weight: Tensor
    inputs: Rounding | None = None
    in_lookups: bool = False


Products = Mapping[str, Product]
"""By the names of a decoder's parameters."""


class Attending(Protocol):
    """How an engine that rounds in attention computes it."""

    def __call__(
        self, q_BNTH: Tensor, k_BMSH: Tensor, v_BMSH: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        """As `ops.attention.attention`: the output of each query (B, N, T, H)."""


@contextmanager
def rounded_products(
    decoder: Decoder,
    products: Products,
    *,
    inputs: bool = True,
    attention: Attending | None = None,
) -> Iterator[None]:
    """While inside, the decoder's products with these matrices are those of a quantised engine.

    Args:
        decoder: in float32, on a CPU.
        products: of its matrices; the others stay exact.
        inputs: round the other factors too.
        attention: computes attention; None: PyTorch does.
    """
    parameters = dict(decoder.named_parameters())
    by_storage = {
        parameters[name].untyped_storage().data_ptr(): product for name, product in products.items()
    }
    moes = [module for module in decoder.modules() if isinstance(module, MoE)]
    for moe in moes:
        # The form whose products are with views of the parameters.
        moe.form = sorted_experts
    try:
        with _Mode(by_storage, inputs, attention):
            yield
    finally:
        for moe in moes:
            moe.form = None


_FACTORS: Mapping[Any, tuple[int, int]] = {
    F.linear: (0, 1),
    F.embedding: (0, 1),
    torch.addmm: (1, 2),
    torch.Tensor.matmul: (0, 1),
}
"""By function, which arguments are what is multiplied or looked up, and the matrix.

The last two are a nonlinear cell's, which multiplies by its matrices transposed (`ops.cell_scan`).
"""


class _Mode(TorchFunctionMode):
    def __init__(
        self, by_storage: dict[int, Product], inputs: bool, attention: Attending | None
    ) -> None:
        super().__init__()
        self.by_storage, self.inputs, self.attention = by_storage, inputs, attention

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _FACTORS:
            args = self._rounded(func, args)
        if func is F.scaled_dot_product_attention and self.attention is not None:
            q_BNTH, k_BMSH, v_BMSH = args
            return self.attention(q_BNTH, k_BMSH, v_BMSH, kwargs["attn_mask"], kwargs["scale"])
        return func(*args, **(kwargs or {}))

    def _rounded(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A function's arguments with the factors that the engine has; most are as they were."""
        other, at = _FACTORS[func]
        part, is_lookup = args[at], func is F.embedding
        product = self.by_storage.get(part.untyped_storage().data_ptr())
        # A parameter with more axes here is an operand of the mixer's own, not a layer's matrix.
        if product is None or part.dim() != 2 or (is_lookup and not product.in_lookups):
            return args
        rounded = list(args)
        rounded[at] = _same_part(part, product.weight)
        if self.inputs and product.inputs is not None and not is_lookup:
            rounded[other] = product.inputs(args[other])
        return tuple(rounded)


def _same_part(part: Tensor, of: Tensor) -> Tensor:
    """The part of a tensor that `part` is of the parameter that it stands for."""
    of = of.contiguous()
    start = of.storage_offset() + part.storage_offset()
    return of.as_strided(part.shape, part.stride(), start)


def rows_to_int8(weight: Tensor) -> Tensor:
    """Each row (of one output) in 255 even steps around 0."""
    scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / scale).round().clamp(-127, 127) * scale


def tensor_to_uint8(x: Tensor) -> Tensor:
    """All of a call's numbers in 256 even steps from the least to the largest, one of them 0."""
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=1e-30)
    zero = (-low / scale).round().clamp(0, 255)
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def groups_to_int8(group: int, scale: torch.dtype = torch.float32) -> Rounding:
    """So many numbers of a row at a time in 255 even steps around 0.

    Args:
        group: numbers that share a scale; the last of a row may be fewer.
        scale: precision that the scale is kept in.
    """

    def rounded(x: Tensor) -> Tensor:
        groups = F.pad(x, (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
        step = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        whole: Tensor = (groups / step).round() * step.to(scale).float()
        return whole.flatten(-2)[..., : x.shape[-1]]

    return rounded


def groups_to_int4(weight: Tensor, group: int) -> Tensor:
    """So many numbers of a row at a time in 16 even steps, of which the largest number is one."""
    whole = F.pad(weight, (0, -weight.shape[-1] % group)).unflatten(-1, (-1, group))
    largest = whole.gather(-1, whole.abs().argmax(-1, keepdim=True))
    # No step is 0: a group of zeros stays so.
    step = torch.where(largest == 0, 1.0, largest / -8)
    rounded: Tensor = (whole / step).round().clamp(-8, 7) * step
    return rounded.flatten(-2)[..., : weight.shape[-1]]


def matrices(decoder: Decoder) -> dict[str, Tensor]:
    """A decoder's parameters of two axes, which products are with; those of experts have three."""
    return {
        name: tensor.detach().float()
        for name, tensor in decoder.named_parameters()
        if tensor.dim() == 2
    }


def experts(decoder: Decoder) -> dict[str, Tensor]:
    """A decoder's parameters of one matrix for each expert."""
    return {
        f"{name}.{part}": getattr(module, part).detach().float()
        for name, module in decoder.named_modules()
        if isinstance(module, MoE)
        for part in ("gate_up", "down")
    }
