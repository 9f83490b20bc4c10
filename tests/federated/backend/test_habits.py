"""What a model does beside computing is found out before the first round, or refused."""

import sqlite3
import subprocess
import sys

import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.beyond import nothing_changed_beyond
from flgo_hydra.federated.backend.fused import CannotFuse
from flgo_hydra.federated.refused import Refused

from .test_fused import Runs


class Line(nn.Linear):
    def __init__(self):
        super().__init__(5, 3)


@pytest.mark.parametrize("register", ["register_hook", "register_prehook"])
def test_hooks_where_gradients_add_up_are_refused_and_never_called(ragged, register):
    called = []

    def build():
        model = Line().double()
        model.node = model.bias.expand_as(model.bias).grad_fn.next_functions[0][0]
        getattr(model.node, register)(lambda *args: called.append(args))
        return model

    with pytest.raises(Refused, match="`bias` has a hook at the node"):
        Runs(ragged, FedAvg, build).alone({})
    assert not called
    assert sys.getprofile() is None


def test_a_hook_of_the_parameter_is_none_where_gradients_add_up(ragged):
    def build():
        model = Line().double()
        model.bias.register_hook(lambda g: 0 * g)
        return model

    _, state, _ = Runs(ragged, FedAvg, build).alone({})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = build()
    assert torch.equal(state.server.params["bias"], start.bias)
    assert not torch.equal(state.server.params["weight"], start.weight)


def test_runs_whose_models_hook_all_modules_run_apart(ragged, monkeypatch):
    hooks = nn.modules.module._global_forward_hooks
    monkeypatch.setattr(nn.modules.module, "_global_forward_hooks", type(hooks)())

    def build():
        nn.modules.module.register_module_forward_hook(lambda module, x, y: 0.9 * y)
        return Line()

    with pytest.raises(CannotFuse, match="hooks on all modules"):
        Runs(ragged, FedAvg, build).together([{}, {"lr": 0.2}])


def _writes(folder):
    (folder / "made").write_text("1")


def _appends(folder):
    with open(folder / "there", "a") as file:
        file.write("1")


def _connects(folder):
    sqlite3.connect(folder / "made")


def _removes(folder):
    (folder / "there").unlink()


def _renames(folder):
    (folder / "there").rename(folder / "made")


def _starts(folder):
    subprocess.run([sys.executable, "-c", f"open({str(folder / 'made')!r}, 'w')"], check=True)


def _swallows(folder):
    try:
        _writes(folder)
    except Exception:
        pass


@pytest.mark.parametrize("act", [_writes, _appends, _connects, _removes, _renames, _starts, _swallows])
def test_a_trial_ends_before_it_changes_what_is_not_of_the_process(tmp_path, act):
    (tmp_path / "there").write_text("0")
    after = []
    with nothing_changed_beyond() as beyond:
        act(tmp_path)
        after.append(True)
    assert beyond.changes
    assert not after
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "0"
    act(tmp_path)  # outside of a trial it may


def test_what_a_trial_reads_is_noticed_and_not_what_it_imports(tmp_path, monkeypatch):
    (tmp_path / "a_module_of_the_users.py").write_text("import warnings\nVALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with nothing_changed_beyond() as beyond:
        import a_module_of_the_users  # noqa: F401
    assert not beyond
    (tmp_path / "there").write_text("0")
    with nothing_changed_beyond() as beyond:
        assert (tmp_path / "there").read_text() == "0"
    assert beyond.reads == str(tmp_path / "there")
    assert not beyond.changes


def test_errors_pass():
    with pytest.raises(ZeroDivisionError), nothing_changed_beyond():
        raise ZeroDivisionError
