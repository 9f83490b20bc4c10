"""Curves of runs under way, with a clock of the test's own."""

import math

import pytest

from flgo_hydra.study.pruning import Pruning
from flgo_hydra.study.stored.live import LiveCurves
from flgo_hydra.study.stored.study import SweepStudy

MEDIAN = {"name": "median", "n_startup_trials": 1}


class Clock:
    now = 0.0
    cost = 0.0

    def __call__(self):
        self.now += self.cost
        return self.now


@pytest.fixture
def study(tmp_path):
    return SweepStudy(tmp_path / "study.journal", "s")


def start(study):
    return study.start({"lr": 0.1}, {"lr": [0.1]}, {})


def curve(study, number):
    return study._study.get_trials(deepcopy=False)[number].intermediate_values


def say(live, trial, round_num, loss=1.0, num_rounds=10, **rest):
    live.hear(
        trial, {"kind": "round", "round": round_num, "metrics": {"valid_loss": loss}, "num_rounds": num_rounds}, **rest
    )


def test_reports_are_in_the_study_when_it_is_written(study):
    clock = Clock()
    live = LiveCurves(study, None, clock)
    one, two = start(study), start(study)
    for round_num in range(3):
        say(live, one, round_num, 2.0 - round_num)
        say(live, two, round_num, math.inf)
    assert live.wait_s() == 0 and curve(study, one) == {}
    assert live.write() == []
    assert curve(study, one) == {0: 2.0, 1: 1.0, 2: 0.0}
    assert all(math.isnan(loss) for loss in curve(study, two).values()) and len(curve(study, two)) == 3
    assert live.wait_s() is None


def test_writing_takes_half_of_the_time_at_most(study):
    clock = Clock()
    live = LiveCurves(study, None, clock)
    number = start(study)
    for round_num in range(100):
        say(live, number, round_num, num_rounds=100)
    clock.cost = 0.01  # a look at the clock, hence a report, takes 10 ms
    live.write()
    clock.cost = 0.0
    written = len(curve(study, number))
    assert 3 <= written <= 6
    assert live.wait_s() == pytest.approx(clock.now - 0.0, rel=0.3)
    live.write()
    assert len(curve(study, number)) == written
    clock.now += live.wait_s()
    live.write()
    assert len(curve(study, number)) == 100 and live.wait_s() is None


def test_a_long_run_reports_as_many_rounds_as_stay(study):
    live = LiveCurves(study, None, Clock())
    number = start(study)
    for round_num in range(0, 5001, 2):
        say(live, number, round_num, num_rounds=5000)
    live.write()
    rounds = list(curve(study, number))
    assert 450 <= len(rounds) <= 500 and rounds[0] == 0


def test_a_new_attempt_neither_repeats_nor_contradicts(study, tmp_path):
    live = LiveCurves(study, None, clock := Clock())
    number = start(study)
    for round_num, loss in [(0, 2.0), (1, 1.0), (2, 0.5), (1, 1.0), (2, 0.6), (3, 0.4)]:
        say(live, number, round_num, loss)
    live.write()
    assert curve(study, number) == {0: 2.0, 1: 1.0, 2: 0.6, 3: 0.4}
    lines = (tmp_path / "study.journal").read_bytes().splitlines()
    assert sum(b'"intermediate_value":' in line for line in lines) == 5  # round 1 came out as before: not again
    live.end(number)
    say(live, number, 4)
    live.end(number)  # what waits of a run that has ended is not written: its record is read
    clock.now += 1
    live.write()
    assert 4 not in curve(study, number)


def test_a_run_that_goes_on_from_an_earlier_sweep_has_its_whole_curve(study):
    live = LiveCurves(study, None, Clock())
    number = start(study)
    earlier = [{"round": r, "valid_loss": 2.0 - r} for r in range(3)]
    say(live, number, 2, 0.5, read_earlier=lambda: earlier)
    say(live, number, 3, 0.4, read_earlier=lambda: pytest.fail("once is enough"))
    live.write()
    assert curve(study, number) == {0: 2.0, 1: 1.0, 2: 0.5, 3: 0.4}


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "note", "round": 1, "metrics": {"valid_loss": 1.0}},
        {"kind": "round", "round": "one", "metrics": {"valid_loss": 1.0}},
        {"kind": "round", "round": 1, "metrics": {"valid_loss": None}},
        {"kind": "round"},
    ],
)
def test_what_is_no_evaluated_round_does_not_count(study, values):
    live = LiveCurves(study, None, Clock())
    live.hear(start(study), values)
    assert live.wait_s() is None


def test_it_says_whom_to_prune(study):
    pruning = Pruning(MEDIAN)
    live = LiveCurves(study, pruning, clock := Clock())
    good, bad = start(study), start(study)
    for number in (good, bad):
        pruning.start(number, "g", 10)
    for round_num, loss in enumerate([2.0, 1.0, 0.5]):
        say(live, good, round_num, loss)
    assert live.write() == []
    live.end(good)
    pruning.finish(good, 0.5)
    clock.now += 1
    for round_num, loss in enumerate([2.0, 1.9, 1.8]):
        say(live, bad, round_num, loss)
    assert live.write() == [bad]
    assert len(curve(study, bad)) == 3


def test_others_are_compared_with_the_whole_of_a_run_that_ended_fast(study):
    """Its last reports had not been written when it ended."""
    pruning = Pruning({**MEDIAN, "n_warmup_steps": 2})
    live = LiveCurves(study, pruning, clock := Clock())
    good, bad = start(study), start(study)
    for number in (good, bad):
        pruning.start(number, "g", 10)
    for round_num, loss in enumerate([2.0, 1.0, 0.5]):
        say(live, good, round_num, loss)
    live.end(good)
    pruning.finish(good, 0.5)
    for round_num, loss in enumerate([2.0, 1.9, 1.8]):
        say(live, bad, round_num, loss)
    clock.now += 1
    assert live.write() == [bad]
