"""What stacks were measured to cost: a file that others may use to screen for a device.

A row is what one small or whole stack was measured to take on one device, engine, quantisation and
context: of ends alone (embedding and head), of several copies of half a block between them, or of
a whole stack. What a piece costs is no row: it is fitted to all of them together (`predictor`), so
that no row is the difference of two noisy measurements. Tables of one device may be joined; rows
of different devices never meet, nor do rows of graphs that different code exported, which may take
another time for the same stack.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.profiling.record import Identity, Interval, Profile
from archloop.runtimes.pieces import Piece, code_digest
from archloop.stack.spec import StackSpec

SCHEMA: Final = 4


class Where(BaseModel):
    """What must be equal for rows to count together: a measurement's identity but contexts.

    The graphs that were measured are part of it.

    Attributes:
        written_by: what exported the graphs (`artifacts.writing`); None in tables of version 3,
            which did not keep it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    runtime: str
    runtime_version: str
    quant: str
    precision: str
    threads: int
    written_by: str | None = None

    @classmethod
    def of(cls, identity: Identity, written_by: str | None = None) -> "Where":
        """Of a measurement, and of what exported the graphs that were measured."""
        names = cls.model_fields.keys() & Identity.model_fields.keys()
        return cls(**{name: getattr(identity, name) for name in names}, written_by=written_by)

    @property
    def doubt(self) -> str | None:
        """Why the same stacks may take another time by now, in words; None: no reason is known."""
        if self.written_by is None:
            return (
                "its rows do not say which code exported the graphs that were measured, which "
                "tables of version 3 did not keep; `archloop blocks` measures anew"
            )
        if self.written_by.rpartition(" ")[2] == code_digest():
            return None
        return (
            f"other code than this exported the graphs that were measured ({self.written_by}), so "
            "that stacks may take another time by now; `archloop blocks` measures anew"
        )


class BlockRow(BaseModel):
    """What a stack of few blocks was measured to take, with 95% intervals.

    Attributes:
        spec: the stack.
        context: prompt tokens, and depth of the decode step.
        decode_ms: of a median step.
        prefill_ms: of a prompt.
        memory_bytes: of peak memory, above the empty engine.
        engine_empty_bytes: that engine's memory, before a model was loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: Where
    spec: StackSpec
    context: int
    decode_ms: Interval
    prefill_ms: Interval
    memory_bytes: Interval
    engine_empty_bytes: float


class BlockTable(BaseModel):
    """Rows, in a file with a schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[3, 4] = SCHEMA
    rows: tuple[BlockRow, ...] = ()

    def joined(self, others: Iterable["BlockTable"]) -> "BlockTable":
        """With the rows of other tables; of equal stacks the first one's count."""
        found = {_key(row): row for row in self.rows}
        for other in others:
            for row in other.rows:
                found.setdefault(_key(row), row)
        return BlockTable(rows=tuple(found.values()))

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomic(path, self.model_dump_json(indent=1).encode())


def read_table(path: Path) -> BlockTable:
    """A table from its file.

    Raises:
        UserError: there is none, or it is damaged or of a version that is not read.
    """
    try:
        return BlockTable.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"table {path} does not exist") from None
    except (ValidationError, OSError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"table {path} is no table of blocks of version {SCHEMA}: {what}") from None


def copies(piece: Piece, ends: StackSpec, count: int) -> StackSpec:
    """The stack to measure for a half of a block: so many copies of it between two ends."""
    return ends.replace(blocks=piece.spec.blocks * count)


def rows_of(spec: StackSpec, profile: Profile, written_by: str | None = None) -> list[BlockRow]:
    """Rows of a stack that was measured, one a context.

    Args:
        spec: the stack.
        profile: of it.
        written_by: what exported the graphs that were measured, as `artifacts.writing` says it.
    """
    return [
        BlockRow(
            where=Where.of(profile.identity, written_by),
            spec=spec,
            context=at.context,
            decode_ms=at.decode_p50_ms,
            prefill_ms=at.ttft_ms,
            memory_bytes=_above(at.peak_memory_bytes, at.engine_empty_bytes),
            engine_empty_bytes=at.engine_empty_bytes.value,
        )
        for at in profile.figures
    ]


def _above(peak: Interval, empty: Interval) -> Interval:
    """The difference; independent errors add in squares."""
    value = peak.value - empty.value
    low = ((peak.value - peak.low) ** 2 + (empty.high - empty.value) ** 2) ** 0.5
    high = ((peak.high - peak.value) ** 2 + (empty.value - empty.low) ** 2) ** 0.5
    return Interval(value=value, low=value - low, high=value + high)


def _key(row: BlockRow) -> tuple[object, ...]:
    return row.where, row.spec.to_json(), row.context
