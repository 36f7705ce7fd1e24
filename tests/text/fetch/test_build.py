import gzip
import io
import json
import lzma
import random
import tarfile
import zipfile

import pytest
from typer.testing import CliRunner

from archloop.cli import app
from archloop.errors import UserError
from archloop.text import corpora
from archloop.text.fetch import build, cleaning, packages
from archloop.text.fetch.documents import Member
from archloop.text.fetch.filters import Exclusion
from archloop.text.fetch.pack import pack, unpack
from archloop.text.fetch.sources import SOURCES, Source

PROSE = "A sentence of quite some words that stands alone and carries number {} for this test."


def deb(file, contents, ending="xz"):
    """A Debian package with these files, as dpkg-deb lays it out."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    parts = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar.{ending}", inner)]
    with file.open("wb") as out:
        out.write(b"!<arch>\n")
        for name, part in parts:
            content = part if isinstance(part, bytes) else part.getvalue()
            header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
            out.write(header.encode() + content + b"\n" * (len(content) % 2))


def wheel(file, contents):
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Two sources whose packages are there already, so that nothing is downloaded."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    pages = {f"usr/share/p{i}.html": f"<p>{PROSE.format(i)}</p><p>Footer.</p>" for i in range(60)}
    zipped = gzip.compress(f"<p>{PROSE.format('zipped')}</p>".encode())
    encoded = {name: page.encode() for name, page in pages.items()}
    deb(folder / "handbook_1.2-3_all.deb", {**encoded, "usr/share/z.html.gz": zipped})
    code = "def f():\n    return 1  # as long as it needs to be, so that it is not passed over\n"
    modules = {f"some/m{i}.py": code * (i + 1) for i in range(9)}
    wheel(
        folder / "Some_Code-2.0-py3-none-any.whl", {**modules, "some/tests/t.py": "assert 1" * 99}
    )
    sources = {
        "handbook": Source("debian", "handbook", "GPL-2", cleaning.html_pages),
        "library": Source("pypi", "some-code==2.0", "MIT", cleaning.python_code, is_code=True),
    }
    monkeypatch.setattr(build, "SOURCES", sources)
    return folder


def texts(folder, name):
    with lzma.open(folder / f"{name}.jsonl.xz", "rt", encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]


def test_packages_become_documents_with_their_licences(downloads, tmp_path):
    manifest = build.build(["handbook", "library"], tmp_path / "c", downloads)
    found = texts(tmp_path / "c", "handbook")
    assert len(found) == 61
    assert PROSE.format(7) in found[7]
    assert PROSE.format("zipped") in found[-1]
    # The footer stands in the first page only; lines of code may repeat.
    assert sum("Footer." in text for text in found) == 1
    assert manifest.sources["handbook"].num_repeated == 59
    assert manifest.sources["handbook"].origin == "handbook_1.2-3_all.deb"
    assert len(texts(tmp_path / "c", "library")) == 9
    assert (
        "| library | Some_Code-2.0-py3-none-any.whl | MIT |"
        in (tmp_path / "c" / "LICENCES").read_text()
    )


def test_a_recipe_reads_the_folder(downloads, tmp_path):
    build.build(["handbook"], tmp_path / "c", downloads)
    config = corpora.CorpusConfig(source="files", paths=("c",), heldout_share=0.2)
    corpus = corpora.load(config, tmp_path)
    assert len(corpus.train) + len(corpus.heldout) == 61


def test_building_twice_gives_equal_bytes(downloads, tmp_path):
    first, second = (build.build(["library"], tmp_path / name, downloads) for name in "ab")
    assert first == second


class TestGoingOn:
    def test_what_is_whole_is_not_built_again(self, downloads, tmp_path):
        build.build(["handbook"], tmp_path / "c", downloads)
        told = []
        build.build(["handbook", "library"], tmp_path / "c", downloads, progress=told.append)
        assert "handbook: already there" in told
        assert "library: cleaning" in told

    @pytest.mark.parametrize("damage", ["bytes", "gone", "package", "exclusion"])
    def test_what_is_not_is(self, downloads, tmp_path, damage):
        folder = tmp_path / "c"
        build.build(["handbook"], folder, downloads)
        file = folder / "handbook.jsonl.xz"
        if damage == "bytes":
            file.write_bytes(file.read_bytes()[:-1])
        elif damage == "gone":
            file.unlink()
        elif damage == "package":
            deb(downloads / "handbook_1.2-3_all.deb", {"a.html": f"<p>{PROSE}</p>".encode()})
        told = []
        exclude = [PROSE.format(3)] if damage == "exclusion" else []
        build.build(["handbook"], folder, downloads, exclude=exclude, progress=told.append)
        assert "handbook: cleaning" in told
        assert texts(folder, "handbook")

    def test_a_stop_in_the_middle_leaves_what_was_finished(self, downloads, tmp_path):
        def stop(line):
            if line == "library: cleaning":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build.build(["handbook", "library"], tmp_path / "c", downloads, progress=stop)
        assert list(build.read_manifest(tmp_path / "c").sources) == ["handbook"]
        assert not [f for f in (tmp_path / "c").iterdir() if f.name.startswith(".")]


class TestExclusion:
    def test_paragraphs_that_share_words_are_dropped_and_counted(self, downloads, tmp_path):
        asked = "Question: " + PROSE.format(5).upper().replace("ALONE", "alone,")
        manifest = build.build(["handbook"], tmp_path / "c", downloads, exclude=[asked])
        kept = texts(tmp_path / "c", "handbook")
        # The other sentences share 12 words with it.
        assert manifest.sources["handbook"].num_excluded == 1
        assert len(kept) == 60
        assert not any(PROSE.format(5) in text for text in kept)

    def test_twelve_words_in_common_are_allowed(self):
        words = [f"w{i}" for i in range(30)]
        drops = Exclusion([" ".join(words[:13])])
        document = cleaning.Document("d", " ".join(words[1:]))
        assert drops(document) == document
        assert drops(document._replace(text=" ".join(words))) is None
        assert drops.num_dropped == 1


def test_pack_and_unpack(downloads, tmp_path):
    build.build(["handbook", "library"], tmp_path / "c", downloads)
    carried = tmp_path / "x-1-py3-none-any.whl"
    carried.write_bytes(b"wheel")
    size = pack(tmp_path / "c", tmp_path / "p.tar", wheels=[carried], max_bytes=2**20)
    assert size == (tmp_path / "p.tar").stat().st_size
    folder = unpack(tmp_path / "p.tar", tmp_path / "there")
    assert build.read_manifest(folder) == build.read_manifest(tmp_path / "c")
    assert (tmp_path / "there" / "wheels" / carried.name).read_bytes() == b"wheel"
    with pytest.raises(ValueError, match="pack fewer"):
        pack(tmp_path / "c", tmp_path / "q.tar", max_bytes=100)
    (tmp_path / "c" / "library.jsonl.xz").write_bytes(b"rotten")
    with pytest.raises(ValueError, match="fetch library again"):
        pack(tmp_path / "c", tmp_path / "q.tar")


def test_the_folder_of_an_unpacked_corpus_is_one_line(downloads, tmp_path):
    build.build(["library"], tmp_path / "c", downloads)
    pack(tmp_path / "c", tmp_path / "p.tar")
    there = tmp_path / " ".join(["long"] * 20)
    found = CliRunner().invoke(app, ["corpus", "unpack", str(tmp_path / "p.tar"), str(there)])
    assert found.stdout.startswith(str(there))
    assert found.stdout.count("\n") == 1


def test_a_pack_that_breaks_off_is_said(downloads, tmp_path):
    build.build(["library"], tmp_path / "c", downloads)
    pack(tmp_path / "c", tmp_path / "p.tar")
    zipped = gzip.compress((tmp_path / "p.tar").read_bytes())
    (tmp_path / "p.tar.gz").write_bytes(zipped[: len(zipped) // 2])
    with pytest.raises(UserError, match="no pack of a corpus, or damaged"):
        unpack(tmp_path / "p.tar.gz", tmp_path / "there")


@pytest.mark.parametrize("size", ["nan", "inf", "1e308"])
def test_a_size_that_is_none_is_said(size, tmp_path):
    asked = ["corpus", "pack", str(tmp_path), str(tmp_path / "p.tar"), "--max-mib", size]
    found = CliRunner().invoke(app, asked)
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "--max-mib" in found.stderr


def test_a_pack_cannot_write_outside(tmp_path):
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        info = tarfile.TarInfo("../evil")
        archive.addfile(info, io.BytesIO(b""))
    with pytest.raises(ValueError, match="no pack"):
        unpack(tmp_path / "p.tar", tmp_path / "there")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ("no manifest", "is no pack of a corpus"),
        ("no file", "is damaged at library"),
        ("a name that leads out", "is damaged at library"),
    ],
)
def test_what_is_no_pack_is_said(downloads, tmp_path, change, said):
    build.build(["library"], tmp_path / "c", downloads)
    pack(tmp_path / "c", tmp_path / "p.tar")
    with tarfile.open(tmp_path / "p.tar") as archive:
        held = {name: archive.extractfile(name).read() for name in archive.getnames()}
    if change == "no manifest":
        del held["corpus/MANIFEST"]
    elif change == "no file":
        del held["corpus/library.jsonl.xz"]
    else:
        manifest = held["corpus/MANIFEST"]
        held["corpus/MANIFEST"] = manifest.replace(b'"library.jsonl', b'"../library.jsonl')
        held["library.jsonl.xz"] = held.pop("corpus/library.jsonl.xz")
    with tarfile.open(tmp_path / "q.tar", "w") as archive:
        for name, content in held.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(ValueError, match=said):
        unpack(tmp_path / "q.tar", tmp_path / "there")


def test_unknown_names_and_missing_clients_are_said(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'english'"):
        build.resolve_names(["englsh"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"no apt-get here.*put dict-gcide's \.deb into"):
        packages.download("debian", "dict-gcide", tmp_path)


def test_damaged_packages_are_said(tmp_path):
    for channel, name in (("debian", "a_1_all.deb"), ("pypi", "a-1-py3-none-any.whl")):
        (tmp_path / name).write_bytes(b"!<arch>\nrubbish")
        with pytest.raises(ValueError, match="delete it to download it again"):
            list(packages.members(channel, tmp_path / name))


def test_damage_in_the_middle_is_said(tmp_path):
    """Bytes that no compressor writes, behind headers that are whole."""
    noise = random.Random(0).randbytes(200_000)
    file = tmp_path / "a_1_all.deb"
    deb(file, {"a.txt": noise})
    content = bytearray(file.read_bytes())
    content[50_000:150_000] = b"\xff" * 100_000
    file.write_bytes(content)
    with pytest.raises(ValueError, match="delete it to download it again"):
        list(packages.members("debian", file))
    file = tmp_path / "a-1-py3-none-any.whl"
    wheel(file, {"a.txt.gz": gzip.compress(b"text")[:10] + b"\xff" * 30})
    with pytest.raises(ValueError, match="delete it to download it again"):
        list(packages.members("pypi", file))


def test_a_package_that_zstd_compressed_is_not_called_damaged(tmp_path):
    deb(tmp_path / "a_1_all.deb", {"a.txt": b"text"}, ending="zst")
    with pytest.raises(ValueError, match=r"compressed by zstd.*-Zxz") as caught:
        list(packages.members("debian", tmp_path / "a_1_all.deb"))
    assert "damaged" not in str(caught.value)


def test_every_source_names_licence_and_pinned_version():
    for source in SOURCES.values():
        assert source.licence
        assert source.channel != "pypi" or "==" in source.package


class TestCleaning:
    def clean(self, form, name, content):
        return [d.text for d in form([Member(name, content.encode())])]

    def test_html(self):
        page = (
            "<head><title>T</title></head><p>One\ntwo &amp; three</p><!-- no -->"
            "<pre>code</pre><ul><li>first<li>second</ul><script>var x;</script>a < b"
        )
        assert self.clean(cleaning.html_pages, "a.html", page) == [
            "One two & three\n\n- first\n\n- second\n\na < b"
        ]

    def test_wordnet(self):
        data = (
            "  1 licence\n00001740 03 n 02 entity 0 physical_thing 1 003 ~ 1 n 0000 | "
            'that which is; "so it is"  \n'
        )
        assert self.clean(cleaning.wordnet, "dict/data.noun", data) == [
            'entity, physical thing: that which is; "so it is"'
        ]

    def test_botocore_takes_the_newest_version(self):
        def model(text):
            return json.dumps(
                {
                    "documentation": f"<p>{text}</p>",
                    "operations": {"Go": {"documentation": "<p>Goes.</p>"}},
                    "shapes": {"In": {"members": {"Speed": {"documentation": "How <i>fast</i>."}}}},
                }
            ).encode()

        members = [
            Member("botocore/data/s3/2014-01-01/service-2.json", model("old")),
            Member("botocore/data/s3/2020-01-01/service-2.json", model("new")),
        ]
        (document,) = cleaning.botocore(members)
        assert document.text == "new\n\nGo: Goes.\n\nIn.Speed: How fast."

    def test_google_api(self):
        content = json.dumps(
            {
                "description": "An API.",
                "schemas": {"Box": {"properties": {"w": {"description": "Width."}}}},
            }
        )
        name = "googleapiclient/discovery_cache/documents/box.v1.json"
        (text,) = self.clean(cleaning.google_api, name, content)
        assert "Box.w: Width." in text

    def test_dictionary_is_cut_between_entries(self):
        entries = "".join(f"Word{i}\n   meaning number {i} [1913 Webster]\n\n" for i in range(999))
        content = gzip.compress(entries.encode())
        found = list(cleaning.dictionary([Member("gcide.dict.dz", content)]))
        assert len(found) > 2
        assert all(document.text.startswith("Word") for document in found)


def test_a_translation_keeps_nothing_of_its_original(downloads, tmp_path, monkeypatch):
    """Pages that nobody has translated are English, and no text of the language."""
    pages = {f"help/p{i}.html": f"<p>{PROSE.format(i)}</p>".encode() for i in range(8)}
    deb(downloads / "help-en_1_all.deb", pages)
    end = "<p>Help content debug info:</p><p>This page is: p9.xhp</p>"
    own = f"<p>Ein Satz aus einigen Wörtern, der für sich steht und lang genug ist.</p>{end}"
    deb(downloads / "help-de_1_all.deb", {**pages, "help/p9.html": own.encode()})
    source = Source("debian", "help-de", "MPL-2.0", cleaning.help_pages, untranslated="help-en")
    monkeypatch.setattr(build, "SOURCES", {"help_de": source})
    manifest = build.build(["help_de"], tmp_path / "c", downloads)
    expected = "Ein Satz aus einigen Wörtern, der für sich steht und lang genug ist."
    assert texts(tmp_path / "c", "help_de") == [expected]
    assert manifest.sources["help_de"].num_repeated == 8
    assert build.build(["help_de"], tmp_path / "c", downloads) == manifest
    # Another original leaves other text.
    deb(downloads / "help-en_1_all.deb", {"help/p1.html": pages["help/p1.html"]})
    assert build.build(["help_de"], tmp_path / "c", downloads).sources["help_de"].num_repeated == 1


def test_languages_are_a_mix_of_their_own():
    assert build.resolve_names(["languages"]) == [
        name for name in build.SOURCES if name.startswith("help_")
    ]
    assert len(build.resolve_names(["languages"])) == 12
    assert not any(name.startswith("help_") for name in build.resolve_names(["english"]))
