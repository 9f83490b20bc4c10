"""Settings of torch's that a process has changed decide no run's numbers."""

import pytest
import torch

from flgo_hydra import run

SMALL = ("task.num_clients=4", "num_rounds=2", "num_steps=1", "model=logistic")


def _set_dtype():
    torch.set_default_dtype(torch.float64)


def _autocast():
    torch.set_autocast_enabled("cpu", True)


def _deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)


def _precision():
    torch.set_float32_matmul_precision("medium")


@pytest.mark.parametrize("change", [_set_dtype, _autocast, _deterministic, _precision])
def test_a_run_begins_with_torchs_own_and_leaves_them(empty_folder, change):
    def settings():
        return (
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )

    before = settings()
    expected = run(*SMALL, "hydra.run.dir=a").rounds
    try:
        change()
        changed = settings()
        assert changed != before
        found = run(*SMALL, "hydra.run.dir=b").rounds
        assert settings() == changed
    finally:
        torch.set_default_dtype(before[0])
        torch.set_autocast_enabled("cpu", before[1])
        torch.use_deterministic_algorithms(before[2])
        torch.set_float32_matmul_precision(before[3])
    without = [{k: v for k, v in line.items() if k != "seconds"} for line in expected]
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in found] == without
