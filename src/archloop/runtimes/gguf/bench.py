"""llama.cpp's own benchmark program, ``llama-bench``: its options, and the times that it prints.

With ``-n 1 -r 200`` it times single steps, which its ``-n 200`` does not. It fills a depth once
in a process and then restores the state from a copy in memory before each step, so the peak of
such a run holds the state twice: memory is that of a request (``-pg``), which copies nothing.
"""

import re
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from archloop.runtimes.benchmark import Arguments, Benchmark


class _Test(BaseModel):
    """The part of a test's record that counts; the other fields differ between versions."""

    samples_ns: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]


_TESTS = TypeAdapter(tuple[_Test])
"""A run here is one test."""


class LlamaBench(Benchmark):
    """Options as in the llama.cpp that llama-cpp-python 0.3.36 brings.

    Args:
        model: name of the GGUF file in an artifact's folder.
    """

    program = "llama-bench"

    def __init__(self, model: str) -> None:
        self._model = model

    def about(self) -> Arguments:
        return ("--version",)

    def version(self, printed: str) -> str | None:
        found = re.search(r"^version: *(\S.*)$", printed, re.MULTILINE)
        return None if found is None else found[1].strip()

    def empty(self) -> Arguments:
        return ("--list-devices",)

    def prompt(self, folder: str, threads: int, tokens: int, depth: int) -> Arguments:
        counts = ("-p", str(tokens), "-n", "0", "-d", str(depth))
        return (*self._common(folder, threads), "-r", "1", *counts)

    def steps(self, folder: str, threads: int, count: int, depth: int) -> Arguments:
        counts = ("-p", "0", "-n", "1", "-d", str(depth))
        return (*self._common(folder, threads), "-r", str(count), *counts)

    def request(self, folder: str, threads: int, tokens: int, steps: int) -> Arguments:
        counts = ("-p", "0", "-n", "0", "-pg", f"{tokens},{steps}")
        return (*self._common(folder, threads), "-r", "1", "--no-warmup", *counts)

    def times_ms(self, printed: str) -> tuple[float, ...]:
        try:
            (test,) = _TESTS.validate_json(printed)
        except ValidationError:
            shown = " ".join(printed.split())[:80]
            raise ValueError(f"{self.program} printed no times but {shown!r}") from None
        return tuple(nanoseconds / 1e6 for nanoseconds in test.samples_ns)

    def _common(self, folder: str, threads: int) -> Arguments:
        # No device: a build that could use the phone's graphics processor stays on the processor,
        # which is what this runtime is measured on.
        where = ("-m", f"{folder}/{self._model}", "-dev", "none")
        return (*where, "-t", str(threads), "-o", "json")
