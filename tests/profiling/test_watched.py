"""A program that is watched from beside it: what it used, what ended it."""

import sys

import pytest

from archloop.devices.base import piped
from archloop.devices.choice import DeviceChoice
from archloop.profiling import watched
from archloop.workers.deaths import WorkerError

HELD = 50 << 20
PROGRAM = """
import sys, time
held = bytearray({size})
while time.process_time() < 0.1: pass
print("[done]", sys.argv[1:])
print("a word", file=sys.stderr)
"""


def python(size: int, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-IS", "-c", PROGRAM.format(size=size), *arguments)


def test_memory_and_processor_time_are_the_programs() -> None:
    device = DeviceChoice().open()
    found = watched.run(device, python(HELD, "a b", "$HOME"), {}, look=True)
    assert found.printed.strip() == "[done] ['a b', '$HOME']"
    assert found.said == "a word\n"
    assert found.memory is not None
    assert HELD < found.memory.peak_bytes < 2 * HELD
    # The shell cuts both of its numbers, user and system, to hundredths of a second.
    assert 0.08 <= found.cpu_s < 5
    assert watched.run(device, python(0), {}).memory is None


def test_a_program_has_the_limit_of_its_runner() -> None:
    with pytest.raises(WorkerError, match="MemoryError") as caught:
        watched.run(DeviceChoice().open(), python(8 * HELD), {}, memory_limit_bytes=2 * HELD)
    assert caught.value.cause == "memory"


def test_an_answer_that_breaks_off_is_a_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = DeviceChoice().open()
    answer = ["printf", "== printed\\n[{"]
    monkeypatch.setattr(type(device), "run", lambda *_, env, stderr: piped(answer, stderr, env))
    with pytest.raises(WorkerError, match="the answer of device host broke off") as caught:
        watched.run(device, ("llama-bench",), {})
    assert caught.value.cause == "gone"
