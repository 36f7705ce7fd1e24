"""Added tokens come back as they are written, whatever letters they have."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from archloop.text.decoding import TextDecoder
from archloop.text.streaming import TextStream

WORDS = ("ilÖveyou", "<|français|>", "ĠĊ", "<\N{FULLWIDTH VERTICAL LINE}a>")


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.Sequence([decoders.ByteLevel()])
    built.add_tokens(list(WORDS))
    built.add_special_tokens([AddedToken("<|é|>", special=True)])
    return built


@pytest.mark.parametrize("word", WORDS)
def test_text_with_added_tokens_comes_back(word: str) -> None:
    tokenizer = byte_level()
    text = f"日本 {word}{word} é"
    ids = tokenizer.encode(text).ids
    assert tokenizer.token_to_id(word) in ids
    assert TextDecoder(tokenizer).decode(ids) == text
    stream = TextStream(TextDecoder(tokenizer).decode)
    assert "".join(stream.push([token]) for token in ids) + stream.flush() == text


def test_special_ones_are_left_out_unless_asked_for() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a<|é|>b").ids
    assert TextDecoder(tokenizer).decode(ids) == "ab"
    assert TextDecoder(tokenizer).decode(ids, special_tokens=True) == "a<|é|>b"


def test_other_decoders_are_left_alone() -> None:
    tokenizer = Tokenizer(models.BPE({"▁a": 0, "b": 1}, []))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_tokens(["▁x"])
    ids = [0, 2, 0, 1]
    assert TextDecoder(tokenizer).decode(ids) == tokenizer.decode(ids)
