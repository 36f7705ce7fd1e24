"""Text from a stream of tokens: whole characters only, cut at the first stop string.

A byte-level token may hold part of a character, and a stop string may begin in one token and end
in another, so some text is held back until what follows settles it.
"""

from collections.abc import Callable, Iterable, Sequence

from archloop.errors import UserError

Decode = Callable[[list[int]], str]
"""Token ids to text, incomplete characters as U+FFFD (`tokenizers.Tokenizer.decode`)."""

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_MAX_PARTIAL = 3
"""A character has at most 4 bytes, so an incomplete one shows as at most 3 replacements."""


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

    def __init__(self, decode: Decode, stop_strings: Iterable[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._decode = decode
        # A string is a sequence of strings, too: its letters.
        self._stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if not all(self._stops):
            raise UserError("a stop string must not be empty")
        self._ids: list[int] = []
        self._context = 0
        """Start of the tokens that are decoded; those before `_settled` give only context."""
        self._settled = 0
        self._emitted = 0
        """Characters already taken from the text of the tokens since `_context`."""
        self._held = ""

    def push(self, ids: Sequence[int]) -> str:
        """Take in tokens; the text that they settle."""
        self._ids.extend(ids)
        text = self._decode(self._ids[self._context :])
        partial = len(text) - len(text.rstrip(_UNKNOWN))
        end = len(text) - min(partial, _MAX_PARTIAL)
        new = text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        if not partial:
            # Decoders may treat a first token differently: keep the last ones as context.
            self._context, self._settled = self._settled, len(self._ids)
            self._emitted = len(self._decode(self._ids[self._context :]))
        return self._cut(new)

    def flush(self) -> str:
        """The rest, at the end of the tokens; a character that never became whole is dropped."""
        rest, self._held = ("" if self.stopped else self._held), ""
        self.text += rest
        return rest

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
