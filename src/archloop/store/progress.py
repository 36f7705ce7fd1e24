"""What a study says while it runs; a display draws it, and a test can listen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Phase = Literal[
    "setup", "noted", "tune", "reference", "propose", "profile", "train", "told", "finished"
]
"""What a study is doing; wall time is given by phase."""


class Likely(NamedTuple):
    """A stack that may be on the front.

    Attributes:
        number: of its trial; -1 is the reference run.
        layout: its mixers, block by block.
        values: estimates by objective.
        probability: that it is on the front, by all that was read so far.
    """

    number: int
    layout: tuple[str, ...]
    values: dict[str, float]
    probability: float


def nobody() -> tuple[Likely, ...]:
    """The front before there is one."""
    return ()


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        phase: what begins now; told and finished report an end instead, and of noted nothing
            begins: `detail` is something to know before the study goes on.
        trial: number of the trial at hand; None outside trials, -1 for the reference preset.
        num_told: trials finished so far.
        num_trials: trials that the recipe asks for.
        front_size: trials that no other dominates by point values at rung 0.
        hypervolume: of these values, up to `reference_point`; noise alone makes it grow.
        reference_point: by objective; None until it is fixed.
        seconds_left: estimate from the trials told so far; None before the first.
        detail: a few plain words, such as a layout or the budget that was broken.
        state: of a trial that was told.
        rung: of a training.
        why: where the trial at hand comes from: its origin and parents.
        waits_for: the device that this waits for and who has it; empty once it has its turn.
        typical_s: what this phase took in the trials told so far; None before the first.
        bites: budgets with the number of trials that broke each, most first.
        front: computes who may be on the front and how probably; takes tens of milliseconds.
    """

    phase: Phase
    trial: int | None = None
    num_told: int = 0
    num_trials: int = 0
    front_size: int = 0
    hypervolume: float = 0.0
    reference_point: tuple[float, ...] | None = None
    seconds_left: float | None = None
    detail: str = ""
    state: str | None = None
    rung: int | None = None
    why: str = ""
    waits_for: str | None = None
    typical_s: float | None = None
    bites: tuple[tuple[str, int], ...] = ()
    front: Callable[[], tuple[Likely, ...]] = nobody


class Progress(Protocol):
    """Whoever wants to know: called in the main process with each event, and should be quick.

    That a job waits is told by the thread that waits, everything else by the study's own.
    """

    def __call__(self, event: Event, /) -> None:
        """Take note of an event."""


def ignore(event: Event, /) -> None:
    """A listener that does nothing."""
