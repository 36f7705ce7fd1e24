import bz2
import codecs
import gzip
import json
import lzma

import pytest

from archloop.errors import UserError
from archloop.text.corpora import CorpusConfig, load, resolve
from archloop.text.reading import MAX_CHUNK_CHARS, read_texts

TEXTS = [f"document {i}" for i in range(40)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


def read(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_texts(file, "text")


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("a.json", json.dumps([{"text": text} for text in TEXTS])),
        ("a.json", json.dumps(TEXTS)),
        ("a.json", LINES),
        ("a.csv", "id,text\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(TEXTS))),
        ("a.tsv", "text\tid\n" + "".join(f"{t}\t{i}\n" for i, t in enumerate(TEXTS))),
        ("a.jsonl", codecs.BOM_UTF8 + LINES.encode()),
        ("a.csv", codecs.BOM_UTF8 + b"text\n" + "\n".join(TEXTS).encode()),
        ("a.jsonl", LINES.encode("utf-16")),
        ("a.jsonl.gz", gzip.compress(LINES.encode())),
        ("a.ndjson.bz2", bz2.compress(LINES.encode())),
        ("A.JSONL.XZ", lzma.compress(LINES.encode())),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_every_form_gives_its_documents(tmp_path, name, content):
    assert read(tmp_path, name, content) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_null_is_passed_over_as_in_parquet(tmp_path, name):
    rows = [{"text": "one"}, {"text": None}, {"text": "two"}]
    content = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
    assert read(tmp_path, name, content) == ["one", "two"]


def test_json_lines_end_at_newlines_alone(tmp_path):
    texts = ["one\u2028two", "three\u2029four\x85five"]
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    for name in ("a.json", "a.jsonl"):
        assert read(tmp_path, name, lines + "\n") == texts


def test_empty_cells_are_passed_over(tmp_path):
    assert read(tmp_path, "a.csv", "text,x\none,1\n,2\ntwo,3\n") == ["one", "two"]


def test_a_cell_may_be_longer_than_the_csv_module_allows_at_first(tmp_path):
    assert read(tmp_path, "a.csv", f"text\n{'x' * 200_000}\n") == ["x" * 200_000]


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.txt", "plain".encode("utf-16-le"), r"zero bytes.*iconv"),
        ("a.txt", b"\xff\xf0bad", "must be UTF-8"),
        ("a.jsonl.gz", b"no gzip", "restore it"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:10] + b"\xff" * 30, "restore it"),
        ("a.txt.xz", lzma.compress(b"text" * 99)[:-20], "restore it"),
        ("a.txt.zst", b"anything", "convert it"),
        ("a.csv", "body\none\n", r"no column 'text'; set corpus\.field"),
        ("a.csv", 'text\n"one\n', r"a\.csv:\d: .*correct that line"),
        ("a.json", "{broken", "not JSON"),
        ("a.json", "3", "no list"),
        ("a.json", '[{"text": 3}]', "holds int, not text"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_remedy(tmp_path, name, content, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        read(tmp_path, name, content)
    assert name in str(caught.value)


def test_text_without_blank_lines_is_cut_and_nothing_is_lost(tmp_path):
    text = "".join(f"line {i} of a log\n" for i in range(50_000))
    documents = read(tmp_path, "a.txt", text)
    assert "".join(documents) == text
    assert len(documents) > 10
    assert max(map(len, documents)) <= MAX_CHUNK_CHARS
    assert all(document.endswith("\n") for document in documents)
    corpus = load(CorpusConfig(source="files", paths=("a.txt",), heldout_share=0.2), tmp_path)
    assert corpus.heldout


def test_a_line_of_any_length_is_cut_and_nothing_is_lost(tmp_path):
    text = "first\n" + "x" * (3 * MAX_CHUNK_CHARS + 5) + "\nlast"
    documents = read(tmp_path, "a.txt", text)
    assert "".join(documents) == text
    assert max(map(len, documents)) <= MAX_CHUNK_CHARS


class TestFoldersAndPatterns:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ("data/b.jsonl", "data/deep/a.jsonl.gz", "data/.cache/x.jsonl"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            content = LINES.encode()
            (tmp_path / name).write_bytes(gzip.compress(content) if "gz" in name else content)
        (tmp_path / "data" / "MANIFEST").write_text("{}")
        (tmp_path / "data" / "code.py").write_text("pass")
        return tmp_path

    def names(self, path, root):
        return [file.relative_to(root.resolve()).as_posix() for file in resolve(path, root)]

    def test_folder(self, root):
        assert self.names("data", root) == ["data/b.jsonl", "data/deep/a.jsonl.gz"]
        assert self.names(str(root / "data"), root) == ["data/b.jsonl", "data/deep/a.jsonl.gz"]

    def test_pattern(self, root):
        assert self.names("data/*.py", root) == ["data/code.py"]
        assert self.names("data/**/*.gz", root) == ["data/deep/a.jsonl.gz"]
        assert self.names(str(root / "data/*.jsonl"), root) == ["data/b.jsonl"]

    def test_a_file_named_twice_counts_once(self, root):
        config = CorpusConfig(
            source="files", paths=("data", "data/b.jsonl", "data/*.jsonl"), heldout_share=0.3
        )
        corpus = load(config, root)
        assert len(corpus.train) + len(corpus.heldout) == 80

    def test_stars_inside_a_name(self, root):
        # Newer versions of Python take them for one star, and then no file is of that name.
        with pytest.raises(UserError, match=r"data/b\*\*\.csv.*correct corpus\.paths"):
            resolve("data/b**.csv", root)

    @pytest.mark.parametrize("path, expected", [("data/*.csv", "no file of that pattern")])
    def test_nothing_found(self, root, path, expected):
        with pytest.raises(ValueError, match=expected):
            resolve(path, root)

    def test_folder_without_text(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x.png").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"no file that ends in \.txt"):
            resolve("a", tmp_path)

    def test_links_do_not_lead_out(self, root, tmp_path_factory):
        outside = tmp_path_factory.mktemp("outside") / "a.txt"
        outside.write_text("x")
        (root / "data" / "link.txt").symlink_to(outside)
        for path in ("data", "data/*.txt", "../*"):
            with pytest.raises(ValueError, match=r"leads outside|no file of that"):
                resolve(path, root)

    @pytest.mark.parametrize("name", ["a[1].txt", "what?.txt"])
    def test_a_file_whose_name_looks_like_a_pattern(self, tmp_path, name):
        (tmp_path / name).write_text("x")
        assert resolve(name, tmp_path) == [(tmp_path / name).resolve()]
