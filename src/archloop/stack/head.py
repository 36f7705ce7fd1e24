"""The last product of a decoder, hidden states to logits, not rounded to 16 bits.

A logit near 10 has neighbours 0.06 apart in bfloat16: many tokens tie, and which of them wins then
depends on how a product was summed. Weights and hidden states stay as they are; products of 16-bit
numbers are exact in float32, so nothing is lost but time.

Shape suffixes: X rows, D model width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

HALF = (torch.bfloat16, torch.float16)
_VOCAB_PER_PASS = 4096
"""Rows of the weights that are in float32 at a time: as a whole they would fill more memory than
the model has."""


def logits(hidden: Tensor, weight_VD: Tensor) -> Tensor:
    """``hidden W^T`` (..., V), in float32 for 16-bit weights unless gradients are wanted."""
    wants_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight_VD.requires_grad)
    if weight_VD.dtype not in HALF or hidden.dtype != weight_VD.dtype or wants_grad:
        return F.linear(hidden, weight_VD)
    x_XD = hidden.reshape(-1, hidden.shape[-1])
    if x_XD.is_cuda:
        logits_XV = torch.mm(x_XD, weight_VD.T, out_dtype=torch.float32)
    else:
        x_XD = x_XD.float()
        parts = weight_VD.split(_VOCAB_PER_PASS)
        logits_XV = torch.cat([F.linear(x_XD, part.float()) for part in parts], -1)
    return logits_XV.view(*hidden.shape[:-1], weight_VD.shape[0])
