"""Text streams: whole characters only, cut at the first stop string."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from archloop.text.streaming import TextStream


def from_bytes(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def from_bytes_one_by_one(ids: list[int]) -> str:
    """As sentencepiece's byte fallback: every byte of an incomplete character shows as one."""
    out, start = "", 0
    while start < len(ids):
        for end in range(start + 1, min(start + 4, len(ids)) + 1):
            text = bytes(ids[start:end]).decode(errors="ignore")
            if text:
                out, start = out + text, end
                break
        else:
            out, start = out + "\N{REPLACEMENT CHARACTER}", start + 1
    return out


def without_leading_space(ids: list[int]) -> str:
    """As metaspace tokenizers: the first word of a text loses its space."""
    return "".join(f" {i}" for i in ids)[1:]


def from_byte_tokens(ids: list[int]) -> str:
    """The byte fallback of the tokenizers library: a run of bytes is text or all replacements."""
    return str(BYTE_FALLBACK.decode(ids))


BYTE_FALLBACK = Tokenizer(models.BPE({f"<0x{i:02X}>": i for i in range(256)} | {"▁ab": 256}, []))
BYTE_FALLBACK.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aé€😀\N{REPLACEMENT CHARACTER} ", max_size=12), st.integers(1, 3))
@example("😀" * 3, 1)
@example("€" * 5 + "é", 1)
@pytest.mark.parametrize("decode", [from_bytes, from_bytes_one_by_one])
def test_pieces_join_to_the_text_and_never_split_a_character(
    decode: object, text: str, size: int
) -> None:
    text += "."
    ids = list(text.encode())
    stream = TextStream(decode)  # type: ignore[arg-type]
    pieces = [stream.push(ids[at : at + size]) for at in range(0, len(ids), size)]
    pieces.append(stream.flush())
    assert "".join(pieces) == text == stream.text
    done = ""
    for piece in pieces:
        done += piece
        assert text.startswith(done)


def test_an_unfinished_character_is_dropped_at_the_end() -> None:
    stream = TextStream(from_bytes)
    assert stream.push(list("a€".encode())[:-1]) == "a"
    assert stream.flush() == ""
    assert stream.text == "a"


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="é€😀", min_size=1, max_size=9), st.integers(1, 7), st.integers(0, 3))
@example("€€", 1, 2)
@example("€€", 5, 2)
def test_byte_fallback_shows_each_character_when_it_is_whole(
    text: str, size: int, num_missing: int
) -> None:
    """An unfinished character turns the whole run of bytes into replacements, for a while."""
    ids = [256, *text.encode()]
    ids = ids[: max(1, len(ids) - num_missing)]
    stream = TextStream(from_byte_tokens)
    for at in range(0, len(ids), size):
        read = ids[: at + size]
        stream.push(ids[at : at + size])
        whole = " ab" + bytes(read[1:]).decode(errors="ignore")
        assert stream.text == whole if size == 1 else whole.startswith(stream.text)
    stream.flush()
    assert stream.text == " ab" + bytes(ids[1:]).decode(errors="ignore")


def test_bytes_that_are_no_text_do_not_block_the_stream() -> None:
    stream = TextStream(from_bytes)
    for _ in range(50):
        stream.push([0xFF])
    assert len(stream.text) >= 40


def test_a_decoder_that_trims_its_first_token() -> None:
    stream = TextStream(without_leading_space)
    pieces = [stream.push([i]) for i in range(5)]
    assert "".join(pieces) == without_leading_space(list(range(5)))


def test_text_that_goes_on_keeps_the_space_that_it_begins_with() -> None:
    whole = without_leading_space(list(range(6)))
    for split in range(1, 6):
        stream = TextStream(without_leading_space, after=range(split))
        pieces = [stream.push([token]) for token in range(split, 6)]
        assert without_leading_space(list(range(split))) + "".join(pieces) == whole
    assert " " in whole


def test_text_that_begins_inside_a_character() -> None:
    ids = list("aé日b".encode())
    for split in range(1, len(ids)):
        stream = TextStream(from_bytes, after=ids[:split])
        for byte in ids[split:]:
            stream.push([byte])
        stream.flush()
        assert stream.text == bytes(ids[split:]).decode(errors="replace")


@settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet="ab", max_size=16),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    st.integers(1, 3),
)
def test_stop_strings_cut_where_the_whole_text_would(
    text: str, stops: list[str], size: int
) -> None:
    """Found at the same place as by searching all that was read when the first one completes."""
    stream = TextStream(from_bytes, stops)
    ids, read = list(text.encode()), 0
    while read < len(ids) and not stream.stopped:
        stream.push(ids[read : read + size])
        read = min(read + size, len(ids))
    stream.flush()
    seen = text[:read]
    places = [seen.index(stop) for stop in stops if stop in seen]
    assert stream.stopped == bool(places)
    assert stream.text == seen[: min(places, default=len(seen))]
    assert stream.push([97]) == "" or not stream.stopped


def test_one_stop_string_is_not_its_letters() -> None:
    stream = TextStream(from_bytes, "END")
    assert "".join(stream.push([byte]) for byte in b"DEN END.") == "DEN "


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        TextStream(from_bytes, [""])
