from pathlib import Path

import pytest
import yaml

from flgo_hydra import __main__, compose, explain
from flgo_hydra.config.option import EngineConf, OptionConf
from flgo_hydra.config.sweeper import SweeperConf
from flgo_hydra.config.task import TaskConf
from flgo_hydra.help import GROUPS, config_dirs, field_docs, group_choices, help_page, keys_by_choice, meaning_of


def test_groups_and_choices_are_on_the_page() -> None:
    page = " ".join(help_page(width=100).split())
    for group, meaning in GROUPS.items():
        assert f"{group}={', '.join(group_choices(group))}" in page
        assert meaning in page


@pytest.mark.parametrize(
    "prefix, schema",
    [("", OptionConf), ("engine.", EngineConf), ("task.", TaskConf), ("hydra.sweeper.", SweeperConf)],
)
def test_fields_are_on_the_page_with_default_and_meaning(prefix: str, schema: type) -> None:
    page = " ".join(help_page(width=100).split())
    for field in field_docs(schema):
        if not field.name.startswith("_") and field.name not in ("name", "source", "partition", "engine"):
            assert f"{prefix}{field.name}={field.default} {field.meaning}" in page


@pytest.mark.parametrize(
    "line", ["algorithm.mu=0.1", "with algorithm=fedprox", "task.partition.alpha=0.5", "num_steps=null"]
)
def test_lines_of_the_page(line: str) -> None:
    assert f"  {line}" in help_page(width=100)


def test_examples_are_on_the_page() -> None:
    assert help_page().count("  python -m flgo_hydra ") == 3


@pytest.mark.parametrize("width", [80, 100, 120])
def test_lines_fit_the_width(width: int) -> None:
    lines = help_page(width=width).splitlines()
    assert [line for line in lines if len(line) > width or line != line.rstrip()] == []


def test_terminal_decides_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert help_page() == help_page(width=90)
    monkeypatch.setenv("COLUMNS", "300")
    assert help_page() == help_page(width=120)


def test_a_users_own_choices_are_on_the_page(tmp_path: Path) -> None:
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm/mine.yaml").touch()
    choices = group_choices("algorithm", [str(tmp_path)])
    assert "mine" in choices
    assert ", ".join(choices) in " ".join(help_page([str(tmp_path)], width=100).split())


@pytest.mark.parametrize(
    "arguments, folders",
    [
        ([], []),
        (["--config-dir", "a", "lr=1"], ["a"]),
        (["--config-dir=a"], ["a"]),
        (["-cd", "a"], ["a"]),
        (["-cd=a"], ["a"]),
        (["--help", "--config-dir"], []),
    ],
)
def test_config_dirs(arguments: list[str], folders: list[str]) -> None:
    assert config_dirs(arguments) == folders


@pytest.mark.parametrize(
    "key, choice",
    [
        ("algorithm.mu", "algorithm=fedprox or algorithm=moon"),
        ("algorithm.rho", "algorithm=fedsam"),
        ("task.source.alpha", "task=synthetic"),
        ("task.partition.alpha", "task/partition=dirichlet"),
        ("model.hidden", "model=mlp or model=cnn"),
        ("lr", None),
        ("task.partition.min_samples", None),
    ],
)
def test_keys_by_choice(key: str, choice: str | None) -> None:
    assert keys_by_choice().get(key) == choice


@pytest.mark.parametrize(
    "key, meaning",
    [
        ("num_rounds", "communication rounds"),
        ("task.seed", "decides the data split (and generated data); seed decides everything else"),
        ("algorithm.eta", "server step size (the paper's eta_g)"),
        ("model.hidden", ""),  # an MLP's and a CNN's mean different things
        ("foo", ""),
    ],
)
def test_meaning_of(key: str, meaning: str) -> None:
    assert meaning_of(key) == meaning


def test_a_comment_of_two_lines_is_one_meaning() -> None:
    (field,) = [field for field in field_docs(OptionConf) if field.name == "aggregate"]
    assert field.meaning.startswith("weights of a cohort's updates: other")
    assert field.meaning.endswith("weighted_com, weighted_scale")


@pytest.mark.parametrize("name, default", [("num_steps", "null"), ("save_best", "false"), ("lr", "0.1")])
def test_defaults_are_written_as_yaml(name: str, default: str) -> None:
    assert {field.name: field.default for field in field_docs(OptionConf)}[name] == default


@pytest.mark.parametrize("group", ["task", "task/partition", "model", "algorithm", "option"])
def test_help_is_of_what_is_composed(group: str, empty_folder: Path) -> None:
    """Of each choice that ships."""
    compose.prepare()
    for choice in group_choices(group):
        composed = explain.composed(["--help", f"{group}={choice}", "seed=3,4", "num_rounds=7"])
        assert composed is not None
        page = " ".join(help_page(composed=composed, width=100).split())
        content = yaml.safe_load((compose.conf_dir() / group / f"{choice}.yaml").read_text()) or {}
        prefix = "" if group == "option" else f"{group.replace('/', '.')}."
        shown = [key for key in content if f" {prefix}{key}=" in page]
        for key in shown:
            value = content[key]
            expected = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            assert f" {prefix}{key}={expected} " in page or key in ("num_rounds", "name"), (choice, key)
        assert f"The values below are those of {group}={choice} num_rounds=7." in page
        assert " num_rounds=7 " in page and " seed=0 " in page


def test_help_of_a_mistake_is_the_mistake(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__._help(["--help", "task=digist"]) == 1
    assert "Did you mean `task=digits`?" in capsys.readouterr().err
