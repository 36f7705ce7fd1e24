"""Generation: prompts in, tokens out, a token per row at each step.

1. The prompts are appended to a `Transcript`, whose state may have read what came before.
2. The model reads what is unread (`Model.prefill`), which gives the first logits.
3. A token is chosen for each row (`choose`). It is appended; a stop token, a stop string or the
   length ends the row.
4. The chosen tokens are read (`Model.step`), which gives the next logits; on with 3. Rows that have
   ended step along, and at the end their state is put back to where they ended.

Rows may differ in length and end at different times; none depends on another.

On a GPU step 4 begins before the host has seen the tokens of step 3, so that the GPU never waits
for the host: its answer, the stop and the text are looked at while the next step runs. A step that
a stop makes needless is undone.

Shape suffixes: B batch, T time, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from archloop.errors import UserError
from archloop.generation.protocol import Chooser, Model, ModelState
from archloop.generation.rows import Prompts, as_rows, seen_tokens
from archloop.generation.sampling import (
    GREEDY,
    Sampling,
    choose_and_judge,
    not_finite,
    row_seeds,
)
from archloop.generation.transcript import Transcript
from archloop.text.streaming import Decode, TextStream


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
        ahead: begin each step before the tokens that it reads are known on the host; default: on a
            GPU, the one place where that saves time. The tokens are the same.

    Raises:
        ValueError: nothing to read, too few seeds, or not enough room in the state; in a step,
            logits that are no finite numbers.
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
        ahead: bool | None = None,
    ) -> None:
        batch = len(transcript.ids)
        _check_room(transcript, max_new_tokens)
        self.transcript = transcript
        self.sampling = sampling
        self.ended: list[Literal["length", "stop_id", "stop_string"] | None] = [None] * batch
        self._left = self._num_tokens = max_new_tokens
        self._stop_ids = frozenset(stop_ids)
        self._seeds_B = row_seeds(seeds, sampling, batch, transcript.state.lengths_B.device)
        self._frozen: dict[int, ModelState] = {}
        self._seen_BV: Tensor | None = None
        self._logits_BV: Tensor | None = transcript.read(chunk_size)
        if sampling.repetition_penalty != 1:
            self._seen_BV = seen_tokens(transcript.ids, self._logits_BV)
        model = transcript.model
        self._chooser: Chooser | None = None
        if sampling.takes_largest and isinstance(model, Chooser):
            self._chooser = model
        self._answers = _Answers(transcript.state.lengths_B.device)
        self._chosen_B: Tensor | None = None
        self._ahead = transcript.state.lengths_B.is_cuda if ahead is None else ahead
        self._before_step: ModelState | None = None
        self._mark: ModelState | None = None

    def __iter__(self) -> Iterator[list[int | None]]:
        return self

    def __next__(self) -> list[int | None]:
        if self._left == 0 or all(self.ended):
            self.close()
            raise StopIteration
        is_first = self._chosen_B is None
        if self._chosen_B is not None:
            self._advance(self._chosen_B)
        assert self._logits_BV is not None
        state = self.transcript.state
        chosen_B, told_2B = self._choice(self._logits_BV)
        answer = self._answers.ask(told_2B)
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, chosen_B[:, None], True)
        self._left -= 1
        self._chosen_B = chosen_B
        # The first token is shown at once: a GPU's first step is compiled and captured.
        if self._ahead and self._left and not is_first:
            self._mark = self._before_step = state.mark(self._mark)
            self._logits_BV = self.transcript.model.step(chosen_B, state)
        tokens, best = answer.wait()
        self._check_sound(best)
        return self._note([int(token) for token in tokens])

    def _choice(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's next token; and, for the host, tokens and largest logits, (2, B).

        An engine's own (`Chooser`) are overwritten by the second step after. That is begun when
        the host has heard.
        """
        found = None if self._chooser is None else self._chooser.likeliest(logits_BV)
        if found is not None:
            return found
        lengths_B = self.transcript.state.lengths_B
        chosen_B, best_B = choose_and_judge(
            logits_BV, self.sampling, self._seeds_B, lengths_B, self._seen_BV
        )
        # A 64-bit float says every id exactly.
        return chosen_B, torch.stack([chosen_B.double(), best_B.double()])

    def _check_sound(self, best: Sequence[float]) -> None:
        """Rows that have ended step along, on tokens of no meaning: theirs are not looked at."""
        if all(isfinite(b) for b, ended in zip(best, self.ended, strict=True) if ended is None):
            return
        where = f"for new token {self._num_tokens - self._left}"
        self.close()
        raise not_finite(self.transcript.model.precision, where)

    def end(self, row: int) -> None:
        """End a row from outside, at a stop string or for another reason in its text."""
        if self.ended[row] is None or self.ended[row] == "length":
            self.ended[row] = "stop_string"

    def close(self) -> None:
        """Put the state back to where each row ended: before its last token was read.

        A reader who leaves early may do so outside the inference mode that the state was made in.
        """
        with torch.inference_mode():
            self._put_back()
        self._left = 0

    def _put_back(self) -> None:
        state = self.transcript.state
        if self._before_step is not None:
            state.restore(self._before_step)
            self._before_step = None
        for row, kept in self._frozen.items():
            state.row(row).restore(kept)
        if self._frozen:
            state.recount(max(self.transcript.num_read))
        self._frozen.clear()

    def _advance(self, chosen_B: Tensor) -> None:
        """Read the last tokens. Rows that have ended step along, and are put back at the end."""
        state = self.transcript.state
        before, self._before_step = self._before_step, None
        for row, ended in enumerate(self.ended):
            if ended is None:
                self.transcript.num_read[row] += 1
            elif row not in self._frozen:
                self._frozen[row] = (before or state).row(row).mark()
        if before is None:
            self._logits_BV = self.transcript.model.step(chosen_B, state)

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


class _Answers:
    """Takes numbers to the host, which goes on until it waits for them.

    To ask a GPU for them outright waits for all work that was given to it, steps begun since too.
    And in the stream of that work a copy would hold the next step up, for longer than it takes
    itself; so copies have a stream of their own.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def ask(self, numbers: Tensor) -> "_Answer":
        """Send numbers on their way."""
        if self._stream is None:
            return _Answer(numbers, None)
        self._stream.wait_stream(torch.cuda.current_stream(numbers.device))
        with torch.cuda.stream(self._stream):
            numbers.record_stream(self._stream)
            return _Answer(numbers.to("cpu", non_blocking=True), self._stream.record_event())


@dataclass(frozen=True)
class _Answer:
    """Numbers on their way to the host.

    Attributes:
        numbers: rows of them.
        arrived: when they are there; None: now.
    """

    numbers: Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> list[list[float]]:
        """The numbers, as nested lists."""
        if self.arrived is not None:
            self.arrived.synchronize()
        rows: list[list[float]] = self.numbers.tolist()
        return rows


@dataclass(frozen=True)
class Reply:
    """What one row generated.

    Attributes:
        ids: new tokens, with the stop id that ended them, if one did.
        ended: why: ``length``, ``stop_id`` or ``stop_string``.
        text: what stands behind the prompt, without stop id and stop string; None without a
            `decode`.
    """

    ids: list[int]
    ended: Literal["length", "stop_id", "stop_string"]
    text: str | None = None


def generate(
    model: Model,
    prompts: Prompts,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    stop_ids: Iterable[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Decode | None = None,
    ends: Callable[[int, str], bool] | None = None,
    chunk_size: int | None = None,
    seeds: Sequence[int] | None = None,
    transcript: Transcript | None = None,
) -> list[Reply]:
    """Continue every prompt to its end; one reply per row.

    Args:
        model: a decoder, or a faster engine for it.
        prompts: token ids of one row, or of several of any lengths.
        max_new_tokens: per row.
        sampling: how tokens are chosen.
        stop_ids: a row ends with the first of these.
        stop_strings: a row ends where one of these appears in its text; needs `decode`.
        decode: token ids to text.
        ends: asked with a row and its text so far after each of its tokens; needs `decode`. A row
            ends where it says so, and keeps that text.
        chunk_size: tokens per prefill pass, which bounds activation memory.
        seeds: one per row.
        transcript: continue this conversation: `prompts` are new tokens, what it holds is not
            read again.

    Raises:
        ValueError: see `Generation`; stop strings or `ends` without `decode`.
    """
    if (stop_strings or ends) and decode is None:
        raise ValueError("stop_strings and ends look at text; pass decode= as well")
    if transcript is None:
        rows = as_rows(prompts)
        longest = max((len(row) for row in rows), default=0)
        # The last new token is not read, so it needs no room.
        transcript = Transcript(model, max(1, longest + max_new_tokens - 1), len(rows))
    with transcript.unless_refused():
        transcript.extend(prompts)
        starts = [len(row) for row in transcript.ids]
        generation = Generation(
            transcript,
            max_new_tokens,
            sampling,
            stop_ids=stop_ids,
            chunk_size=chunk_size,
            seeds=seeds,
        )
    before = [list(row) for row in transcript.ids]
    streams = [TextStream(decode, stop_strings, row) for row in before] if decode else []
    for tokens in generation:
        for row, stream in enumerate(streams):
            _write(generation, row, tokens[row], stream, ends)
    return [_reply(generation, row, start, streams) for row, start in enumerate(starts)]


def _write(
    generation: Generation,
    row: int,
    token: int | None,
    stream: TextStream,
    ends: Callable[[int, str], bool] | None,
) -> None:
    """Take a row's next token into its text, and end the row if the text says so."""
    if token is None or generation.ended[row] == "stop_id":
        return
    stream.push([token])
    if stream.stopped or (ends is not None and ends(row, stream.text)):
        generation.end(row)


def _reply(generation: Generation, row: int, start: int, streams: list[TextStream]) -> Reply:
    text = None
    if streams:
        streams[row].flush()
        text = streams[row].text
    return Reply(generation.transcript.ids[row][start:], generation.ended[row] or "length", text)


def _check_room(transcript: Transcript, max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    need = max(len(row) for row in transcript.ids) + max_new_tokens - 1
    if need > transcript.state.max_context:
        raise UserError(
            f"the prompt and {max_new_tokens} new tokens need room for {need} tokens, the "
            f"transcript has {transcript.state.max_context}; make it with a larger max_context"
        )
