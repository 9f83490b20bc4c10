"""Steps that are recorded once and called with a batch."""

import pytest
import torch

from flgo_hydra.config.option import AUTO, PLAIN
from flgo_hydra.federated.backend.lane_kind import Kind
from flgo_hydra.federated.backend.step_programs import StepPrograms
from flgo_hydra.recorder.tape import CannotRecord


class Line:
    """w goes to w - lr (sum of x) - count times the mean of y, for a batch of three."""

    def __init__(self, data, engine=AUTO):
        self.lr = torch.zeros((), dtype=torch.float64)
        self.w = torch.zeros(5, dtype=torch.float64)
        self.programs = StepPrograms(data, engine, torch.float64, {"lr": self.lr})
        x, y = data.x_train[:3].clone(), data.y_train[:3].clone()
        self.kind = Kind(torch.arange(3), x, y, x, y)

    def step(self):
        lifted = self.programs.count * self.kind.y.double().mean()
        return [(self.w, self.w - self.lr * self.kind.x.sum(0) - lifted)]

    def record(self):
        self.programs.record(self.kind, self.step)
        self.programs.kinds[3] = self.kind


def test_a_program_takes_the_step_on_the_batch_and_the_numbers_of_each_call(ragged):
    line = Line(ragged)
    line.record()
    assert line.kind.reads_x and line.kind.counts and line.programs.is_recorded and line.programs.compiled == [3]
    expected = torch.zeros(5, dtype=torch.float64)
    for count, (rows, lr) in enumerate([([4, 0, 9], 0.5), ([1, 1, 2], 0.25)], start=1):
        rows = torch.tensor(rows)
        line.programs.count.fill_(count)
        line.lr.fill_(lr)  # a call brings the number only where it is a factor of a sum
        line.programs.read(line.kind, rows)
        line.programs.run(line.kind, lr)
        expected = expected - lr * ragged.x_train[rows].sum(0) - count * ragged.y_train[rows].double().mean()
    torch.testing.assert_close(line.w, expected, rtol=0, atol=1e-14)


def test_what_programs_read(ragged):
    line = Line(ragged)
    line.record()
    assert line.programs.reads(line.w) and line.programs.reads(line.kind.x) and line.programs.reads(line.programs.count)
    assert not line.programs.reads(torch.zeros(5))


def test_plain_steps_have_no_program_and_may_read_anything(ragged):
    line = Line(ragged, PLAIN)
    line.record()
    assert line.kind.program is None and not line.programs.is_recorded and line.programs.reads(torch.zeros(5))


def test_a_step_that_asks_for_numbers_has_no_program(ragged):
    line = Line(ragged)
    line.step = lambda: [(line.w, line.w * float(line.kind.x.sum()))]
    with pytest.raises(CannotRecord):
        line.record()


def test_where_there_is_no_gpu_there_are_no_graphs(ragged):
    line = Line(ragged)
    line.record()
    line.programs.capture(line.kind, pytest.fail, pytest.fail, list)
    assert line.kind.graph is None and line.programs.graph_note == {}
