"""Drafts: guessed tokens are checked in one pass instead of being generated one by one.

Shape suffixes: B batch, T time, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from archloop.errors import UserError
from archloop.generation.rows import Prompts, pad_right, seen_tokens
from archloop.generation.sampling import GREEDY, Sampling, check_finite, choose, row_seeds
from archloop.generation.transcript import Transcript


@torch.no_grad()
def verify(
    transcript: Transcript,
    drafts: Prompts,
    sampling: Sampling = GREEDY,
    *,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Check drafted tokens in one pass: the tokens that plain decoding would have given.

    In float64 and float32 they are the same; in 16 bits a chunk rounds otherwise than steps do, so
    now and then another of two nearly equal tokens is chosen.

    The unread tokens of each row and its draft are read at once. A draft is accepted up to its
    first token that `sampling` would not have chosen; that choice is added, so every row gains
    at least one token. The state goes back to the accepted tokens.

    Args:
        transcript: advanced in place; as after `generate`, the last new token of a row is unread.
        drafts: guesses for the next tokens of each row, of any lengths.
        sampling: as for `generate`; the same seeds give the same tokens.
        seeds: one per row.

    Returns:
        New tokens of each row.

    Raises:
        ValueError: as `Transcript.rows`; a row has no unread token, or the state has no room; the
            logits are not finite. The transcript is as before.
    """
    rows = transcript.rows(drafts)
    model, state = transcript.model, transcript.state
    if not callable(model):
        raise UserError(f"{type(model).__name__} gives no logits of whole drafts; use the decoder")
    device, unread = state.lengths_B.device, _unread(transcript)
    before = state.mark()
    both = [old + new for old, new in zip(unread, rows, strict=True)]
    ids_BT, mask_BT = pad_right(both, device)
    logits_BTV = model(ids_BT, state, mask_BT=mask_BT)
    seeds_B = row_seeds(seeds, sampling, len(rows), device)
    try:
        after = [
            logits_TV[len(old) - 1 :] for old, logits_TV in zip(unread, logits_BTV, strict=True)
        ]
        accepted = _accepted(transcript, after, rows, sampling, seeds_B)
    except ValueError:
        state.restore(before)
        raise
    if any(len(new) <= len(draft) for new, draft in zip(accepted, rows, strict=True)):
        state.restore(before)
        kept = [old + new[:-1] for old, new in zip(unread, accepted, strict=True)]
        ids_BT, mask_BT = pad_right(kept, device)
        model.prefill(ids_BT, state, mask_BT=mask_BT)
    for row, new in enumerate(accepted):
        transcript.ids[row].extend(new)
        transcript.num_read[row] = len(transcript.ids[row]) - 1
    return accepted


def _unread(transcript: Transcript) -> list[list[int]]:
    unread = transcript.unread()
    if not all(unread):
        raise ValueError(
            f"row {unread.index([])} has no unread token, which its draft would follow; "
            "generate a token first"
        )
    return unread


def _accepted(
    transcript: Transcript,
    after: Sequence[Tensor],
    drafts: Sequence[list[int]],
    sampling: Sampling,
    seeds_B: Tensor,
) -> list[list[int]]:
    """New tokens of each row, from the logits (T, V) that follow its last token and its draft's."""
    accepted = []
    for row, (ids, draft) in enumerate(zip(transcript.ids, drafts, strict=True)):
        what = f"drafted after token {len(ids)} of row {row}"
        check_finite(after[row][: len(draft) + 1], transcript.model.precision, what)
        accepted.append(_accept(after[row], draft, ids, sampling, seeds_B[row]))
    return accepted


def _accept(
    logits_TV: Tensor, draft: list[int], ids: list[int], sampling: Sampling, seed: Tensor
) -> list[int]:
    """Tokens chosen along a draft, up to and with the first that differs from it."""
    seen_1V = None
    if sampling.repetition_penalty != 1:
        seen_1V = seen_tokens([ids], logits_TV[:1])
    chosen: list[int] = []
    for at, guess in enumerate([*draft, None]):
        position_1 = torch.tensor([len(ids) + at], device=logits_TV.device)
        token_1 = choose(logits_TV[at : at + 1], sampling, seed[None], position_1, seen_1V)
        chosen.append(int(token_1))
        if chosen[-1] != guess:
            break
        if seen_1V is not None:
            seen_1V[0, chosen[-1]] = True
    return chosen
