"""What llama.cpp's benchmark program is told, and what is made of the text that it prints."""

import json

import pytest

from archloop.runtimes.llama_cpp import LlamaCpp

BENCH = LlamaCpp().benchmark()


def printed(*tests: object) -> str:
    return json.dumps(list(tests))


def test_steps_are_timed_one_by_one() -> None:
    words = " ".join(BENCH.steps("/far/a b", threads=3, count=200, depth=4096))
    assert words.startswith("-m /far/a b/model.gguf ")
    assert words.endswith("-t 3 -o json -r 200 -p 0 -n 1 -d 4096")
    assert "--no-warmup" not in words
    words = " ".join(BENCH.prompt("/far", threads=3, tokens=512, depth=0))
    assert words.endswith("-t 3 -o json -r 1 -p 512 -n 0 -d 0")


def test_a_request_for_memory_is_neither_repeated_nor_copied() -> None:
    words = " ".join(BENCH.request("/far", threads=3, tokens=512, steps=9))
    assert words.endswith("-r 1 --no-warmup -p 0 -n 0 -pg 512,9")


def test_times_are_those_of_each_repetition() -> None:
    text = printed({"n_gen": 1, "avg_ns": 3_000_000, "samples_ns": [2_000_000, 4_500_000]})
    assert BENCH.times_ms(text) == (2.0, 4.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ggml: segmentation",
        "[\n",
        printed(),
        printed({"samples_ns": []}),
        printed({"samples_ns": [0]}),
        printed({"samples_ns": ["soon"]}),
        printed({"samples_ns": [1]}, {"samples_ns": [1]}),
    ],
)
def test_garbage_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="llama-bench printed no times but "):
        BENCH.times_ms(text)


def test_the_version_is_a_line_of_its_own() -> None:
    text = "warning: asserts enabled\nversion: 0.5.0 (build 1, commit 0c1e570)\nbuilt with GNU"
    assert BENCH.version(text) == "0.5.0 (build 1, commit 0c1e570)"
    assert BENCH.version("error: invalid parameter for argument: --version") is None
