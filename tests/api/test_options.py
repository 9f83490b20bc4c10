"""FLGo's options in our words."""

import warnings

import pytest

from flgo_hydra.api.options import read_option


@pytest.mark.parametrize(
    "name, value, key, ours",
    [
        ("learning_rate", 0.05, "lr", 0.05),
        ("lr", 0.05, "lr", 0.05),
        ("learning_rate_decay", 0.99, "lr_decay", 0.99),
        ("lr_scheduler", "-1", "lr_schedule", "constant"),
        ("lr_scheduler", 0, "lr_schedule", "step"),
        ("lr_scheduler", "1", "lr_schedule", "divide_by_round"),
        ("lr_scheduler", "step_5", "lr_schedule", "step_5"),
        ("num_steps", -1, "num_steps", None),
        ("num_steps", 5, "num_steps", 5),
        ("early_stop", -1, "early_stop", None),
        ("batch_size", 64.0, "batch_size", 64),
        ("batch_size", -1, "batch_size", -1),
        ("batch_size", 0.5, "batch_size", 0.5),
        ("optimizer", "SGD", "optimizer", "sgd"),
        ("train_holdout", 0.2, "task.train_holdout", 0.2),
        ("dataseed", 3, "task.seed", 3),
        ("save_optimal", True, "save_best", True),
        ("torch_num_threads", 2, "num_threads", 2),
        ("task.num_clients", 10, "task.num_clients", 10),
        ("model.hidden", [64, 32], "model.hidden", [64, 32]),
    ],
)
def test_names_and_values_are_translated(name, value, key, ours):
    settings = read_option({name: value}, is_grid=False)
    assert settings.overrides == {key: [ours]} and settings.names == {key: name}


def test_lists_are_axes_of_a_grid_and_a_text_is_one_value():
    settings = read_option(
        {"learning_rate": [0.1, 0.01], "num_steps": (-1, 5), "lr_schedule": "step", "model.hidden": [[64], [32, 32]]},
        is_grid=True,
    )
    assert settings.overrides == {
        "lr": [0.1, 0.01], "num_steps": [None, 5], "lr_schedule": ["step"], "model.hidden": [[64], [32, 32]],
    }  # fmt: skip
    assert settings.written["num_steps"] == [-1, 5]


def test_the_callers_dict_stays_as_it_is_and_devices_are_set_apart():
    option = {"gpu": 0, "no_log_console": True, "log_file": True, "algo_para": 0.5}
    settings = read_option(option, is_grid=True)
    assert option == {"gpu": 0, "no_log_console": True, "log_file": True, "algo_para": 0.5}
    assert (settings.gpus, settings.is_quiet, settings.algo_para, settings.overrides) == ([0], True, [0.5], {})


def test_a_yaml_file_will_do(tmp_path):
    (tmp_path / "option.yml").write_text("learning_rate: 0.2\nnum_rounds: 3\n")
    assert read_option(str(tmp_path / "option.yml"), is_grid=False).overrides == {"lr": [0.2], "num_rounds": [3]}


@pytest.mark.parametrize(
    "option, says",
    [
        ({"learning_rte": 0.1}, "There is no `learning_rte`. Did you mean `learning_rate`"),
        ({"num_step": 1}, "There is no `num_step`. Did you mean `num_steps`"),
        ({"learning_rate": [0.1, 0.2]}, r"`learning_rate` must be one value, but got the list \[0.1, 0.2\]"),
        ({"learning_rate": 0.1, "lr": 0.1}, "`lr` and `learning_rate` are the same option"),
        ({"drop_last": True}, "`drop_last=True` cannot be had: An epoch's last batch is used"),
        ({"availability": "YMF-0.2"}, "`availability='YMF-0.2'` cannot be had: FLGo's system simulator"),
        ({"no_log_console": "False"}, "`no_log_console` must be True or False, but got 'False'"),
        ({3: 4}, "An option's name must be a text, but got 3"),
        (["lr"], r"`option` must be a dict of options, but got \['lr'\]"),
        ("absent.yml", "there is no file absent.yml"),
    ],
)
def test_what_cannot_be_is_said(option, says):
    with pytest.raises(ValueError, match=says):
        read_option(option, is_grid=False)


def test_an_empty_axis_is_refused():
    with pytest.raises(ValueError, match="`lr` must have at least one value"):
        read_option({"lr": []}, is_grid=True)


def test_what_only_flgo_can_do_goes_to_flgo():
    settings = read_option({"availability": "YMF-0.2", "num_workers": 0, "lr": 0.1}, is_grid=False, is_flgo=True)
    assert settings.flgo == {"availability": "YMF-0.2"} and settings.overrides == {"lr": [0.1]}


def test_what_has_no_effect_is_named_and_flgos_defaults_pass_in_silence():
    with pytest.warns(UserWarning, match="`num_workers=4` has no effect: How clients"):
        read_option({"num_workers": 4}, is_grid=False)
    with pytest.warns(UserWarning, match="`save_checkpoint='x'` has no effect: A run writes checkpoints by itself"):
        read_option({"save_checkpoint": "x"}, is_grid=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_option({"num_workers": 0, "pin_memory": False, "availability": "IDL", "drop_last": False}, is_grid=False)
