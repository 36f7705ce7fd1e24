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
