import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from flgo_hydra.record import checkpoint
from flgo_hydra.record.checkpoint import CheckpointClock, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_round_trip(path: Path, dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [2, 3]]).to(dtype)
    save_checkpoint(path, "abc", {"server": {"w": tensor}, "round": 3, "best": [0.25, None, "x", float("inf")]})
    content = load_checkpoint(path, "abc", CPU)
    assert content is not None
    assert content["server"]["w"].dtype == dtype and torch.equal(content["server"]["w"], tensor)
    assert content["round"] == 3 and content["best"] == [0.25, None, "x", float("inf")]
    assert os.listdir(path.parent) == ["checkpoint.pt"]


def test_none_without_a_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_checkpoint(path, "abc", CPU) is None
    assert caplog.messages == []


def test_another_config_is_an_error(path: Path) -> None:
    save_checkpoint(path, "abc", {})
    with pytest.raises(ValueError, match="belongs to a run with another config"):
        load_checkpoint(path, "def", CPU)


def test_another_configs_is_set_aside_in_a_folder_that_a_sweep_has_chosen(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(path, "abc", {})
    assert load_checkpoint(path, "def", CPU, is_of_sweep=True) is None
    assert "another config (kept as checkpoint.pt.damaged)" in caplog.text and not path.exists()


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: b"\x80\x02" + b"garbage" * 10,
        lambda whole: b"garbage" * 100,
        # One bit of a weight: torch.load alone would not notice.
        lambda whole: _flipped(whole, whole.index(torch.arange(100.0).numpy().tobytes()) + 200),
    ],
    ids=["empty", "half", "last byte", "pickle", "garbage", "one bit"],
)
def test_a_damaged_file_is_none_with_a_warning(path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    save_checkpoint(path, "abc", {"w": torch.arange(100.0)})
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path, "abc", CPU) is None
    (message,) = caplog.messages
    assert str(path) in message and "the run starts from round 0" in message
    assert os.listdir(path.parent) == ["checkpoint.pt.damaged"]  # it may be somebody else's


@pytest.mark.parametrize("content", [[1], {"version": 0, "fingerprint": "abc"}, {"version": 1}])
def test_another_versions_file_is_none_with_a_warning(
    path: Path, caplog: pytest.LogCaptureFixture, content: object
) -> None:
    torch.save(content, path)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path, "abc", CPU) is None
    assert "no checkpoint of this version" in caplog.text


class _Evil:
    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._folder,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_reading_runs_no_code(path: Path, caplog: pytest.LogCaptureFixture, save: Any) -> None:
    folder = path.parent / "made by the checkpoint"
    save({"version": 1, "fingerprint": "abc", "w": _Evil(folder)}, path)
    assert load_checkpoint(path, "abc", CPU) is None
    assert not folder.exists()
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_too_little_memory_does_not_start_the_run_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def load(*_: object, **__: object) -> None:
        raise error("too little")

    save_checkpoint(path, "abc", {})
    monkeypatch.setattr(checkpoint.torch, "load", load)
    with pytest.raises(error):
        load_checkpoint(path, "abc", CPU)


class Clock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    "interval, round_s, write_s, written",
    [
        (0, 1.0, 0.0, []),  # none
        (1, 1.0, 0.0, [1, 2, 3, 4, 5, 6]),
        (2, 1.0, 9.0, [2, 4, 6]),  # whatever it costs
        (None, 1.0, 0.0, [1, 2, 3, 4, 5, 6]),  # after a second at the earliest
        (None, 0.25, 0.0, [4]),
        (None, 1.0, 0.015625, [1, 3, 5]),  # 1.5625 seconds for 1 %: every other round
        (None, 1.0, 0.03125, [1, 5]),  # 3.125 seconds
    ],
)
def test_clock(interval: int | None, round_s: float, write_s: float, written: list[int]) -> None:
    clock = Clock()
    due = CheckpointClock(interval, clock)
    rounds = []
    for round_num in range(1, 7):
        clock.sleep(round_s)
        if due.is_due(round_num):
            due.timed(lambda: clock.sleep(write_s))
            rounds.append(round_num)
    assert rounds == written


def test_a_row_of_many_is_written_alone(tmp_path):
    """As the model of one of several runs that were trained together is."""
    many = torch.arange(128_000.0).view(128, 1000)
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, "print", {"server": {"params": {"w": many[3]}}})
    assert path.stat().st_size < 8_000
    loaded = load_checkpoint(path, "print", torch.device("cpu"))
    assert loaded is not None and torch.equal(loaded["server"]["params"]["w"], many[3])
