import pytest
from omegaconf import OmegaConf

from flgo_hydra.mistakes import FLGO_NAMES, keys_of, nearest, unknown_choice, unknown_key

KNOWN = [
    *["lr", "lr_decay", "lr_schedule", "num_rounds", "num_epochs", "batch_size", "proportion", "device", "seed"],
    *["early_stop", "checkpoint_interval", "save_best", "num_threads"],
    *["task", "task.name", "task.seed", "task.num_clients", "task/partition", "task.partition"],
    *["task.partition.alpha", "task.partition.sigma", "task.partition.classes_per_client", "task.source"],
    *["model", "model.hidden", "algorithm", "hydra.run.dir", "hydra.sweep.dir", "hydra.job.name"],
]


@pytest.mark.parametrize(
    "key, names",
    [
        ("lrr", ["lr"]),
        ("LR", ["lr"]),
        ("num_round", ["num_rounds"]),
        ("task.sed", ["task.seed", "seed"]),
        ("task.lr", ["lr"]),
        ("option.lr", ["lr"]),
        ("task_seed", ["task.seed"]),
        ("model.hiden", ["model.hidden"]),
        ("hidden", ["model.hidden"]),
        ("task.partition.alfa", ["task.partition.alpha"]),
        ("hydra.swep.dir", ["hydra.sweep.dir", "hydra.run.dir"]),
        ("nam", ["task.name"]),  # not hydra.job.name
        ("model.foo", []),  # not model
        ("task.partition.foo", []),  # neither task.partition nor task/partition
        ("foo", []),
        ("learning_rate", ["lr"]),
        ("option.learning_rate", ["lr"]),
    ],
)
def test_nearest(key: str, names: list[str]) -> None:
    assert nearest(key, KNOWN) == names


@pytest.mark.parametrize("name", FLGO_NAMES)
def test_every_flgo_name_leads_to_a_key(name: str) -> None:
    assert nearest(name, KNOWN) == [FLGO_NAMES[name]]


def test_flgo_name_that_leads_nowhere_is_compared_as_others_are() -> None:
    assert nearest("save_optimal", ["save_option"]) == ["save_option"]


@pytest.mark.parametrize(
    "key, message",
    [
        ("lrr", "There is no `lrr`. Did you mean `lr`?"),
        ("task.sed", "There is no `task.sed`. Did you mean `task.seed` or `seed`?"),
        ("qqq", "There is no `qqq`. `python -m flgo_hydra --help` lists the keys."),
        ("algorithm.mu", "There is no `algorithm.mu` with the choices made: it is a key of algorithm=fedprox."),
        ("algorithm.muu", "There is no `algorithm.muu`. Did you mean `algorithm.mu` (of algorithm=fedprox)?"),
    ],
)
def test_unknown_key(key: str, message: str) -> None:
    assert unknown_key(key, KNOWN, {"algorithm.mu": "algorithm=fedprox", "lr": "never said"}) == message


@pytest.mark.parametrize(
    "choice, message",
    [
        ("fedpox", "`algorithm` has no choice 'fedpox'. It has fedavg, fedprox. Did you mean `algorithm=fedprox`?"),
        ("qqq", "`algorithm` has no choice 'qqq'. It has fedavg, fedprox."),
    ],
)
def test_unknown_choice(choice: str, message: str) -> None:
    assert unknown_choice("algorithm", choice, ["fedprox", "fedavg"]) == message


def test_keys_of_leaves_out_one_and_what_is_below_it() -> None:
    cfg = OmegaConf.create({"a": {"b": 1, "c": None, "_target_": "x.y"}, "d": "???", "e": {"f": {"g": 1}}, "h": None})
    assert keys_of(cfg, without="e") == ["a", "a.b", "a.c", "d", "h"]
    assert keys_of(cfg, without="e.f") == ["a", "a.b", "a.c", "d", "e", "h"]
    assert keys_of(OmegaConf.create({"a": "${b}", "b": {"c": 1}})) == ["a", "b", "b.c"]
    assert keys_of(OmegaConf.create({"a": {"x": "${b}"}, "b": {"c": 1}})) == ["a", "a.x", "b", "b.c"]
