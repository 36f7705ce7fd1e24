"""Text streams: whole characters only, cut at the first stop string."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aé€😀\N{REPLACEMENT CHARACTER} ", max_size=12), st.integers(1, 3))
@example("😀" * 3, 1)
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


def test_bytes_that_are_no_text_do_not_block_the_stream() -> None:
    stream = TextStream(from_bytes)
    for _ in range(50):
        stream.push([0xFF])
    assert len(stream.text) >= 40


def test_a_decoder_that_trims_its_first_token() -> None:
    stream = TextStream(without_leading_space)
    pieces = [stream.push([i]) for i in range(5)]
    assert "".join(pieces) == without_leading_space(list(range(5)))


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
