"""The tensors of a decoder by name, each once: what a checkpoint of our own layout holds."""

from typing import Any

import torch
from torch import Tensor, nn

from archloop.checkpoints.pieces import Piece
from archloop.stack.decoder import Decoder

_COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the module that it was given."""


def own(decoder: Decoder) -> list[Piece]:
    """Pieces of our own layout: every parameter and persistent buffer under its own name, once."""
    return [Piece(name, name, tuple(tensor.shape)) for name, tensor in stored(decoder).items()]


def stored(decoder: Decoder) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a shared one once, under its first name.

    Blocks that were compiled one by one have the names that they had before.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in decoder.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name.replace(f"{_COMPILED}.", "")] = tensor
    return found


def unwrapped(decoder: nn.Module) -> Decoder:
    """The decoder inside what `torch.compile` or a data-parallel wrapper made of it.

    Raises:
        ValueError: there is none.
    """
    inner: Any = decoder
    while not isinstance(inner, Decoder):
        inner = getattr(inner, _COMPILED, None) or getattr(inner, "module", None)
        if inner is None:
            raise ValueError(f"{type(decoder).__name__} is no Decoder and holds none")
    return inner


def is_float(dtype: torch.dtype) -> bool:
    """Whether weights can be stored in a dtype: real, floating and at least 16 bits wide."""
    return dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
