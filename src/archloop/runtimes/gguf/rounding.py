"""How llama.cpp rounds in its products, read from a GGUF file itself.

The weights are those of the file, dequantised by the ``gguf`` package, each put back where it came
from in the decoder. What they are multiplied by takes the form that llama.cpp pairs with the type
of the weights (``vec_dot_type`` in ``ggml-cpu.c``): 8-bit blocks for quantised rows, float16 for
float16. Attention keeps keys, values and what it sums of values in float16.

Shape suffixes: B batch, N query heads, M KV heads, T queries, S keys, H head width.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from archloop.runtimes.gguf.file import tensors
from archloop.runtimes.rounding import Product, Rounding, groups_to_int8
from archloop.stack import weights
from archloop.stack.decoder import Decoder


def _to_float16(x: Tensor) -> Tensor:
    return x.half().float()


_Q8_0 = groups_to_int8(32, scale=torch.float16)
_INPUTS: Mapping[str, Rounding] = {
    "F16": _to_float16,
    "Q4_0": _Q8_0,
    "Q8_0": _Q8_0,
    "Q6_K": groups_to_int8(256),
}
"""By type of the weights; products with F32 are exact."""


def products(decoder: Decoder, file: Path) -> dict[str, Product]:
    """Every matrix of a decoder that a file holds rounded.

    Args:
        decoder: that the file was written from.
        file: with the tensors of its architecture.
    """
    from gguf import GGUFReader, quants

    own = weights.tensors(decoder)
    held = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    starts = torch.tensor([0, *(tensor.numel() for tensor in own.values())]).cumsum(0)
    # Where the numbers of a tensor came from is told by writing their places in their stead.
    places = {
        name: torch.arange(start, start + tensor.numel(), dtype=torch.float64).view(tensor.shape)
        for (name, tensor), start in zip(own.items(), starts.tolist(), strict=False)
    }
    values = torch.full((int(starts[-1]),), torch.nan)
    roundings: dict[int, set[Rounding]] = {}
    for name, of_tensor in tensors(decoder.spec, places):
        tensor_type = held[name].tensor_type
        if tensor_type.name == "F32":
            continue
        here = of_tensor.long().flatten()
        rounded = quants.dequantize(held[name].data, tensor_type)
        values[here] = torch.from_numpy(rounded.astype("float32").ravel())
        for owner in torch.bucketize(here, starts, right=True).unique().tolist():
            roundings.setdefault(owner - 1, set()).add(_INPUTS[tensor_type.name])
    found = {}
    for index, (name, tensor) in enumerate(own.items()):
        if index in roundings:
            (inputs,) = roundings[index]
            weight = values[starts[index] : starts[index + 1]].view(tensor.shape)
            found[name] = Product(weight, inputs, in_lookups=name == "embedding.weight")
    return found


def flash_attention(
    q_BNTH: Tensor, k_BMSH: Tensor, v_BMSH: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Attention as llama.cpp's on a CPU (``ggml_compute_forward_flash_attn_ext_f16``).

    Keys and values stand in float16, queries are made float16 to meet them, and the weighted sum of
    values is kept in float16 from key to key; weights and their total are float32.

    Args:
        q_BNTH: queries.
        k_BMSH: keys, each of N / M queries' heads.
        v_BMSH: values.
        mask: True where allowed, broadcast to (B, N, T, S); None: causal, of equally many.
        scale: of the products.
    """
    each = q_BNTH.shape[1] // k_BMSH.shape[1]
    q_BNTH = _to_float16(q_BNTH)
    k_BNSH, v_BNSH = (_to_float16(kv).repeat_interleave(each, 1) for kv in (k_BMSH, v_BMSH))
    scores_BNTS = scale * (q_BNTH @ k_BNSH.transpose(-1, -2))
    if mask is None:
        mask = torch.ones(scores_BNTS.shape[-2:], dtype=torch.bool).tril()
    scores_BNTS = scores_BNTS.masked_fill(~mask, -torch.inf)
    largest_BNT = torch.full(scores_BNTS.shape[:-1], torch.finfo(torch.float32).min)
    total_BNT = torch.zeros_like(largest_BNT)
    sum_BNTH = torch.zeros_like(q_BNTH)
    for score_BNT, v_BNH in zip(scores_BNTS.unbind(-1), v_BNSH.unbind(-2), strict=True):
        new_BNT = largest_BNT.maximum(score_BNT)
        shrunk_BNT, weight_BNT = (largest_BNT - new_BNT).exp(), (score_BNT - new_BNT).exp()
        sum_BNTH = _to_float16(sum_BNTH * shrunk_BNT[..., None])
        sum_BNTH = _to_float16(sum_BNTH + weight_BNT[..., None] * v_BNH[:, :, None])
        total_BNT = total_BNT * shrunk_BNT + weight_BNT
        largest_BNT = new_BNT
    return sum_BNTH / total_BNT[..., None]
