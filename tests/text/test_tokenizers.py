import random
import subprocess
import sys
import time

import numpy as np
import pytest

from archloop.errors import UserError
from archloop.files import read_checked, write_atomic, write_checked
from archloop.text import tokenizers
from archloop.text.corpora import Corpus

DOCUMENTS = [f"def name_{i}(self):\n    return {i} # the {i}-th one\n" for i in range(400)]
CORPUS = Corpus(DOCUMENTS, ["held out"], "0123456789abcdef0000")
AWKWARD = "naïve ÿ 日本語 \x00 \U0001f600 end  \t\n <|end_of_text|>"


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(DOCUMENTS, 320)


def test_every_text_survives(tokenizer):
    assert tokenizer.decode(tokenizer.encode(AWKWARD)) == AWKWARD


@pytest.mark.parametrize("text", [*DOCUMENTS[:3], AWKWARD])
def test_bytes_of_tokens_add_up_to_the_text(tokenizer, text):
    assert tokenizer.num_bytes_V[tokenizer.encode(text)].sum() == len(text.encode())


def test_documents_end_with_end_of_text(tokenizer):
    ids = tokenizer.encode_documents(DOCUMENTS[:5])
    assert (ids == tokenizer.end_of_text).sum() == 5
    assert ids[-1] == tokenizer.end_of_text
    assert tokenizer.num_bytes_V[tokenizer.end_of_text] == 0
    assert tokenizer.num_bytes_V[ids].sum() == len("".join(DOCUMENTS[:5]).encode())


def test_the_marker_in_a_document_ends_no_document(tokenizer):
    ids = tokenizer.encode_documents([AWKWARD, "one<|end_of_text|>two"])
    assert (ids == tokenizer.end_of_text).sum() == 2


def test_documents_are_encoded_alike_in_any_number(tokenizer):
    alone = np.concatenate([tokenizer.encode_documents([text]) for text in DOCUMENTS])
    assert (tokenizer.encode_documents(DOCUMENTS) == alone).all()


def test_a_word_of_any_length_is_no_trap():
    word = "".join(random.Random(1).choices("acgt", k=400_000))
    began = time.monotonic()
    trained = tokenizers.train([word + " " * 100_000 + word], 400)
    # Uncut, 50,000 letters took seconds and the time grew by four for each doubling.
    assert time.monotonic() - began < 60
    assert trained.num_bytes_V[trained.encode(word)].sum() == len(word)


def test_training_text_is_whole_but_for_cuts_in_long_runs():
    text = "a b " * 9 + "x" * 10_000 + " " * 9_000 + "end"
    pieces = list(tokenizers._training_text([text]))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) < 4096 * 2
    assert list(tokenizers._training_text(DOCUMENTS)) == DOCUMENTS


def test_training_reads_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(tokenizers, "MAX_TRAINING_CHARS", 1000)
    assert 1000 < sum(map(len, tokenizers._training_text(DOCUMENTS))) < 1100


def test_vocabulary_size_is_exact_and_bounded(tokenizer):
    assert tokenizer.vocab_size == 320
    assert tokenizer.encode(DOCUMENTS[0]).max() < 320
    with pytest.raises(ValueError, match="at least 257"):
        tokenizers.train(DOCUMENTS, 256)
    with pytest.raises(ValueError, match="fills only"):
        tokenizers.train(["aaaa"], 5000)


def test_special_tokens_need_room_too():
    marks = ("<|im_start|>", "<|im_end|>")
    with pytest.raises(UserError, match="and 2 special tokens more; give at least 259"):
        tokenizers.train(DOCUMENTS, 258, marks)
    assert tokenizers.train(DOCUMENTS, 259, marks).vocab_size == 259


def test_training_repeats_in_a_fresh_process(tokenizer):
    code = (
        "import sys; from archloop.text import tokenizers\n"
        f"documents = {DOCUMENTS!r}\n"
        "sys.stdout.write(tokenizers.train(documents, 320).to_json())"
    )
    fresh = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert fresh == tokenizer.to_json()


class TestCache:
    def test_is_used(self, tmp_path, monkeypatch):
        first = tokenizers.cached(CORPUS, 300, tmp_path)
        monkeypatch.setattr(tokenizers, "train", None)
        assert tokenizers.cached(CORPUS, 300, tmp_path).to_json() == first.to_json()

    def test_distinguishes_corpus_and_size(self, tmp_path):
        tokenizers.cached(CORPUS, 300, tmp_path)
        tokenizers.cached(CORPUS, 301, tmp_path)
        tokenizers.cached(CORPUS._replace(digest="f" * 20), 300, tmp_path)
        assert len(list((tmp_path / "tokenizers").iterdir())) == 3

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
    def test_damage_is_noticed_and_repaired(self, tmp_path, damage):
        good = tokenizers.cached(CORPUS, 300, tmp_path).to_json()
        (file,) = (tmp_path / "tokenizers").iterdir()
        raw = bytearray(file.read_bytes())
        if damage == "flipped":
            raw[len(raw) // 2] ^= 1
        file.write_bytes({"truncated": raw[:-100], "flipped": raw, "empty": b""}[damage])
        assert tokenizers.cached(CORPUS, 300, tmp_path).to_json() == good
        assert read_checked(file) == good.encode()

    def test_default_place(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        tokenizers.cached(CORPUS, 300)
        assert list((tmp_path / "archloop" / "tokenizers").iterdir())


class TestFiles:
    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        file = tmp_path / "a"
        write_checked(file, b"old")

        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_atomic(file, b"new" * 1000)
        assert read_checked(file) == b"old"
        assert list(tmp_path.iterdir()) == [file]

    def test_absent(self, tmp_path):
        assert read_checked(tmp_path / "a") is None


def test_encoding_is_int32(tokenizer):
    assert tokenizer.encode("x").dtype == np.int32
