"""Names and functions come with the choice, whoever writes them."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flgo_hydra import init, run
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_result

SMALL = ("num_rounds=1", "model=logistic", "num_steps=1", "task.num_clients=5", "hydra.run.dir=run")
GRID = (*SMALL[:-1], "hydra.sweep.dir=sweep")
FEDAVG = "flgo_hydra.federated.algorithm.fedavg.FedAvg"
WRITTEN = [
    (["algorithm.name=scaffold"], "`algorithm.name` comes with the choice.*`algorithm=fedavg`.*`algorithm=scaffold`"),
    (["++algorithm.name=mine"], "`algorithm.name`.*`algorithm=<afl|"),
    (["algorithm={name: fedprox}"], "`algorithm.name`.*'fedprox'.*`algorithm=fedprox`"),
    (["model.name=cnn"], "`model.name`.*`model=logistic`.*`model=cnn`"),
    (["task.name=mnist"], "`task.name`.*`task=digits`.*`task=mnist`"),
    (["task.partition.name=dirichlet"], "`task.partition.name`.*`task/partition=iid`.*`task/partition=dirichlet`"),
    ([f"algorithm._target_={FEDAVG}", "algorithm=scaffold"], "`algorithm._target_` comes with.*`algorithm=scaffold`"),
    (["model._target_=mine.Model"], "`model._target_`.*results would call it logistic.*`model=custom model._target_="),
    (["task.source._target_=mine.data"], "`task.source._target_`.*call it digits.*`task=custom task.source._target_="),
    (
        ["algorithm=custom", f"algorithm._target_={FEDAVG}", "algorithm.name=scaffold"],
        "Choose with .algorithm=scaffold",
    ),
]


@pytest.mark.parametrize("overrides, words", WRITTEN)
@pytest.mark.few(3)
def test_a_run_that_would_carry_anothers_name_is_refused(command, overrides, words):
    done = command(*SMALL, *overrides)
    assert done.status == 1 and read_result(RunPaths(Path("run"))) is None
    assert re.search(words.replace("|", r"\|"), done.err), done.err


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.name=fedavg,scaffold"],  # the second point differs from the first by a plain value
        ["algorithm.name=scaffold", "lr=0.1,0.2"],
        ["experiment=grid", "hydra.searchpath=[file://mine]"],
        ["hydra.sweeper.points=[['algorithm.name=scaffold']]"],
        ["algorithm.name=scaffold", "lr=0.1,0.2", "hydra/sweeper=basic", "hydra/launcher=basic"],
    ],
)
@pytest.mark.few(2)
def test_nor_does_a_sweep_begin(command, empty_folder, overrides):
    (empty_folder / "mine" / "experiment").mkdir(parents=True)
    (empty_folder / "mine" / "experiment" / "grid.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      algorithm.name: fedavg,scaffold\n"
    )
    done = command("-m", *GRID, *overrides)
    assert done.status == 1 and "Choose with `algorithm=scaffold`" in done.err + done.out
    assert not list(empty_folder.glob("sweep/*/result.json"))


def test_nor_does_a_python_program(empty_folder):
    with pytest.raises(ValueError, match="Choose with `algorithm=scaffold`"):
        run(*SMALL, "algorithm.name=scaffold")
    with pytest.raises(ValueError, match="`task.name` comes with the choice"):
        init("digits", "fedavg", {"task.name": "mnist"})


def test_a_preset_writes_no_names_but_chooses(command, empty_folder):
    folder = empty_folder / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "named.yaml").write_text("# @package _global_\nalgorithm:\n  name: scaffold\n")
    (folder / "chosen.yaml").write_text("# @package _global_\ndefaults:\n  - override /algorithm: scaffold\n")
    done = command("--config-dir", "mine", *SMALL, "experiment=named")
    assert done.status == 1 and "Choose with `algorithm=scaffold`" in done.err
    done = command("--config-dir", "mine", *SMALL, "experiment=chosen")
    assert done.status == 0 and read_result(RunPaths(Path("run"))).algorithm["name"] == "scaffold", done.err


OWN = {
    "momentum": (f"name: momentum\n_target_: {FEDAVG}\n", "momentum"),
    "another": (f"_target_: {FEDAVG}\nname: 'quite another'\n", "quite another"),  # the file's name says nothing
    "gently": ("defaults:\n  - fedprox\n  - _self_\nmu: 0.001\n", "fedprox"),
    "named": ("defaults:\n  - fedprox\n  - _self_\nname: gentle\n", "gentle"),
}


@pytest.mark.parametrize("choice", OWN)
@pytest.mark.few(2)
def test_a_yaml_of_the_users_own_says_what_it_is(command, empty_folder, choice):
    text, name = OWN[choice]
    (empty_folder / "mine" / "algorithm").mkdir(parents=True)
    (empty_folder / "mine" / "algorithm" / f"{choice}.yaml").write_text(text)
    done = command("--config-dir", "mine", *SMALL, f"algorithm={choice}")
    assert done.status == 0, done.err
    assert read_result(RunPaths(Path("run"))).algorithm["name"] == name
    done = command("--config-dir", "mine", *SMALL, f"algorithm={choice}", "algorithm.name=fedavg")
    assert done.status == 1 and "Choose with `algorithm=fedavg`" in done.err


@pytest.mark.slow
def test_the_name_of_ones_own_function_is_ones_own(command, empty_folder):
    (empty_folder / "mine.py").write_text(
        "from flgo_hydra.federated.algorithm.base import Algorithm\nclass Own(Algorithm): pass\n"
    )
    done = command("-m", *GRID, "algorithm=custom", "algorithm._target_=mine.Own", "algorithm.name=own", "lr=0.1,0.2")
    assert done.status == 0, done.err
    assert OmegaConf.load("sweep/0/.hydra/config.yaml").algorithm.name == "own"


@pytest.mark.parametrize("more", [("hydra.run.dir=run",), ("-m", "lr=0.1,0.2", "hydra.sweep.dir=sweep")])
def test_a_choice_of_ones_own_that_ours_would_hide_is_refused(command, empty_folder, more):
    """Hydra finds ours first: the user's would be ignored."""
    own = empty_folder / "my_conf" / "algorithm" / "fedavgm.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(f"name: fedavgm\n_target_: {FEDAVG}\n")
    done = command("--config-dir", "my_conf", "algorithm=fedavgm", *SMALL[:-1], *more)
    assert done.status == 1 and not list(empty_folder.rglob("rounds.jsonl"))
    assert "`algorithm=fedavgm` is a choice of flgo_hydra's, which hides" in done.err and str(own) in done.err
