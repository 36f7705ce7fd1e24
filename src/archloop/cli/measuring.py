"""What the verbs that measure share: a target from options, and a measurement that is never silent.

Time left is told from the first process on: by a bar on a terminal, elsewhere by plain lines, which
come no more often than `EVERY_S` while work goes on, and no less often while a step takes long. It
follows from the time since work began: how long the device was waited for says nothing of it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from archloop.devices.lease import told_waiting
from archloop.errors import UserError, reason, shown

if TYPE_CHECKING:
    from archloop.profiling import Target

EVERY_S = 10.0
"""Between two lines where there is no terminal."""

Say = Callable[[float, str], None]


def target_of(
    device: str, runtime: str, quant: str, threads: int | None, contexts: Sequence[int]
) -> "Target":
    """What options ask to measure on.

    Raises:
        UserError: one has a value that it does not take.
    """
    from archloop.profiling import Target

    try:
        return Target(
            device=_device(device),
            runtime=runtime,
            quant=quant,
            threads=threads,
            contexts=tuple(contexts),
        )
    except ValidationError as error:
        raise wrong_option(error) from error


def wrong_option(error: ValidationError) -> UserError:
    """The first option that has a value which it does not take."""
    first = error.errors(include_url=False)[0]
    return UserError(f"--{first['loc'][0]} {shown(first['input'])}: {reason(first)}")


@contextmanager
def watched(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Say]:
    """What a measurement tells its progress to: the share that is done, and what is being done.

    Inside, a wait for the device is told with who has it.
    """
    with _drawn(console, clock) as say, told_waiting(partial(_say_waiting, say)):
        yield say


def _say_waiting(say: Say, words: str) -> None:
    say(0.0, f"waiting for {words}" if words else "the device is free")


@contextmanager
def _drawn(console: Console, clock: Callable[[], float]) -> Iterator[Say]:
    began = clock()
    if console.is_terminal:
        columns = (
            *(TextColumn("{task.description}", markup=False), BarColumn()),
            *(TimeElapsedColumn(), TextColumn("{task.fields[left]}")),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("waiting until the device is free", total=1.0, left="")

            def draw(share: float, what: str) -> None:
                nonlocal began
                if not share:
                    began = clock()
                left = _left(share, clock() - began)
                bar.update(task, completed=share, description=what, left=left)

            yield draw
        return
    lines = _Lines(console, clock)
    lines(0.0, "waiting until the device is free")
    over = threading.Event()
    beside = threading.Thread(target=lines.until, args=(over,), daemon=True)
    beside.start()
    try:
        yield lines
    finally:
        over.set()
        beside.join()


class _Lines:
    """Progress in plain lines."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self._clock, self._lock = console, clock, threading.Lock()
        self._began = clock()
        self._said = self._began - EVERY_S
        self._latest = (0.0, "")

    def __call__(self, share: float, what: str) -> None:
        """Take note of how far it is; a line if one is due."""
        if not share:
            self._began = self._clock()
        self._latest = (share, what)
        self.write()

    def write(self) -> None:
        """A line, unless one was written just now."""
        with self._lock:
            now, (share, what) = self._clock(), self._latest
            if now - self._said < EVERY_S:
                return
            self._said = now
            left = _left(share, now - self._began)
            text = f"{share:4.0%} {what}{f', {left}' if left else ''}"
            self._console.print(text, markup=False)

    def until(self, over: threading.Event) -> None:
        """Write lines while a step takes long."""
        while not over.wait(1.0):
            self.write()


def _left(share: float, spent_s: float) -> str:
    """Time left in words, once some work is done."""
    if not 0 < share < 1:
        return ""
    seconds = spent_s * (1 - share) / share
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def _device(text: str) -> Any:
    """A device as a recipe gives it, from ``name`` or ``name:key=value,key=value``."""
    name, _, settings = text.partition(":")
    pairs = [pair.partition("=") for pair in settings.split(",") if pair]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"--device {text!r}: {wrong[0]!r} has no value; give it as {wrong[0]}=...")
    return {"name": name, **{key: value for key, _, value in pairs}}
