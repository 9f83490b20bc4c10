"""What a local step may use, whatever its numbers are held in."""

import pytest
import torch

from flgo_hydra.federated.algorithm.local import LocalBatch
from flgo_hydra.federated.optimizer import build_optimizer


def at(count, num_steps):
    given = {"slots": {}, "_loss": None, "_model": None, "_criterion": None, "_fixed": {}}
    x, y = torch.zeros(2, 3), torch.zeros(2)
    optimizer = build_optimizer("sgd")
    return LocalBatch(
        x, y, None, {}, count=count, num_steps=num_steps, _optimizer=optimizer, _clip_grad=0.0, _lr=0.1, **given
    )


HELD = {
    "numbers of Python": (lambda share: share, lambda n: n),
    "float64": (lambda share: share, lambda n: torch.tensor(float(n), dtype=torch.float64)),
    "float32": (lambda share: torch.tensor(share), lambda n: torch.tensor(float(n))),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize(
    "share, num_steps, first",
    [(0.7, 90, 63), (0.29, 100, 29), (0.5, 7, 3), (10 / 11, 11, 10), (0.01, 5, 1), (1.0, 4, 4)],
)
def test_the_first_share_of_steps_is_the_same_in_every_form(held, share, num_steps, first):
    of_share, of_steps = HELD[held]
    asked = [bool(at(n, of_steps(num_steps)).is_among_first(of_share(share))) for n in range(1, num_steps + 1)]
    assert asked == [True] * first + [False] * (num_steps - first)
