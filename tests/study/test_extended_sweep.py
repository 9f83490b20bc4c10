"""A finished sweep that gets another value on two axes, with its study in a PostgreSQL server."""

import optuna
from sqlalchemy.pool import NullPool

FIXED = ("model=logistic", "num_rounds=1", "num_steps=1", "task.num_clients=3", "hydra/launcher=basic")


def trials(url):
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    return optuna.load_study(study_name="s", storage=storage).trials


def test_only_the_new_points_run(command, empty_folder, postgresql):
    where = ("hydra.sweep.dir=sweep", f"hydra.sweeper.storage='{postgresql}'", "hydra.sweeper.study_name=s")
    assert command("-m", "algorithm=fedavg,fedprox", "lr=0.1,0.01", *FIXED, *where).status == 0
    results = {path: path.stat().st_mtime_ns for path in (empty_folder / "sweep").glob("*/result.json")}
    before = trials(postgresql)
    assert len(results) == len(before) == 4
    done = command("-m", "algorithm=fedavg,fedprox,scaffold", "lr=0.1,0.01,0.05", *FIXED, *where)
    assert done.status == 0, done.err
    after = trials(postgresql)
    assert after[:4] == before and {path: path.stat().st_mtime_ns for path in results} == results
    points = [(trial.state.name, trial.params["algorithm"], trial.params["lr"]) for trial in after[4:]]
    assert points == [
        ("COMPLETE", "fedavg", 0.05),
        ("COMPLETE", "fedprox", 0.05),
        ("COMPLETE", "scaffold", 0.1),
        ("COMPLETE", "scaffold", 0.01),
        ("COMPLETE", "scaffold", 0.05),
    ]
    assert len((empty_folder / "sweep" / "results.csv").read_text().splitlines()) == 1 + 9
