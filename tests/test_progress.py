import io
import logging

import pytest

from flgo_hydra.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0.0 s"),
        (7.25, "7.2 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_live_line_takes_the_last_one_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    stream, times = Terminal(), iter([100.0, 102.0])
    progress = Progress(num_rounds=5, eval_interval=1, stream=stream, clock=lambda: next(times))
    progress.show(0, {"valid_loss": 2.0}, best=2.0, best_round=0)
    progress.show(1, {"valid_loss": 1.5, "test_accuracy": 0.25}, best=1.5, best_round=1)
    progress.close()
    first, second, rest = stream.getvalue().split("\r\x1b[2K")[1:]
    assert first == "round 0/5  valid_loss 2.0000  best 2.0000 at 0"
    # Two seconds a round, four rounds to go.
    assert second == "round 1/5  valid_loss 1.5000  test_accuracy 0.2500  best 1.5000 at 1  ETA 8.0 s"
    assert rest == ""


def test_live_line_is_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Progress(5, 1, stream).show(0, {"valid_loss": 2.0}, best=2.0, best_round=0)
    assert stream.getvalue() == "\r\x1b[2Kround 0/5  valid_lo"


@pytest.mark.parametrize(
    "num_rounds, eval_interval, shown",
    [
        (3, 1, [0, 1, 2, 3]),
        (5, 2, [0, 2, 4, 5]),
        (250, 1, [*range(0, 251, 2)]),  # at most about a hundred lines
        (1000, 5, [*range(0, 1001, 10)]),
    ],
)
def test_plain_lines(caplog: pytest.LogCaptureFixture, num_rounds: int, eval_interval: int, shown: list[int]) -> None:
    stream = io.StringIO()
    progress = Progress(num_rounds, eval_interval, stream, clock=lambda: 0.0)
    with caplog.at_level(logging.INFO, "flgo_hydra"):
        for round_num in [*range(0, num_rounds, eval_interval), num_rounds]:
            progress.show(round_num, {"valid_loss": 1.0}, best=1.0, best_round=0)
    progress.close()
    assert [int(text.split()[1].partition("/")[0]) for text in caplog.messages] == shown
    assert stream.getvalue() == ""


def test_time_left_counts_from_where_a_resumed_run_went_on(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 3.0])
    progress = Progress(10, 1, io.StringIO(), clock=lambda: next(times))
    with caplog.at_level(logging.INFO, "flgo_hydra"):
        progress.show(7, {"valid_loss": 1.0}, best=1.0, best_round=0)
        progress.show(8, {"valid_loss": 1.0}, best=1.0, best_round=0)
    assert [text.partition("ETA ")[2] for text in caplog.messages] == ["", "6.0 s"]
