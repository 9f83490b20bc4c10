import pytest

from flgo_hydra.federated.schedule import batch_sizes, count_steps, lr_at, resolve_batch_size


@pytest.mark.parametrize(
    "schedule, by_round",
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("step", [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        ("step_2", [1, 0.5, 0.5, 0.25, 0.25, 0.125]),
        ("multistep_2_5", [1, 0.5, 0.5, 0.5, 0.25, 0.25]),
        ("ratiostep_0.5", [1, 1, 0.5, 0.5, 0.5, 0.25]),
        ("ratiostep_0.1", [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]),  # less than a round is a round
        ("divide_by_round", [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]),
        ("cosine", [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
    ],
)
def test_lr_by_round(schedule, by_round):
    assert [lr_at(schedule, 1.0, 0.5, r, 6) for r in range(1, 7)] == pytest.approx(by_round)


@pytest.mark.parametrize(
    "batch_size, num_samples, size",
    [(64, 100, 64), (64, 10, 10), (-1, 10, 10), (0.5, 10, 5), (0.29, 100, 29), (0.01, 10, 1), (1, 10, 1)],
)
def test_batch_size(batch_size, num_samples, size):
    assert resolve_batch_size(batch_size, num_samples) == size


@pytest.mark.parametrize(
    "num_samples, batch_size, num_epochs, num_steps, steps",
    [(10, 4, 5, None, 15), (10, 10, 1, None, 1), (10, 4, 5, 2, 2), (10, 4, 5, 100, 100)],
)
def test_steps_win_over_epochs(num_samples, batch_size, num_epochs, num_steps, steps):
    assert count_steps(num_samples, batch_size, num_epochs, num_steps) == steps


def test_the_last_batch_of_an_epoch_may_be_smaller_and_steps_may_end_anywhere():
    assert batch_sizes(10, 4, 6) == (4, 4, 2, 4, 4, 2)
    assert batch_sizes(10, 4, 2) == (4, 4)
    assert batch_sizes(10, 4, 4) == (4, 4, 2, 4)
    assert batch_sizes(8, 4, 3) == (4, 4, 4)
    assert batch_sizes(3, 3, 2) == (3, 3)
