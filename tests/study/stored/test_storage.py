"""A sweep's study is found where it was begun, and takes no results of others."""

import optuna
import pytest

MORE = ("model=logistic", "num_rounds=1", "num_steps=1", "task.num_clients=3", "device=cpu", "hydra/launcher=basic")


def test_a_relative_database_is_found_from_elsewhere(command, empty_folder, monkeypatch, caplog):
    storage = "hydra.sweeper.storage=sqlite:///s.db"
    done = command("-m", *MORE, "lr=0.1", "hydra.sweep.dir=sweep", storage)
    assert done.status == 0, done.err
    (empty_folder / "elsewhere").mkdir()
    monkeypatch.chdir(empty_folder / "elsewhere")
    done = command("-m", *MORE, "lr=0.1,0.2", "hydra.sweep.dir=../sweep", storage)
    assert done.status == 0, done.err
    assert not (empty_folder / "elsewhere" / "s.db").exists()
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{empty_folder}/s.db")
    assert study.n_trials == 2


@pytest.mark.parametrize("direction, says", [("minimize", "is of no run"), ("maximize", "does not minimize")])
def test_results_of_others_are_refused(command, empty_folder, direction, says):
    study = optuna.create_study(study_name="theirs", storage="sqlite:///s.db", direction=direction)
    study.add_trial(optuna.trial.create_trial(value=-1e9))
    names = ("hydra.sweeper.storage=sqlite:///s.db", "hydra.sweeper.study_name=theirs", "hydra.sweep.dir=sweep")
    done = command("-m", *MORE, "lr=0.1", *names)
    assert done.status == 1 and says in done.err and "hydra.sweeper.study_name" in done.err
