from pathlib import Path

import pytest

from flgo_hydra.help import GROUPS, config_dirs, field_docs, group_choices, help_page, keys_by_choice, meaning_of


def test_groups_and_choices_are_on_the_page() -> None:
    page = " ".join(help_page(width=100).split())
    for group, meaning in GROUPS.items():
        assert f"{group}={', '.join(group_choices(group))}" in page
        assert meaning in page


@pytest.mark.parametrize(
    "prefix, schema",
    [("", "OptionConf"), ("engine.", "EngineConf"), ("task.", "TaskConf"), ("hydra.sweeper.", "SweeperConf")],
)
def test_fields_are_on_the_page_with_default_and_meaning(prefix: str, schema: str) -> None:
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
    assert "mine" in group_choices("algorithm", [str(tmp_path)])
    assert "fedprox, flgo, mine, scaffold" in help_page([str(tmp_path)], width=100)


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
        ("algorithm.mu", "algorithm=fedprox"),
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
        ("algorithm.mu", "weight of the proximal term; 0 is FedAvg"),
        ("model.hidden", ""),  # an MLP's and a CNN's mean different things
        ("foo", ""),
    ],
)
def test_meaning_of(key: str, meaning: str) -> None:
    assert meaning_of(key) == meaning


def test_a_comment_of_two_lines_is_one_meaning() -> None:
    (field,) = [field for field in field_docs("OptionConf") if field.name == "aggregate"]
    assert field.meaning.startswith("weights of a cohort's updates: other")
    assert field.meaning.endswith("weighted_com, weighted_scale")


@pytest.mark.parametrize("name, default", [("num_steps", "null"), ("save_best", "false"), ("lr", "0.1")])
def test_defaults_are_written_as_yaml(name: str, default: str) -> None:
    assert {field.name: field.default for field in field_docs("OptionConf")}[name] == default
