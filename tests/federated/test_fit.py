"""A copy of the model is tried on the task's samples before a run begins, and leaves no trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra import reference
from flgo_hydra.federated.data.task import Task
from flgo_hydra.federated.fit import build_fitting_model
from flgo_hydra.federated.randomness import generators_kept
from flgo_hydra.federated.training import LocalWork

CPU = torch.device("cpu")
SIZES = (9, 4, 6)


def task_of(x, y, num_classes=None, sizes=SIZES) -> Task:
    n = sum(sizes)
    return Task(
        name="tried",
        x_train=x[:n],
        y_train=y[:n],
        train_offsets=np.cumsum([0, *sizes]),
        x_valid=x[n : n + 3],
        y_valid=y[n : n + 3],
        valid_offsets=np.arange(4),
        x_test=x[n + 3 :],
        y_test=y[n + 3 :],
        num_classes=num_classes,
    )


def features(n=30, width=5):
    return np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)


def regression(num_targets=1) -> Task:
    return task_of(features(), features(width=num_targets))


def classification(x=None) -> Task:
    x = features() if x is None else x
    return task_of(x, np.arange(len(x)) % 3, num_classes=3)


class Net(nn.Module):
    """A dense layer, and something done to what it returns."""

    def __init__(self, num_outputs, then=lambda y: y):
        super().__init__()
        self.layer, self.then = nn.Linear(5, num_outputs), then

    def forward(self, x):
        return self.then(self.layer(x))


def fit(build, task, batch_size=4, num_steps=None, dtype=torch.float32, seed=0, **more):
    reference.give("given_in_python.tried", build)
    work = LocalWork(batch_size, 1, num_steps, seed)
    return build_fitting_model({"_target_": "given_in_python.tried"}, task, work, dtype, CPU, **more)


@pytest.mark.parametrize(
    "then, words",
    [
        (lambda y: y[:, 0], r"\(4, 1\).*\(4,\)"),
        (lambda y: y.unsqueeze(-1), r"\(4, 1, 1\)"),
        (lambda y: y.mean().reshape(1, 1), r"\(1, 1\)"),
        (lambda y: torch.cat([y, y, y], 1), r"\(4, 3\)"),
        (lambda y: (y, y), "tuple of 2"),
        (lambda y: y.round().long(), "int64"),
        (lambda y: y * 1j, "complex64"),
        (lambda y: y.squeeze(), r"\(3,\)"),
    ],
)
def test_outputs_of_another_form_than_a_regressions_are_refused(then, words):
    with pytest.raises(ValueError, match="The model must return .*" + words.replace("(4,", "([34],")):
        fit(lambda num_outputs: Net(num_outputs, then), regression())


@pytest.mark.parametrize("is_wrong_in", ["training", "evaluation"])
def test_both_modes_are_tried(is_wrong_in):
    class Two(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return (y, y) if self.training is (is_wrong_in == "training") else y

    with pytest.raises(ValueError, match="a tuple of 2"):
        fit(lambda: Two(5, 3), classification())
    if is_wrong_in == "training":  # what an algorithm's own loss makes of it is its own matter
        fit(lambda: Two(5, 3), classification(), has_own_loss=True)


def test_a_model_that_squeezes_is_refused_for_its_smallest_batch():
    """9 = 4 + 4 + 1: outputs of a single sample lose their first dimension."""
    with pytest.raises(ValueError, match=r"\(1, 3\) for a batch of 1 .* shape \(3,\)"):
        fit(lambda: Net(3, torch.squeeze), classification())
    fit(lambda: Net(3, torch.squeeze), classification(), batch_size=-1)


def test_a_model_that_takes_two_samples_at_least_fits_where_all_batches_have_them():
    def build():
        return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    fit(build, classification(), batch_size=-1)
    fit(build, classification(), num_steps=1)  # no client comes to its last batch
    with pytest.raises(ValueError, match=r"single sample.*set another `batch_size`"):
        fit(build, classification())


def test_what_the_model_raises_is_raised_with_what_it_was_given():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as error:
        fit(lambda: nn.Linear(6, 3), classification())
    assert error.value.__notes__ == ["(the model was tried in evaluation mode on float32 inputs of shape (3, 5))"]


def test_outputs_that_no_gradient_leads_through_are_refused():
    with pytest.raises(ValueError, match="depend on its trainable parameters"):
        fit(lambda: Net(3, torch.detach), classification())


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="must have trainable parameters"):
        fit(lambda: nn.Sequential(nn.Flatten(), nn.Softmax(1)), classification(features(width=3)))


class Leaving(nn.Module):
    """Leaves traces wherever a model can."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.calls = nn.Linear(5, 3), nn.BatchNorm1d(3), 0

    def forward(self, x):
        self.calls += 1
        x.mul_(2)
        return self.norm(self.layer(x)) + random.random() + np.random.rand() + torch.rand(1)


class Uncopied(Leaving):
    """Keeps what it has computed, which torch does not copy."""

    def __init__(self):
        super().__init__()
        self.kept = self.layer.weight * 2


@pytest.mark.parametrize("kind", [Leaving, Uncopied])
def test_a_trial_leaves_no_trace(kind):
    task = classification()
    x = task.x_train.copy()
    with generators_kept():
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        found = fit(kind, task, batch_size=-1)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert found.model.calls == 0
    assert found.model.norm.num_batches_tracked == 0 and (found.model.norm.running_mean == 0).all()
    assert (task.x_train == x).all()


CALLS = [0]


class Counting(nn.Linear):
    """Counts its calls where a copy counts them too."""

    calls = 0

    def __init__(self):
        super().__init__(5, 3)

    def forward(self, x):
        CALLS[0] += 1
        Counting.calls += 1
        return super().forward(x)


def test_a_trial_leaves_no_trace_in_what_copies_share():
    fit(Counting, classification())
    assert Counting.calls == 0 and CALLS == [0]


class Slotted(nn.Module):
    """Has an attribute that `deepcopy` of a module loses."""

    __slots__ = ("scale",)

    def __init__(self):
        super().__init__()
        self.scale, self.layer = 2.0, nn.Linear(5, 3)

    def forward(self, x):
        return self.scale * self.layer(x)


class Silent(nn.Linear):
    """Its `train` returns nothing."""

    def train(self, mode=True):
        super().train(mode)


@pytest.mark.parametrize("build", [Slotted, lambda: Silent(5, 3)])
def test_what_trains_well_fits(build):
    assert fit(build, classification()).model(torch.ones(2, 5)).shape == (2, 3)


# Integers.

IDS = np.array([[2**24 + 1, 3, k % 7] for k in range(30)])


class Words(nn.Module):
    def __init__(self, num_outputs, remainder=11):
        super().__init__()
        self.embed, self.out, self.remainder = nn.Embedding(remainder, 4), nn.Linear(4, num_outputs), remainder

    def forward(self, x):
        return self.out(self.embed(x % self.remainder).mean(1))


def dense(num_outputs):
    return nn.Sequential(nn.Linear(3, num_outputs))


class Either(nn.Module):
    """Takes both, and would round what came as floats."""

    def __init__(self, num_outputs):
        super().__init__()
        self.words = Words(num_outputs)

    def forward(self, x):
        return self.words(x.long())


@pytest.mark.parametrize(
    "build, takes_integers",
    [(Words, True), (Either, True), (dense, False), (lambda num_outputs: LazyWords(), True)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_gets_integers_where_it_takes_them(build, takes_integers, dtype):
    assert fit(build, classification(IDS), dtype=dtype).takes_integers is takes_integers


def test_no_model_gets_integers_of_a_task_that_has_none():
    assert not fit(lambda: nn.Linear(5, 3), classification()).takes_integers


def test_a_model_of_integers_says_so_where_it_gets_floats():
    with pytest.raises(ValueError, match=r"takes integers, but .* float32 inputs of shape \(3, 3\).*int64"):
        fit(Words, classification(IDS.astype(np.float32)))


def test_ids_out_of_range_are_told_as_such():
    with pytest.raises(IndexError, match="out of range"):
        fit(lambda: nn.Sequential(nn.Embedding(5, 2), nn.Flatten(), nn.Linear(6, 3)), classification(IDS))


# Parts that are made in the first forward pass.


class LazyWords(nn.Sequential):
    def __init__(self):
        super().__init__(Words(6), nn.LazyLinear(3))


class Late(nn.Module):
    """Makes its only layer when it sees its inputs."""

    def __init__(self):
        super().__init__()
        self.layer = None

    def forward(self, x):
        if self.layer is None:
            self.layer = nn.Linear(x.shape[1], 3).to(x.dtype)
        return self.layer(x)


def lazy():
    return nn.Sequential(nn.Linear(5, 4), nn.LazyLinear(3), nn.LazyBatchNorm1d())


@pytest.mark.parametrize("build", [lazy, Late])
def test_late_parts_are_made_with_the_seed_of_the_weights(build):
    def weights(seed, dtype=torch.float32):
        found = fit(build, classification(), batch_size=-1, seed=seed, dtype=dtype).model
        return torch.cat([p.detach().float().flatten() for p in found.parameters()])

    with generators_kept():
        torch.manual_seed(1)
        first = weights(0)
        torch.manual_seed(2)
        assert torch.equal(first, weights(0)) and not torch.equal(first, weights(1))
        assert torch.equal(first, weights(0, torch.float64))


def test_late_parts_are_what_pytorch_makes_after_its_own_seed():
    from flgo_hydra.federated.randomness import Purpose, torch_seed

    with generators_kept():
        torch.manual_seed(torch_seed(3, Purpose.INITIAL_WEIGHTS))
        plain = lazy()
        plain(torch.from_numpy(features()))
    found = fit(lazy, classification(), batch_size=-1, seed=3).model.state_dict()
    for name, tensor in plain.state_dict().items():
        assert name.startswith("2.") or torch.equal(tensor, found[name])
    assert found["2.num_batches_tracked"] == 0  # nothing was counted
