import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flgo_hydra.machine_errors import CannotWrite
from flgo_hydra.record.files import (
    JsonLines,
    remove_leftovers,
    replacing,
    to_json,
    write_json,
    write_text,
)
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_rounds

_ROOT = Path(__file__).resolve().parents[2]


def test_replacing_makes_its_folder_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "old")
    write_text(path, "naïve")
    assert path.read_text(encoding="utf-8") == "naïve"
    assert os.listdir(path.parent) == ["b.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_inside_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "b.txt"
    write_text(path, "old")
    with pytest.raises(error), replacing(path) as file:
        file.write(b"half of the n")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_the_old_file_is_there_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    write_text(path, "old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_mode_that_the_user_wants(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "b.txt", "")
    finally:
        os.umask(before)
    assert (tmp_path / "b.txt").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    "value, written",
    [
        (1.5, 1.5),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        ({"a": [math.nan, (1, math.inf)], 2: True}, {"a": [None, [1, None]], "2": True}),
    ],
)
def test_to_json(value: Any, written: Any) -> None:
    assert to_json(value) == written


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 0.1, "y": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1, "y": None}


def test_a_file_that_was_removed_is_an_error(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "rounds.jsonl")
    lines.append({"round": 0})
    (tmp_path / "rounds.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="removed while it was written"):
        lines.append({"round": 1})


@pytest.mark.parametrize("what", ["moved", "removed", "another"])
def test_a_file_that_lies_elsewhere_is_found_out(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run" / "lines.jsonl"
    path.parent.mkdir()
    lines = JsonLines(path)
    lines.require_in_place()  # none has been written yet
    lines.append({"round": 0})
    lines.require_in_place()
    if what == "removed":
        path.unlink()
    else:
        path.parent.rename(tmp_path / "away")
    if what == "another":
        path.parent.mkdir()
        path.write_text("{}\n")
    with pytest.raises(CannotWrite, match="moved away or removed while it was written"):
        lines.require_in_place()


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    JsonLines(path).append({"round": 0, "valid_loss": math.inf})
    JsonLines(path).append({"round": 1, "valid_loss": 0.25})
    assert path.read_text() == '{"round": 0, "valid_loss": null}\n{"round": 1, "valid_loss": 0.25}\n'


_LOOP = """
import itertools, sys
from pathlib import Path
from flgo_hydra.record.files import JsonLines, write_json
folder = Path(sys.argv[1])
for i in itertools.count():
    JsonLines(folder / "rounds.jsonl").append({"round": i, **dict.fromkeys(map(str, range(500)), 0.125)})
    write_json(folder / "result.json", {"round": i, "text": "y" * 5000})
"""


def test_a_killed_process_leaves_all_lines_but_the_last_and_a_whole_file(tmp_path: Path) -> None:
    random_s = random.Random(0)
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", _LOOP, str(folder)], env={"PYTHONPATH": str(_ROOT)})
        deadline = time.monotonic() + 60
        while not (folder / "result.json").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random_s.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        lines = read_rounds(RunPaths(folder))  # without a torn last line
        assert [line["round"] for line in lines] == list(range(len(lines)))
        result = json.loads((folder / "result.json").read_text())
        assert result["text"] == "y" * 5000
        # Between a line and the file that follows it at most one round lies.
        assert 0 <= len(lines) - 1 - result["round"] <= 1


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    for name in ("checkpoint.pt", ".checkpoint.pt.ab12cd34", "other.pt"):
        (tmp_path / name).write_text(name)
    remove_leftovers(tmp_path / "checkpoint.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "other.pt"]
