"""What a study would take, before it begins: `archloop plan`.

1. The recipe is resolved, so that whatever is wrong with it comes to light.
2. The space is counted, and its prior drawn from.
3. A probe on this machine: the reference preset is measured beside itself once, and stacks are
   trained, each a few times.
4. From the probe: time by phase, what the gate can resolve, trainings that a ranking needs.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from archloop.evals.base import Score
from archloop.profiling.statistics import t_quantile
from archloop.proxy.record import TrainJob
from archloop.ranking import budgets, looks, objectives
from archloop.ranking.estimate import Estimate
from archloop.ranking.estimates import estimate, pools
from archloop.ranking.posterior import Draws as Posterior
from archloop.ranking.record import Readings
from archloop.ranking.reliability import seeds_needed
from archloop.ranking.table import table
from archloop.search import anchoring
from archloop.search.evaluator import CandidateFailed, Evaluator
from archloop.search.executors.places import places
from archloop.search.plan import Plan, Stream, stream_seed
from archloop.search.recipe.recipe import REFERENCE
from archloop.space import size
from archloop.stack.spec import StackSpec

PROBE_SEEDS = 2
"""Trainings of each probed stack: enough for a first sight of their noise."""
SECOND_LOOKS = 0.1
"""Share of trials whose budgets one look leaves undecided: 4 of 48 in six quickstarts."""

Say = Callable[[str], None]
"""Told what is probed, in a few words."""


class SpaceOutlook(NamedTuple):
    """How many genomes there are at most, as a common logarithm, and what the prior draws."""

    log10_genomes: float
    draws: size.Draws


class Probe(NamedTuple):
    """What a few measurements and trainings showed.

    Attributes:
        profile_s: of one look at one stack beside the reference.
        train_s: of one training and its evaluation at rung 0.
        resolved: by limited figure, how far from its limit, as a share of it, a stack must lie to
            be judged rightly in 97.5 of 100 cases after the last look.
        quality: estimate of each probed stack, by its name; empty where no score tells the
            anchor stacks apart.
        dropped: why each score that does not count in it does not.
        reliability: of one training's quality over the probed stacks, which lie further apart than
            those that a search compares: an upper bound.
        seeds: trainings a stack that a ranking takes at the least; None if these stacks do not
            differ.
    """

    profile_s: float
    train_s: float
    resolved: dict[str, float]
    quality: dict[str, Estimate]
    dropped: dict[str, str]
    reliability: float
    seeds: int | None


def of_space(plan: Plan) -> SpaceOutlook:
    """What can be said without measuring."""
    return SpaceOutlook(size.log10_size(plan.space), size.draws(plan.space, seed=plan.recipe.seed))


def probe(plan: Plan, evaluator: Evaluator, folder: Path, say: Say) -> Probe:
    """Measure and train a little.

    Args:
        plan: of the study.
        evaluator: that the study would use.
        folder: for what the probe leaves; it may go afterwards.
        say: told of each step.

    Raises:
        CandidateFailed: the reference preset cannot be measured, or a stack not be trained; it
            names the stack.
    """
    say("text and tokenizer")
    evaluator.prepare()
    say("the reference preset beside itself")
    began = time.monotonic()
    with _named(REFERENCE):
        measured = evaluator.profile(plan.reference, plan.reference, 1, folder / "samples")
    profile_s = time.monotonic() - began
    limited = budgets.limited(measured.profiles, plan.recipe.budgets)
    scores: dict[str, list[Mapping[str, Score]]] = {}
    train_s = []
    for name, spec in probed(plan).items():
        for index in range(PROBE_SEEDS):
            say(f"{name}, training {index + 1} of {PROBE_SEEDS}")
            began = time.monotonic()
            with _named(name):
                found = _scores(plan, evaluator, folder, spec, index)
            scores.setdefault(name, []).append(found)
            train_s.append(time.monotonic() - began)
    return Probe(
        profile_s,
        math.fsum(train_s) / len(train_s),
        {figure.name: _resolved(figure.logs, plan.recipe.looks) for figure in limited},
        *_ranked(plan, scores),
    )


def probed(plan: Plan) -> dict[str, StackSpec]:
    """The reference and the anchor stacks, at proxy width, by name."""
    return {REFERENCE: plan.reference_proxy, **plan.anchors.stacks}


def seconds(plan: Plan, found: Probe) -> dict[str, float]:
    """Estimated wall time of the study by phase, less that of replicates.

    Every trial is measured, a few of them for another look, and trained as if none broke a budget;
    trainings share the executor's workers, and a device is measured by one at a time.
    """
    recipe = plan.recipe
    rungs, workers = recipe.proxy.rungs, len(places(recipe))
    longer = [found.train_s * steps / rungs[0] for steps in rungs[1:]]
    climbing = math.fsum(s * recipe.promote_share ** (rung + 1) for rung, s in enumerate(longer))
    share_again = SECOND_LOOKS if recipe.looks > 1 else 0.0
    return {
        "reference": found.profile_s
        + recipe.reference_seeds * found.train_s * len(probed(plan)) / workers
        # The reference preset alone is trained at every rung, one after another.
        + math.fsum(longer),
        "profile": recipe.num_trials * found.profile_s * (1 + share_again),
        "train": recipe.num_trials * (recipe.seeds * found.train_s + climbing) / workers,
        "tune": 0.0
        if recipe.tuning is None
        else len(plan.space.mixers)
        * len(recipe.tuning.learning_rates)
        * found.train_s
        * recipe.tuning.num_steps
        / rungs[0]
        / workers,
    }


def claim_seconds(plan: Plan, found: Probe) -> float:
    """Estimated wall time of the replicates of one trial, were it called on the front.

    How many are hangs on what the study finds: none where it cannot rank quality, and one or two
    of eight stacks otherwise (`docs/fronts.md`).
    """
    recipe, workers = plan.recipe, len(places(plan.recipe))
    return recipe.replicates * (found.profile_s + recipe.seeds * found.train_s / workers)


@contextmanager
def _named(stack: str) -> Iterator[None]:
    """CandidateFailed then says of which stack it is."""
    try:
        yield
    except CandidateFailed as error:
        raise CandidateFailed(f"{stack}: {error}", error.cause) from error


def _scores(
    plan: Plan, evaluator: Evaluator, folder: Path, spec: StackSpec, index: int
) -> Mapping[str, Score]:
    seed = stream_seed(plan.recipe.seed, Stream.PROBE, index)
    job = TrainJob(spec=spec, num_steps=plan.recipe.proxy.rungs[0], seed=seed)
    rung = evaluator.train(job, folder / f"{spec.digest[:12]}-{index}")
    if rung.diverged:
        raise CandidateFailed("its training diverged; lower proxy.training.learning_rate")
    return rung.scores


def _ranked(
    plan: Plan, scores: Mapping[str, Sequence[Mapping[str, Score]]]
) -> tuple[dict[str, Estimate], dict[str, str], float, int | None]:
    """Estimates of quality, what does not count in it, reliability, trainings that rank."""
    scale, dropped = anchoring.measured(plan, scores)
    if scale is None:
        return {}, dropped, 0.0, None
    stacks = {
        name: objectives.readings([scale.quality(one) for one in each])
        for name, each in scores.items()
    }
    share, estimates = reliability(stacks)
    return estimates, dropped, share, seeds_needed(share)


def _resolved(logs: Readings, num_looks: int) -> float:
    """Distance from the limit, as a share of it, that the last look tells from the limit."""
    known = estimate(logs, pools([{"": logs}])[""])
    last_se = known.se / math.sqrt(num_looks)
    return math.expm1(t_quantile(looks.SURE, known.df) * last_se)


def reliability(stacks: dict[str, Readings]) -> tuple[float, dict[str, Estimate]]:
    """Of one training, and the estimates of the stacks."""
    pool = pools([{"": readings} for readings in stacks.values()])[""]
    estimates = {name: estimate(readings, pool) for name, readings in stacks.items()}
    singles = [
        {"quality": estimate(Readings(mean=readings.mean), pool)} for readings in stacks.values()
    ]
    posterior = Posterior(table(singles, objectives.OBJECTIVES[:1]), 0, 1000)
    return float(posterior.reliability_M[0]), estimates
