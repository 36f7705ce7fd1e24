"""How likely continuations are: a prefix that several of them share is read once.

The choices of a question stand behind one context, most of what is to be read. So each different
prefix is prefilled, its state is copied to one row for each of its continuations, and these are
read from there. A continuation's first token is scored by the prefix's last logits.

Shape suffixes: P prefixes, N continuations, T time, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from archloop.evals.verbs import Continuation, Likelihood
from archloop.generation.rows import pad_right
from archloop.stack.decoder import Decoder
from archloop.stack.state import DecoderState


@torch.inference_mode()
def likelihoods(
    decoder: Decoder,
    requests: Sequence[Continuation],
    rows_at_once: Callable[[int], int],
    on_rows: Callable[[int], None] = lambda _: None,
) -> list[Likelihood]:
    """The likelihood of each continuation after its prefix, in the order of the requests.

    Args:
        decoder: in evaluation mode.
        requests: each of at least one token in either part.
        rows_at_once: how many rows of a length may be read together.
        on_rows: told of the number of continuations after each batch.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        members.setdefault(tuple(map(int, request.prefix)), []).append(number)
    found: dict[int, Likelihood] = {}
    # Prefixes of similar length need the least padding.
    left = sorted(members, key=len, reverse=True)
    while left:
        size = rows_at_once(len(left[0]))
        prefixes, left = left[:size], left[size:]
        asked = [(row, number) for row, prefix in enumerate(prefixes) for number in members[prefix]]
        for batch, scored in _scored(decoder, prefixes, asked, requests, rows_at_once):
            found |= dict(zip(batch, scored, strict=True))
            on_rows(len(batch))
    return [found[number] for number in range(len(requests))]


def _scored(
    decoder: Decoder,
    prefixes: Sequence[Sequence[int]],
    asked: Sequence[tuple[int, int]],
    requests: Sequence[Continuation],
    rows_at_once: Callable[[int], int],
) -> Iterator[tuple[list[int], list[Likelihood]]]:
    """Batches of requests, by number, with their likelihoods.

    Args:
        decoder: asked.
        prefixes: read here.
        asked: row of the prefix, and number of the request.
        requests: all.
        rows_at_once: as in `likelihoods`.
    """
    longest = max(len(requests[number].continuation) for _, number in asked)
    ids_PT, mask_PT = pad_right(prefixes, decoder.embedding.weight.device)
    state = decoder.init_state(len(prefixes), ids_PT.shape[1] + longest)
    first_PV = decoder.prefill(ids_PT, state, mask_BT=mask_PT)
    size = rows_at_once(longest)
    for start in range(0, len(asked), size):
        batch = asked[start : start + size]
        rows_N = torch.tensor([row for row, _ in batch], device=ids_PT.device)
        numbers = [number for _, number in batch]
        continuations = [requests[number].continuation for number in numbers]
        yield numbers, _continued(decoder, first_PV[rows_N], state, rows_N, continuations)


def _continued(
    decoder: Decoder,
    first_NV: Tensor,
    state: DecoderState,
    rows_N: Tensor,
    continuations: Sequence[Sequence[int]],
) -> list[Likelihood]:
    """Likelihoods of continuations of rows of a state, which stays as it is.

    Args:
        decoder: whose state it is.
        first_NV: logits for the first token of each continuation.
        state: of the prefixes.
        rows_N: which of its rows each continuation follows.
        continuations: at least one token each.
    """
    ids_NT, mask_NT = pad_right([list(map(int, ids)) for ids in continuations], rows_N.device)
    logits_NTV = first_NV[:, None]
    if ids_NT.shape[1] > 1:
        read_NT = None if mask_NT is None else mask_NT[:, 1:]
        after = decoder(ids_NT[:, :-1], state.gathered(rows_N), mask_BT=read_NT)
        logits_NTV = torch.cat([logits_NTV, after], 1)
    logits_NTV = logits_NTV.float()
    nats_NT = F.cross_entropy(logits_NTV.transpose(1, 2), ids_NT, reduction="none").double()
    is_best_NT = logits_NTV.argmax(-1) == ids_NT
    if mask_NT is not None:
        # A sum over padding would be no number where its logits are none.
        nats_NT = torch.where(mask_NT, nats_NT, 0.0)
        is_best_NT |= ~mask_NT
    nats, is_best = (-nats_NT.sum(1)).tolist(), is_best_NT.all(1).tolist()
    return [Likelihood(*each) for each in zip(nats, is_best, strict=True)]
