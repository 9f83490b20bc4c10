"""Which kinds of steps a task's clients can take, and how much they compute."""

import numpy as np
import pytest

from flgo_hydra.federated.backend.extent import dual_pays, extent_of_sizes
from flgo_hydra.federated.backend.lane_schedule import MASKED
from flgo_hydra.federated.training import LocalWork

FOREVER = float("inf")


def test_clients_alike_take_one_kind_of_step():
    extent = extent_of_sizes(np.array([8, 8, 8]), LocalWork(4, 2, None, seed=0), FOREVER, lanes=3)
    assert (extent.width, extent.least, extent.most_steps, extent.least_steps) == (4, 4, 4, 4)
    assert extent.kinds == extent.sizes == {4} and extent.partial == frozenset() and extent.most_samples == 8


def test_clients_alike_with_a_smaller_last_batch_take_two():
    extent = extent_of_sizes(np.array([6, 6]), LocalWork(4, 1, None, seed=0), FOREVER, lanes=2)
    assert extent.kinds == {4, 2} and extent.partial == {2} and extent.least == 2


def test_clients_that_differ_are_masked():
    extent = extent_of_sizes(np.array([9, 4, 2]), LocalWork(4, 1, None, seed=0), FOREVER, lanes=3)
    assert MASKED in extent.kinds and (extent.width, extent.least) == (4, 1)
    assert (extent.most_steps, extent.least_steps, extent.most_samples) == (3, 1, 9)


def test_a_short_run_has_no_programs_of_its_own():
    work = LocalWork(4, 1, None, seed=0)
    assert extent_of_sizes(np.array([8, 8]), work, 1, lanes=2).kinds == {MASKED}
    assert extent_of_sizes(np.array([8, 8]), work, 500, lanes=2).kinds == {4}


@pytest.mark.parametrize("outputs, inputs, pays", [(200, 784, True), (2, 3, False)])
def test_the_dual_form_pays_for_wide_layers_on_samples_that_are_seen_again(outputs, inputs, pays):
    extent = extent_of_sizes(np.array([20]), LocalWork(10, 20, None, seed=0), FOREVER, lanes=1)
    assert dual_pays(extent, outputs, inputs) is pays
