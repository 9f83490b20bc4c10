import copy
import functools
import sys
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from flgo_hydra import compose
from flgo_hydra.config.algorithm import FedProxConf
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.config.task import DirichletConf, SyntheticConf
from flgo_hydra.help import GROUPS, group_choices

OWN = {
    "task": ["task.source._target_=mine.data"],
    "task/partition": ["task.partition._target_=mine.split"],
    "model": ["model._target_=mine.Model", "+model.width=3"],
    "algorithm": ["algorithm._target_=mine.Algorithm", "+algorithm.beta=0.5"],
}


@functools.cache
def _compose(*overrides: str) -> DictConfig:
    compose.prepare()
    GlobalHydra.instance().clear()
    base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        return hydra_compose("config", overrides=list(overrides))


def _conf(*overrides: str) -> Conf:
    return compose.to_conf(_compose(*overrides))


# The i-th choices of all groups at once: composing takes its time.
CHOICES = [group_choices(group) for group in GROUPS]
TOGETHER = [[names[i % len(names)] for names in CHOICES] for i in range(max(map(len, CHOICES)))]


@pytest.mark.parametrize("choices", TOGETHER, ids=" ".join)
def test_every_choice_becomes_a_conf(choices: list[str]) -> None:
    chosen = dict(zip(GROUPS, choices, strict=True))
    own = [text for group, choice in chosen.items() if choice == "custom" for text in OWN[group]]
    own += ["algorithm.module=flgo.algorithm.moon"] if chosen["algorithm"] == "flgo" else []
    conf = _conf(*(f"{group}={choice}" for group, choice in chosen.items()), *own)
    parts = {"task": conf.task, "task/partition": conf.task.partition, "model": conf.model, "algorithm": conf.algorithm}
    assert {group: compose.parameters(part)["name"] for group, part in parts.items()} == {
        group: chosen[group] for group in parts
    }


def test_values_reach_the_subclass() -> None:
    # With the schema after `_self_`, the fields that only the subclass has would vanish in silence.
    conf = _conf(
        "algorithm=fedprox",
        "algorithm.mu=1",
        "task=synthetic",
        "task.source.alpha=0.25",
        "task/partition=dirichlet",
        "task.partition.alpha=0.1",
    )
    assert isinstance(conf.algorithm, FedProxConf) and conf.algorithm.mu == 1.0
    assert isinstance(conf.task.source, SyntheticConf) and conf.task.source.alpha == 0.25
    assert isinstance(conf.task.partition, DirichletConf) and conf.task.partition.alpha == 0.1


def test_a_users_own_keeps_its_parameters() -> None:
    conf = _conf("algorithm=custom", "algorithm._target_=mine.Algorithm", "+algorithm.beta=0.5")
    assert conf.algorithm == {"name": "custom", "_target_": "mine.Algorithm", "beta": 0.5}


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["+foo=1"], "There is no `foo`. `python -m flgo_hydra --help` lists the keys."),
        (["+lrr=1"], "There is no `lrr`. Did you mean `lr`?"),
        (["+task.sed=1"], "There is no `task.sed`. Did you mean `task.seed` or `seed`?"),
        (
            ["+algorithm.q=1"],
            "There is no `algorithm.q` with the choices made: it is a key of algorithm=qfedavg.",
        ),
        (["+task.partition.foo=1"], "There is no `task.partition.foo`. `task.partition` has min_samples, name."),
        (["task=custom"], "`task.source._target_` must be given: `task.source._target_=…`."),
        (["model=custom"], "`model._target_` must be given: `model._target_=…`."),
        (["~task"], "`task` must be given"),
        (["~lr"], "`lr` was deleted, but a job needs it. Set it instead."),
        (["task.source=null"], "`task.source._target_` must name a function or a class, but `task.source` is None."),
        (["task.partition=3"], "`task.partition._target_` must name a function or a class"),
        (["model=custom", "model._target_=null"], "`model._target_` must name a function or a class"),
        (["lr=-1"], "`lr > 0 and finite` must hold, but got -1.0."),
        (["algorithm=fedprox", "algorithm.mu=-1"], "`algorithm.mu >= 0 and finite` must hold, but got -1.0."),
    ],
)
def test_mistakes_become_value_errors(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        _conf(*overrides)
    assert message in str(raised.value)


def test_task_without_its_schema() -> None:
    cfg = copy.deepcopy(_compose())
    OmegaConf.update(cfg, "task", {"name": "mine"}, merge=False)
    with pytest.raises(ValueError, match="/schema/task@_here_"):
        compose.to_conf(cfg)


@pytest.mark.parametrize(
    "one, other, is_same",
    [
        (["lr=0.1"], ["lr=1e-1"], True),
        (["lr=1"], ["lr=1.0"], True),
        (["batch_size=10"], ["batch_size=10.0"], True),
        (["device=cpu", "num_threads=2"], [], True),
        (["checkpoint_interval=1", "save_best=true"], [], True),
        (["task.cache_dir=/a", "task.data_dir=/b"], [], True),
        (["option=fedavg_paper"], ["proportion=0.1", "batch_size=10"], True),
        (["seed=1"], [], False),
        (["task.seed=1"], [], False),
        (["num_rounds=21"], [], False),
        (["early_stop=5"], [], False),
        (["dtype=float64"], [], False),
        (["model.hidden=[100]"], [], False),
        (["algorithm=fedprox"], [], False),
        (["algorithm=fedprox", "algorithm.mu=1"], ["algorithm=fedprox"], False),
        (["task/partition=dirichlet"], [], False),
    ],
)
def test_fingerprint(one: list[str], other: list[str], is_same: bool) -> None:
    def conf(overrides: list[str]) -> Conf:
        choices = [text for text in overrides if text.partition("=")[0] in GROUPS]
        values = OmegaConf.from_dotlist([text for text in overrides if text not in choices])
        return compose.to_conf(OmegaConf.merge(_compose(*choices), values))  # composing takes its time

    assert (compose.fingerprint(conf(one)) == compose.fingerprint(conf(other))) is is_same


def test_parts_are_plain_values() -> None:
    parts = compose.parts(_conf("lr=0.5"))
    assert list(parts) == ["task", "model", "algorithm", "option"]
    assert parts["option"]["lr"] == 0.5 and parts["task"]["partition"]["name"] == "iid"


@pytest.mark.parametrize(
    "part, name",
    [
        ({"_target_": "mine.Net"}, "net"),
        ({"_target_": "mine.Net", "name": "wide"}, "wide"),
        (FedProxConf(_target_="a.b", name="fedprox"), "fedprox"),
    ],
)
def test_parameters_have_a_name(part: object, name: str) -> None:
    assert compose.parameters(part)["name"] == name


def test_conf_dir_of_the_checkout() -> None:
    package = Path(compose.__file__).parent
    assert conf_dir() in (package / "conf", package.parent / "conf")
    assert (conf_dir() / "config.yaml").is_file()


def test_prepare_may_be_called_again() -> None:
    compose.prepare()
    before = list(sys.path), set(ConfigStore.instance().repo["schema"])
    compose.prepare()
    assert (list(sys.path), set(ConfigStore.instance().repo["schema"])) == before
    assert sum((Path(folder) / "hydra_plugins" / "flgo_hydra").is_dir() for folder in sys.path if folder) >= 1


@pytest.mark.parametrize("is_ours", [True, False])
def test_is_ours(is_ours: bool) -> None:
    assert compose.is_ours(_compose() if is_ours else OmegaConf.create({"lr": 0.1})) is is_ours


def test_an_algorithms_own_number_is_not_named_lr() -> None:
    own = ("algorithm=custom", "algorithm._target_=mine.Algorithm")
    with pytest.raises(ValueError, match=r"`algorithm\.lr=0\.5`.*`lr` of each round.*server_lr"):
        _conf(*own, "+algorithm.lr=0.5")
    assert _conf(*own, "+algorithm.momentum=0.5", "+algorithm.server_lr=1").algorithm["momentum"] == 0.5
