"""Searches and replicates on real storages. The app is a parabola, so that hundreds of jobs take no time."""

import csv
import errno
import importlib.util
import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hydra
import optuna
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from optuna.trial import TrialState

from flgo_hydra import compose
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.explain import explain
from flgo_hydra.study import samplers
from flgo_hydra.study.search import SearchSource
from flgo_hydra.study.space.grid import parse_point
from flgo_hydra.study.stored.study import SweepStudy

CONFIG = """
defaults:
  - override hydra/sweeper: flgo_hydra
  - override hydra/launcher: basic
  - _self_
x: 0.0
n: 2
kind: a
seed: 0
scale: 1.0
hydra:
  searchpath: [file://{conf}]
  sweep: {{dir: sweep, subdir: "${{hydra.job.num}}"}}
  hydra_logging: {{root: {{level: WARNING}}}}
  job_logging: {{root: {{handlers: []}}, handlers: {{}}}}
"""
START = {"x": 0.0, "n": 2, "kind": "a", "seed": 0}
HAS_CMAES = importlib.util.find_spec("cmaes") is not None


class BasicLauncher(Launcher):
    """Hydra's basic launcher without its tenth of a second a job for folders, logs and composing twice."""

    def __init__(self, app):
        self.app = app

    def setup(self, *, hydra_context, task_function, config): ...

    def launch(self, job_overrides, initial_job_idx):
        return [self.run(number, overrides) for number, overrides in enumerate(job_overrides, start=initial_job_idx)]

    def run(self, number, overrides):
        (self.app.sweep / str(number)).mkdir(parents=True, exist_ok=True)
        returned = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
        try:
            returned.return_value = self.app.value(SimpleNamespace(**START | parse_point(overrides)))
        except Exception as error:
            returned.status, returned.return_value = JobStatus.FAILED, error
        return returned


class Parabola:
    """`parabola("x=interval(-1,1)", …)` is a sweep of it; `calls` are the jobs that ran."""

    def __init__(self, folder, monkeypatch):
        (folder / "app_conf").mkdir()
        (folder / "app_conf" / "config.yaml").write_text(CONFIG.format(conf=conf_dir()))
        self.calls = []
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.status = 0
        self.rule = lambda cfg: None
        monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: BasicLauncher(self))

    def value(self, cfg):
        self.calls.append({key: getattr(cfg, key) for key in START})
        answer = self.rule(cfg)
        shift = {"a": 0.3, "b": -0.5}[cfg.kind]
        return answer if answer is not None else (cfg.x - shift) ** 2 + (cfg.n - 2) ** 2 + 0.01 * cfg.seed

    def __call__(self, *arguments):
        """The points that ran, and the exit status (an error's text, 130 for Ctrl-C)."""
        before = len(self.calls)
        given = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra.sweep.dir=")]
        self.sweep = self.folder / (given or ["sweep"])[0]
        self.monkeypatch.setattr(sys, "argv", ["parabola.py", "-m", *arguments])
        self.monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        compose.prepare()
        GlobalHydra.instance().clear()
        base = {**compose.hydra_main_arguments(), "config_path": str(self.folder / "app_conf")}
        try:
            hydra.main(**base)(lambda cfg: None)()
            self.status = 0
        except SystemExit as stop:
            self.status = stop.code
        except KeyboardInterrupt:
            self.status = 130
        return self.calls[before:]


@pytest.fixture
def parabola(empty_folder, monkeypatch):
    return Parabola(empty_folder, monkeypatch)


def study(path="sweep/study.journal"):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(os.path.abspath(path)))
    return optuna.load_study(study_name=None, storage=storage)


def search(sampler, n_trials, *arguments):
    return (f"hydra.sweeper.sampler={sampler}", f"hydra.sweeper.n_trials={n_trials}", *arguments)


def test_tpe_tries_so_many_points_and_comes_close(parabola, capfd):
    ran = parabola(*search("tpe", 30), "x=interval(-1,1)", "kind=a,b")
    assert parabola.status == 0 and len(ran) == 30
    trials = study().trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 30
    assert [trial.params for trial in trials] == [{"x": call["x"], "kind": call["kind"]} for call in ran]
    assert all(-1 <= call["x"] <= 1 and call["x"] == float(f"{call['x']:.6g}") for call in ran)
    assert {call["kind"] for call in ran} == {"a", "b"}
    assert study().best_value < 0.01
    assert f"best value:          {study().best_value:.6g}" in capfd.readouterr().out


SPACE = ("x=interval(-1,1)", "n=int(interval(0,4))")


@pytest.mark.parametrize(
    "sampler", ["tpe", "random", "qmc", pytest.param("cmaes", marks=pytest.mark.skipif(not HAS_CMAES, reason="cmaes"))]
)
@pytest.mark.few(2)
def test_a_search_in_two_calls_asks_for_the_points_of_one(parabola, sampler):
    whole = parabola(*search(sampler, 14), *SPACE, "hydra.sweep.dir=whole")
    first = parabola(*search(sampler, 6), *SPACE)
    assert parabola(*search(sampler, 6), *SPACE) == [] and parabola.status == 0
    more = parabola(*search(sampler, 14), *SPACE)
    assert first + more == whole and len(whole) > 10
    assert [trial.number for trial in study().trials] == list(range(14))
    other = parabola(*search(sampler, 3, "hydra.sweeper.sampler_seed=1"), *SPACE, "hydra.sweep.dir=other")
    assert other != whole[:3]


def test_gp_learns_too(parabola):
    parabola(*search("gp", 14), "x=interval(-1,1)")
    assert study().best_value < 1e-3


def test_an_interval_may_be_logarithmic_or_wider_the_next_time(parabola):
    ran = parabola(*search("random", 20), "x=tag(log,interval(0.0001,1))")
    assert 5 <= sum(call["x"] < 0.01 for call in ran) <= 15
    more = parabola(*search("tpe", 32), "x=tag(log,interval(0.0001,100))")
    assert parabola.status == 0 and len(more) == 12
    assert any(call["x"] > 1 for call in more)


def test_a_point_chosen_again_is_told_its_value_and_does_not_run(parabola):
    ran = parabola(*search("tpe", 12), "n=int(interval(1,3))")
    assert parabola.status == 0
    assert sorted(call["n"] for call in ran) == [1, 2, 3]
    trials = study().trials
    assert [trial.value for trial in trials] == [(trial.params["n"] - 2) ** 2 + 0.09 for trial in trials]
    assert len(trials) == 12 and {trial.user_attrs["job"] for trial in trials} == {0, 1, 2}


def test_what_fails_counts_as_tried_and_is_not_tried_again(parabola):
    def refuse(cfg):
        if cfg.x > 0.3:
            raise OSError("too large")
        return math.nan if cfg.x < -0.8 else None

    parabola.rule = refuse
    ran = parabola(*search("random", 12), "x=interval(-1,1)")
    assert parabola.status == 1 and len(ran) == 12
    states = {trial.params["x"]: trial.state.name for trial in study().trials}
    assert states == {call["x"]: "FAIL" if call["x"] > 0.3 or call["x"] < -0.8 else "COMPLETE" for call in ran}
    assert {"FAIL", "COMPLETE"} == set(states.values())
    reasons = [trial.user_attrs["reason"] for trial in study().trials if trial.params["x"] > 0.3]
    assert reasons == ["OSError: too large"] * len(reasons)
    assert parabola(*search("random", 12), "x=interval(-1,1)") == [] and parabola.status == 1
    assert len(parabola(*search("random", 14), "x=interval(-1,1)")) == 2
    parabola.rule = lambda cfg: None
    again = parabola(*search("random", 14, "hydra.sweeper.retry_failed=true"), "x=interval(-1,1)")
    assert [call["x"] for call in again] == [call["x"] for call in parabola.calls[:14] if call["x"] > 0.3]


def fail_at(parabola, value):
    """A rule by which the point with this x fails."""

    def rule(cfg):
        if value is not None and cfg.x == value:
            raise OSError("broken")

    return rule


@pytest.mark.parametrize(
    "sampler, stops, is_failing",
    [
        *((sampler, [stop], False) for sampler in ("random", "tpe") for stop in (0, 1, 3)),
        *((sampler, [0, 2, 11, 11], True) for sampler in ("random", "tpe", "qmc")),
        pytest.param("cmaes", [1, 11], True, marks=pytest.mark.skipif(not HAS_CMAES, reason="cmaes")),
    ],
)
@pytest.mark.few(3)
def test_a_search_stopped_by_ctrl_c_tries_the_points_of_an_undisturbed_one(parabola, sampler, stops, is_failing):
    arguments = (*search(sampler, 13), *SPACE)
    failing = parabola(*search(sampler, 3), *SPACE, "hydra.sweep.dir=first")[2]["x"] if is_failing else None
    parabola.rule = rule = fail_at(parabola, failing)
    whole = parabola(*arguments, "hydra.sweep.dir=whole")
    ran = []
    for stop in stops:  # that choice is broken off
        last = len(parabola.calls) + stop - len(ran) + 1

        def interrupt(cfg, last=last):
            if len(parabola.calls) == last:
                raise KeyboardInterrupt
            return rule(cfg)

        parabola.rule = interrupt
        stopped = parabola(*arguments)
        assert parabola.status == 130
        ran += stopped[:-1]
    parabola.rule = rule
    ran += parabola(*arguments)
    assert ran == whole and len({call["x"] for call in ran}) > 10
    stored = study().trials
    assert sorted({trial.user_attrs["choice"] for trial in stored}) == list(range(13))
    interrupted = [trial for trial in stored if trial.user_attrs.get("status") == "interrupted"]
    assert len(interrupted) == len(stops)


def test_a_point_that_failed_and_is_tried_again_is_one_choice(parabola):
    """Attempts are no choices: the next points are those that come next."""
    arguments = (*search("tpe", 14), *SPACE)
    parabola.rule = lambda cfg: None
    whole = parabola(*arguments, "hydra.sweep.dir=whole")
    parabola.rule = fail_at(parabola, whole[2]["x"])
    parabola(*search("tpe", 6), *SPACE)
    parabola.rule = lambda cfg: None
    retry = "hydra.sweeper.retry_failed=true"
    assert [call["x"] for call in parabola(*search("tpe", 6), *SPACE, retry)] == [whole[2]["x"]]
    assert len(parabola(*arguments)) == 8
    assert sorted({trial.user_attrs["choice"] for trial in study().trials}) == list(range(14))


def test_a_point_that_is_tried_again_outlives_a_storage_that_is_away(parabola, monkeypatch):
    """Its trial cannot be opened for a moment: nothing of that attempt is left, and the next one opens it."""
    arguments = (*search("random", 5), *SPACE)
    parabola.rule = lambda cfg: None
    whole = parabola(*arguments, "hydra.sweep.dir=whole")
    parabola.rule = fail_at(parabola, whole[2]["x"])
    parabola(*arguments)
    parabola.rule = lambda cfg: None
    ask_again, num = SweepStudy.ask_again, iter(range(99))

    def failing(self, *given):
        if next(num) < 2:
            raise OSError(errno.ENOSPC, "full", "study.journal")
        return ask_again(self, *given)

    monkeypatch.setattr(SweepStudy, "ask_again", failing)
    again = parabola(*arguments, "hydra.sweeper.retry_failed=true")
    assert parabola.status == 0 and [call["x"] for call in again] == [whole[2]["x"]]
    assert {trial.state for trial in study().trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert sum(trial.state == TrialState.COMPLETE for trial in study().trials) == 5


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
@pytest.mark.few(1)
def test_a_choice_that_could_not_be_kept_is_made_again(parabola, monkeypatch, sampler):
    """The storage went away when the sampler had chosen: what is lost is the trial, not the point."""
    arguments = (*search(sampler, 9), *SPACE)
    whole = parabola(*arguments, "hydra.sweep.dir=whole")
    note, num_failures = SweepStudy._note, iter(range(99))

    def failing(self, trial):
        if next(num_failures) in (0, 3, 4, 9):
            raise OSError(errno.ENOSPC, "full", "study.journal")
        return note(self, trial)

    monkeypatch.setattr(SweepStudy, "_note", failing)
    assert parabola(*arguments, "hydra.sweep.dir=disturbed") == whole


def test_a_point_that_could_not_be_made_for_a_moment_is_not_lost(parabola, monkeypatch):
    """It was chosen, and the study had its trial, when the machine had no descriptors for what comes next."""
    arguments = (*search("tpe", 12), *SPACE)
    whole = parabola(*arguments, "hydra.sweep.dir=whole")
    make, num = SearchSource._make, itertools.count()

    def make_most(self, overrides):
        if next(num) in (0, 3, 4, 5, 12):
            raise OSError(errno.EMFILE, "Too many open files", "some/file")
        return make(self, overrides)

    monkeypatch.setattr(SearchSource, "_make", make_most)
    assert parabola(*arguments) == whole and parabola.status == 0
    assert [trial.user_attrs["choice"] for trial in study().trials] == list(range(12))


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_killed_search_tries_its_open_points_again(parabola, empty_folder, kind):
    """A trial is RUNNING, with what it was to be: as after `kill -9`."""
    from flgo_hydra.study.space.grid import Grid, Interval
    from flgo_hydra.study.stored.study import SweepStudy

    storage = () if kind == "journal" else (f"hydra.sweeper.storage=sqlite:///{empty_folder}/s.db",)
    named = ("hydra.sweeper.study_name=one", *storage)
    parabola(*search("random", 2), "x=interval(-1,1)", *named)
    where = Path("sweep/study.journal") if kind == "journal" else f"sqlite:///{empty_folder}/s.db"
    killed = SweepStudy(where, "one")
    for attributes in ({"identity": "not known", "job": 2, "overrides": ["x=0.125"], "attempt": 1, "choice": 2}, {}):
        number = killed.ask_again(Grid((), (), (Interval("x", -1.0, 1.0),)), {"x": 0.125}, 2)
        killed.annotate(number, attributes)  # one was killed before it could say what it is
    ran = parabola(*search("random", 4), "x=interval(-1,1)", *named)
    assert parabola.status == 0 and len(ran) == 2 and ran[0]["x"] == 0.125
    states = [(t.state.name, t.user_attrs.get("status")) for t in killed._study.get_trials()]
    assert states[2:4] == [("FAIL", "interrupted")] * 2
    assert [state for state, _ in states].count("COMPLETE") == 4
    assert not Path("sweep/2/result.json").exists() and Path("sweep/3").exists()


def test_a_study_is_of_one_objective(parabola):
    parabola(*search("random", 2), "x=interval(-1,1)")
    with pytest.raises(ValueError, match="`scale` was 1.0 and is 2.0 now"):
        parabola(*search("random", 4), "x=interval(-1,1)", "scale=2.0")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("x=interval(0,1)",), ["x=interval(0,1)", "hydra.sweeper.sampler=tpe"]),
        (("x=1,2", "hydra.sweeper.n_trials=5"), ["n_trials", "grid", "tpe"]),
        (("x=1,2", "hydra.sweeper.sampler_seed=5"), ["sampler_seed", "grid"]),
        (("x=interval(0,1)", "hydra.sweeper.sampler=tpe"), ["hydra.sweeper.n_trials", "must be given"]),
        (("x=1,2", "hydra.sweeper.sampler=tpee"), ["tpee", "cmaes"]),
        ((*search("tpe", 0), "x=1,2"), ["n_trials >= 1"]),
        (search("tpe", 3), ["nothing to choose"]),
        ((*search("tpe", 3), "x=tag(lg,interval(1,2))"), ["lg", "tag(log"]),
        ((*search("tpe", 3), "x=tag(log,interval(0,2))"), ["low > 0"]),
        ((*search("tpe", 3), "x=interval(2,1)"), ["low < high"]),
        ((*search("tpe", 3), "y=interval(1,2)"), ["`y`"]),
        ((*search("tpe", 3), "seed=interval(0,1)", "hydra.sweeper.replicate=seed", "x=1,2"), ["seed=0,1,2"]),
        (("x=1,2", "hydra.sweeper.replicate=seed"), ["`seed` does not", "seed=0,1,2"]),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(parabola, arguments, words):
    with pytest.raises((ValueError, HydraException)) as error:
        parabola(*arguments)
    for word in words:
        assert word in explain(error.value, arguments)
    assert not Path("sweep").exists()


def test_a_sampler_without_its_package_says_what_to_install(parabola, monkeypatch):
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"cmaes.*pip install 'flgo_hydra\[samplers\]'"):
        parabola(*search("cmaes", 3), "x=interval(0,1)")
    assert not Path("sweep").exists()


def test_samplers_of_numbers_say_that_they_know_no_choices(parabola, capfd):
    ran = parabola(*search("qmc", 8), "x=interval(-1,1)", "kind=a,b")
    assert parabola.status == 0 and {call["kind"] for call in ran} == {"a", "b"}
    assert "kind is chosen at random" in capfd.readouterr().out


# replicates


def test_the_value_of_a_point_is_the_mean_over_its_replicates(parabola, capfd):
    ran = parabola(*search("tpe", 5), "x=interval(-1,1)", "seed=0,1,2", "hydra.sweeper.replicate=seed")
    assert parabola.status == 0 and len(ran) == 15
    trials = study().trials
    assert len(trials) == 5
    for trial, calls in zip(trials, [ran[i : i + 3] for i in range(0, 15, 3)], strict=True):
        values = [(trial.params["x"] - 0.3) ** 2 + 0.01 * seed for seed in range(3)]
        assert [call["seed"] for call in calls] == [0, 1, 2]
        assert {call["x"] for call in calls} == {trial.params["x"]} and set(trial.params) == {"x"}
        assert trial.user_attrs["replicates"] == values
        assert trial.value == pytest.approx(values[1]) and trial.user_attrs["std"] == pytest.approx(0.01)
        assert trial.user_attrs["jobs"] == [3 * trial.number + seed for seed in range(3)]
    out = capfd.readouterr().out
    best = study().best_trial
    assert f"optimal combination: x={best.params['x']}\n" in out
    assert f"best value:          {best.value:.6f} ± 0.010000 over 3 replicates" in out


def test_another_seed_runs_alone_and_makes_a_new_trial(parabola):
    replicate = "hydra.sweeper.replicate=[seed]"
    assert len(parabola("x=0,1", "seed=0,1", replicate)) == 4
    assert parabola("x=0,1", "seed=0,1", replicate) == [] and len(study().trials) == 2
    assert [call["seed"] for call in parabola("x=0,1", "seed=0,1,4", replicate)] == [4, 4]
    assert parabola.status == 0
    assert [trial.user_attrs["num_replicates"] for trial in study().trials] == [2, 2, 3, 3]
    assert study().trials[3].user_attrs["jobs"] == [2, 3, 5]
    assert study().trials[3].value == pytest.approx(0.49 + 0.05 / 3)
    # Fewer again: their trial is there.
    assert parabola("x=0,1", "seed=0,1", replicate) == [] and len(study().trials) == 4


def jobs_by_point():
    rows = csv.DictReader(Path("sweep/points.csv").read_text().splitlines())
    return {row["x"]: row["jobs"] for row in rows}


def test_a_point_has_all_the_replicates_of_its_folder_and_the_table_all_points(parabola, capfd):
    replicate = "hydra.sweeper.replicate=seed"
    parabola("x=0,1", "seed=0,1", replicate)
    assert len(parabola("x=0.5", "seed=0,1", replicate)) == 2
    out = capfd.readouterr().out
    assert out.count("optimal combination: x=0\n") == 1 and "optimal combination: x=0.5\n" in out
    assert jobs_by_point() == {"0": "0 1", "1": "2 3", "0.5": "4 5"}
    assert [call["seed"] for call in parabola("x=0e0", "seed=2", replicate)] == [2]  # one, and written otherwise
    assert jobs_by_point() == {"0e0": "0 1 6", "1": "2 3", "0.5": "4 5"}
    (last,) = study().trials[3:]
    assert last.value == pytest.approx(0.09 + 0.01) and sorted(last.user_attrs["jobs"]) == [0, 1, 6]
    assert "1 of its trials is of fewer replicates than its point has now" in capfd.readouterr().out
    # A later call knows that as well, and has nothing to do.
    assert parabola("x=0,1,0.5", "seed=0", replicate) == [] and len(study().trials) == 4


def test_a_point_stays_one_when_another_key_is_swept(parabola, capfd):
    replicate = "hydra.sweeper.replicate=seed"
    parabola("x=0,1", "seed=0,1,2", replicate)
    assert parabola("x=0,1", "seed=0", "kind=a,b", replicate) != []
    rows = list(csv.DictReader(Path("sweep/points.csv").read_text().splitlines()))
    assert {(row["x"], row["kind"]): row["num_replicates"] for row in rows} == {
        ("0", "a"): "3",
        ("1", "a"): "3",
        ("0", "b"): "1",
        ("1", "b"): "1",
    }


def test_one_seed_at_a_time(parabola):
    replicate = "hydra.sweeper.replicate=seed"
    assert [call["seed"] for call in parabola("x=0,1", "seed=0", replicate)] == [0, 0]
    assert [call["seed"] for call in parabola("x=0,1", "seed=1", replicate)] == [1, 1]
    assert jobs_by_point() == {"0": "0 2", "1": "1 3"}


def test_a_search_with_another_seed_measures_its_points_again(parabola):
    arguments = (*search("random", 3), "x=interval(-1,1)", "hydra.sweeper.replicate=seed")
    parabola(*arguments, "seed=0,1")
    ran = parabola(*arguments, "seed=0,1,2")
    assert [call["seed"] for call in ran] == [2, 2, 2]
    trials = study().trials
    assert [trial.params for trial in trials[3:]] == [trial.params for trial in trials[:3]]
    assert parabola(*arguments, "seed=0,1,2") == [] and parabola.status == 0


def test_seeds_that_ran_as_points_become_replicates(parabola):
    parabola("x=0,1", "seed=0,1")
    assert parabola("x=0,1", "seed=0,1", "hydra.sweeper.replicate=seed") == []
    assert [trial.params for trial in study().trials[4:]] == [{"x": 0.0}, {"x": 1.0}]


def test_a_point_with_a_failed_replicate_is_failed_and_only_that_one_runs_again(parabola, capfd):
    def fail(cfg):
        if cfg.x == 1 and cfg.seed == 1:
            raise OSError("no disk")

    parabola.rule = fail
    parabola("x=0,1", "seed=0,1", "hydra.sweeper.replicate=seed")
    assert parabola.status == 1
    trials = study().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL"]
    assert "job 3 (x=1 seed=1) OSError: no disk" in trials[1].user_attrs["reason"]
    assert "without a mean: 1 of 2 points" in capfd.readouterr().out
    parabola.rule = lambda cfg: None
    again = ("x=0,1", "seed=0,1", "hydra.sweeper.replicate=seed")
    assert parabola(*again) == [] and parabola.status == 1
    ran = parabola(*again, "hydra.sweeper.retry_failed=true")
    assert [(call["x"], call["seed"]) for call in ran] == [(1, 1)] and parabola.status == 0
    assert [trial.state.name for trial in study().trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    lines = Path("sweep/points.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["x", "0", "1"]


def test_ctrl_c_ends_a_search_that_finds_nothing_new(tmp_path):
    """Two points and a million trials: once both are known, no job ends any more that could be waited for."""
    arguments = ["lr=0.1,0.2", "num_rounds=1", "model=logistic", "num_steps=1", "task.num_clients=3"]
    settings = ["hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=1000000", "hydra.launcher.view=lines"]
    search = subprocess.Popen(
        [sys.executable, "-m", "flgo_hydra", "-m", *arguments, *settings, "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        num_done = 0
        for line in search.stdout:
            num_done += ": done in" in line
            if num_done == 2:
                break
        search.send_signal(signal.SIGINT)
        out, _ = search.communicate(timeout=60)
    finally:
        search.kill()
        search.wait()
    assert search.returncode == 130 and "Traceback" not in out
    assert "flgo_hydra.resume" in out or "same command" in out
