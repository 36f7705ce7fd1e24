"""Quality on a scale that was measured: 0 is a stack that lacks a skill, 1 a stack that has it.

Chance and perfection are no scale for a score: nobody knows how far a short training can come. So
stacks that are known to differ in a skill are trained as every trial is, several times each, and a
score counts only if they differ in it by `MIN_SEPARATION` standard errors over trainings. Scores
are averaged within a category, and each category is divided by its spread over all anchor stacks,
so that no category decides the mean because its unit happens to be small.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from archloop.evals.base import Score

MIN_SEPARATION = 3.0
"""Standard errors by which the two anchor stacks of a score must differ."""

Trainings = Sequence[Mapping[str, Score]]
"""Scores by name, one mapping for each training of a stack."""


class Anchor(BaseModel):
    """What a score is measured against.

    Attributes:
        lacks: stack that lacks the skill.
        has: stack that has it.
        low: mean score of the first.
        high: of the second; smaller than `low` where less is better.
        standard_error: of their difference, over trainings. All stacks answer the same examples, so
            that the error over examples is no part of a difference; where a stack was trained once,
            it stands in for what is not known.
        category: of the score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lacks: str
    has: str
    low: float
    high: float
    standard_error: float
    category: str

    def normalised(self, value: float) -> float:
        """0 for a score like that of the stack that lacks the skill, 1 for one that has it."""
        return (value - self.low) / (self.high - self.low)


class Scale(BaseModel):
    """How scores become one quality.

    Attributes:
        anchors: of the scores that count, by name.
        spreads: standard deviation over the anchor stacks of each category's mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchors: dict[str, Anchor]
    spreads: dict[str, float]

    def categories(self, scores: Mapping[str, Score]) -> dict[str, float]:
        """Mean normalised score of each category; raises ValueError where a score is missing."""
        return _categories(self.anchors, scores)

    def quality(self, scores: Mapping[str, Score]) -> float:
        """Mean over categories, each in standard deviations over the anchor stacks.

        Raises:
            ValueError: one of the scores that count is missing.
        """
        found = self.categories(scores)
        return math.fsum(found[name] / self.spreads[name] for name in found) / len(found)


def measure(
    stacks: Mapping[str, Trainings],
    pairs: Mapping[str, tuple[str, str]],
    default: tuple[str, str],
) -> tuple[Scale | None, dict[str, str]]:
    """The scale that anchor stacks give, and why the scores that it leaves out are left out.

    Args:
        stacks: trainings of each anchor stack, by its name.
        pairs: for a score or a category, the stack that lacks the skill and the one that has it.
        default: the pair of all others.

    Returns:
        The scale, None if no score counts; and a reason by the name of each that does not.

    Raises:
        ValueError: a pair names a stack that was not trained.
    """
    for lacks, has in (*pairs.values(), default):
        for name in (lacks, has):
            if name not in stacks:
                raise ValueError(f"anchor {name!r} is none of the trained stacks {list(stacks)}")
    kept: dict[str, Anchor] = {}
    dropped: dict[str, str] = {}
    for name, score in next(iter(stacks.values()))[0].items():
        lacks, has = pairs.get(name, pairs.get(score.category, default))
        anchor = _anchor(name, lacks, has, stacks)
        better = (anchor.high - anchor.low) * math.copysign(1, score.perfect - score.chance)
        if better > 0 and better >= MIN_SEPARATION * anchor.standard_error:
            kept[name] = anchor
        else:
            dropped[name] = _reason(anchor, better)
    return (Scale(anchors=kept, spreads=_spreads(kept, stacks)) if kept else None), dropped


def _anchor(name: str, lacks: str, has: str, stacks: Mapping[str, Trainings]) -> Anchor:
    values = {stack: [scores[name].value for scores in stacks[stack]] for stack in (lacks, has)}
    variance = 0.0
    for stack, each in values.items():
        if len(each) > 1:
            variance += statistics.variance(each) / len(each)
        else:
            variance += stacks[stack][0][name].standard_error ** 2
    return Anchor(
        lacks=lacks,
        has=has,
        low=statistics.fmean(values[lacks]),
        high=statistics.fmean(values[has]),
        standard_error=math.sqrt(variance),
        category=stacks[lacks][0][name].category,
    )


def _reason(anchor: Anchor, better: float) -> str:
    """Why a score that does not tell its anchor stacks apart is left out."""
    scores = f"{anchor.has} scores {anchor.high:.4g} and {anchor.lacks} {anchor.low:.4g}"
    if anchor.standard_error == 0:
        return f"{scores}, which is no better"
    errors = better / anchor.standard_error
    return f"{scores}, {errors:.1f} standard errors better; {MIN_SEPARATION:g} are needed"


def _spreads(anchors: Mapping[str, Anchor], stacks: Mapping[str, Trainings]) -> dict[str, float]:
    """Spread of each category over the stacks' means."""
    means: dict[str, list[float]] = {}
    for trainings in stacks.values():
        found = [_categories(anchors, scores) for scores in trainings]
        for category in found[0]:
            means.setdefault(category, []).append(statistics.fmean(f[category] for f in found))
    return {category: statistics.stdev(values) for category, values in means.items()}


def _categories(anchors: Mapping[str, Anchor], scores: Mapping[str, Score]) -> dict[str, float]:
    members: dict[str, list[float]] = {}
    for name, anchor in anchors.items():
        if name not in scores:
            raise ValueError(f"no score for {name}")
        members.setdefault(anchor.category, []).append(anchor.normalised(scores[name].value))
    return {category: statistics.fmean(values) for category, values in members.items()}
