"""README's commands and code, as they stand there."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_first_command_ends_with_what_is_printed_there(command):
    first = blocks("bash")[0].strip()
    assert first.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e . && ")
    arguments = shlex.split(first.split("-m flgo_hydra ")[1])
    done = command(*arguments)
    assert done.status == 0, done.err
    printed = blocks("text")[0]

    def stable(text: str) -> list[str]:
        """Without folders, and losses to the digits that every machine shares."""
        lines = text.strip().split("folder:")[0].splitlines()
        return [re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.2f}", line) for line in lines if line.strip()]

    assert stable(done.out[done.out.index("optimal combination") :]) == stable(printed)


def test_your_own_algorithm_runs_as_it_stands(command, empty_folder):
    code = next(block for block in blocks("python") if "class Momentum" in block)
    config = next(block for block in blocks("yaml") if "my_momentum" in block)
    line = next(line for block in blocks("bash") for line in block.splitlines() if "my_momentum" in line)
    (empty_folder / "my_algorithms.py").write_text(code)
    (empty_folder / "my_conf" / "algorithm").mkdir(parents=True)
    (empty_folder / "my_conf" / "algorithm" / "my_momentum.yaml").write_text(config)
    arguments = shlex.split(line.split("-m flgo_hydra ")[1])
    done = command(*arguments, "num_rounds=3", "hydra.sweep.dir=sweep")
    assert done.status == 0, done.err
    table = (empty_folder / "sweep" / "results.csv").read_text()
    assert table.count("completed") == 4 and table.count("my_momentum") == 2
    # Momentum changes nothing in the first round and something afterwards.
    rounds = [(empty_folder / "sweep" / job / "rounds.jsonl").read_text().splitlines() for job in ("0", "2")]
    losses = [[line.split('"seconds"')[0] for line in lines] for lines in rounds]
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]
    # A misspelt hyper-parameter is found here too.
    done = command(*arguments, "algorithm.betta=1")
    assert done.status == 1 and "algorithm.beta" in done.err


def test_the_study_opens_in_python_as_it_says(command, empty_folder):
    command("-m", "num_rounds=1", "model=logistic", "lr=0.1,0.01", "hydra.sweep.dir=sweep")
    code = next(block for block in blocks("python") if "load_study" in block)
    names: dict = {}
    exec(compile(code.replace("<folder>", str(empty_folder / "sweep")), "README", "exec"), names)
    assert names["study"].best_params == {"lr": 0.1}


def test_the_python_api_runs_as_it_stands(empty_folder, capsys):
    pytest.importorskip("pandas")
    code = next(block for block in blocks("python") if "from flgo_hydra import run, sweep" in block)
    names: dict = {}
    exec(compile(code, "README", "exec"), names)
    assert names["found"].best.overrides == ("lr=0.1",) and len(names["table"]) == 2
    assert f"('lr=0.1',) {names['found'].best.value} 3" in capsys.readouterr().out


def test_own_metrics_run_as_they_stand(empty_folder, command):
    code = next(block for block in blocks("python") if "def worst_client" in block)
    line = next(line for block in blocks("bash") for line in block.splitlines() if "metrics=my_metrics" in line)
    (empty_folder / "my_metrics.py").write_text(code)
    sys.modules.pop("my_metrics", None)  # of another test
    done = command(*shlex.split(line.split("-m flgo_hydra ")[1]), "num_rounds=2", "hydra.run.dir=run")
    assert done.status == 0 and "best worst_loss" in done.out, done.err
    assert (empty_folder / "run" / "best_model.safetensors").exists()


@pytest.mark.parametrize("named", re.findall(r"`((?:flgo_hydra|conf|scripts)/[\w./]+)`", README))
def test_files_that_are_named_exist(named):
    assert (Path(__file__).parents[1] / named).exists()


def test_every_choice_that_is_listed_exists():
    from flgo_hydra.help import group_choices

    for group in ("task", "task/partition", "model", "algorithm", "experiment"):
        row = next(line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
        assert set(re.findall(r"`([a-z0-9_]+)`", row.split("|")[2])) >= set(group_choices(group))


def test_a_pruner_is_set_as_it_says():
    from flgo_hydra.study.pruning import PatiencePruner, make_pruner

    line = next(line for block in blocks("bash") for line in block.splitlines() if "hydra.sweeper.pruner={" in line)
    (override,) = shlex.split(line)
    assert type(make_pruner(yaml.safe_load(override.split("=", 1)[1]), 60)).__name__ == "MedianPruner"
    names: dict = {}
    exec(next(block for block in blocks("python") if "PatiencePruner" in block), names)
    assert isinstance(names["study"].pruner, PatiencePruner)
