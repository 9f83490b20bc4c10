import math
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
import yaml

from flgo_hydra.config.algorithm import FedProxConf, ScaffoldConf
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.config.global_methods import (
    FedAdagradConf,
    FedAdamConf,
    FedAvgMConf,
    FedCMConf,
    FedDynConf,
    FedExPConf,
    FedNovaConf,
    FedSpeedConf,
    MimeLiteConf,
    MoFedSAMConf,
)
from flgo_hydra.config.launcher import LauncherConf
from flgo_hydra.config.model import CnnConf, MlpConf, ResNetConf
from flgo_hydra.config.option import EngineConf, OptionConf
from flgo_hydra.config.schemas import SCHEMAS
from flgo_hydra.config.sweeper import SweeperConf
from flgo_hydra.config.task import (
    ClassesConf,
    DirichletConf,
    PartitionConf,
    QuantityConf,
    ShardsConf,
    SyntheticConf,
    TaskConf,
)
from flgo_hydra.help import field_docs


@pytest.mark.parametrize(
    "schema, field, value, law",
    [
        (OptionConf, "num_rounds", 0, "num_rounds >= 1"),
        (OptionConf, "proportion", 0.0, "0 < proportion <= 1"),
        (OptionConf, "proportion", 1.1, "0 < proportion <= 1"),
        (OptionConf, "proportion", math.nan, "0 < proportion <= 1"),
        (OptionConf, "sample", "all", "`sample` must be one of uniform, md, full"),
        (OptionConf, "aggregate", "wieghted", "`aggregate` must be one of other, uniform"),
        (OptionConf, "num_epochs", 0, "num_epochs >= 1"),
        (OptionConf, "num_steps", 0, "num_steps >= 1, or null"),
        (OptionConf, "num_steps", -1, "num_steps >= 1, or null"),
        (OptionConf, "batch_size", 0, "batch_size is a whole number >= 1"),
        (OptionConf, "batch_size", 1.5, "batch_size is a whole number >= 1"),
        (OptionConf, "batch_size", -2, "batch_size is a whole number >= 1"),
        (OptionConf, "batch_size", math.inf, "batch_size is a whole number >= 1"),
        (OptionConf, "batch_size", math.nan, "batch_size is a whole number >= 1"),
        (OptionConf, "lr", 0.0, "lr > 0 and finite"),
        (OptionConf, "lr", math.inf, "lr > 0 and finite"),
        (OptionConf, "lr", math.nan, "lr > 0 and finite"),
        (OptionConf, "lr_schedule", "linear", "`lr_schedule` must be one of constant, step"),
        (OptionConf, "lr_schedule", "step_0", "`lr_schedule` must be one of"),
        (OptionConf, "lr_schedule", "multistep", "`lr_schedule` must be one of"),
        (OptionConf, "lr_schedule", "ratiostep_2", "`lr_schedule` must be one of"),
        (OptionConf, "lr_decay", 0.0, "0 < lr_decay <= 1"),
        (OptionConf, "lr_decay", 1.1, "0 < lr_decay <= 1"),
        (OptionConf, "optimizer", "SGD", "`optimizer` must be one of sgd, momentum"),
        (OptionConf, "momentum", 1.0, "0 <= momentum < 1"),
        (OptionConf, "momentum", -0.1, "0 <= momentum < 1"),
        (OptionConf, "weight_decay", -1e-4, "weight_decay >= 0"),
        (OptionConf, "weight_decay", math.inf, "weight_decay >= 0 and finite"),
        (OptionConf, "clip_grad", -1.0, "clip_grad >= 0"),
        (OptionConf, "eval_interval", 0, "eval_interval >= 1"),
        (OptionConf, "early_stop", 0, "early_stop >= 1, or null"),
        (OptionConf, "seed", -1, "seed >= 0"),
        (OptionConf, "device", "gpu", "`device` must be one of auto, cpu"),
        (OptionConf, "device", "cuda:x", "`device` must be one of auto, cpu"),
        (OptionConf, "num_threads", 0, "1 <= num_threads <= 1024"),
        (OptionConf, "dtype", "float16", "`dtype` must be one of float32, float64"),
        (OptionConf, "checkpoint_interval", -1, "checkpoint_interval >= 0, or null"),
        (SyntheticConf, "alpha", -0.1, "task.source.alpha >= 0"),
        (SyntheticConf, "beta", math.nan, "task.source.beta >= 0"),
        (SyntheticConf, "num_features", 0, "task.source.num_features >= 1"),
        (SyntheticConf, "num_classes", 1, "task.source.num_classes >= 2"),
        (PartitionConf, "min_samples", 0, "task.partition.min_samples >= 1"),
        (DirichletConf, "min_samples", 0, "task.partition.min_samples >= 1"),
        (DirichletConf, "alpha", 0.0, "task.partition.alpha > 0"),
        (DirichletConf, "alpha", math.inf, "task.partition.alpha > 0 and finite"),
        (ShardsConf, "shards_per_client", 0, "task.partition.shards_per_client >= 1"),
        (ShardsConf, "min_samples", 0, "task.partition.min_samples >= 1"),
        (ClassesConf, "classes_per_client", 0, "task.partition.classes_per_client >= 1"),
        (ClassesConf, "min_samples", 0, "task.partition.min_samples >= 1"),
        (QuantityConf, "sigma", -1.0, "task.partition.sigma >= 0"),
        (QuantityConf, "min_samples", 0, "task.partition.min_samples >= 1"),
        (TaskConf, "num_clients", 0, "task.num_clients >= 1"),
        (TaskConf, "train_holdout", 0.0, "0 < task.train_holdout < 1"),
        (TaskConf, "train_holdout", 1.0, "0 < task.train_holdout < 1"),
        (TaskConf, "test_holdout", 0.0, "0 < task.test_holdout < 1"),
        (TaskConf, "seed", -1, "task.seed >= 0"),
        (MlpConf, "hidden", [10, 0], "every width in model.hidden >= 1"),
        (CnnConf, "channels", [8], "model.channels is two numbers >= 1"),
        (CnnConf, "hidden", 0, "model.hidden >= 1"),
        (ResNetConf, "channels", [], "divides every entry of model.channels"),
        (ResNetConf, "channels", [16, 20], "model.num_groups=8 divides every entry of model.channels"),
        (ResNetConf, "num_blocks", 0, "model.num_blocks >= 1"),
        (ResNetConf, "num_groups", 0, "model.num_groups >= 1"),
        (FedProxConf, "mu", -0.1, "algorithm.mu >= 0"),
        (FedProxConf, "mu", math.inf, "algorithm.mu >= 0 and finite"),
        (ScaffoldConf, "eta", 0.0, "algorithm.eta > 0"),
        (FedAvgMConf, "beta", 1.0, "0 <= algorithm.beta < 1"),
        (FedAvgMConf, "eta", 0.0, "algorithm.eta > 0 and finite"),
        (FedAdagradConf, "tau", 0.0, "algorithm.tau > 0 and finite"),
        (FedAdamConf, "eta", -1.0, "algorithm.eta > 0 and finite"),
        (FedAdamConf, "beta1", 1.0, "0 <= algorithm.beta1 < 1"),
        (FedAdamConf, "beta2", 1.0, "0 <= algorithm.beta2 < 1"),
        (FedNovaConf, "mu", -0.1, "algorithm.mu >= 0 and finite"),
        (FedDynConf, "alpha", 0.0, "algorithm.alpha > 0 and finite"),
        (FedExPConf, "eps", 0.0, "algorithm.eps > 0 and finite"),
        (FedCMConf, "alpha", 0.0, "0 < algorithm.alpha <= 1"),
        (FedCMConf, "eta", math.inf, "algorithm.eta > 0 and finite"),
        (MimeLiteConf, "beta", 1.0, "0 <= algorithm.beta < 1"),
        (MoFedSAMConf, "rho", -0.1, "algorithm.rho >= 0 and finite"),
        (MoFedSAMConf, "beta", 1.1, "0 < algorithm.beta <= 1"),
        (FedSpeedConf, "lam", 0.0, "algorithm.lam > 0 and finite"),
        (FedSpeedConf, "alpha", 1.1, "0 <= algorithm.alpha <= 1"),
        (FedSpeedConf, "rho", math.inf, "algorithm.rho >= 0 and finite"),
    ],
)
def test_law_and_value_are_named(schema: type, field: str, value: Any, law: str) -> None:
    with pytest.raises(ValueError) as raised:
        schema(**{field: value})
    assert law in str(raised.value)
    assert f"but got {value!r}." in str(raised.value)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"lr": 1e308}, "`lr` must be a number that dtype=float32 holds, at most 3.4e+38, but got 1e+308."),
        ({"lr": 1e308, "dtype": "float64"}, ""),
        ({"weight_decay": 1e39}, "`weight_decay` must be a number that dtype=float32 holds"),
        ({"clip_grad": 1e39}, "`clip_grad` must be a number that dtype=float32 holds"),
        ({"clip_grad": math.inf}, ""),
        ({"algorithm": FedProxConf(mu=1e39)}, "`algorithm.mu` must be a number that dtype=float32 holds"),
        ({"algorithm": {"_target_": "mine.Mine", "beta": [0.5, -1e39]}}, "`algorithm.beta` must be a number that"),
        ({"num_rounds": 2**63}, "`num_rounds` must be a whole number below 2**63, but got 9223372036854775808."),
        ({"batch_size": 1e300}, "`batch_size` must be a whole number below 2**63, but got 10000000…, of 301 digits."),
        ({"task": TaskConf(num_clients=2**63)}, "`task.num_clients` must be a whole number below 2**63"),
        ({"model": MlpConf(hidden=[10, 2**63])}, "`model.hidden` must be a whole number below 2**63"),
        ({"task": TaskConf(seed=2**127), "seed": 2**127}, ""),  # as NumPy's generators draw them
    ],
)
def test_numbers_that_no_run_could_hold_are_refused(values: dict[str, Any], said: str) -> None:
    whole = {"task": TaskConf(), "model": MlpConf(), "algorithm": FedProxConf(), **values}
    if not said:
        Conf(**whole)
        return
    with pytest.raises(ValueError) as raised:
        Conf(**whole)
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    "schema, values, key",
    [
        (LauncherConf, {"slots": 2**63}, "hydra.launcher.slots"),
        (LauncherConf, {"max_retries": 2**63}, "hydra.launcher.max_retries"),
        (SweeperConf, {"sampler": "tpe", "n_trials": 2**63}, "hydra.sweeper.n_trials"),
    ],
)
def test_a_sweeps_whole_numbers_can_be_counted_with(schema: type, values: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"^`{key}` must be a whole number below 2\*\*63"):
        schema(**values)


@pytest.mark.parametrize(
    "schema, values",
    [
        (OptionConf, {"proportion": 1.0}),
        (OptionConf, {"batch_size": -1}),
        (OptionConf, {"batch_size": 0.5}),
        (OptionConf, {"batch_size": 1}),
        (OptionConf, {"lr_schedule": "step", "lr_decay": 1.0}),
        (OptionConf, {"lr_schedule": "step_10", "lr_decay": 0.5}),
        (OptionConf, {"lr_schedule": "multistep_5_10", "lr_decay": 0.1}),
        (OptionConf, {"lr_schedule": "ratiostep_0.3", "lr_decay": 0.1}),
        (OptionConf, {"lr_schedule": "ratiostep_.3"}),
        (OptionConf, {"lr_schedule": "cosine"}),
        (OptionConf, {"optimizer": "rmsprop", "momentum": 0.9}),
        (OptionConf, {"device": "cuda:1"}),
        (OptionConf, {"device": "mps"}),
        (OptionConf, {"checkpoint_interval": 0}),
        (OptionConf, {"clip_grad": math.inf}),
        (TaskConf, {"num_clients": None}),
        (MlpConf, {"hidden": []}),
        (FedProxConf, {"mu": 0.0}),
        (QuantityConf, {"sigma": 0.0}),
    ],
)
def test_edge_values_pass(schema: type, values: dict[str, Any]) -> None:
    schema(**values)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lr_decay": 0.9}, "`lr_decay` has no effect with lr_schedule=constant, but got 0.9"),
        ({"lr_decay": 0.9, "lr_schedule": "cosine"}, "`lr_decay` has no effect with lr_schedule=cosine"),
        ({"lr_decay": 0.9, "lr_schedule": "divide_by_round"}, "no effect with lr_schedule=divide_by_round"),
        ({"momentum": 0.9, "optimizer": "adam"}, "`momentum` has no effect with optimizer=adam, but got 0.9"),
        ({"dtype": "float64", "device": "mps"}, "dtype is float32 on device mps"),
    ],
)
def test_options_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptionConf(**values)


@pytest.mark.parametrize("written, kept", [(10.0, 10), (10, 10), (-1.0, -1), (0.25, 0.25)])
def test_batch_size_has_one_form(written: float, kept: float) -> None:
    size = OptionConf(batch_size=written).batch_size
    assert (size, type(size)) == (kept, type(kept))


@pytest.mark.parametrize("schema", [*dict.fromkeys([*SCHEMAS.values(), OptionConf])])
def test_every_field_has_a_comment(schema: type) -> None:
    assert [field.name for field in field_docs(schema) if not field.meaning] == []
    assert schema.__doc__


def _yamls() -> list[Path]:
    return sorted(conf_dir().rglob("*.yaml"))


def _schemas_of(content: dict[str, Any]) -> dict[str, type]:
    """The schemas that a YAML names, by the package they are put in (`_here_`, `source`)."""
    named = [text[len("/schema/") :] for text in content.get("defaults", []) if str(text).startswith("/schema/")]
    return {package: SCHEMAS[name] for name, package in (text.split("@") for text in named)}


@pytest.mark.parametrize("path", _yamls(), ids=lambda path: str(path.relative_to(conf_dir())))
def test_yaml_names_its_schema_first_and_says_what_differs_from_it(path: Path) -> None:
    content = yaml.safe_load(path.read_text()) or {}
    schemas = _schemas_of(content)
    if not schemas:
        # A user's own (whose fields nobody knows), presets, or options, which stand at the root.
        is_free = path.stem == "custom" or path.parent.name in ("experiment", "option", "launcher")
        assert is_free, "a choice without a schema loses its laws"
        return
    defaults = content["defaults"]
    # After a key's value, Hydra would put the schema's default over it.
    is_global = path.read_text().startswith("# @package _global_")  # a choice that makes another one as well
    assert str(defaults[0]).startswith("/schema/")
    assert defaults[0].endswith(f"@{path.parent.name}" if is_global else "@_here_")
    assert "_self_" in defaults[len(schemas) :]
    for package, schema in schemas.items():
        values = content if package == "_here_" else content.get(package, {})
        for name in set(schema.__dataclass_fields__) & set(values) - {"_target_", "name"}:
            field = schema.__dataclass_fields__[name]
            default = field.default if field.default is not MISSING else field.default_factory()
            assert values[name] != default or type(values[name]) is not type(default), f"`{name}` says its default"


def test_off_in_a_yaml_file_is_off() -> None:
    """YAML reads an `off` without quotes as false."""
    conf = EngineConf(compile="False", dual="False", graph="off")
    assert (conf.compile, conf.dual, conf.graph) == ("off", "off", "off")
    assert EngineConf(graph="True").graph == "on"
    with pytest.raises(ValueError, match="`engine.graph` must be one of off, on"):
        EngineConf(graph="never")
