"""Fronts, hypervolume and selection: pure functions of arrays in which less is better.

A point counts only where it is better than the reference point in every objective; one that is
not, adds no volume. Exact hypervolume comes from moocore.

Shape suffixes: N points, M objectives, K samples.
"""

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def nondominated(points_NM: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates, (N,); of equal points all or none.

    Raises:
        ValueError: not a matrix of finite numbers.
    """
    points_NM = _points(points_NM)
    if not len(points_NM):
        return np.zeros(0, np.bool_)
    return np.asarray(moocore.is_nondominated(points_NM, keep_weakly=True), np.bool_)


def ranks(points_NM: ArrayLike) -> NDArray[np.int64]:
    """Non-domination rank: 0 on the front, 1 on the front of the rest, and so on, (N,)."""
    points_NM = _points(points_NM)
    if not len(points_NM):
        return np.zeros(0, np.int64)
    return np.asarray(moocore.pareto_rank(points_NM), np.int64)


def crowding(points_NM: ArrayLike) -> Floats:
    """Crowding distance within one front, (N,): infinite at the ends (Deb et al. 2002)."""
    points_NM = _points(points_NM)
    distance_N = np.zeros(len(points_NM))
    for values_N in points_NM.T:
        order_N = np.argsort(values_N, kind="stable")
        sorted_N = values_N[order_N]
        if not len(sorted_N) or sorted_N[0] == sorted_N[-1]:
            continue
        distance_N[order_N[[0, -1]]] = np.inf
        gaps = (sorted_N[2:] - sorted_N[:-2]) / (sorted_N[-1] - sorted_N[0])
        distance_N[order_N[1:-1]] += gaps
    return distance_N


def selected(points_NM: ArrayLike, count: int) -> NDArray[np.int64]:
    """Indices of the best `count` by rank, then crowding distance; ties keep the given order."""
    points_NM = _points(points_NM)
    left = np.arange(len(points_NM))
    chosen: list[NDArray[np.int64]] = []
    # One front after another: of ten thousand points, few fronts are needed.
    while len(left) and sum(map(len, chosen)) < count:
        best = nondominated(points_NM[left])
        members = left[best]
        chosen.append(members[np.argsort(-crowding(points_NM[members]), kind="stable")])
        left = left[~best]
    return np.concatenate([np.zeros(0, np.int64), *chosen])[:count]


def hypervolume(points_NM: ArrayLike, reference_M: ArrayLike) -> float:
    """Volume dominated by the points and bounded by the reference point."""
    inside_NM, reference = _inside(points_NM, reference_M)
    return float(moocore.hypervolume(inside_NM, ref=reference)) if len(inside_NM) else 0.0


def contributions(points_NM: ArrayLike, reference_M: ArrayLike) -> Floats:
    """The volume that no other point of the front dominates, for each point, (N,).

    A dominated point has none, and takes none from the point that dominates it.
    """
    points_NM = _points(points_NM)
    reference = np.asarray(reference_M, np.float64)
    inside_N = (points_NM < reference).all(1)
    volumes_N = np.zeros(len(points_NM))
    if inside_N.any():
        volumes_N[inside_N] = moocore.hv_contributions(
            points_NM[inside_N], ref=reference, ignore_dominated=True
        )
    return volumes_N


def hypervolume_improvement(
    point_M: ArrayLike, points_NM: ArrayLike, reference_M: ArrayLike
) -> float:
    """By how much a point would enlarge the hypervolume of the others."""
    point = np.asarray(point_M, np.float64)
    points_NM = _points(points_NM, len(point))
    before = hypervolume(points_NM, reference_M)
    return max(0.0, hypervolume(np.vstack([points_NM, point]), reference_M) - before)


def expected_hypervolume_improvement(
    mean_M: ArrayLike,
    se_M: ArrayLike,
    points_NM: ArrayLike,
    reference_M: ArrayLike,
    *,
    seed: int,
    num_samples: int = 256,
) -> float:
    """Mean improvement by a point known up to Gaussian noise, by Monte Carlo.

    Args:
        mean_M: estimates of the point's objectives.
        se_M: their standard errors; 0 means known exactly.
        points_NM: the others, taken as exact.
        reference_M: the reference point.
        seed: of the samples.
        num_samples: the standard error of the result falls with its square root.
    """
    mean, se = np.asarray(mean_M, np.float64), np.asarray(se_M, np.float64)
    if not se.any():
        return hypervolume_improvement(mean, points_NM, reference_M)
    samples_KM = mean + se * np.random.default_rng(seed).standard_normal((num_samples, len(mean)))
    front_NM = _points(points_NM, len(mean))
    front_NM = front_NM[nondominated(front_NM)]
    before = hypervolume(front_NM, reference_M)
    after = [hypervolume(np.vstack([front_NM, sample]), reference_M) for sample in samples_KM]
    return max(0.0, float(np.mean(after)) - before)


def expected_contributions(
    means_NM: ArrayLike,
    ses_NM: ArrayLike,
    reference_M: ArrayLike,
    *,
    seed: int,
    num_samples: int = 256,
) -> Floats:
    """Mean of the `contributions` when all points are known up to Gaussian noise, (N,).

    What ranks trials for the next rung: a point that noise alone puts on the front gets the credit
    it deserves, and one just behind the front some of it. Arguments as
    `expected_hypervolume_improvement`.
    """
    means_NM = _points(means_NM)
    ses_NM = np.asarray(ses_NM, np.float64)
    rng = np.random.default_rng(seed)
    total_N = np.zeros(len(means_NM))
    for _ in range(num_samples):
        noisy_NM = means_NM + ses_NM * rng.standard_normal(means_NM.shape)
        total_N += contributions(noisy_NM, reference_M)
    return total_N / num_samples


def _points(points_NM: ArrayLike, num_objectives: int | None = None) -> Floats:
    points = np.asarray(points_NM, np.float64)
    if points.size == 0:
        width = points.shape[1] if points.ndim == 2 else (num_objectives or 1)
        return points.reshape(0, width)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError("points must be a matrix of finite numbers; leave failed trials out")
    return points


def _inside(points_NM: ArrayLike, reference_M: ArrayLike) -> tuple[Floats, Floats]:
    """The points that are better than the reference in every objective."""
    reference = np.asarray(reference_M, np.float64)
    points = _points(points_NM, len(reference))
    return points[(points < reference).all(1)], reference
