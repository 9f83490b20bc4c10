"""Two lanes, by hand: one client of four samples, one of three."""

import numpy as np

from flgo_hydra.federated.backend.lane_schedule import MASKED, Visited, kinds_of, schedule
from flgo_hydra.federated.schedule import Order

FIRST = Order(np.array([3, 1, 0, 2, 2, 1]), (2, 2, 2), (0, 3))
SECOND = Order(np.array([5, 6, 4]), (2, 1), (4, 6))
SOME = Order(np.array([8, 5, 6]), (2, 1))  # not all of its client's samples


def test_lanes_share_a_kind_or_are_masked():
    assert kinds_of([FIRST, SECOND], {2}) == [2, MASKED, MASKED]
    assert kinds_of([FIRST, SECOND], set()) == [MASKED] * 3
    assert kinds_of([FIRST], {2}) == [2, 2, 2]


def test_partial_batches_and_lanes_that_are_done_are_filled_up_and_count_nothing():
    even, partial, done = schedule([FIRST, SECOND], {2}, width=2)
    assert even.rows.tolist() == [[3, 1], [5, 6]] and even.weights is None
    assert partial.rows.tolist() == [[0, 2], [4, 4]]
    assert partial.weights.tolist() == [[0.5, 0.5], [1.0, 0.0]] and partial.is_active.tolist() == [True, True]
    assert done.rows.tolist() == [[2, 1], [4, 4]]
    assert done.weights.tolist() == [[0.5, 0.5], [0.0, 0.0]] and done.is_active.tolist() == [True, False]


def test_samples_are_found_among_those_that_a_lane_visits():
    orders = [FIRST, SECOND, SOME]
    visited = Visited(orders, most=5)
    assert visited.rows.tolist() == [[0, 1, 2, 3, 3], [4, 5, 6, 6, 6], [5, 6, 8, 8, 8]]
    found = visited.positions([step.rows for step in schedule(orders, {2}, width=2)], rows_per_lane=10)
    assert [one.tolist() for one in found] == [
        [[3, 1], [11, 12], [22, 20]],
        [[0, 2], [10, 10], [21, 21]],
        [[2, 1], [10, 10], [21, 21]],
    ]
