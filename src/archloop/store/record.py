"""What a study keeps, as plain records: everything that is shown is recomputed from these.

The study writes them, `store.reading` reads them back, reports and programs consume them.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from archloop.evals.base import Score
from archloop.profiling.record import Profile
from archloop.proxy.record import Rung
from archloop.ranking.anchors import Scale
from archloop.ranking.objectives import readable
from archloop.ranking.record import BrokenBudget, Objective, Objectives, Readings
from archloop.stack.spec import StackSpec
from archloop.store.identity import of_settings

TrialState = Literal["running", "complete", "rejected", "unsupported", "failed"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Costs(_Record):
    """Estimates at ship width, from formulas; bytes for one sequence at each profiled context."""

    num_params: int
    num_active_params: int
    state_bytes: dict[str, int]
    decode_flops: dict[str, int]


class Candidate(_Record):
    """What a trial tries.

    Attributes:
        spec: at ship width, measured; `proxy_spec` is what is trained.
        genome: that both were built from; None for a spec that no space proposed.
        origin: how it came about: preset, random, mutation, crossover, ...
        parents: trial numbers.
        replicates: number of the trial of which this is another measurement and training.
        num_ruled_out: proposals in its place that tables of measured blocks ruled out; with the
            strategy `model`, candidates that it would have compared.
    """

    spec: StackSpec
    proxy_spec: StackSpec
    genome: dict[str, Any] | None
    origin: str
    parents: tuple[int, ...] = ()
    replicates: int | None = None
    num_ruled_out: int = 0


class Outcome(_Record):
    """How a trial ended: what the next proposals and a reader need, small enough for a database.

    Attributes:
        state: rejected means that a budget was broken, before any training; unsupported that a
            required target cannot run the spec.
        by_rung: objectives at each rung that was reached.
        readings: of latency, memory and each figure that a budget limits, by name: of rejected
            trials too, since their processes show the same noise. One that was measured up to the
            target whose budget it broke has those of limited figures alone.
        diverged: the training of the last of these rungs did.
        straddles: budgets that the interval still contains after a second look.
        excess: by how much budgets are exceeded, relative to their limits.
        hypervolume_gain: by point values at rung 0 when this trial was told.
        error: of a failed trial, one line.
        files: checksum of each stage file, by name.
        seconds: wall time by phase.
    """

    state: TrialState
    by_rung: tuple[Objectives, ...] = ()
    readings: dict[str, Readings] = {}
    diverged: bool = False
    broken: tuple[BrokenBudget, ...] = ()
    straddles: tuple[str, ...] = ()
    excess: float = 0.0
    hypervolume_gain: float | None = None
    error: str | None = None
    files: dict[str, str] = {}
    seconds: dict[str, float] = {}

    @property
    def objectives(self) -> Objectives | None:
        """Of rung 0, which every trained trial has."""
        return self.by_rung[0] if self.by_rung else None

    @property
    def scored(self) -> bool:
        """It may stand on rung 0's front: it was trained there, and did not diverge."""
        return bool(self.by_rung) and not self.diverged_at(0)

    @property
    def reached(self) -> tuple[Objectives, ...]:
        """What was read of it, by rung, as far as its training did not diverge."""
        if self.state != "complete":
            return ()
        return self.by_rung[:-1] if self.diverged else self.by_rung

    def diverged_at(self, rung: int) -> bool:
        """Whether the training of this rung ended by a loss that was not finite."""
        return self.diverged and rung == len(self.by_rung) - 1


class TrialRecord(Candidate, Outcome):
    """One tried spec: the candidate, how it ended, and what its files tell besides.

    Attributes:
        number: the reference preset has -1.
        profiles: by target; `left_out` maps each optional target that cannot run it to the reason.
        rungs: trainings and scores of the rungs in `by_rung`, as far as their files are whole.
        scores_by_seed: of each rung among them that was trained several times, the scores of each
            training, of which `rungs` has the average.
        damaged: a line for each file that is missing or not what was stored.
    """

    number: int
    costs: Costs
    profiles: dict[str, Profile] = {}
    left_out: dict[str, str] = {}
    rungs: tuple[Rung, ...] = ()
    scores_by_seed: dict[int, tuple[dict[str, Score], ...]] = {}
    damaged: tuple[str, ...] = ()

    def rung(self, index: int) -> Rung | None:
        """The training of a rung, if it was reached and its file is whole."""
        return next((rung for rung in self.rungs if rung.index == index), None)


class FamilyRate(_Record):
    """The tuned learning rate of a mixer.

    Attributes:
        value: the best of those tried, on a stack of this mixer alone; with a curvature the lowest
            point of the parabola through them.
        losses: what each rate reached (held-out bits per byte), less is better; infinite if it
            diverged.
        at_edge: the best is the smallest or largest tried, or the parabola is lowest far outside,
            so a better one may lie outside.
        curvature: of that parabola, bits per byte at a factor of two.
    """

    value: float
    losses: dict[str, float]
    at_edge: bool
    curvature: float | None = None


class StudyRecord(_Record):
    """A whole study.

    Attributes:
        environment: versions, device description, corpus hash, seed.
        reference: the reference preset, measured and trained like a trial.
        reference_point: worst quality, latency and memory that count, fixed before trial 0.
        scale: how scores become quality, None if no score counts (or before that is known), which
            makes the study one of devices; `dropped` maps each score that does not count to the
            reason, and `anchors` the anchor stacks by name to their scores, the reference aside.
        noise: readings of stacks that were read several times and are no trials, by figure.
        learning_rates: by mixer; empty when they were not tuned. A claim about a family of mixers
            needs them and is not proved by them: each rate was tried in a single training.
        ended: why the study stopped before its last trial; None otherwise.
        num_trials: asked for, replicates aside.
        seconds_by_phase: wall time: setup, profile, train, evaluate, search, ...
        overhead: share of wall time spent in the main process besides.
    """

    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    reference: TrialRecord | None
    reference_point: Objectives | None
    scale: Scale | None
    dropped: dict[str, str]
    anchors: dict[str, dict[str, Score]] = {}
    noise: tuple[dict[str, Readings], ...] = ()
    learning_rates: dict[str, FamilyRate] = {}
    ended: str | None = None
    num_trials: int = 0
    trials: tuple[TrialRecord, ...]
    seconds_by_phase: dict[str, float]
    overhead: float | None

    @property
    def is_stopped(self) -> bool:
        """Whether it has still to do what was asked for: a trial runs, or there are too few."""
        told = [trial for trial in self.trials if trial.state != "running"]
        is_short = sum(trial.replicates is None for trial in told) < self.num_trials
        return len(told) < len(self.trials) or (is_short and self.ended is None)

    @property
    def admitted(self) -> tuple[str, ...]:
        """Scores that count in quality."""
        return () if self.scale is None else tuple(self.scale.anchors)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What it optimises, in order: of devices alone if no score tells the anchors apart."""
        wanted = of_settings(self.recipe)
        return wanted if self.reference is None else readable(wanted, self.scale)

    @property
    def mixers(self) -> list[str]:
        """Sorted names of the mixers that its stacks have, the reference's too."""
        stacks = (self.reference, *self.trials)
        layouts = [trial.spec.layout for trial in stacks if trial is not None]
        return sorted({name for each in layouts for joined in each for name in joined.split("+")})
