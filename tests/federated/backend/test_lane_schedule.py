"""Two lanes, by hand: one client of four samples, one of three."""

import numpy as np

from flgo_hydra.federated.backend.lane_schedule import MASKED, kinds_of, positions, schedule, visited


def rows(*batches):
    return [np.array(batch) for batch in batches]


FIRST = rows([3, 1], [0, 2], [2, 1])
SECOND = rows([5, 6], [4])


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
    samples = visited([FIRST, SECOND], most=5)
    assert samples.tolist() == [[0, 1, 2, 3, 3], [4, 5, 6, 6, 6]]
    steps = schedule([FIRST, SECOND], {2}, width=2)
    found = positions(steps, samples, rows_per_lane=10)
    assert [one.tolist() for one in found] == [[[3, 1], [11, 12]], [[0, 2], [10, 10]], [[2, 1], [10, 10]]]
