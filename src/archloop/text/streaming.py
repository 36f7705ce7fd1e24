"""Text from a stream of tokens: whole characters only, cut at the first stop string.

A byte-level token may hold part of a character, and a stop string may begin in one token and end
in another, so some text is held back until what follows settles it. Tokenizers with byte fallback
(Llama's, Gemma's) decode a stretch of byte tokens as a whole: one unfinished character at its end
turns all of it into replacements, so the stretch is also looked at without its last tokens.
"""

from collections.abc import Callable, Iterable, Sequence

from archloop.errors import UserError

Decode = Callable[[list[int]], str]
"""Token ids to text, incomplete characters as U+FFFD (`tokenizers.Tokenizer.decode`)."""

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_MAX_PARTIAL = 3
"""A character has at most 4 bytes, so an incomplete one has at most 3, each in a token at most."""
_MAX_CONTEXT = 8
"""Tokens before a text that are decoded with its first ones."""


class TextStream:
    """Turns tokens into text as they come.

        >>> stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), ["END"])
        >>> [stream.push([byte]) for byte in "é E! END".encode()]
        ['', 'é', ' ', '', 'E!', ' ', '', '', '']
        >>> stream.stopped
        True

    Attributes:
        text: all that was emitted.
        stopped: a stop string was met; nothing more is emitted.
    """

    def __init__(
        self, decode: Decode, stop_strings: Iterable[str] = (), after: Sequence[int] = ()
    ) -> None:
        """A stream that has emitted nothing.

        Args:
            decode: token ids to text.
            stop_strings: the text ends before the first of these.
            after: tokens that stand before the text. SentencePiece's decoders take away the space
                that their first token begins with; behind other tokens it is part of the text.
        """
        self.text = ""
        self.stopped = False
        self._decode = decode
        # A string is a sequence of strings, too: its letters.
        self._stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if not all(self._stops):
            raise UserError("a stop string must not be empty")
        known = list(after[-_MAX_CONTEXT:])
        before = decode(known) if known else ""
        # The tokens before end inside a character whose last bytes are still to come; decoding
        # starts without them.
        if before.endswith(_UNKNOWN):
            known, before = [], ""
        self._ids = known
        self._context = 0
        """Start of the tokens that are decoded; those before `_settled` give only context."""
        self._settled = len(known)
        self._emitted = len(before)
        """Characters already taken from the text of the tokens since `_context`."""
        self._held = ""

    def push(self, ids: Sequence[int]) -> str:
        """Take in tokens; the text that they settle."""
        self._ids.extend(ids)
        text = self._decode(self._ids[self._context :])
        partial = len(text) - len(text.rstrip(_UNKNOWN))
        if not partial:
            return self._cut(self._settle(len(self._ids), text))
        if partial > _MAX_PARTIAL and (whole := self._last_whole()):
            return self._cut(self._settle(*whole))
        end = len(text) - min(partial, _MAX_PARTIAL)
        new = text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return self._cut(new)

    def flush(self) -> str:
        """The rest, at the end of the tokens; a character that never became whole is dropped."""
        new = ""
        if not self.stopped and (whole := self._last_whole()):
            new = self._cut(self._settle(*whole))
        rest, self._held = ("" if self.stopped else self._held), ""
        self.text += rest
        return new + rest

    def _last_whole(self) -> tuple[int, str] | None:
        """The longest text of whole characters that ends after `_settled`, and its tokens' end.

        At most the tokens of one incomplete character are left out. None when there is no such
        text: all of it is known, or its end is no text at all.
        """
        for end in range(len(self._ids), max(self._settled, len(self._ids) - _MAX_PARTIAL - 1), -1):
            text = self._decode(self._ids[self._context : end])
            if not text.endswith(_UNKNOWN):
                return end, text
        known = self._settled and len(self._ids) - self._settled <= _MAX_PARTIAL
        return (self._settled, "") if known else None

    def _settle(self, end: int, text: str) -> str:
        """What is new in the text of the tokens before `end`, all of whose characters are whole."""
        new = text[self._emitted :]
        if end > self._settled:
            # Decoders may treat a first token differently: keep the last ones as context.
            self._context, self._settled = self._settled, end
            self._emitted = len(self._decode(self._ids[self._context : end]))
        return new

    def _cut(self, new: str) -> str:
        if self.stopped:
            return ""
        held = self._held + new
        found = [at for at in map(held.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            end = min(found)
        else:
            end = len(held) - max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[end:]
        self.text += held[:end]
        return held[:end]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
