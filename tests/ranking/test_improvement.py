"""What points add to a front, against hypervolumes taken one by one."""

import numpy as np
import pytest

from archloop.ranking import front
from archloop.ranking.improvement import improvements, undominated_boxes


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("num_members", [0, 1, 12])
def test_a_point_adds_the_difference_of_two_hypervolumes(
    num_objectives: int, num_members: int
) -> None:
    rng = np.random.default_rng([num_objectives, num_members])
    members = rng.uniform(-1, 0.2, (num_members, num_objectives))
    points = rng.uniform(-1.2, 0.3, (60, num_objectives))
    reference = np.zeros(num_objectives)
    before = front.hypervolume(members, reference)
    exact = [front.hypervolume(np.vstack([members, p]), reference) - before for p in points]
    np.testing.assert_allclose(improvements(points, members, reference), exact, atol=1e-12)


def test_members_and_what_they_dominate_add_nothing() -> None:
    members = np.array([[-0.5, -0.5], [-0.8, -0.1], [-0.5, -0.5]])
    points = np.vstack([members, members + 0.05, [[0.5, -2.0]]])
    assert improvements(points, members, [0.0, 0.0]).tolist() == [0.0] * 7


def test_boxes_are_disjoint_and_leave_out_what_is_dominated() -> None:
    rng = np.random.default_rng(0)
    members = rng.uniform(-1, 0, (9, 3))
    lower, upper = undominated_boxes(members, np.zeros(3))
    samples = rng.uniform(-1.1, 0, (4000, 3))
    inside = ((samples[:, None] >= lower) & (samples[:, None] < upper)).all(2).sum(1)
    dominated = (members[:, None] <= samples).all(2).any(0)
    assert inside.max() == 1
    assert ((inside == 0) == dominated).all()
