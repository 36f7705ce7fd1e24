"""A running study on the terminal: a panel that moves, or plain lines when nobody can see it move.

The panel has what is being tried and why, with the time that is left of it, who may be on the front
and how probably, and the budgets that bite. Each finished trial is printed above it, and what is to
be known of the study before it begins.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from archloop.report.html import duration
from archloop.report.palette import label
from archloop.store.progress import Event, Likely
from archloop.store.progress import Progress as Listener

MOST_LIKELY = 6
"""Stacks of the front that the panel has room for."""
MOST_BUDGETS = 3
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
    panel = _Panel()
    with Live(panel, console=console, transient=True, refresh_per_second=4) as live:
        yield _Live(panel, live)


def describe(event: Event) -> str:
    """What is being done, in words."""
    text = _DOING.get(event.phase, event.phase)
    if event.waits_for:
        text = f"waiting for {event.waits_for}, then {text}"
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
    point = ", ".join(f"{value:.3g}" for value in event.reference_point)
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
        elif event.phase == "noted":
            text = event.detail
        else:
            text = f"{describe(event)} {event.detail}".rstrip()
            text += f" ({event.why})" if event.why and event.phase == "profile" else ""
        elapsed = time.monotonic() - self.began
        self.console.print(f"[{elapsed:7.1f} s] {text}", markup=False, soft_wrap=True)


class _Now(NamedTuple):
    """Something under way, and when it began."""

    event: Event
    began_s: float


class _Panel:
    """What is under way and what is known; drawn anew by itself, so that times go on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way: dict[int | None, _Now] = {None: _Now(Event("setup"), clock())}
        self._latest = Event("setup")
        self._front: tuple[Likely, ...] = ()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if event.waits_for is None:
            # That a job waits is told with what was known when it was asked for.
            self._latest = event
        if event.phase in ("told", "finished"):
            self._under_way.pop(event.trial, None)
        else:
            # What comes before trials, such as the reference run, is over once one begins.
            if event.trial is not None and event.trial >= 0:
                self._under_way = {
                    n: now for n, now in self._under_way.items() if n is not None and n >= 0
                }
            else:
                self._under_way.clear()
            self._under_way[event.trial] = _Now(event, self._clock())
        if event.phase == "told":
            self._front = event.front()

    def __rich__(self) -> RenderableType:
        """The panel as it is now."""
        parts: list[RenderableType] = [self._head()]
        parts += [self._line(now) for now in self._under_way.values()]
        if self._front:
            parts.append(self._likely())
        if bites := self._latest.bites[:MOST_BUDGETS]:
            words = ", ".join(f"{budget} ({count})" for budget, count in bites)
            parts.append(Text(f"budgets that bite (trials that broke each): {words}"))
        return Group(*parts)

    def _head(self) -> RenderableType:
        event, line = self._latest, Table.grid(padding=(0, 1))
        if event.num_trials:
            bar = ProgressBar(total=event.num_trials, completed=event.num_told, width=24)
            line.add_row(bar, f"{event.num_told}/{event.num_trials}", Text(result(event)))
        return line

    def _line(self, now: _Now) -> RenderableType:
        event, spent_s = now.event, self._clock() - now.began_s
        detail = event.detail
        if event.trial is not None and event.trial >= 0:
            detail = " ".join(label(name) for name in event.detail.split())
        words = [describe(event), detail, f"({event.why})" if event.why else ""]
        text = " ".join(filter(None, words)) + f", {duration(spent_s)}"
        if event.typical_s is not None and not event.waits_for:
            left_s = event.typical_s - spent_s
            text += f", about {duration(left_s)} left" if left_s > 0 else ", longer than most"
        return Spinner("dots", Text(text))

    def _likely(self) -> RenderableType:
        names = list(self._front[0].values)
        table = Table("may be on the front", "layout", *names, "probability", box=None)
        for each in self._front[:MOST_LIKELY]:
            table.add_row(
                "reference" if each.number < 0 else str(each.number),
                " ".join(label(name) for name in each.layout),
                *(f"{each.values[name]:.3f}" for name in names),
                f"{each.probability:.0%}",
            )
        return table


class _Live:
    """The panel, with each finished trial and what is to be known printed above it."""

    def __init__(self, panel: _Panel, live: Live) -> None:
        self.panel, self.live = panel, live

    def __call__(self, event: Event, /) -> None:
        if event.phase == "noted":
            self.live.console.print(event.detail, markup=False, highlight=False)
            return
        if event.phase == "told":
            # How it goes so far stands in the panel.
            self.live.console.print(_ended(event), markup=False, highlight=False)
        self.panel(event)


def _outcome(event: Event) -> str:
    if event.phase == "finished":
        return f"finished: {result(event)}" + (f"; {event.detail}" if event.detail else "")
    ending = f"; {result(event)}" if event.state == "complete" else ""
    return f"{_ended(event)}{ending}"


def _ended(event: Event) -> str:
    """How a trial ended."""
    return f"trial {event.trial} {event.state or ''}: {event.detail}"
