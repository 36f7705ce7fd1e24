"""How to measure: how often, how long, and when to give up. A `Target` says on what."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_MONTH_S = 30 * 24 * 3600.0
"""Longer limits overflow the timers of the system."""

_MOST = 2**20
"""Upper bound on steps and repeats; more would run for days."""
Count = Annotated[int, Field(ge=1)]
Repeats = Annotated[int, Field(ge=1, le=_MOST)]


class ProfileConfig(BaseModel):
    """The measuring protocol's settings; the defaults are those of `docs/methodology.md`.

    They hold for every target of a study alike.

    Attributes:
        processes: fresh processes, each one sample; at least 2, or there is no interval.
        repeats: of a look's processes that were disturbed, how many are measured again, once each
            and only if the device has come to rest. What decides are readings of the device, never
            the times.
        warmup_steps: untimed decode steps at each context.
        timed_steps: timed decode steps at each context.
        step_group: decode steps timed in a row, before the reference's process has its turn.
        settle_steps: untimed steps at the start of each group, while caches still hold the
            other process's data (one such step in twenty would be the 95th percentile).
        prefill_repeats: timed prefills of each process and context.
        full_prefill_tokens: a longer prompt is not prefilled whole if the engine takes it in parts:
            its time is composed from parts timed at several depths, and flagged so; at least 512.
        decode_tokens: tokens of one request, for the latency objective.
        time_limit_s: that a process may take for the work asked of it.
        memory_limit_bytes: of private memory of a process; None leaves it to the system.
        ready_timeout_s: how long to wait for a quiet device before measuring all the same.
        seed: of weights, prompts and filled states.
        fork: processes are forked from one that has imported the engine, where that can be done;
            None: on targets that compute on a graphics card. On a processor they are no samples of
            their own: intervals are then too narrow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    processes: int = Field(5, ge=2, le=1000)
    repeats: int = Field(2, ge=0, le=1000)
    warmup_steps: int = Field(20, ge=0, le=_MOST)
    timed_steps: Repeats = 100
    step_group: Repeats = 20
    settle_steps: int = Field(2, ge=0, le=_MOST)
    prefill_repeats: Repeats = 2
    full_prefill_tokens: int = Field(4096, ge=512)
    decode_tokens: Count = 256
    time_limit_s: float = Field(900.0, gt=0, le=_MONTH_S)
    memory_limit_bytes: Count | None = None
    ready_timeout_s: float = Field(5.0, ge=0, le=_MONTH_S)
    seed: int = Field(0, ge=0, le=2**63 - 1)
    fork: bool | None = None

    def forks(self, on_card: bool) -> bool:
        """Whether processes of a runtime, on a graphics card or not, are to be forked."""
        return on_card if self.fork is None else self.fork

    @property
    def step_groups(self) -> list[int]:
        """Timed steps of each group."""
        whole, rest = divmod(self.timed_steps, self.step_group)
        return [self.step_group] * whole + ([rest] if rest else [])

    @property
    def room(self) -> int:
        """Tokens that decode steps add to a context."""
        return self.warmup_steps + self.timed_steps + self.settle_steps * len(self.step_groups)
