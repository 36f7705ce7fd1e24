"""What a conversation leaves behind: the tokens of each row, and the state that has read them.

A state never reads a token twice, and cannot forget single ones.

Shape suffixes: B batch, T time, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from archloop.errors import UserError
from archloop.generation.protocol import Model
from archloop.generation.rows import Prompts, as_rows, pad_right


class Transcript:
    """The tokens of each row and the state that has read them.

    The last sampled token of a row is not read until the row goes on. A transcript grows by turns:
    each `generate` on it reads only what is new.

    Attributes:
        ids: tokens of each row, prompts and replies.
        num_read: how many of them are in the state.
        state: the model's.
    """

    def __init__(self, model: Model, max_context: int, batch_size: int = 1) -> None:
        self.model = model
        self.state = model.init_state(batch_size, max_context)
        self.ids: list[list[int]] = [[] for _ in range(batch_size)]
        self.num_read = [0] * batch_size

    def fork(self) -> "Transcript":
        """An independent copy: continue one prefix in several ways."""
        copy = object.__new__(Transcript)
        copy.model, copy.state = self.model, self.state.snapshot()
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
        """Undo `extend` and `replace` if the block inside raises a ValueError."""
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
        unread = self.unread()
        if not all(unread):
            raise UserError(
                f"row {unread.index([])} has no unread token, and every row needs one; "
                "give a longer prompt"
            )
        ids_BT, mask_BT = pad_right(unread, self.state.lengths_B.device)
        logits_BV = self.model.prefill(ids_BT, self.state, mask_BT=mask_BT, chunk_size=chunk_size)
        self.num_read = [len(row) for row in self.ids]
        return logits_BV

    def unread(self) -> list[list[int]]:
        """The tokens of each row that are not in the state yet."""
        return [row[read:] for row, read in zip(self.ids, self.num_read, strict=True)]

    def rows(self, prompts: Prompts) -> list[list[int]]:
        """Prompts as lists of token ids, one for each row of this transcript.

        Raises:
            ValueError: not one per row, or ids that are none of the vocabulary.
        """
        rows, vocab_size = as_rows(prompts), self.model.vocab_size
        if len(rows) != len(self.ids):
            raise ValueError(f"{len(rows)} prompts for a transcript of {len(self.ids)} rows")
        # Looked up on a GPU, an unknown id ends the process instead of the call.
        for unknown in (token for row in rows for token in row if not 0 <= token < vocab_size):
            raise UserError(
                f"token {unknown} is not in the model's vocabulary of {vocab_size}; "
                "encode the prompt with the model's own tokenizer"
            )
        return rows
