"""The median of clients."""

import numpy as np
import pytest
import torch

from flgo_hydra.federated.parts.median import Median


@pytest.mark.parametrize("num_clients", [1, 2, 5, 8])
def test_it_is_numpys(num_clients):
    values = np.random.default_rng(0).normal(size=(num_clients, 3, 4))
    found = Median().combine({"w": torch.from_numpy(values)}, torch.ones(num_clients), {})
    np.testing.assert_allclose(found["w"].numpy(), np.median(values, axis=0), rtol=1e-15)


def test_a_minority_moves_it_no_further_than_the_others_are():
    values = torch.tensor([[1.0], [2.0], [3.0], [torch.inf], [-torch.inf], [torch.nan], [2.5]])
    assert 1.0 <= Median().combine({"w": values}, torch.ones(7), {})["w"].item() <= 3.0
