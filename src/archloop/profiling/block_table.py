"""What pieces of stacks were measured to cost: a file that others may use to screen for a device.

A row says what one piece (half a block, or a stack's two ends: embedding and head) adds to a decode
step, to a prompt and to memory, on one device, engine, quantisation and context. It comes from two
measurements: a stack of several copies of the piece, less the two ends alone, by the number of
copies. Tables of one device may be joined; rows of different devices never meet.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from archloop.errors import UserError
from archloop.files import write_atomic
from archloop.profiling.record import Identity, Interval, Profile
from archloop.runtimes.pieces import Piece
from archloop.stack.spec import StackSpec

SCHEMA: Final = 2


class Where(BaseModel):
    """What must be equal for rows to be added up: all of a measurement's identity but contexts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    runtime: str
    runtime_version: str
    quant: str
    precision: str
    threads: int

    @classmethod
    def of(cls, identity: Identity) -> "Where":
        """Of a measurement."""
        return cls(**{name: getattr(identity, name) for name in cls.model_fields})


class BlockRow(BaseModel):
    """What one copy of a piece adds, with the 95% interval of the two measurements together.

    Attributes:
        part: ``ends`` is a whole stack without blocks; the others are halves of blocks.
        spec: a stack with that part alone (`runtimes.pieces.Piece`); of ends, without blocks.
        context: prompt tokens, and depth of the decode step.
        decode_ms: of a median step.
        prefill_ms: of a prompt.
        memory_bytes: of peak memory, above the empty engine.
        engine_empty_bytes: that engine's memory, before a model was loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: Where
    part: Literal["ends", "mixers", "channel"]
    spec: StackSpec
    context: int
    decode_ms: Interval
    prefill_ms: Interval
    memory_bytes: Interval
    engine_empty_bytes: float


class BlockTable(BaseModel):
    """Rows, in a file with a schema."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = SCHEMA
    rows: tuple[BlockRow, ...] = ()

    def joined(self, others: Iterable["BlockTable"]) -> "BlockTable":
        """With the rows of other tables; of equal pieces the first one's count."""
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
        UserError: there is none, or it is damaged or of another version.
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


def rows_of_ends(ends: StackSpec, profile: Profile) -> list[BlockRow]:
    """Rows of a stack without blocks, one a context."""
    assert not ends.blocks, "ends are a stack without blocks"
    return [
        BlockRow(
            where=Where.of(profile.identity),
            part="ends",
            spec=ends,
            context=at.context,
            decode_ms=at.decode_p50_ms,
            prefill_ms=at.ttft_ms,
            memory_bytes=_less(at.peak_memory_bytes, at.engine_empty_bytes, 1),
            engine_empty_bytes=at.engine_empty_bytes.value,
        )
        for at in profile.figures
    ]


def rows_of_piece(
    piece: Piece, profile: Profile, count: int, ends: list[BlockRow]
) -> list[BlockRow]:
    """Rows of a half of a block, one a context.

    Args:
        piece: the half.
        profile: of `copies`.
        count: of copies in it.
        ends: rows of the same ends, from the same device.
    """
    assert piece.part in ("mixers", "channel"), "other pieces are measured together, as ends"
    by_context = {row.context: row for row in ends}
    rows = []
    for at in profile.figures:
        end = by_context[at.context]
        assert end.where == Where.of(profile.identity), "measured elsewhere"
        net = _less(at.peak_memory_bytes, at.engine_empty_bytes, 1)
        rows.append(
            BlockRow(
                where=end.where,
                part="mixers" if piece.part == "mixers" else "channel",
                spec=piece.spec,
                context=at.context,
                decode_ms=_less(at.decode_p50_ms, end.decode_ms, count),
                prefill_ms=_less(at.ttft_ms, end.prefill_ms, count),
                memory_bytes=_less(net, end.memory_bytes, count),
                engine_empty_bytes=at.engine_empty_bytes.value,
            )
        )
    return rows


def _less(whole: Interval, part: Interval, count: int) -> Interval:
    """The difference by copy; independent errors add in squares."""
    value = (whole.value - part.value) / count
    low = ((whole.value - whole.low) ** 2 + (part.high - part.value) ** 2) ** 0.5 / count
    high = ((whole.high - whole.value) ** 2 + (part.value - part.low) ** 2) ** 0.5 / count
    return Interval(value=value, low=value - low, high=value + high)


def _key(row: BlockRow) -> tuple[object, ...]:
    return row.where, row.part, row.spec.to_json(), row.context
