"""Measuring the pieces of stacks, a few measurements for thousands of stacks: a table is made.

    1. Take stacks apart into ends and halves of blocks, those first that occur most often.
    2. Measure the ends alone, each half as a stack of copies of it, and some stacks as they are.
    3. Each of them is a row.

Each measurement stays in a folder, so that an interrupted run goes on.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.profiling.block_table import (
    BlockRow,
    BlockTable,
    copies,
    rows_of,
)
from archloop.profiling.record import Profile
from archloop.runtimes.pieces import Piece, inseparable, pieces
from archloop.stack.spec import StackSpec
from archloop.workers.deaths import WorkerError

_log = logging.getLogger(__name__)
COPIES = 4
"""Of a half in the stack that is measured for it: more of them drown less in the ends' noise."""

Measure = Callable[[StackSpec, Path], Profile]
"""Measures a stack, keeping its samples in a folder."""


def halves(first: StackSpec, specs: Iterable[StackSpec]) -> dict[StackSpec, list[Piece]]:
    """Halves of blocks by the ends that they stand between: those of one stack, then by frequency.

    Stacks that are not made of pieces count for nothing.
    """
    found: dict[StackSpec, Counter[Piece]] = {}
    for spec in (first, *specs):
        if inseparable(spec) is None:
            own = found.setdefault(spec.replace(blocks=(), max_context=None), Counter())
            own.update(placed.piece for placed in pieces(spec) if placed.block is not None)
    before = [] if inseparable(first) else [placed.piece for placed in pieces(first)]
    return {
        ends: sorted(own, key=lambda piece: (piece not in before, -own[piece]))
        for ends, own in found.items()
    }


def whole(specs: Iterable[StackSpec], most: int) -> list[StackSpec]:
    """The first so many different stacks that are made of pieces: they are measured as they are.

    Copies of one half compute from a cache that a whole stack's weights leave; only whole stacks
    tell what that costs.
    """
    return [spec for spec in dict.fromkeys(specs) if inseparable(spec) is None][:most]


def table(
    wanted: Mapping[StackSpec, Sequence[Piece]],
    stacks: Sequence[StackSpec],
    measure: Measure,
    folder: Path,
    count: int = COPIES,
    written_by: str | None = None,
) -> BlockTable:
    """Rows of ends, halves and whole stacks.

    Args:
        wanted: halves by their ends.
        stacks: to be measured as they are.
        measure: called for what the folder does not have yet.
        folder: of profiles that were measured under the same circumstances (`remembered`).
        count: copies of a half in its stack.
        written_by: what exports the graphs that are measured (`artifacts.writing`).

    Raises:
        UserError: there is nothing to measure, or the engine runs nothing of it.
    """
    if not wanted:
        raise UserError("none of the stacks is made of pieces: their blocks share features")
    rows: list[BlockRow] = []
    for ends, own in wanted.items():
        for spec in (ends, *(copies(piece, ends, count) for piece in own)):
            rows += _rows(spec, measure, folder, written_by)
    for spec in stacks:
        rows += _rows(spec, measure, folder, written_by)
    if not rows:
        raise UserError("the engine runs none of the pieces and stacks; choose another runtime")
    return BlockTable(rows=tuple(rows))


def _rows(
    spec: StackSpec, measure: Measure, folder: Path, written_by: str | None
) -> list[BlockRow]:
    """A stack's rows; none if the engine refuses it: others may still tell of its pieces."""
    try:
        return rows_of(spec, _kept(spec, measure, folder), written_by)
    except WorkerError as error:
        if error.cause != "unsupported":
            raise
        _log.warning("left out of the table: %s", error.detail)
        return []


def _kept(spec: StackSpec, measure: Measure, folder: Path) -> Profile:
    """A stack's profile, from the folder where it is there."""
    home = folder / spec.digest
    file = home / "profile.json"
    try:
        return Profile.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        # Not measured yet, or the file has rotted.
        home.mkdir(parents=True, exist_ok=True)
    found = measure(spec, home)
    write_atomic(file, found.model_dump_json().encode())
    return found
