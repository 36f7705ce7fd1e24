"""Generation: prompts in, tokens out, with a state that is never computed twice.

A `Transcript` is what a conversation leaves behind: the tokens of each row and the state that has
read them. `Generation` is one turn on a transcript, a token per row at each step; `generate` runs
one to its end. Rows may differ in length and end at different times; none depends on another.

Shape suffixes: B batch, T time, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from operator import index
from typing import Any, Literal

import torch
from torch import Tensor

from archloop.blocks.base import State
from archloop.errors import UserError
from archloop.generation.sampling import GREEDY, Sampling, choose
from archloop.stack.decoder import Decoder, DecoderState
from archloop.text.streaming import Decode, TextStream

Prompts = Sequence[int] | Sequence[Sequence[int]] | Tensor
"""Token ids of one row, or of several of any lengths."""


Step = Callable[[Tensor, DecoderState], Tensor]
"""As `Decoder.step`."""


class Transcript:
    """The tokens of each row and the state that has read them.

    The last sampled token of a row is not read until the row goes on. A transcript grows by turns:
    each `generate` on it reads only what is new.

    Attributes:
        ids: tokens of each row, prompts and replies.
        num_read: how many of them are in the state.
        state: the decoder's state.
        step: takes one token per row into the state and gives logits (B, V); the decoder's own,
            or a faster one over this very state, such as a captured graph.
    """

    def __init__(self, decoder: Decoder, max_context: int, batch_size: int = 1) -> None:
        self.decoder = decoder
        self.step: Step = decoder.step
        self.state = decoder.init_state(batch_size, max_context)
        self.ids: list[list[int]] = [[] for _ in range(batch_size)]
        self.num_read = [0] * batch_size

    def fork(self) -> "Transcript":
        """An independent copy, stepped by the decoder: continue one prefix in several ways."""
        copy = object.__new__(Transcript)
        copy.decoder, copy.step, copy.state = self.decoder, self.decoder.step, self.state.snapshot()
        copy.ids, copy.num_read = [list(row) for row in self.ids], list(self.num_read)
        return copy

    def restore(self, fork: "Transcript") -> None:
        """Go back to an earlier `fork` of this transcript, in place."""
        self.state.restore(fork.state)
        self.ids, self.num_read = [list(row) for row in fork.ids], list(fork.num_read)

    def extend(self, prompts: Prompts) -> None:
        """Append tokens to the rows, to be read by the next `read`.

        Raises:
            ValueError: not one prompt per row, or ids that are none of the vocabulary.
        """
        for row, new in zip(self.ids, self.rows(prompts), strict=True):
            row.extend(new)

    def replace(self, prompts: Prompts) -> int:
        """Make `prompts` the whole text of the rows, keeping the state where it already read them.

        A chat template renders a conversation from its start each time; this finds the part that is
        known. A state cannot forget single tokens, so if any row departs from what it read, all is
        read anew: `fork` at the points that may be gone back to.

        Returns:
            Tokens that need not be read again.
        """
        rows = self.rows(prompts)
        known = zip(rows, self.ids, self.num_read, strict=True)
        if any(new[:read] != old[:read] or len(new) <= read for new, old, read in known):
            self.state.reset()
            self.num_read = [0] * len(rows)
        self.ids = rows
        return sum(self.num_read)

    @contextmanager
    def unless_refused(self) -> Iterator[None]:
        """On a ValueError within, the rows' text is as before: what is refused is no part of it."""
        before = [list(row) for row in self.ids]
        try:
            yield
        except ValueError:
            self.ids = before
            raise

    def read(self, chunk_size: int | None = None) -> Tensor:
        """Take the unread tokens into the state; logits (B, V) for the next token of each row.

        Raises:
            ValueError: a row has nothing unread, or the state has no room.
        """
        unread = [row[read:] for row, read in zip(self.ids, self.num_read, strict=True)]
        if not all(unread):
            raise UserError(
                f"row {unread.index([])} has no unread token, and every row needs one; "
                "give a longer prompt"
            )
        ids_BT, mask_BT = pad_right(unread, self.state.lengths_B.device)
        logits_BV = self.decoder.prefill(ids_BT, self.state, mask_BT=mask_BT, chunk_size=chunk_size)
        self.num_read = [len(row) for row in self.ids]
        return logits_BV

    def rows(self, prompts: Prompts) -> list[list[int]]:
        """Prompts as lists of token ids, one for each row of this transcript.

        Raises:
            ValueError: not one per row, or ids that are none of the vocabulary.
        """
        rows, vocab_size = as_rows(prompts), self.decoder.spec.vocab_size
        if len(rows) != len(self.ids):
            raise ValueError(f"{len(rows)} prompts for a transcript of {len(self.ids)} rows")
        # Looked up on a GPU, an unknown id ends the process instead of the call.
        for unknown in (token for row in rows for token in row if not 0 <= token < vocab_size):
            raise UserError(
                f"token {unknown} is not in the decoder's vocabulary of {vocab_size}; "
                "encode the prompt with the decoder's own tokenizer"
            )
        return rows


class Generation:
    """One turn: iterate for a token per row, None for rows that have ended.

    The turn's tokens are appended to the transcript's rows. The state is whole when the iteration
    has ended or `close` was called.

    Args:
        transcript: what came before; its unread tokens are read first.
        max_new_tokens: per row.
        sampling: how tokens are chosen.
        stop_ids: a row ends with the first of these, which is its last token.
        chunk_size: tokens per prefill pass.
        seeds: one per row, instead of ``sampling.seed + row``.

    Raises:
        ValueError: nothing to read, too few seeds, or not enough room in the state.
    """

    def __init__(
        self,
        transcript: Transcript,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        *,
        stop_ids: Iterable[int] = (),
        chunk_size: int | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        batch = len(transcript.ids)
        _check_room(transcript, max_new_tokens)
        self.transcript = transcript
        self.sampling = sampling
        self.ended: list[Literal["length", "stop_id", "stop_string"] | None] = [None] * batch
        self._left = max_new_tokens
        self._stop_ids = frozenset(stop_ids)
        self._seeds_B = _row_seeds(seeds, sampling, batch, transcript.state.lengths_B.device)
        self._frozen: dict[int, DecoderState] = {}
        self._seen_BV: Tensor | None = None
        self._logits_BV: Tensor | None = transcript.read(chunk_size)
        if sampling.repetition_penalty != 1:
            self._seen_BV = seen_tokens(transcript.ids, self._logits_BV)
        self._chosen_B: Tensor | None = None

    def __iter__(self) -> Iterator[list[int | None]]:
        return self

    def __next__(self) -> list[int | None]:
        if self._left == 0 or all(self.ended):
            self.close()
            raise StopIteration
        if self._chosen_B is not None:
            self._advance(self._chosen_B)
        assert self._logits_BV is not None
        positions_B = self.transcript.state.lengths_B
        self._chosen_B = choose(
            self._logits_BV, self.sampling, self._seeds_B, positions_B, self._seen_BV
        )
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, self._chosen_B[:, None], True)
        self._left -= 1
        return self._note(self._chosen_B.tolist())

    def end(self, row: int) -> None:
        """End a row from outside, at a stop string."""
        if self.ended[row] is None or self.ended[row] == "length":
            self.ended[row] = "stop_string"

    def close(self) -> None:
        """Put the state of rows that ended early back to where they ended."""
        for row, kept in self._frozen.items():
            _put_row(self.transcript.state, row, kept)
        if self._frozen:
            self.transcript.state.recount(max(self.transcript.num_read))
        self._frozen.clear()
        self._left = 0

    def _advance(self, chosen_B: Tensor) -> None:
        """Read the last tokens. Rows that have ended step along, and are put back at the end."""
        state = self.transcript.state
        for row, ended in enumerate(self.ended):
            if ended is None:
                self.transcript.num_read[row] += 1
            elif row not in self._frozen:
                self._frozen[row] = _take_row(state, row)
        self._logits_BV = self.transcript.step(chosen_B, state)

    def _note(self, tokens: list[int]) -> list[int | None]:
        """Append the tokens of running rows and see which rows end."""
        out: list[int | None] = [None] * len(tokens)
        for row, token in enumerate(tokens):
            if self.ended[row] is None:
                out[row] = token
                self.transcript.ids[row].append(token)
                if token in self._stop_ids:
                    self.ended[row] = "stop_id"
                elif self._left == 0:
                    self.ended[row] = "length"
        return out


@dataclass(frozen=True)
class Reply:
    """What one row generated.

    Attributes:
        ids: new tokens, with the stop id that ended them, if one did.
        ended: why: ``length``, ``stop_id`` or ``stop_string``.
        text: decoded, without stop id and stop string; None without a `decode`.
    """

    ids: list[int]
    ended: Literal["length", "stop_id", "stop_string"]
    text: str | None = None


def generate(
    decoder: Decoder,
    prompts: Prompts,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    stop_ids: Iterable[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Decode | None = None,
    chunk_size: int | None = None,
    seeds: Sequence[int] | None = None,
    transcript: Transcript | None = None,
) -> list[Reply]:
    """Continue every prompt to its end; one reply per row.

    Args:
        decoder: the model.
        prompts: token ids of one row, or of several of any lengths.
        max_new_tokens: per row.
        sampling: how tokens are chosen.
        stop_ids: a row ends with the first of these.
        stop_strings: a row ends where one of these appears in its text; needs `decode`.
        decode: token ids to text.
        chunk_size: tokens per prefill pass, which bounds activation memory.
        seeds: one per row.
        transcript: continue this conversation: `prompts` are new tokens, what it holds is not
            read again.

    Raises:
        ValueError: see `Generation`; stop strings without `decode`.
    """
    if stop_strings and decode is None:
        raise ValueError("stop_strings are looked for in text; pass decode= as well")
    if transcript is None:
        rows = as_rows(prompts)
        longest = max((len(row) for row in rows), default=0)
        transcript = Transcript(decoder, max(1, longest + max_new_tokens), len(rows))
    with transcript.unless_refused():
        transcript.extend(prompts)
        starts = [len(row) for row in transcript.ids]
        run = Generation(
            transcript,
            max_new_tokens,
            sampling,
            stop_ids=stop_ids,
            chunk_size=chunk_size,
            seeds=seeds,
        )
    streams = [TextStream(decode, stop_strings) for _ in starts] if decode else []
    for tokens in run:
        for row, stream in enumerate(streams):
            token = tokens[row]
            if token is not None and run.ended[row] != "stop_id":
                stream.push([token])
                if stream.stopped:
                    run.end(row)
    return [_reply(run, row, start, streams) for row, start in enumerate(starts)]


def _reply(run: Generation, row: int, start: int, streams: list[TextStream]) -> Reply:
    text = None
    if streams:
        streams[row].flush()
        text = streams[row].text
    return Reply(run.transcript.ids[row][start:], run.ended[row] or "length", text)


@torch.no_grad()
def verify(
    transcript: Transcript,
    drafts: Prompts,
    sampling: Sampling = GREEDY,
    *,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Check drafted tokens in one pass: the tokens that plain decoding would have given.

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
        ValueError: as `Transcript.rows`; a row has no unread token, or the state has no room.
    """
    rows = transcript.rows(drafts)
    state, device = transcript.state, transcript.state.lengths_B.device
    unread = [ids[n:] for ids, n in zip(transcript.ids, transcript.num_read, strict=True)]
    if not all(unread):
        raise ValueError(
            f"row {unread.index([])} has no unread token, which its draft would follow; "
            "generate a token first"
        )
    before = state.mark()
    both = [old + new for old, new in zip(unread, rows, strict=True)]
    ids_BT, mask_BT = pad_right(both, device)
    logits_BTV = transcript.decoder(ids_BT, state, mask_BT=mask_BT)
    seeds_B = _row_seeds(seeds, sampling, len(rows), device)
    accepted = [
        _accept(
            logits_BTV[i, len(unread[i]) - 1 :], rows[i], transcript.ids[i], sampling, seeds_B[i]
        )
        for i in range(len(rows))
    ]
    if any(len(new) <= len(draft) for new, draft in zip(accepted, rows, strict=True)):
        state.restore(before)
        kept = [old + new[:-1] for old, new in zip(unread, accepted, strict=True)]
        ids_BT, mask_BT = pad_right(kept, device)
        transcript.decoder.prefill(ids_BT, state, mask_BT=mask_BT)
    for row, new in enumerate(accepted):
        transcript.ids[row].extend(new)
        transcript.num_read[row] = len(transcript.ids[row]) - 1
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


# --- rows ---------------------------------------------------------------------------------------


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


def _row_seeds(
    seeds: Sequence[int] | None, sampling: Sampling, batch: int, device: torch.device
) -> Tensor:
    given = (
        list(seeds)
        if seeds is not None
        else [(sampling.seed + row) % 2**63 for row in range(batch)]
    )
    if len(given) != batch:
        raise ValueError(f"{len(given)} seeds for {batch} rows")
    return torch.tensor(given, dtype=torch.int64, device=device)


def _check_room(transcript: Transcript, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    need = max(len(row) for row in transcript.ids) + max_new_tokens - 1
    if need > transcript.state.max_context:
        raise UserError(
            f"the prompt and {max_new_tokens} new tokens need room for {need} tokens, the "
            f"transcript has {transcript.state.max_context}; make it with a larger max_context"
        )


def _take_row(state: DecoderState, row: int) -> DecoderState:
    """What it takes to bring one row of a state back from later steps."""
    return _row_view(state, row).mark()


def _put_row(state: DecoderState, row: int, kept: DecoderState) -> None:
    """Bring it back."""
    _row_view(state, row).restore(kept)


def _row_view(state: DecoderState, row: int) -> DecoderState:
    """One row of a state as a state of its own on the same memory: tensors have the batch first."""
    rows = slice(row, row + 1)
    views = {}
    for key, whole in state.mixers.items():
        view = State(whole.max_context, **{k: t[rows] for k, t in whole.tensors.items()})
        view.by_position = whole.by_position
        views[key] = view
    return DecoderState(state.lengths_B[rows], views, state.max_context)
