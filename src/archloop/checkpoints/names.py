"""The tensors of a decoder by name, each once: what a checkpoint of our own layout holds."""

from typing import Any

import torch
from torch import nn

from archloop.checkpoints.pieces import Piece
from archloop.stack import weights
from archloop.stack.decoder import Decoder
from archloop.stack.tensors import COMPILED


def own(decoder: Decoder) -> list[Piece]:
    """Pieces of our own layout: every parameter and persistent buffer under its own name, once."""
    found = weights.tensors(decoder).items()
    return [Piece(name, name, tuple(tensor.shape)) for name, tensor in found]


def unwrapped(decoder: nn.Module) -> Decoder:
    """The decoder inside what `torch.compile` or a data-parallel wrapper made of it.

    Raises:
        ValueError: there is none.
    """
    inner: Any = decoder
    while not isinstance(inner, Decoder):
        inner = getattr(inner, COMPILED, None) or getattr(inner, "module", None)
        if inner is None:
            raise ValueError(f"{type(decoder).__name__} is no Decoder and holds none")
    return inner


def is_float(dtype: torch.dtype) -> bool:
    """Whether weights can be stored in a dtype: real, floating and at least 16 bits wide."""
    return dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
