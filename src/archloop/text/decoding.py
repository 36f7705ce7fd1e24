"""Token ids to text, with every added token as it is written.

A byte-level tokenizer names each byte by a letter, and its decoder turns letters back into bytes.
The `tokenizers` library sends added tokens through that decoder too, though they were cut out of
the text before and are no names of bytes: an added token ``<|Öl|>`` comes back with a replacement
character in it. Here such tokens are put into the text as they are.
"""

from collections.abc import Sequence
from itertools import groupby

from tokenizers import Tokenizer


class TextDecoder:
    """A tokenizer's way from ids to text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder() if _is_byte_level(tokenizer) else {}
        self._spoilt = {
            token: entry
            for token, entry in added.items()
            if tokenizer.decode([token], skip_special_tokens=False) != entry.content
        }
        """Added tokens that the library's decoder changes."""

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """Text of token ids, with or without special tokens; what is no character is U+FFFD."""
        ids = [int(token) for token in ids]
        if self._spoilt.keys().isdisjoint(ids):
            return self._plain(ids, special_tokens)
        parts = []
        for is_spoilt, stretch in groupby(ids, key=self._spoilt.__contains__):
            if not is_spoilt:
                parts.append(self._plain(list(stretch), special_tokens))
                continue
            entries = [self._spoilt[token] for token in stretch]
            parts += [entry.content for entry in entries if special_tokens or not entry.special]
        return "".join(parts)

    def _plain(self, ids: list[int], special_tokens: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special_tokens))


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether the decoder, or one of those it is a sequence of, is the byte-level one."""
    return tokenizer.decoder is not None and b"ByteLevel" in tokenizer.decoder.__getstate__()
