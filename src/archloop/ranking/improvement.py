"""How much hypervolume points add to a front, for many points at once.

What no member of the front dominates, inside the reference point, is cut into disjoint boxes once;
a point adds what it dominates of each box. That takes a few array operations for thousands of
points, where a hypervolume for every point is a call each.

Shape suffixes: N members of the front, M objectives (less is better), B boxes, P points.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
CHUNK = 1 << 22
"""Products of a box and a point formed at once, so that memory stays at tens of megabytes."""


def improvements(points_PM: ArrayLike, front_NM: ArrayLike, reference_M: ArrayLike) -> Floats:
    """Hypervolume that each point alone would add to that of the front, (P,).

    Args:
        points_PM: each judged on its own.
        front_NM: points that are there already; dominated ones among them change nothing.
        reference_M: the reference point.
    """
    points_PM = np.asarray(points_PM, np.float64)
    lower_BM, upper_BM = undominated_boxes(front_NM, reference_M)
    added_P = np.zeros(len(points_PM))
    step = max(1, CHUNK // max(1, len(lower_BM)))
    for start in range(0, len(points_PM), step):
        part_PM = points_PM[start : start + step]
        volume_PB = np.ones((len(part_PM), len(lower_BM)))
        for point_P, lower_B, upper_B in zip(part_PM.T, lower_BM.T, upper_BM.T, strict=True):
            side_PB = upper_B - np.maximum(lower_B, point_P[:, None])
            volume_PB *= np.maximum(side_PB, 0.0, out=side_PB)
        added_P[start : start + step] = volume_PB.sum(1)
    return added_P


def undominated_boxes(front_NM: ArrayLike, reference_M: ArrayLike) -> tuple[Floats, Floats]:
    """Disjoint boxes that cover what the front does not dominate: lower and upper corners, (B, M).

    Lower corners may be minus infinity. Each member cuts the boxes that it reaches into: what it
    dominates of a box is again a box, and what is left of it are at most M others.
    """
    reference_M = np.asarray(reference_M, np.float64)
    front_NM = np.asarray(front_NM, np.float64).reshape(-1, len(reference_M))
    lower_BM, upper_BM = np.full((1, len(reference_M)), -np.inf), reference_M[None, :]
    for member_M in front_NM:
        reached_B = (member_M < upper_BM).all(1)
        left = [(lower_BM[~reached_B], upper_BM[~reached_B])]
        lower, upper = lower_BM[reached_B].copy(), upper_BM[reached_B]
        for axis, value in enumerate(member_M):
            # Below the member in this objective, and not below it in those before.
            cut = np.maximum(value, lower[:, axis])
            part_upper = upper.copy()
            part_upper[:, axis] = cut
            kept = cut > lower[:, axis]
            left.append((lower[kept].copy(), part_upper[kept]))
            lower[:, axis] = cut
        lower_BM, upper_BM = (np.concatenate(sides) for sides in zip(*left, strict=True))
    return lower_BM, upper_BM
