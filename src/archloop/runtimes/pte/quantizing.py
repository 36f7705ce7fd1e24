"""Quantising a part of a decoder for XNNPACK: 8da4w, as models for ExecuTorch are shipped.

Weights of matrices become int4, each 32 of a row with a scale of their own in bfloat16; activations
become int8 as they come, with a scale a token. The embedding, convolutions, norms, experts, routers
and what is no module of its own stay float32.

Shape suffixes: N outputs of a matrix, K its inputs.
"""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archloop.blocks.channel_mixers.moe import MoE
from archloop.blocks.mixers.cfc import CfC
from archloop.blocks.mixers.mla import MLA
from archloop.runtimes.pte.graph import Part
from archloop.runtimes.rounding import Product
from archloop.stack.decoder import Decoder

GROUP = 32
"""Numbers of a row that share a scale."""
_INT4 = "int4"
"""A dtype that PyTorch has and its types do not mention."""
_FLOAT: Mapping[type[nn.Module], tuple[str, ...]] = {
    MoE: ("router",),
    MLA: ("up_proj",),
    CfC: ("recurrent", "heads"),
}
"""By class, its matrices that are left as they are: a router's choice is no matter of rounding, the
others are read as tensors and never called. Matrices of other classes may have the same names."""


def quantize(part: Part) -> dict[str, int]:
    """Quantise in place; returns weight bytes by precision, scales as bfloat16."""
    from torchao.utils import unwrap_tensor_subclass

    chosen = _chosen(part)
    kept = {key: parameter.numel() for key, parameter in part.weights().items()}
    num_int4 = sum(kept.pop(id(module.weight), 0) for module in chosen.values())
    _quantize(part, chosen)
    unwrap_tensor_subclass(part)
    return {
        "int4": num_int4 // 2,
        "bfloat16": 2 * (num_int4 // GROUP),
        "float32": 4 * sum(kept.values()),
    }


def products(decoder: Decoder) -> dict[str, Product]:
    """How the engine multiplies by the matrices of a decoder that `quantize` would round."""
    named = {f"{name}.weight": module.weight for name, module in _chosen(decoder).items()}
    if decoder.head is None and decoder.spec.d_model % GROUP == 0:
        named["embedding.weight"] = decoder.embedding.weight
    return {name: Product(_rounded(weight), _tokens_to_int8) for name, weight in named.items()}


def _chosen(module: nn.Module) -> dict[str, nn.Linear]:
    """The matrices that are quantised, by name."""
    left = {
        id(getattr(owner, name))
        for owner in module.modules()
        for kind, names in _FLOAT.items()
        if isinstance(owner, kind)
        for name in names
    }
    return {
        name: each
        for name, each in module.named_modules()
        if isinstance(each, nn.Linear) and each.in_features % GROUP == 0 and id(each) not in left
    }


def _quantize(module: nn.Module, names: Container[str]) -> None:
    """Let torchao round the weights of these modules, in place."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=getattr(torch, _INT4), weight_granularity=PerGroup(GROUP)
    )
    quantize_(module, config, filter_fn=lambda _, name: name in names)


def _rounded(weight_NK: Tensor) -> Tensor:
    """A matrix's weights as torchao rounds them and XNNPACK holds them, its scales in bfloat16."""
    alone = nn.Sequential(nn.Linear(weight_NK.shape[1], weight_NK.shape[0], bias=False))
    alone[0].weight = nn.Parameter(weight_NK.detach().float().clone(), requires_grad=False)
    _quantize(alone, ("0",))
    held: Any = alone[0].weight
    held.scale.copy_(held.scale.bfloat16())
    whole: Tensor = held.dequantize()
    return whole


def _tokens_to_int8(x: Tensor) -> Tensor:
    """Each token's numbers in 256 even steps from the least to the largest, one of them 0."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0.0), x.amax(-1, keepdim=True).clamp(min=0.0)
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero = (-128 - (low / step).round()).clamp(-128, 127)
    whole: Tensor = (((x / step).round() + zero).clamp(-128, 127) - zero) * step
    return whole
