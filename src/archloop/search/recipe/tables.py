"""A recipe's `tables:`: files of measured blocks, and what a stack must keep by their estimates."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from archloop.ranking.budgets import Budget


class TableSection(BaseModel):
    """Tables of one device, engine and quantisation; a bare word or list is its files.

    Attributes:
        files: written by `archloop blocks`, from the recipe's own folder; of equal rows the first
            file's count.
        budgets: that estimates are held to, beside those of the target of this name.
        slack: a stack is ruled out where its estimate exceeds a limit by more than this share,
            since an estimate is not exact.
        device: whose rows count, where the files have those of several.
        runtime: likewise; a target of this name says it itself.
        quant: likewise.
        threads: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...] = Field(min_length=1)
    budgets: tuple[Budget, ...] = ()
    slack: Annotated[float, Field(ge=0, le=10)] = 0.1
    device: str | None = None
    runtime: str | None = None
    quant: str | None = None
    threads: Annotated[int, Field(ge=1)] | None = None

    @field_validator("budgets")
    @classmethod
    def _check_budgets(cls, budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
        for budget in budgets:
            if budget.target is not None:
                raise ValueError("leave target out of a table's budgets: they are the table's own")
            if budget.metric == "decode_p95_ms":
                raise ValueError(
                    "no table predicts decode_p95_ms; give decode_p50_ms, ttft_ms or "
                    "peak_memory_bytes"
                )
        return budgets


def section_of(value: object) -> object:
    """A section, also where files alone were given."""
    if isinstance(value, str):
        return {"files": (value,)}
    return {"files": tuple(value)} if isinstance(value, (list, tuple)) else value
