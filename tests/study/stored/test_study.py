"""The study over real storages."""

import math
import re
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from flgo_hydra.objective import Objective
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import RunResult
from flgo_hydra.report.rows import Row
from flgo_hydra.study.space.grid import Grid, Interval
from flgo_hydra.study.stored.study import MOST_REPORTS, SweepStudy, _thinned, stride
from flgo_hydra.study.stored.widening import distribution

RESULT = Row.of_result(
    0,
    (),
    RunPaths(Path("0")),
    RunResult(
        status="completed",
        best_valid_loss=0.5,
        best_round=1,
        last_round=2,
        best={"valid_loss": 0.5, "test_accuracy": 0.9},
        last={"valid_loss": 0.6, "test_accuracy": 0.8},
        seconds=1.0,
        peak_memory_mib=100.0,
        device="cpu",
        seed=0,
        task={},
        model={},
        algorithm={},
        option={},
        versions={},
        fingerprint="f",
    ),
)
ROUNDS = [{"round": 0, "valid_loss": 2.0}, {"round": 1, "valid_loss": 0.5}, {"round": 2, "valid_loss": 0.6}]


def start(study, lr, job=0, values=(0.1, 0.01)):
    attributes = {"identity": f"point {lr}", "job": job, "overrides": [f"lr={lr}"], "attempt": 1}
    return study.start({"lr": lr}, {"lr": values}, attributes)


def load(storage, name="s"):
    if not isinstance(storage, str):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        storage = JournalStorage(JournalFileBackend(str(storage)))
    else:
        from sqlalchemy.pool import NullPool

        storage = optuna.storages.RDBStorage(storage, engine_kwargs={"poolclass": NullPool})
    return optuna.load_study(study_name=name, storage=storage)


def test_a_finished_run_is_complete_with_its_best_value_and_curve(storage):
    study = SweepStudy(storage, "s")
    study.finish(start(study, 0.1), RESULT, ROUNDS)
    trial = load(storage).best_trial
    assert (trial.value, trial.params, trial.state) == (0.5, {"lr": 0.1}, TrialState.COMPLETE)
    assert trial.intermediate_values == {0: 2.0, 1: 0.5, 2: 0.6}
    attributes = trial.user_attrs
    assert (attributes["best_round"], attributes["last_round"], attributes["status"]) == (1, 2, "completed")
    assert (attributes["job"], attributes["overrides"], attributes["attempt"]) == (0, ["lr=0.1"], 1)
    assert attributes["test_accuracy@best(valid_loss)"] == 0.9


@pytest.mark.parametrize("is_search", [False, True])
def test_of_ended_trials_memory_has_no_more_than_is_asked_for(tmp_path, is_search):
    """A search that goes on tries points again before its sampler is asked: what that will look at stays."""
    study = SweepStudy(tmp_path / "study.journal", "s")
    space = Grid((), (), (Interval("lr", 0.01, 0.1),))
    for job, lr in enumerate((0.1, 0.01)):
        number = study.ask_again(space, {"lr": lr}, None) if is_search else start(study, lr, job)
        study.annotate(number, {"choice": job, "job": job})
        study.finish(number, RESULT, ROUNDS)
    kept = study._study.get_trials(deepcopy=False)
    assert [trial.user_attrs.get("choice") for trial in kept] == ([0, 1] if is_search else [None, None])
    assert [len(trial.intermediate_values) for trial in kept] == ([3, 3] if is_search else [0, 0])
    assert kept[0].distributions is kept[1].distributions and kept[1].params == {"lr": 0.01}
    stored = load(tmp_path / "study.journal").trials
    assert [trial.user_attrs["job"] for trial in stored] == [0, 1] and len(stored[0].intermediate_values) == 3


def test_early_stopped_is_complete_and_diverged_and_failed_are_fail_with_the_reason(storage):
    study = SweepStudy(storage, "s")
    study.finish(start(study, 0.1, 0), replace(RESULT, status="early_stopped"), ROUNDS)
    diverged = replace(RESULT, status="diverged", message="the loss is not finite at round 2")
    study.finish(start(study, 0.01, 1), diverged, [*ROUNDS[:2], {"round": 2, "valid_loss": math.nan}])
    study.fail(start(study, 0.1, 2), "ValueError: no")
    states = [trial.state for trial in load(storage).trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert load(storage).trials[1].user_attrs["reason"] == "the loss is not finite at round 2"
    assert load(storage).trials[2].user_attrs["reason"] == "ValueError: no"
    assert load(storage).best_trial.number == 0


def test_a_pruned_run_is_pruned_and_never_best(storage):
    study = SweepStudy(storage, "s")
    study.finish(start(study, 0.1, 0), replace(RESULT, best_valid_loss=0.6), ROUNDS)
    study.finish(start(study, 0.01, 1), replace(RESULT, status="pruned", message="pruned by median"), ROUNDS)
    trial = load(storage).trials[1]
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.6)  # Optuna's own: the last round's loss
    assert trial.user_attrs["best_valid_loss"] == 0.5 and trial.user_attrs["reason"] == "pruned by median"
    assert load(storage).best_trial.number == 0


def test_a_curve_is_there_while_the_run_is_under_way(storage):
    study = SweepStudy(storage, "s")
    number = start(study, 0.1)
    study.report(number, 0, 2.0)
    study.report(number, 1, math.inf)
    trial = load(storage).trials[0]
    assert trial.state == TrialState.RUNNING and trial.intermediate_values[0] == 2.0
    assert math.isnan(trial.intermediate_values[1])
    study.finish(number, RESULT, ROUNDS)  # rounds.jsonl is the truth
    assert load(storage).trials[0].intermediate_values == {0: 2.0, 1: 0.5, 2: 0.6}


def test_an_accuracy_goes_in_and_comes_out_as_it_is_and_its_negative_is_minimised(storage):
    study = SweepStudy(storage, "s")
    followed = Objective("test_accuracy", True)
    study.follow(followed)
    rounds = [{"round": r, "test_accuracy": value} for r, value in enumerate([0.1, 0.9, 0.8])]
    result = replace(RESULT, monitor=followed)
    study.finish(start(study, 0.1, 0), result, rounds)
    study.report(start(study, 0.01, 1), 0, 0.2)
    attributes = {"identities": ["a", "b"], "jobs": [2, 3], "job_overrides": [["seed=0"], ["seed=1"]]}
    mean, failed = (study.start({"lr": 0.1}, {"lr": (0.1, 0.01)}, attributes) for _ in range(2))
    study.finish_mean(mean, [result, replace(result, best={"test_accuracy": 0.7})], {0: 0.1, 1: 0.8})
    study.fail(failed, "b: no", replicates=[0.9, None])
    one, running, of_two, of_one = load(storage).trials
    assert (one.value, one.intermediate_values) == (-0.9, {0: -0.1, 1: -0.9, 2: -0.8})
    assert running.intermediate_values == {0: -0.2}
    assert (of_two.value, of_two.intermediate_values) == (pytest.approx(-0.8), {0: -0.1, 1: -0.8})
    assert of_two.user_attrs["replicates"] == [-0.9, -0.7] and of_one.user_attrs["replicates"] == [-0.9, None]
    study.close()
    again = SweepStudy(storage, "s")  # a later call: one's own ended trials are kept by Optuna alone
    again.follow(followed)
    values = [[job.value for job in stored.jobs] for stored in again.stored_trials()]
    assert values == [[0.9], [None], [0.9, 0.7], [0.9, None]]


def test_an_attempt_that_came_out_differently_leaves_no_trace(storage):
    """A run on a GPU that crashed after round 3 and went on from a checkpoint of round 1 may stop earlier."""
    study = SweepStudy(storage, "s")
    number = start(study, 0.1)
    for round_num, loss in enumerate([2.0, 0.5, 0.7, 0.4]):
        study.report(number, round_num, loss)
    study.finish(number, RESULT, ROUNDS)
    trial = load(storage).trials[0]
    assert [trial.intermediate_values[r] for r in (0, 1, 2)] == [2.0, 0.5, 0.6]
    assert math.isnan(trial.intermediate_values[3])


def test_a_later_process_closes_what_a_killed_one_left_running(storage):
    start(SweepStudy(storage, "s"), 0.1)
    study = SweepStudy(storage, "s")
    (stored,) = study.stored_trials()
    assert (stored.identity, stored.jobs[0].number, stored.is_running) == ("point 0.1", 0, True)
    study.finish(stored.number, RESULT, ROUNDS)
    assert load(storage).best_trial.intermediate_values[1] == 0.5


@pytest.mark.parametrize(
    "url, what",
    [
        ("postgresql://localhost:1/none", "cannot be opened: .*refused.*It reads sqlite:///"),
        ("mysql+nosuchdriver://host/none", "cannot be opened"),
        ("mysql://host/none", "its driver is not installed.*mysql.pymysql"),
        ("all.db", "cannot be opened"),
        ("sqlite:////no/such/folder/x.db", "cannot be opened: .*unable to open"),
    ],
)
def test_a_storage_that_cannot_be_opened_says_why(url, what):
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match=f"`hydra.sweeper.storage={re.escape(url)}`.*{what}"):
        SweepStudy(url, "s")


def test_a_study_of_several_values_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=url, directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="does not minimize one value"):
        SweepStudy(url, "s")


def test_sqlite_does_not_wait_for_the_disk_at_every_report(tmp_path):
    study = SweepStudy(f"sqlite:///{tmp_path}/study.db", "s")
    with study._backend.engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 1]


def test_an_axis_of_numbers_may_grow(storage):
    study = SweepStudy(storage, "s")
    study.finish(start(study, 0.1), RESULT, ROUNDS)
    again = SweepStudy(storage, "s")
    again.finish(start(again, 0.5, 1, (0.1, 0.01, 0.5)), RESULT, ROUNDS)
    assert [trial.params["lr"] for trial in load(storage).trials] == [0.1, 0.5]


@pytest.mark.parametrize(
    "before, after, new, kind",
    [
        (["relu", "tanh"], ["relu", "tanh", "gelu"], "gelu", "CategoricalDistribution"),  # one more category
        (["relu", "tanh"], ["tanh", "relu"], "relu", "CategoricalDistribution"),  # another order
        (["relu", "tanh"], ["gelu"], "gelu", "CategoricalDistribution"),  # the new one alone
        ([1, 2], [1, 2, 0.5], 0.5, "FloatDistribution"),
        ([1, 2], [None, 3], None, "CategoricalDistribution"),
        ([True, False], ["auto"], "auto", "CategoricalDistribution"),
        ([0.1, 0.01], ["auto"], "auto", "CategoricalDistribution"),
        (["[16]", "[32]"], ["[64]", "[16]"], "[64]", "CategoricalDistribution"),
    ],
)
@pytest.mark.few(6)
def test_an_axis_may_grow_whatever_its_values_are(storage, before, after, new, kind):
    study = SweepStudy(storage, "s")
    for job, value in enumerate(before):
        study.finish(study.start({"x": value, "lr": 0.1}, {"x": before, "lr": [0.1]}, {"job": job}), RESULT, ROUNDS)
    study = SweepStudy(storage, "s")
    choices = {"x": after, "lr": [0.1, 0.2]}
    study.finish(study.start({"x": new, "lr": 0.2}, choices, {"job": 2}), RESULT, ROUNDS)
    trials = load(storage).trials
    values = [trial.params["x"] for trial in trials]
    assert [repr(value) for value in values if kind != "FloatDistribution"] in ([], [repr(v) for v in [*before, new]])
    assert values == [*before, new]
    assert [trial.params["lr"] for trial in trials] == [0.1, 0.1, 0.2]
    assert {type(trial.distributions["x"]).__name__ for trial in trials} == {kind}
    if kind == "CategoricalDistribution":
        (known,) = {trial.distributions["x"].choices for trial in trials}
        assert {repr(choice) for choice in known} == {repr(value) for value in [*before, *after]}
    assert [trial.intermediate_values for trial in trials] == [{0: 2.0, 1: 0.5, 2: 0.6}] * 3
    assert "x" in optuna.search_space.intersection_search_space(trials)


def test_a_journal_cut_in_the_middle_of_a_line_is_mended(tmp_path, caplog):
    path = tmp_path / "study.journal"
    study = SweepStudy(path, "s")
    study.finish(start(study, 0.1), RESULT, ROUNDS)
    with open(path, "ab") as file:
        file.write(b'{"op_code": 4, "worker')
    again = SweepStudy(path, "s")
    again.finish(start(again, 0.01, 1), RESULT, ROUNDS)
    assert len(load(path).trials) == 2
    assert "half an entry" in caplog.text


def test_a_long_curve_is_thinned_with_its_best_and_last_round(tmp_path):
    path = tmp_path / "study.journal"
    study = SweepStudy(path, "s")
    rounds = [{"round": r, "valid_loss": 1.0 if r == 1234 else 2.0} for r in range(3001)]
    study.finish(start(study, 0.1), replace(RESULT, best_round=1234, best_valid_loss=1.0), rounds)
    curve = load(path).best_trial.intermediate_values
    assert len(curve) <= 501 and curve[1234] == 1.0 and 3000 in curve and 0 in curve


def test_the_journals_only_study_is_opened_whatever_the_folder_is_called_now(tmp_path):
    SweepStudy(tmp_path / "study.journal", "before")
    assert SweepStudy(tmp_path / "study.journal", "moved").name == "before"


@pytest.mark.parametrize("num_rounds", [10, 499, 500, 3000, 100_000])
def test_live_reports_are_among_those_that_stay(num_rounds):
    every = stride(num_rounds)
    live = [r for r in range(num_rounds + 1) if r % every == 0]
    rounds = list(range(0, num_rounds // 2 + 1))  # it stopped half-way
    final = _thinned(rounds, 3, num_rounds)
    assert len({*final, *live[: len(live) // 2]}) <= MOST_REPORTS and {3, rounds[-1]} <= set(final)
    assert {r for r in live if r <= rounds[-1]} <= set(final)


@pytest.mark.parametrize(
    "values, kind",
    [
        ((0.1, 0.01), "FloatDistribution"),
        ((1, 0.5), "FloatDistribution"),
        ((0, 1, 2), "IntDistribution"),
        ((True, False), "CategoricalDistribution"),
        ((None, 5), "CategoricalDistribution"),
        (("fedavg", "fedprox"), "CategoricalDistribution"),
    ],
)
def test_distributions(values, kind):
    assert type(distribution(values)).__name__ == kind
