"""What each family, gene and position contributes to quality, latency and memory.

1. Every trial that was measured is one observation; of quality, every trial that was trained.
2. Outcomes are fitted by how much of a stack each family has, and where (`ranking.regression`).
   Ratios are taken as logarithms, so that contributions are percentages.
3. A family's contribution is that of one of its blocks in place of an average one; a position's,
   that of a block there in place of one anywhere; a gene's, from its least value to its largest.
4. Shapley values share the hypervolume that stacks within the budgets reach between the families:
   a coalition is worth what the stacks reach that consist of its families alone.

All hang on which stacks were tried: a strategy tries few bad ones. Trials by design mend that.

Shape suffixes: N stacks, K features, D draws, M objectives.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UserError
from archloop.findings.verdict import replicates
from archloop.ranking.estimate import Estimate
from archloop.ranking.estimates import estimate, merged, pools, repeated
from archloop.ranking.front import hypervolume
from archloop.ranking.objectives import of_scores
from archloop.ranking.record import Objective, Readings
from archloop.ranking.regression import Fit, fit
from archloop.ranking.shapley import shapley
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec
from archloop.store.record import StudyRecord, TrialRecord

Floats = NDArray[np.float64]
Factor = Literal["family", "position", "gene"]

PARTS = ("early", "middle", "late")
"""Thirds of the depth."""
NUM_DRAWS = 200
NEEDED = 3
"""Observations below which nothing can be fitted."""


class Contribution(NamedTuple):
    """What one thing contributes to one objective.

    Attributes:
        what: ``gla``, ``gla late``, ``gla.head_dim 32 to 128``.
        value: in the objective's unit; of a ratio, a share of it: 0.05 is 5% more.
        importance: the share of the spread between stacks that goes with it: of the variance of
            the outcomes, the covariance of its part with all that was fitted. Those of one fit add
            up to what the fit explains.
        num_stacks: that have it.
        is_ratio: whether the objective is one.
    """

    factor: Factor
    what: str
    objective: str
    value: float
    low: float
    high: float
    importance: float
    num_stacks: int
    is_ratio: bool

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


class Share(NamedTuple):
    """A family's Shapley value: its share of the hypervolume within the budgets.

    Attributes:
        num_alone: stacks that were tried of this family alone.
    """

    family: str
    value: float
    low: float
    high: float
    num_alone: int


class Attribution(NamedTuple):
    """All contributions, and the hypervolume that the shares add up to."""

    contributions: tuple[Contribution, ...]
    shares: tuple[Share, ...]
    volume: float
    num_stacks: int


class _Stack(NamedTuple):
    """One observation: a spec and what is known of its objectives."""

    spec: StackSpec
    known: dict[str, Estimate]
    within: bool


def attribution(
    study: StudyRecord, extra: Sequence[StudyRecord] = (), num_draws: int = NUM_DRAWS
) -> Attribution:
    """What a study's trials tell of contributions.

    Args:
        study: whose budgets, objectives and scale of quality hold.
        extra: studies of the same space whose trials count too, such as one by design.
        num_draws: of the stacks' true values, behind the intervals of the shares.

    Raises:
        UserError: too few trials have been measured or trained.
    """
    if study.reference is None or study.reference_point is None:
        raise UserError(f"study {study.name} has no reference run yet; let `archloop search` go on")
    stacks = _stacks(study, extra)
    found: list[Contribution] = []
    for objective in study.objectives:
        known = [stack for stack in stacks if objective.name in stack.known]
        if len(known) < NEEDED:
            raise UserError(
                f"{len(known)} stacks are known in {objective.name}; attribution needs {NEEDED} at "
                "least, and tells little below twenty"
            )
        found += _of_objective(objective, known, _set_by_budget(study))
    shares, volume = _shares(study, [stack for stack in stacks if stack.within], num_draws)
    return Attribution(tuple(found), shares, volume, len(stacks))


# --- observations ---------------------------------------------------------------------------------


def _stacks(study: StudyRecord, extra: Sequence[StudyRecord]) -> list[_Stack]:
    """Every measured stack, replicates merged into the stack that they repeat."""
    grouped: dict[str, list[TrialRecord]] = {}
    for record in (study, *extra):
        for trial in record.trials:
            if trial.readings:
                grouped.setdefault(trial.spec.digest, []).append(trial)
    readings = [[_readings(study, trial) for trial in trials] for trials in grouped.values()]
    seen = [each for several in readings for each in several]
    known = pools([*study.noise, *_repeats(study, extra), *seen])
    stacks = []
    for trials, several in zip(grouped.values(), readings, strict=True):
        names = dict.fromkeys(name for each in several for name in each)
        estimates = {}
        for objective in study.objectives:
            if (name := objective.name) in names:
                together = merged([each[name] for each in several if name in each])
                pool = known.get(name)
                estimates[name] = (
                    Estimate(mean=together.mean) if pool is None else estimate(together, pool)
                )
        within = all(trial.state == "complete" for trial in trials)
        stacks.append(_Stack(trials[0].spec, estimates, within))
    return stacks


def _repeats(study: StudyRecord, extra: Sequence[StudyRecord]) -> Iterator[dict[str, Readings]]:
    """How much trainings of a replicated trial differ: each replicate beside the runs before it.

    Of two studies of one seed, trials of one number and stack may be the same draw, so what both
    tried shows nothing of noise.
    """
    for record in (study, *extra):
        for trial in record.trials:
            if trial.reached:
                runs = [trial, *replicates(trial, record.trials)]
                read = [_readings(study, each) for each in runs]
                for number in range(1, len(read)):
                    yield repeated(read[number], read[:number])


def _readings(study: StudyRecord, trial: TrialRecord) -> dict[str, Readings]:
    """A trial's objectives at rung 0, with scores read on the study's scale."""
    wanted = [objective.name for objective in study.objectives]
    found = {name: each for name, each in trial.readings.items() if name in wanted}
    if not trial.scored:
        return found
    found |= trial.by_rung[0].values
    rung = trial.rung(0)
    if rung is not None and study.scale is not None:
        trainings = trial.scores_by_seed.get(0, (rung.scores,))
        found |= of_scores(study.scale, trainings, study.objectives)
    return {name: each for name, each in found.items() if name in wanted}


def _set_by_budget(study: StudyRecord) -> str:
    """The gene that meets the parameter budget: it follows from all else and explains nothing."""
    budget = study.recipe.get("space", {}).get("budget") or {}
    return str(budget.get("free", ""))


# --- contributions --------------------------------------------------------------------------------


def _of_objective(
    objective: Objective, stacks: Sequence[_Stack], skipped: str
) -> Iterator[Contribution]:
    is_ratio = objective.category is None
    known = [stack.known[objective.name] for stack in stacks]
    y_N = np.array([math.log(each.mean) if is_ratio else each.mean for each in known])
    se_N = np.array([each.se / each.mean if is_ratio else each.se for each in known])
    specs = [stack.spec for stack in stacks]
    families = sorted({name for spec in specs for block in spec.blocks for name in _mixers(block)})
    z_NK = np.array([_places(spec, families) for spec in specs])
    shares_NK = z_NK.reshape(len(specs), len(families), len(PARTS)).sum(2)
    depth = float(np.mean([spec.num_blocks for spec in specs]))
    num_with = (shares_NK > 0).sum(0)

    def told(
        factor: Factor, what: str, value: Estimate, importance: float, count: int
    ) -> Contribution:
        ends = (value.mean, *value.interval())
        middle, low, high = (math.expm1(end) for end in ends) if is_ratio else ends
        return Contribution(
            factor, what, objective.name, middle, low, high, float(importance), int(count), is_ratio
        )

    centred_NK = shares_NK - shares_NK.mean(0)
    found = fit(centred_NK, y_N, se_N)
    explained_K = _explained(centred_NK, y_N, found)
    for index, family in enumerate(families):
        weights_K = (np.eye(len(families))[index] - shares_NK.mean(0)) / depth
        value = found.contrast(weights_K)
        yield told("family", family, value, explained_K[index], num_with[index])
    offsets_NK = z_NK - np.repeat(shares_NK, len(PARTS), 1) / len(PARTS)
    placed_NK = np.hstack([centred_NK, offsets_NK])
    placed = fit(placed_NK, y_N, se_N)
    explained_K = _explained(placed_NK, y_N, placed)[len(families) :]
    for index, family in enumerate(families):
        for part, label in enumerate(PARTS):
            value = placed.contrast(_place_weights(len(families), index, part) / depth)
            importance = explained_K[index * len(PARTS) + part]
            yield told("position", f"{family} {label}", value, importance, num_with[index])
    yield from (told("gene", *of_gene) for of_gene in _genes(specs, skipped, centred_NK, y_N, se_N))


def _explained(x_NK: Floats, y_N: Floats, found: Fit) -> Floats:
    """For each feature, the share of the outcomes' variance that goes with it in a fit."""
    parts_NK = (x_NK - x_NK.mean(0)) * found.mean_K
    explained_K: Floats = parts_NK.T @ parts_NK.sum(1) / len(y_N) / (float(y_N.var()) or 1.0)
    return explained_K


def _place_weights(num_families: int, family: int, part: int) -> Floats:
    """A block of a family in one third, less one anywhere."""
    weights_K = np.zeros(num_families * (1 + len(PARTS)))
    start = num_families + family * len(PARTS)
    weights_K[start : start + len(PARTS)] = -1 / len(PARTS)
    weights_K[start + part] += 1
    return weights_K


def _places(spec: StackSpec, families: Sequence[str]) -> Floats:
    """The share of blocks that each family has in each third of the depth, flat."""
    count = np.zeros((len(families), len(PARTS)))
    for index, block in enumerate(spec.blocks):
        names = _mixers(block)
        for name in names:
            part = min(len(PARTS) - 1, index * len(PARTS) // spec.num_blocks)
            count[families.index(name), part] += 1 / len(names)
    return count.ravel() / spec.num_blocks


def _mixers(block: BlockSpec) -> list[str]:
    return [mixer.name for mixer in block.mixers]


def _genes(
    specs: Sequence[StackSpec], skipped: str, shares_NK: Floats, y_N: Floats, se_N: Floats
) -> Iterator[tuple[str, Estimate, float, int]]:
    """Each setting that differs between stacks, beside the families' shares."""
    values: dict[str, list[list[Any]]] = {}
    for row, spec in enumerate(specs):
        for block in spec.blocks:
            parts: list[MixerSpec | ChannelMixerSpec] = [*block.mixers]
            parts += [] if block.channel_mixer is None else [block.channel_mixer]
            for part in parts:
                for key, value in part.config.items():
                    of_gene = values.setdefault(f"{part.name}.{key}", [[] for _ in specs])
                    of_gene[row].append(value)
    for gene, by_stack in sorted(values.items()):
        listed = sorted({each for row in by_stack for each in row}, key=_order)
        if len(listed) < 2 or gene == skipped:
            continue
        place = {value: index / (len(listed) - 1) for index, value in enumerate(listed)}
        column_N = np.array(
            [np.mean([place[v] for v in row]) if row else np.nan for row in by_stack]
        )
        has_N = np.isfinite(column_N)
        column_N = np.where(has_N, column_N - column_N[has_N].mean(), 0.0)
        beside_NK = np.column_stack([shares_NK, column_N])
        found: Fit = fit(beside_NK, y_N, se_N)
        weights_K = np.zeros(shares_NK.shape[1] + 1)
        weights_K[-1] = 1
        what = f"{gene} {listed[0]} to {listed[-1]}"
        importance = float(_explained(beside_NK, y_N, found)[-1])
        yield what, found.contrast(weights_K), importance, int(has_N.sum())


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, then everything else by its words."""
    return (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, str(value))


# --- shares ---------------------------------------------------------------------------------------


def _shares(
    study: StudyRecord, stacks: Sequence[_Stack], num_draws: int
) -> tuple[tuple[Share, ...], float]:
    """Shapley values of the families over the hypervolume of the stacks within the budgets."""
    assert study.reference_point is not None
    objectives = study.objectives
    whole = [stack for stack in stacks if all(o.name in stack.known for o in objectives)]
    worst_M = np.array([_sign(o) * study.reference_point.mean(o.name) for o in objectives])
    draws_DNM = _draws(whole, objectives, num_draws)
    families = sorted({name for each in whole for b in each.spec.blocks for name in _mixers(b)})
    used = [{name for block in each.spec.blocks for name in _mixers(block)} for each in whole]

    matters_DN = _matters(draws_DNM, used)

    def worth(coalition: frozenset[str]) -> Floats:
        inside_N = np.array([names <= coalition for names in used], bool)
        pairs = zip(draws_DNM, inside_N & matters_DN, strict=True)
        return np.array([hypervolume(draw_NM[kept_N], worst_M) for draw_NM, kept_N in pairs])

    if not families:
        return (), 0.0
    found: Mapping[str, Floats] = shapley(families, worth)
    shares = []
    for family in families:
        low, high = np.quantile(found[family], (0.025, 0.975))
        alone = sum(names == {family} for names in used)
        shares.append(Share(family, float(found[family].mean()), float(low), float(high), alone))
    shares.sort(key=lambda share: -share.value)
    return tuple(shares), float(worth(frozenset(families)).mean())


def _matters(draws_DNM: Floats, used: Sequence[set[str]]) -> NDArray[np.bool_]:
    """By draw, whether a stack can add to a coalition.

    It cannot where another stack, of the same families or fewer of them, is better in everything.
    """
    smaller_NN = np.array([[other <= own for other in used] for own in used], bool)
    matters = np.ones(draws_DNM.shape[:2], bool)
    for draw_NM, matters_N in zip(draws_DNM, matters, strict=True):
        beaten_NN = (draw_NM[None, :, :] < draw_NM[:, None, :]).all(2)
        matters_N &= ~(beaten_NN & smaller_NN).any(1)
    return matters


def _draws(stacks: Sequence[_Stack], objectives: Sequence[Objective], num_draws: int) -> Floats:
    """Values that the stacks may have, less being better."""
    rng = np.random.default_rng(0)
    shape = (len(stacks), len(objectives))
    pairs = [[stack.known[o.name] for o in objectives] for stack in stacks]
    mean_NM = np.array([[each.mean for each in row] for row in pairs]).reshape(shape)
    se_NM = np.array([[each.se for each in row] for row in pairs]).reshape(shape)
    draws_DNM = mean_NM + se_NM * rng.standard_normal((num_draws, *shape))
    signed: Floats = draws_DNM * np.array([_sign(o) for o in objectives])
    return signed


def _sign(objective: Objective) -> float:
    return -1.0 if objective.direction == "maximize" else 1.0
