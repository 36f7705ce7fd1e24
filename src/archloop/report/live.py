"""A running study on the terminal: one live line, or plain lines when nobody can see it move."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from archloop.report.html import duration
from archloop.store.progress import Event
from archloop.store.progress import Progress as Listener

_DOING = {
    "setup": "preparing text and tokenizer",
    "tune": "tuning learning rates",
    "reference": "reference preset:",
    "propose": "proposing",
    "profile": "measuring",
    "train": "training",
}


@contextmanager
def display(console: Console) -> Iterator[Listener]:
    """A listener for `Study.run` that draws on a console until the block ends."""
    if not console.is_terminal:
        yield _Plain(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[result]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Live(bar)


def describe(event: Event) -> str:
    """What is being done, in words."""
    text = _DOING.get(event.phase, event.phase)
    if event.trial is not None and event.trial >= 0:
        text = f"trial {event.trial}: {text}"
    if event.rung:
        text += f" (rung {event.rung})"
    return text


def result(event: Event) -> str:
    """How it goes so far, by point values, and time left; nothing before trial 0.

    What may be said of a study is worked out at its end, with the noise that it showed by then.
    """
    if event.reference_point is None:
        return ""
    point = ", ".join(f"{value:g}" for value in event.reference_point)
    volume = f"hypervolume {event.hypervolume:.4f} to ({point})"
    parts = [f"so far, noise aside: {event.front_size} undominated", volume]
    if event.seconds_left:
        parts.append(f"about {duration(event.seconds_left)} left")
    return ", ".join(parts)


class _Plain:
    """One line per event that begins a trial's phase or ends a trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.monotonic()

    def __call__(self, event: Event, /) -> None:
        if event.phase == "propose":
            return
        if event.phase in ("told", "finished"):
            text = _outcome(event)
        else:
            text = f"{describe(event)} {event.detail}".rstrip()
        elapsed = time.monotonic() - self.began
        self.console.print(f"[{elapsed:7.1f} s] {text}", markup=False, soft_wrap=True)


class _Live:
    """The live line, with each finished trial printed above it."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.task = bar.add_task("starting", total=None, result="")

    def __call__(self, event: Event, /) -> None:
        if event.phase == "told":
            self.bar.console.print(_outcome(event), markup=False, highlight=False)
        # Of a trial the detail is its layout, for which a line has no room.
        detail = event.detail if event.trial is None or event.trial < 0 else ""
        self.bar.update(
            self.task,
            description=f"{describe(event)} {detail}".rstrip(),
            completed=event.num_told,
            total=event.num_trials or None,
            result=result(event),
        )


def _outcome(event: Event) -> str:
    if event.phase == "finished":
        return f"finished: {result(event)}" + (f"; {event.detail}" if event.detail else "")
    state = event.state or ""
    ending = f"; {result(event)}" if state == "complete" else ""
    return f"trial {event.trial} {state}: {event.detail}{ending}"
