"""What a study keeps, as plain records: everything that is shown is recomputed from these.

The study writes them, `store.store` reads them back, reports and programs consume them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from archloop.evals.base import Score
from archloop.profiling.record import Profile
from archloop.ranking.record import BrokenBudget, Objectives, Readings
from archloop.stack.spec import StackSpec

TrialState = Literal["running", "complete", "rejected", "unsupported", "failed"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Costs(_Record):
    """Estimates at ship width, from formulas; bytes for one sequence at each profiled context."""

    num_params: int
    num_active_params: int
    state_bytes: dict[str, int]
    decode_flops: dict[str, int]


class Rung(_Record):
    """One proxy training and its evaluation.

    Attributes:
        index: 0 is the cheapest rung; objectives of different rungs are not compared.
        scores: by task; the aggregate uses those that the reference preset passed.
        learning_rate: that was used.
        losses: training loss, thinned, as (step, loss).
        diverged: the loss stopped being finite.
    """

    index: int
    num_steps: int
    num_tokens: int
    scores: dict[str, Score]
    objectives: Objectives | None
    learning_rate: float
    losses: tuple[tuple[int, float], ...]
    diverged: bool
    seconds_train: float
    seconds_eval: float


class TrialRecord(_Record):
    """One tried spec.

    Attributes:
        number: Optuna's trial number; the reference preset has -1.
        state: rejected means that a budget was broken, before any training; unsupported that a
            required target cannot run the spec.
        origin: how it was proposed: preset, random, mutation, crossover, ...
        parents: trial numbers.
        spec: at ship width; `proxy_spec` is what was trained.
        profiles: by target; `left_out` maps each optional target that cannot run it to the reason.
        straddles: budgets that the interval still contains after a second look.
        hypervolume_gain: of rung 0's front when this trial was told.
        error: of a failed trial, one line.
    """

    number: int
    state: TrialState
    origin: str
    parents: tuple[int, ...] = ()
    genome: dict[str, Any]
    spec: StackSpec
    proxy_spec: StackSpec
    costs: Costs
    profiles: dict[str, Profile] = {}
    left_out: dict[str, str] = {}
    broken: tuple[BrokenBudget, ...] = ()
    straddles: tuple[str, ...] = ()
    rungs: tuple[Rung, ...] = ()
    hypervolume_gain: float | None = None
    error: str | None = None
    seconds: dict[str, float] = {}

    @property
    def objectives(self) -> Objectives | None:
        """Of rung 0, which every trained trial has."""
        return self.rungs[0].objectives if self.rungs else None


class FamilyRate(_Record):
    """The tuned learning rate of a mixer.

    Attributes:
        value: the best of those tried, on a stack of this mixer alone.
        losses: what each rate reached (held-out bits per byte), less is better; infinite if it
            diverged.
        at_edge: the best is the smallest or largest tried, so a better one may lie outside.
    """

    value: float
    losses: dict[str, float]
    at_edge: bool


class StudyRecord(_Record):
    """A whole study.

    Attributes:
        environment: versions, device description, corpus hash, seed.
        reference: the reference preset, measured and trained like a trial.
        reference_point: worst quality, latency and memory that count, fixed before trial 0.
        admitted: tasks in the aggregate; `dropped` maps each other task to the reason.
        noise: readings of stacks that were read several times and are no trials, by figure.
        learning_rates: by mixer; empty when they were not tuned, and then no claim about a family
            of mixers holds.
        ended: why the study stopped before its last trial; None otherwise.
        seconds_by_stage: wall time: setup, profile, train, evaluate, search, ...
        overhead: share of wall time spent in the main process outside the stages.
    """

    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    reference: TrialRecord | None
    reference_point: Objectives | None
    admitted: tuple[str, ...]
    dropped: dict[str, str]
    noise: tuple[dict[str, Readings], ...] = ()
    learning_rates: dict[str, FamilyRate] = {}
    ended: str | None = None
    trials: tuple[TrialRecord, ...]
    seconds_by_stage: dict[str, float]
    overhead: float | None
