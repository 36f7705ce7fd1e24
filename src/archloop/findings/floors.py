"""How far each mixer's kernels are from the floor of the card on which a study measures.

A family that loses because its kernel is slow has not lost. So a study's report shows, beside its
front, the time of each family over the least that the card allows. These tables are measured apart
from any study (`benchmarks/fairness.py`): one file a card in `cards/`, found by card, engine and
quantisation of a target.
"""

import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from archloop.profiling.record import Identity
from archloop.store.record import StudyRecord

FAIR = 3.0
"""Times its floor that a family may take and still be judged by what it is."""


class Row(NamedTuple):
    """One mixer, alone in its blocks.

    Attributes:
        prefill: time over the floor, by context; None where it was not measured.
        decode: likewise, of a step behind so many tokens.
    """

    mixer: str
    prefill: tuple[float | None, ...]
    decode: tuple[float | None, ...]

    @property
    def worst(self) -> float:
        """The largest; infinite where something was not measured."""
        return max(math.inf if each is None else each for each in (*self.prefill, *self.decode))

    @property
    def is_fair(self) -> bool:
        """Whether it is measured, and nowhere beyond `FAIR`."""
        return self.worst <= FAIR


class Floors(NamedTuple):
    """What is known of one target.

    Attributes:
        target: its name.
        measured: on what and when, in words.
        width: of the stream that the mixers were measured at.
        contexts: of the figures.
        rows: the study's mixers that were measured.
        unknown: those that were not.
    """

    target: str
    measured: str
    width: int
    contexts: tuple[int, ...]
    rows: tuple[Row, ...]
    unknown: tuple[str, ...]

    @property
    def slow(self) -> tuple[Row, ...]:
        """Mixers that somewhere take more than `FAIR` times their floor, the worst first."""
        return tuple(
            sorted((row for row in self.rows if not row.is_fair), key=lambda row: -row.worst)
        )

    @property
    def words(self) -> str:
        """What follows for the front, in a sentence."""
        if not self.slow:
            return f"{self.target}: every measured family is within {FAIR:g} times its floor"
        names = ", ".join(f"{row.mixer} (up to {row.worst:.1f})" for row in self.slow)
        return (
            f"{self.target}: kernels take over {FAIR:g} times the least that the card allows in "
            f"{names}; where these lose in latency, their kernels may have lost"
        )


def floors(study: StudyRecord) -> list[Floors]:
    """A table for each target whose card and engine were measured; none where none was."""
    if study.reference is None:
        return []
    known = [
        (name, table)
        for name, profile in study.reference.profiles.items()
        for table in tables()
        if _is_of(table, profile.identity)
    ]
    return [_of_target(name, table, study.mixers) for name, table in known]


def _is_of(table: dict[str, Any], identity: Identity) -> bool:
    # The card's name ends a part of the device's, since a machine may have several cards.
    parts = identity.device.split(", ")
    return (
        any(part.endswith(table["device"]) for part in parts)
        and table["runtime"] == identity.runtime
        and table["quant"] == identity.quant
    )


def _of_target(name: str, table: dict[str, Any], mixers: Sequence[str]) -> Floors:
    rows = table["rows"]
    contexts = tuple(sorted({int(context) for of_mixer in rows.values() for context in of_mixer}))

    def over(mixer: str, phase: str) -> tuple[float | None, ...]:
        return tuple(
            rows[mixer].get(str(context), {}).get(f"{phase} over floor") for context in contexts
        )

    return Floors(
        target=name,
        measured=f"{table['device']}, {table['quant']}, torch {table['torch']}, {table['date']}",
        width=table["width"],
        contexts=contexts,
        rows=tuple(
            Row(mixer, over(mixer, "prefill"), over(mixer, "decode"))
            for mixer in mixers
            if mixer in rows
        ),
        unknown=tuple(mixer for mixer in mixers if mixer not in rows),
    )


@cache
def tables() -> tuple[dict[str, Any], ...]:
    """All that were measured, as `benchmarks/fairness.py` printed them."""
    return tuple(_read())


def _read() -> Iterator[dict[str, Any]]:
    folder = files("archloop.findings") / "cards"
    for file in sorted(folder.iterdir(), key=lambda each: each.name):
        if file.name.endswith(".json"):
            yield json.loads(file.read_text())
