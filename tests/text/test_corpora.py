import json
import os
import sysconfig
from pathlib import Path

import pytest

from archloop.text.corpora import CorpusConfig, load, load_kept, resolve


def write_jsonl(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: t}) + "\n" for t in texts))
    return path


def files(*paths, **kwargs):
    return CorpusConfig(source="files", paths=tuple(map(str, paths)), **kwargs)


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    return load(CorpusConfig(), tmp_path_factory.mktemp("root"))


def test_stdlib_is_there_and_has_no_tests(stdlib):
    assert sum(map(len, stdlib.train)) > 2_000_000
    assert sum(map(len, stdlib.heldout)) > 50_000
    tests = list(Path(sysconfig.get_path("stdlib"), "test").glob("test_[a-e]*.py"))
    assert not {f.read_text("utf-8", "replace") for f in tests} & set(stdlib.train)


def test_stdlib_sides_share_no_document(stdlib):
    assert not set(stdlib.train) & set(stdlib.heldout)


def test_split_is_stable_when_documents_are_added(tmp_path):
    texts = [f"document {i}" for i in range(200)]
    few = load(files(write_jsonl(tmp_path / "a.jsonl", texts[:150])), tmp_path)
    many = load(files(write_jsonl(tmp_path / "b.jsonl", texts)), tmp_path)
    assert set(few.heldout) <= set(many.heldout)
    assert set(few.train) <= set(many.train)
    assert few.digest != many.digest


def test_heldout_share(tmp_path):
    texts = [f"document {i}" for i in range(4000)]
    config = files(write_jsonl(tmp_path / "a.jsonl", texts), heldout_share=0.25)
    assert len(load(config, tmp_path).heldout) == pytest.approx(1000, abs=120)


def test_equal_documents_stand_on_one_side(tmp_path):
    texts = [f"document {i % 50}" for i in range(200)]
    corpus = load(files(write_jsonl(tmp_path / "a.jsonl", texts), heldout_share=0.3), tmp_path)
    assert not set(corpus.train) & set(corpus.heldout)


def test_plain_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    text = "".join(f"line {i} of a paragraph\n" + "\n" * (i % 7 == 0) for i in range(20_000))
    (tmp_path / "a.txt").write_text(text)
    corpus = load(files("a.txt", heldout_share=0.2), tmp_path)
    documents = corpus.train + corpus.heldout
    assert sum(map(len, documents)) == len(text.rstrip()) + 1
    assert len(documents) > 20


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = pyarrow.table({"body": [f"document {i}" for i in range(100)]})
    parquet.write_table(table, tmp_path / "a.parquet")
    corpus = load(files("a.parquet", field="body", heldout_share=0.3), tmp_path)
    assert len(corpus.train) + len(corpus.heldout) == 100
    with pytest.raises(ValueError, match=r"corpus\.field"):
        load(files("a.parquet", field="text"), tmp_path)


def test_damaged_parquet_or_missing_reader_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"a\.parquet"):
        load(files("a.parquet"), tmp_path)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "has no text"),
        (b"\n\n  \n", "has no text"),
        (b"\xff\xf0bad", "must be UTF-8"),
    ],
    ids=["empty", "blank", "binary"],
)
def test_unusable_text_names_the_file(tmp_path, content, expected):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.txt.*{expected}"):
        load(files("bad.txt"), tmp_path)


@pytest.mark.parametrize("line", ["not json", "[]", '{"other": "x"}', '{"text": 3}', "3"])
def test_unusable_jsonl_names_file_and_line(tmp_path, line):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: "):
        load(files("bad.jsonl"), tmp_path)


def test_too_little_text_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("one document")
    with pytest.raises(ValueError, match="give more text"):
        load(files("a.txt"), tmp_path)


class TestPaths:
    def test_url(self, tmp_path):
        with pytest.raises(ValueError, match="URL"):
            resolve("https://example.org/a.txt", tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(ValueError, match="does not exist"):
            resolve("nowhere.txt", tmp_path)

    @pytest.mark.parametrize("path", ["", "a\0b"])
    def test_no_file_name(self, tmp_path, path):
        with pytest.raises(ValueError, match="not a file name"):
            resolve(path, tmp_path)

    def test_leaving_the_folder(self, tmp_path):
        (tmp_path / "outside.txt").write_text("x")
        root = tmp_path / "recipes"
        root.mkdir()
        with pytest.raises(ValueError, match="leads outside"):
            resolve("../outside.txt", root)
        (root / "link.txt").symlink_to(tmp_path / "outside.txt")
        with pytest.raises(ValueError, match="leads outside"):
            resolve("link.txt", root)

    def test_absolute_is_allowed(self, tmp_path):
        (tmp_path / "a.txt").write_text("x")
        root = tmp_path / "recipes"
        root.mkdir()
        assert resolve(str(tmp_path / "a.txt"), root)[0].read_text() == "x"

    def test_pipes_are_not_read(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="not a regular file"):
            resolve("pipe", tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{"source": "files"}, {"paths": ("a.txt",)}, {"heldout_share": 0.0}, {"sauce": "stdlib"}],
)
def test_config_is_checked(settings):
    with pytest.raises(ValueError):
        CorpusConfig(**settings)


def test_path_through_a_circle_of_links_or_too_long_is_refused(tmp_path):
    (tmp_path / "a.txt").symlink_to("a.txt")
    for path in ("a.txt", "x" * 5000):
        with pytest.raises(ValueError, match=r"correct corpus\.paths"):
            resolve(path, tmp_path)


@pytest.mark.parametrize("line", ["[" * 100_000, json.dumps({"text": "\ud800"})])
def test_bad_json_line_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "fine"}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: "):
        load(files("a.jsonl"), tmp_path)


def test_suffix_may_be_of_either_case(tmp_path):
    write_jsonl(tmp_path / "a.JSONL", [f"document {i}" for i in range(40)])
    corpus = load(files("a.JSONL", heldout_share=0.3), tmp_path)
    assert len(corpus.train) + len(corpus.heldout) == 40


def test_a_corpus_that_is_kept_is_read_again_once_it_changed(tmp_path: Path) -> None:
    for index in range(40):
        (tmp_path / f"{index}.txt").write_text(f"document {index} of some words")
    config = CorpusConfig(source="files", paths=(str(tmp_path),))
    kept = load_kept(config, tmp_path)
    assert load_kept(config, tmp_path) is kept
    assert kept == load(config, tmp_path)
    (tmp_path / "0.txt").write_text("another document")
    assert load_kept(config, tmp_path) == load(config, tmp_path) != kept
