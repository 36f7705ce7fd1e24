"""Which stacks belong to the front, and how surely.

Estimates are noisy, so the front of the estimates is mostly an archive of luck: of eight equal
stacks four or five are on it. Here a stack is *on the front* only if the posterior says so in nine
draws of ten and an interval that holds for all stacks and objectives at once shows it better than
the reference in at least one objective. It is *dominated* if one stack that can be named is at
least as good in everything and better in something in 95% of the draws. All else is *tied*: what
was measured does not tell.

Shape suffixes: K draws, N stacks, R rivals, M objectives.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special, stats

from archloop.ranking.front import hypervolume, nondominated
from archloop.ranking.posterior import Draws
from archloop.ranking.table import Bools, Floats, Ints, Table

Status = Literal["front", "tied", "dominated"]

ON_FRONT = 0.9
"""Probability from which a stack may be called on the front."""
DOMINATED = 0.95
"""Probability from which one stack may be said to dominate another."""
NUM_DRAWS = 1000
NUM_ERRORS = 4000
"""Draws behind the widths of simultaneous intervals, which are then right to about 1%."""
NUM_RIVALS = 64
"""Stacks that may be named as dominating another: those likeliest to be on the front."""


class Member(NamedTuple):
    """A stack's place.

    Attributes:
        status: what may be said.
        probability: that it belongs to the front of the stacks compared.
        better_in: columns in which it is better than the reference beyond doubt.
        dominated_by: index of the stack likeliest to dominate it, if that is beyond doubt.
    """

    status: Status
    probability: float
    better_in: tuple[int, ...] = ()
    dominated_by: int | None = None


class Volume(NamedTuple):
    """Hypervolume of a set of stacks: mean and 95% interval over the posterior."""

    mean: float
    low: float
    high: float


class Standing(NamedTuple):
    """All that the estimates say of a set of stacks.

    Attributes:
        members: one a stack, in the given order.
        reported: indices of the stacks whose volume is `volume`: the front of the posterior means.
        volume: theirs.
        reliability_M: by objective, how well the estimates rank stacks (see `reliability`).
    """

    members: tuple[Member, ...]
    reported: tuple[int, ...]
    volume: Volume
    reliability_M: tuple[float, ...]


def standing(
    table: Table,
    worst_M: Sequence[float],
    *,
    reference: int | None,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> Standing:
    """Membership, volume and reliability of a set of stacks.

    Args:
        table: their estimates.
        worst_M: the reference point of the hypervolume, less is better.
        reference: index of the reference run among the stacks; None if it is not among them, and
            then none is called on the front.
        seed: of the draws.
        num_draws: of the posterior.
    """
    count = len(table.mean_NM)
    if not count:
        return Standing((), (), Volume(0.0, 0.0, 0.0), ())
    draws = Draws(table, seed, num_draws)
    values_KNM = draws.values_KNM
    front_KN = np.array([nondominated(values_NM) for values_NM in values_KNM])
    probability_N = front_KN.mean(0)
    dominator_N, certainty_N = _dominators(values_KNM, probability_N)
    better_NM = (
        np.zeros(table.mean_NM.shape, np.bool_)
        if reference is None
        else better_than(table, reference, seed=seed)
    )
    members = []
    for i in range(count):
        lost = certainty_N[i] >= DOMINATED
        proven = bool(better_NM[i].any()) and probability_N[i] >= ON_FRONT
        # The reference is what all else is compared with: it is there until it is beaten.
        on_front = not lost and (i == reference or proven)
        members.append(
            Member(
                "dominated" if lost else "front" if on_front else "tied",
                float(probability_N[i]),
                tuple(int(m) for m in np.flatnonzero(better_NM[i])),
                int(dominator_N[i]) if lost else None,
            )
        )
    reported = np.flatnonzero(nondominated(draws.means_NM))
    volume_K = np.array([hypervolume(values_NM[reported], worst_M) for values_NM in values_KNM])
    low, high = np.quantile(volume_K, (0.025, 0.975))
    return Standing(
        tuple(members),
        tuple(int(i) for i in reported),
        Volume(float(volume_K.mean()), float(low), float(high)),
        tuple(float(r) for r in draws.reliability_M),
    )


def surely_dominated(table: Table) -> Bools:
    """Stacks that another one dominates in 95 of 100 cases by their estimates alone, (N,).

    Simpler than `standing`, for what is asked after every trial: nothing is shrunk, so more stacks
    count as dominated than `standing` says, but none that it would call on the front.
    """
    mean_NM, se_NM = table.mean_NM, table.se_NM
    # Whoever is surely dominated is so by a stack that nothing dominates by point values.
    rivals = np.flatnonzero(nondominated(mean_NM))
    gap_RNM = mean_NM - mean_NM[rivals, None]
    se_RNM = np.hypot(se_NM, se_NM[rivals, None])
    df_RNM = np.minimum(table.df_NM, table.df_NM[rivals, None])
    exact_RNM = se_RNM == 0
    chance_RNM = special.stdtr(df_RNM, gap_RNM / np.where(exact_RNM, 1.0, se_RNM))
    chance_RNM = np.where(exact_RNM, gap_RNM >= 0, chance_RNM)
    differ_RN = (gap_RNM != 0).any(2)
    found_N: Bools = ((chance_RNM.prod(2) >= DOMINATED) & differ_RN).any(0)
    return found_N


def better_than(
    table: Table, reference: int, *, seed: int = 0, num_draws: int = NUM_ERRORS
) -> Bools:
    """Where a stack is better than the reference beyond doubt, (N, M).

    The two-sided 95% intervals of all differences from the reference hold at once (`critical`).
    """
    gain_NM = table.mean_NM[reference] - table.mean_NM
    se_NM = np.hypot(table.se_NM, table.se_NM[reference])
    width_M = critical(table, reference, seed=seed, num_draws=num_draws)
    better_NM: Bools = gain_NM > width_M * se_NM
    return better_NM


def critical(table: Table, reference: int, *, seed: int = 0, num_draws: int = NUM_ERRORS) -> Floats:
    """Half-widths of the simultaneous intervals against the reference, in standard errors, (M,).

    Drawn are the t values of all differences, with their common parts (the reference's own noise,
    the pools). Each objective has the width that its largest t value keeps to in the same share of
    the draws, so that in 95% of the draws all do (Westfall and Young 1993, single step). One width
    for all would be that of the objective whose noise is known worst: quality's, from a few
    trainings, would leave nothing to say of latencies that were read hundreds of times.
    """
    errors_KNM = table.errors(np.random.default_rng(seed), num_draws)
    se_NM = np.hypot(table.se_NM, table.se_NM[reference])
    difference_KNM = np.abs(errors_KNM - errors_KNM[:, reference : reference + 1])
    # The reference against itself, and two exact figures: no difference, no error.
    ratio_KNM = difference_KNM / np.where(se_NM > 0, se_NM, 1.0)
    largest_KM = ratio_KNM.max(1)
    # A draw counts by the objective in which it is most unusual; exact ones are usual.
    rank_KM = stats.rankdata(largest_KM, axis=0) * (se_NM > 0).any(0)
    share = np.quantile(rank_KM.max(1), 0.95) / num_draws
    widths_M: Floats = np.quantile(largest_KM, share, axis=0)
    return widths_M


def _dominators(values_KNM: Floats, probability_N: Floats) -> tuple[Ints, Floats]:
    """The likeliest dominator of each stack, and how likely it dominates, (N,) each."""
    count = values_KNM.shape[1]
    columns_MKN = np.ascontiguousarray(values_KNM.transpose(2, 0, 1))
    # A dominator is nowhere worse, which the loop below asks, and somewhere better. Given the
    # first, the second holds where its sum is smaller.
    sum_KN = columns_MKN.sum(0)
    best_N, certainty_N = np.zeros(count, np.int64), np.zeros(count)
    for rival in np.argsort(-probability_N, kind="stable")[:NUM_RIVALS]:
        beats_KN = sum_KN[:, rival, None] < sum_KN
        for column_KN in columns_MKN:
            beats_KN &= column_KN[:, rival, None] <= column_KN
        share_N = beats_KN.mean(0)
        closer_N = share_N > certainty_N
        best_N[closer_N], certainty_N[closer_N] = rival, share_N[closer_N]
    return best_N, certainty_N
