"""Prompts as rows of token ids, and rows as padded tensors.

Shape suffixes: B batch, T time, V vocabulary.
"""

from collections.abc import Sequence
from numbers import Integral
from operator import index
from typing import Any

import torch
from torch import Tensor

from archloop.errors import UserError

Prompts = Sequence[int] | Sequence[Sequence[int]] | Tensor
"""Token ids of one row, or of several of any lengths."""


def as_rows(prompts: Prompts) -> list[list[int]]:
    """Prompts as a list of rows; one row if given token ids.

    Raises:
        ValueError: no rows, or something else than token ids.
    """
    plain: list[Any] = prompts.tolist() if hasattr(prompts, "tolist") else list(prompts)
    if not plain:
        raise UserError("no prompt given")
    rows = [plain] if isinstance(plain[0], Integral) else plain
    try:
        return [[index(token) for token in row] for row in rows]
    except TypeError as error:
        raise ValueError(
            "prompts are token ids: whole numbers, one row or a list of rows; encode text first"
        ) from error


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids (B, T) and the mask of real tokens; None when all rows are equally long."""
    longest = max(len(row) for row in rows)
    ids_BT = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return ids_BT, None
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    return ids_BT, torch.arange(longest, device=device) < lengths_B[:, None]


def seen_tokens(ids: list[list[int]], like_BV: Tensor) -> Tensor:
    """True at the tokens that occur in each row, (B, V)."""
    seen_BV = torch.zeros(like_BV.shape, dtype=torch.bool, device=like_BV.device)
    for row, tokens in enumerate(ids):
        seen_BV[row, torch.tensor(tokens, device=like_BV.device)] = True
    return seen_BV
