"""Seconds of a job are those that it was worked on."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from archloop.search.meter import Meter, Stopwatch, waited_for


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_waiting_for_a_turn_is_no_time_of_the_job() -> None:
    clock = Clock()

    @contextmanager
    def turn() -> Iterator[None]:
        clock.now += 100
        yield

    watch = Stopwatch(clock)
    clock.now += 1
    with waited_for(turn()):
        clock.now += 2
    assert watch.seconds() == 3
    # The next job of the same thread starts afresh.
    watch = Stopwatch(clock)
    clock.now += 4
    assert watch.seconds() == 4


def test_a_turn_that_never_came_was_waited_for_too() -> None:
    clock = Clock()

    @contextmanager
    def turn() -> Iterator[None]:
        clock.now += 100
        raise OSError("given up")
        yield

    watch = Stopwatch(clock)
    with pytest.raises(OSError, match="given up"), waited_for(turn()):
        pass
    assert watch.seconds() == 0


def test_a_meter_knows_its_whole_time() -> None:
    clock = Clock()
    meter = Meter(clock)
    with meter.phase():
        clock.now += 5
    clock.now += 1
    assert (meter.lap(), meter.total()) == (1, 6)
