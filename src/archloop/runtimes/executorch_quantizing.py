"""Quantising a part of a decoder for XNNPACK: 8da4w, as models for ExecuTorch are shipped.

Weights of matrices become int4, each 32 of a row with a scale of their own; activations become int8
as they come, with a scale a token. The embedding, convolutions, norms, experts, routers and what is
no module of its own stay float32.
"""

from torch import nn

GROUP = 32
"""Numbers of a row that share a scale."""
_INT4 = "int4"
"""A dtype that PyTorch has and its types do not mention."""
_FLOAT = ("router", "up_proj")
"""Modules left as they are: a router's choice is no matter of rounding, and MLA's `up_proj` is read
as two tensors, never called."""


def quantize(part: nn.Module) -> dict[str, int]:
    """Quantise in place; returns weight bytes by precision, scales among float32."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.utils import unwrap_tensor_subclass

    chosen = {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear)
        and module.in_features % GROUP == 0
        and name.rsplit(".", 1)[-1] not in _FLOAT
    }
    num_int4 = sum(module.weight.numel() for module in chosen.values())
    kept = {id(p): p.numel() for p in part.parameters()}
    for module in chosen.values():
        kept.pop(id(module.weight), None)
    # A tied embedding is there twice: as a table in float32, and as the head's matrix.
    embedding = part.decoder.embedding.weight  # type: ignore[union-attr]
    kept[id(embedding)] = embedding.numel()  # type: ignore[operator]
    quantize_(
        part,
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=getattr(torch, _INT4), weight_granularity=PerGroup(GROUP)
        ),
        filter_fn=lambda module, name: name in chosen,
    )
    unwrap_tensor_subclass(part)
    scales = num_int4 // GROUP
    return {"int4": num_int4 // 2, "float32": 4 * (sum(kept.values()) + scales)}
