"""Fronts and hypervolumes against closed forms, known test problems and brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from archloop.ranking import front

Floats = NDArray[np.float64]


def brute_force_volume(points: Floats, reference: Floats) -> float:
    """Cells of the grid that all coordinates span, each counted if some point dominates it."""
    axes = [np.unique(np.append(points[:, m], reference[m])) for m in range(points.shape[1])]
    total = 0.0
    for cell in itertools.product(*(range(len(axis) - 1) for axis in axes)):
        low = np.array([axis[i] for axis, i in zip(axes, cell, strict=True)])
        high = np.array([axis[i + 1] for axis, i in zip(axes, cell, strict=True)])
        if (high <= reference).all() and (points <= low).all(1).any():
            total += float(np.prod(high - low))
    return total


def brute_force_nondominated(points: Floats) -> list[bool]:
    return [
        not any((q <= p).all() and (q < p).any() for q in points) for p in points
    ]  # fmt: skip


def grid_points(seed: int, count: int, num_objectives: int) -> Floats:
    """Points on a coarse grid, so that ties and duplicates occur."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, (count, num_objectives)).astype(np.float64)


# --- known answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_a_staircase_has_its_closed_form(steps: int) -> None:
    # Points (i/n, 1 - (i+1)/n) for i < n dominate n(n+1)/2 cells of side 1/n below (1, 1).
    i = np.arange(steps)
    points = np.stack([i / steps, 1 - (i + 1) / steps], 1)
    expected = (steps + 1) / (2 * steps)
    assert front.hypervolume(points, [1, 1]) == pytest.approx(expected, rel=1e-12)


def test_zdt1_front_approaches_its_integral() -> None:
    x = np.linspace(0, 1, 20_001)
    points = np.stack([x, 1 - np.sqrt(x)], 1)
    # Reference (1.1, 1.1): 1.21 less the area 1/3 under the front.
    assert front.hypervolume(points, [1.1, 1.1]) == pytest.approx(1.21 - 1 / 3, abs=1e-4)
    assert front.nondominated(points).all()


def test_dtlz1_front_is_a_simplex() -> None:
    n = 60
    cells = [(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]
    points = 0.5 * np.array(cells) / n
    # Below (1/2, 1/2, 1/2) the simplex cuts off a pyramid of volume (1/2)^3 / 6.
    below = 0.125 / 6
    volume = front.hypervolume(points, [0.5] * 3)
    assert volume < 0.125 - below
    assert volume == pytest.approx(0.125 - below, abs=0.125 * 1.5 / n)


def test_dtlz2_front_is_an_eighth_of_a_ball() -> None:
    n = 60
    angles = np.linspace(0, math.pi / 2, n)
    a, b = (angle.ravel() for angle in np.meshgrid(angles, angles))
    points = np.stack([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)], 1)
    expected = 1 - math.pi / 6
    assert front.hypervolume(points, [1] * 3) == pytest.approx(expected, abs=0.03)


# --- brute force --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_objectives=st.sampled_from([2, 3]))
def test_volumes_and_fronts_equal_brute_force(seed: int, num_objectives: int) -> None:
    points = grid_points(seed, 9, num_objectives)
    reference = np.full(num_objectives, 5.0)
    volume = brute_force_volume(points, reference)
    assert front.hypervolume(points, reference) == pytest.approx(volume, abs=1e-9)
    assert front.nondominated(points).tolist() == brute_force_nondominated(points)


# --- the reference point, empty sets ------------------------------------------------------------


def test_points_on_or_beyond_the_reference_add_nothing() -> None:
    inside = np.array([[0.5, 0.5, 0.5]])
    beyond = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 7.0], [2.0, 2.0, 2.0]])
    both = np.vstack([inside, beyond])
    assert front.hypervolume(both, [1] * 3) == pytest.approx(0.125)
    assert front.hypervolume(beyond, [1] * 3) == 0.0


def test_nothing_has_no_volume_and_an_empty_front() -> None:
    empty = np.empty((0, 3))
    assert front.hypervolume(empty, [1] * 3) == 0.0
    assert front.nondominated(empty).shape == (0,)
    assert front.selected(empty, 4).shape == (0,)


@pytest.mark.parametrize("bad", [[[0.0, math.nan]], [[math.inf, 0.0]], [1.0, 2.0]])
def test_what_is_no_matrix_of_numbers_is_refused(bad: list[object]) -> None:
    with pytest.raises(ValueError, match="leave failed trials out"):
        front.hypervolume(bad, [1, 1])


# --- selection ----------------------------------------------------------------------------------


def test_crowding_is_the_perimeter_to_the_neighbours() -> None:
    points = np.array([[0.0, 10.0], [1.0, 6.0], [4.0, 5.0], [10.0, 0.0]])
    expected = [math.inf, 4 / 10 + 5 / 10, 9 / 10 + 6 / 10, math.inf]
    assert front.crowding(points).tolist() == pytest.approx(expected)
    assert front.crowding(np.ones((3, 2))).tolist() == [0, 0, 0]


def test_selection_takes_whole_fronts_then_the_least_crowded() -> None:
    first = [[0.0, 10.0], [1.0, 6.0], [4.0, 5.0], [10.0, 0.0]]
    points = np.array([[11.0, 11.0], [5.0, 7.0], *first])
    assert front.selected(points, 3).tolist() == [2, 5, 4]
    assert front.selected(points, 5).tolist() == [2, 5, 4, 3, 1]
    assert sorted(front.selected(points, 99).tolist()) == list(range(6))


# --- under noise --------------------------------------------------------------------------------
