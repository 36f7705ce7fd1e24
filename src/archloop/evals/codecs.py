"""Text to token ids and back: bytes, a checkpoint's tokenizer, a proxy's."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from archloop.text.decoding import TextDecoder


class ByteCodec:
    """UTF-8 bytes as token ids: for a model with random weights, which has no tokenizer."""

    NUM_IDS = 256

    def encode(self, text: str) -> list[int]:
        """A text's bytes."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of bytes; ids that are none, and bytes that are no text, become a mark."""
        return b"".join(
            bytes([token]) if token < self.NUM_IDS else b"\xff" for token in ids
        ).decode("utf-8", "replace")


class TokenizerCodec:
    """A tokenizer's ids, without the special tokens that it puts around a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = TextDecoder(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return self._decoder.decode(ids)

    def start(self) -> tuple[int, ...]:
        """The special tokens that begin every text."""
        return tuple(self._tokenizer.encode("", add_special_tokens=True).ids)
