"""Caches of attention where the slot of a token is its position, and which slots a query may see.

Every slot up to a query's own position is filled, so positions alone say what is allowed.

Shape suffixes: B batch, T new tokens, S keys, C slots of the cache.
"""

import torch
from torch import Tensor

from archloop.blocks.base import Features
from archloop.blocks.span import Span
from archloop.blocks.state import State


def write_slots(cache_BC: Tensor, new_BT: Tensor, span: Span, axis: int = 1) -> None:
    """Put each token into the slot of its position; padding leaves its slot as it was.

    Args:
        cache_BC: (B, C, ...) with the slots on that axis, written in place.
        new_BT: (B, T, ...) likewise, of any float dtype.
        span: the call's tokens; the real ones have room.
        axis: of slots and tokens.
    """
    if torch.compiler.is_exporting() and span.valid_BT is None:
        # One copy of the cache with its axes as they are: around an indexed write an engine puts
        # two transpositions of all of it.
        shape = [size if at in (0, axis) else 1 for at, size in enumerate(new_BT.shape)]
        slots = span.positions_BT.reshape(shape).expand(new_BT.shape)
        cache_BC.scatter_(axis, slots, new_BT.to(cache_BC.dtype))
        return
    cache_BC, new_BT = cache_BC.transpose(1, axis), new_BT.transpose(1, axis)
    # A row has at most C real tokens and they stand first, so what is behind is padding.
    num_slots = cache_BC.shape[1]
    new_BT = new_BT[:, :num_slots].to(cache_BC.dtype)
    slots_BT, valid_BT = span.positions_BT[:, :num_slots], span.valid_BT
    rows_B1 = torch.arange(cache_BC.shape[0], device=cache_BC.device)[:, None]
    if valid_BT is not None:
        # Padding may point past the end: wrapped, its slot is no real token's of this call.
        slots_BT = slots_BT % num_slots
        valid = valid_BT[:, :num_slots].reshape(*slots_BT.shape, *[1] * (new_BT.dim() - 2))
        new_BT = new_BT.where(valid, cache_BC[rows_B1, slots_BT])
    cache_BC[rows_B1, slots_BT] = new_BT


def held_before(state: State, span: Span) -> Features:
    """Features for `causal_mask`: where each row's new tokens begin, if the state held any before.

    The mask must then compare positions; from an empty state the plain causal order says it all.
    """
    return {"first_B": span.positions_BT[:, 0]} if state.static or state.num_tokens else {}


def causal_mask(shared: Features, num_keys: int, span: Span) -> Tensor | None:
    """Which keys each query may see, (B, 1, T, S); None where plain causal order says it."""
    if span.segments_BT is not None:
        same_BTT = span.segments_BT[:, :, None] == span.segments_BT[:, None, :]
        return same_BTT.tril()[:, None]
    if "first_B" not in shared and num_keys == span.positions_BT.shape[1]:
        return None
    slots_S = torch.arange(num_keys, device=span.positions_BT.device)
    return (slots_S <= span.positions_BT[..., None])[:, None]
