from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flgo_hydra import run
from flgo_hydra.explain import explain


@pytest.mark.parametrize(
    "typed, message",
    [
        # a key that does not exist, at every level
        ("lrr=0.1", "There is no `lrr`. Did you mean `lr`?"),
        ("task.sed=1", "There is no `task.sed`. Did you mean `task.seed` or `seed`?"),
        ("model.hiden=3", "There is no `model.hiden`. Did you mean `model.hidden`?"),
        ("task.partition.min_sample=3", "Did you mean `task.partition.min_samples`?"),
        ("algoritm=fedprox", "There is no `algoritm`. Did you mean `algorithm`"),
        ("task/partion=dirichlet", "There is no `task/partion`. Did you mean `task/partition`"),
        ("hydra/lancher=basic", "There is no `hydra/lancher`. Did you mean `hydra/launcher`"),
        ("hydra.sweeper.storag=x", "Did you mean `hydra.sweeper.storage`?"),
        ("qqq=1", "There is no `qqq`. `python -m flgo_hydra --help` lists the keys."),
        # FLGo's names
        ("num_clients=3", "There is no `num_clients`. Did you mean `task.num_clients`?"),
        ("load_checkpoint=x", "Did you mean `hydra.run.dir`?"),
        # keys of another choice
        (
            "algorithm.mu=1",
            "There is no `algorithm.mu` with the choices made: it is a key of algorithm=fedprox or algorithm=moon or ",
        ),
        ("model=resnet model.hidden=3", "it is a key of model=mlp or model=cnn."),
        ("task.partition.alpa=1", "Did you mean `task.partition.alpha` (of task/partition=dirichlet)"),
        ("+algorithm.mu=1", "it is a key of algorithm=fedprox or algorithm=moon or algorithm=fednova."),
        # choices
        ("algorithm=fedpox", "`algorithm` has no choice 'fedpox'. It has afl, "),
        ("algorithm=fedpox", "Did you mean `algorithm=fedprox`?"),
        ("task/partition=dirichle", "Did you mean `task/partition=dirichlet`?"),
        ("model=null", "`model` has no choice 'null'. It has cnn, custom, flgo, logistic, mlp, resnet."),
        ("task=3", "`task` has no choice '3'. It has cifar10, "),
        # values
        ("num_rounds=abc", "error: `num_rounds` (communication rounds) must be a whole number, but got 'abc'.\n"),
        ("num_rounds=1e3", "must be a whole number, but got 1000.0. Write 1000.\n"),
        ("num_steps=[2]", "must be a whole number, or null, but got [2].\n"),
        ("save_best=perhaps", "must be true or false, but got 'perhaps'.\n"),
        ("model.hidden=3", "`model.hidden` must be a list of whole numbers, but got 3.\n"),
        ("model.hidden=[3,[2]]", "`every width in model.hidden >= 1` must hold, but got [3, [2]].\n"),
        ("model.hidden.x=3", "There is no `model.hidden.x`: `model.hidden` must be a list, and has no keys below it."),
        (
            "lr.x=3",
            "There is no `lr.x`: `lr` (learning rate of the clients' optimizer) must be a number, and has no keys",
        ),
        ("engine=3", "`engine` must be keys with values (backend, compile, dual, graph), but got 3."),
        ("engine={a:3}", "There is no `engine.a`. `engine` has backend, compile, dual, graph."),
        ("algorithm=flgo algorithm.option.a=3", "must be added with a plus, `+algorithm.option.a=3`."),
        ("hydra.job.num=x", "`hydra.job.num` must be a whole number, but got 'x'."),
        ("hydra.launcher=3", "`hydra.launcher` must be the keys of a launcher, but got '3'. Choose another one with"),
        ("hydra.sweeper._target_=3", "Choose another one with `hydra/sweeper=…`"),
        ("hydra=3", "`hydra` must be Hydra's own keys, but got '3'."),
        ("task=[a]", "`task` has no choice '[a]'. It has cifar10, "),
        ("optimizer='a\x1b[31m'", "adadelta, but got 'a\\x1b[31m'."),
        ("-m lr=1,2 +hydra.launcher.x=1", "There is no `hydra.launcher.x`. `hydra.launcher` has backoff_s, devices, "),
        (
            "-m lr=1,2 +hydra.sweeper.strage=1",
            "There is no `hydra.sweeper.strage`. Did you mean `hydra.sweeper.storage`",
        ),
        ("-m lr=1,2 hydra.launcher.devices={a:1}", "`hydra.launcher.devices is auto, cpu, or a list"),
        ("-m model=mlp,null lr=1", "`model=mlp,null` must name choices, but `null` is none. Give nothing a name"),
        # flags
        ("--lr 0.1", "error: There is no flag `--lr`. Keys of the config are set without dashes: `lr=0.1`.\n"),
        ("seed=1 --num-rounds=3", "without dashes: `num_rounds=3`."),
        ("--learning_rate 3", "Did you mean `lr=3`?"),
        ("--multi-run lr=1,2", "There is no flag `--multi-run`. Did you mean `--multirun`?"),
        ("--cfg jobs", "`--cfg` must be one of job, hydra, all, but got 'jobs'."),
        ("seed=0,1 -m lr=-1", "`lr > 0 and finite` must hold, but got -1.0."),
        ("num_rounds=2.5", "`num_rounds` (communication rounds) must be a whole number, but got 2.5.\n"),
        ("task.seed=abc", "`task.seed` (decides the data split (and generated data); "),
        ("batch_size=true", "must be a number, but got True."),
        ("lr=null", "`lr` (learning rate of the clients' optimizer) must be a number, but got null."),
        ("lr=${foo}", "`lr=${foo}`: Interpolation key 'foo' not found."),
        ("lr=-1", "`lr > 0 and finite` must hold, but got -1.0."),
        ("+foo=1", "There is no `foo`."),
        # grammar
        ("lr=[1", "error: `lr=[1` must be `key=value` in Hydra's grammar, but the value '[1' cannot be read"),
        ("fedprox", "must be `key=value`, but it has no `=`. Did you mean `algorithm=fedprox`?"),
        ("lr=0.1,0.2", "each is a run of its own: `python -m flgo_hydra -m lr=0.1,0.2`."),
        # grids: before any job starts
        ("-m lr=1,2 hydra.sweeper.sampler=foo", "error: `hydra.sweeper.sampler` must be one of grid, tpe"),
        ("-m lr=1,2 hydra.launcher.slots=-1", "error: `hydra.launcher.slots >= 1, or null for automatic` must hold"),
        ("-m lr=1,2 hydra.launcher.scheduler={name:ledger,margin:inf}", "margin >= 1 and finite` must hold"),
        ("-m lr=1,2 hydra.launcher.scheduler={name:auto,put_interval:inf}", "put_interval <= 2592000, or null"),
        ("-m lr=1,2 hydra.launcher.timeout_min=1e300", "0 < hydra.launcher.timeout_min <= 43200, or null"),
        ("-m lr=1,2 hydra.launcher.grace_s=inf", "0 <= hydra.launcher.grace_s <= 2592000` must hold"),
        ("num_threads=100000", "1 <= num_threads <= 1024, or null` must hold"),
        ("-m algorithm=fedavg,fedprox algorithm.mu=0.2", "The point algorithm=fedavg has no `algorithm.mu`"),
        ("-m model=mlp,resnet model.hidden=[3]", "The point model=resnet has no `model.hidden`, which is a key of"),
        ("-m task/partition=iid,dirichlet task.partition.alpha=1", "The point task/partition=iid has no"),
        ("-m algorithm=fedprox,fedavg algorithm.mu=0.2,0.3", "The point algorithm=fedavg has no `algorithm.mu`"),
        ("-m model=resnet,cnn model.channels=[8,16]", "give it as one that varies, `model.channels=choice([8,16])`."),
        # what only a sweep needs is refused without `-m`, too
        ("hydra.launcher.slots=-3", "error: `hydra.launcher.slots >= 1, or null for automatic` must hold, but got -3."),
        ("hydra.launcher.scheduler={name:ato}", "`hydra.launcher.scheduler"),
        ("hydra.sweeper.sampler=foo", "error: `hydra.sweeper.sampler` must be one of grid, tpe"),
        ('-m hydra.sweeper.points=["lr=0.1,0.2"]', 'a point for each, `hydra.sweeper.points=["lr=0.1","lr=0.2"]`'),
        ("-m lr=-1,0.1", "`lr > 0 and finite` must hold, but got -1.0."),
        ("-m algorithm=fedpox,fedavg", "Did you mean `algorithm=fedprox`?"),
        ("-m learning_rate=0.1,0.2", "There is no `learning_rate`. Did you mean `lr`?"),
    ],
)
@pytest.mark.few(6)
def test_mistakes_on_the_command_line(
    command: Callable[..., Any], empty_folder: Path, typed: str, message: str
) -> None:
    # What a run would do must not hang on the mistake being found.
    ended = command(*typed.split(), "hydra.run.dir=out", "hydra.sweep.dir=outs")
    assert ended.status == 1
    assert message in ended.err
    assert ended.err.count("error: ") == 1 and "Traceback" not in ended.err
    assert not list(empty_folder.rglob("rounds.jsonl"))


def test_keys_of_a_users_own_choice_are_known(command: Callable[..., Any], empty_folder: Path) -> None:
    (empty_folder / "conf/algorithm").mkdir(parents=True)
    (empty_folder / "conf/algorithm/mine.yaml").write_text("_target_: mine.Mine\nbeta: 0.5\n")
    ended = command("--config-dir", "conf", "algorithm=mine", "algorithm.bta=1")
    assert "There is no `algorithm.bta`. Did you mean `algorithm.beta`" in ended.err


@pytest.mark.parametrize("content, status", [("lr: 0.1\n", 1), ("# @package _global_\nlr: 0.1\n", 0)])
def test_a_preset_that_does_not_say_where_it_belongs(
    command: Callable[..., Any], empty_folder: Path, content: str, status: int
) -> None:
    (empty_folder / "conf/experiment").mkdir(parents=True)
    (empty_folder / "conf/experiment/mine.yaml").write_text(content)
    ended = command("--config-dir", "conf", "experiment=mine", "num_rounds=1", "task.num_clients=3")
    assert ended.status == status
    assert ("Its first line must be `# @package _global_`." in ended.err) is bool(status)


@pytest.mark.parametrize(
    "error, text",
    [
        (ValueError("`lr > 0` must hold."), "`lr > 0` must hold."),
        (RuntimeError("something else"), "something else"),
    ],
)
def test_other_errors_say_what_they_say(error: Exception, text: str) -> None:
    assert explain(error, []) == text


def test_a_number_of_too_many_digits_in_a_file_or_from_python(command, empty_folder):
    (empty_folder / "own/option").mkdir(parents=True)
    (empty_folder / "own/option/big.yaml").write_text(f"# @package _global_\nlr: {400 * '9'}\n")
    done = command("--config-dir", "own", "option=big")
    assert done.status == 1 and done.err.startswith("error: ") and "must be one of at most 308 digits" in done.err
    assert "Traceback" not in done.err
    with pytest.raises(ValueError, match="^`lr` must have numbers of at most 308 digits, but got one of 400"):
        run(f"lr={400 * '9'}")
