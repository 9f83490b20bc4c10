"""Estimates over real files: remembered, shared, and never the reason that a sweep ends."""

import json
import multiprocessing
from pathlib import Path
from typing import NoReturn

import pytest

from flgo_hydra.launch.scheduling.estimates import NUM_KEPT, NUM_SIGNATURES, Estimates, default_path, machine_key
from flgo_hydra.record.lock import Held, holding


def test_unknown_is_none() -> None:
    estimates = Estimates("m")
    assert estimates.memory_mib("s") is None and estimates.duration_s("s") is None


def test_largest_peak_and_median_duration_of_the_last_few() -> None:
    estimates = Estimates("m")
    for peak in [900, 500, 700]:
        estimates.learn_memory("s", peak)
    assert estimates.memory_mib("s") == 900
    for _ in range(NUM_KEPT - 1):
        estimates.learn_memory("s", 600)
    assert estimates.memory_mib("s") == 700  # 900 is forgotten
    for seconds in [10.0, 11.0, 500.0]:
        estimates.learn_duration("s", seconds)
    assert estimates.duration_s("s") == 11.0
    assert estimates.memory_mib("other") is None


def test_remembered_by_machine(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "estimates.json"
    first = Estimates("m", path)
    first.learn_memory("s", 500)  # written at once: the next sweep needs no probe
    assert Estimates("m", path).memory_mib("s") == 500
    assert Estimates("another", path).memory_mib("s") is None
    first.learn_memory("s", 700)
    first.learn_duration("s", 3.5)
    first.save()
    again = Estimates("m", path)
    assert (again.memory_mib("s"), again.duration_s("s")) == (700, 3.5)
    assert sorted(file.name for file in path.parent.iterdir()) == ["estimates.json", "estimates.lock"]


def test_what_is_not_saved_yet_is_no_more_than_what_is_kept(tmp_path: Path) -> None:
    given = Estimates("m", tmp_path / "e.json")
    for seconds in range(1000):
        given.learn_duration("s", float(seconds))
    assert sum(len(values) for of in given._unsaved.values() for values in of.values()) <= NUM_KEPT
    given.save()
    assert Estimates("m", tmp_path / "e.json").duration_s("s") == given.duration_s("s")


def test_nothing_to_save_writes_nothing(tmp_path: Path) -> None:
    Estimates("m", tmp_path / "e.json").save()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"m": 3}', "[]]", '{"m": []}', '{"m": {"memory_mib": {"s": 3}}}'])
def test_broken_file_is_forgotten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    estimates = Estimates("m", path)
    assert estimates.memory_mib("s") is None
    estimates.learn_memory("s", 5)
    assert json.loads(path.read_text()) == {"m": {"memory_mib": {"s": [5]}}}
    assert path.with_suffix(".broken").read_text() == text


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e400", "-5", "true", "null", '"7"', "[7]"])
def test_what_is_no_figure_is_left_out(tmp_path: Path, value: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(f'{{"m": {{"memory_mib": {{"s": [{value}, 7], "t": [{value}]}}}}}}')
    estimates = Estimates("m", path)
    assert estimates.memory_mib("s") == 7 and estimates.memory_mib("t") is None


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_what_is_no_figure_is_not_learned(tmp_path: Path, value: float) -> None:
    estimates = Estimates("m", tmp_path / "e.json")
    estimates.learn_memory("s", value)  # type: ignore[arg-type]
    estimates.learn_duration("s", value)
    estimates.save()
    assert estimates.memory_mib("s") is None and estimates.duration_s("s") is None


def test_brackets_without_end_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text("[" * 100_000)
    assert Estimates("m", path).memory_mib("s") is None
    assert not path.exists()


def test_a_lock_that_is_not_given_back_keeps_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "e.json"

    def held(lock: Path, wait_s: float) -> NoReturn:
        assert wait_s == 2.0
        raise Held(lock, "17")

    waiting = Estimates("m", path, lock=held)
    waiting.learn_memory("s", 5)
    assert "process 17" in caplog.text and not path.exists()
    waiting._lock = holding  # it is given back: what was learned meanwhile is told
    waiting.save()
    assert Estimates("m", path).memory_mib("s") == 5


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    estimates = Estimates("m", tmp_path / "file" / "e.json")
    estimates.learn_memory("s", 5)
    assert estimates.memory_mib("s") == 5


def test_longest_unused_signatures_go_first(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    full = {f"s{num}": [1.0] for num in range(NUM_SIGNATURES)}
    path.write_text(json.dumps({"m": {"memory_mib": full}}))
    estimates = Estimates("m", path)
    estimates.learn_memory("s0", 2)  # used again
    estimates.learn_memory("new", 3)
    again = Estimates("m", path)
    assert [again.memory_mib(s) for s in ["s0", "s1", "s2", "new"]] == [2, None, 1, 3]


def _sweep(path: Path, num: int) -> None:
    estimates = Estimates("m", path)
    for job in range(10):
        estimates.learn_memory(f"{num}/{job}", 100 * num + job)
        estimates.learn_memory("shared", num)
    estimates.save()


def test_concurrent_sweeps_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    context = multiprocessing.get_context("spawn")
    sweeps = [context.Process(target=_sweep, args=(path, num)) for num in range(1, 4)]
    for sweep in sweeps:
        sweep.start()
    for sweep in sweeps:
        sweep.join(60)
        assert sweep.exitcode == 0
    estimates = Estimates("m", path)
    assert all(estimates.memory_mib(f"{num}/{job}") == 100 * num + job for num in range(1, 4) for job in range(10))


def test_default_path_and_machine_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_path() == Path("/c/flgo_hydra/estimates.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_path() == Path.home() / ".cache/flgo_hydra/estimates.json"
    assert machine_key("H100", "580.1").endswith(" / driver 580.1 / H100")
    assert machine_key("cpu").endswith(" / driver none / cpu")


def test_a_figure_that_no_device_has_counts_only_where_there_is_no_other():
    estimates = Estimates("m")
    estimates.learn_memory("s", 30_000)
    assert estimates.memory_mib("s", 24_000) == 30_000
    estimates.learn_memory("s", 200)
    assert (estimates.memory_mib("s", 24_000), estimates.memory_mib("s")) == (200, 30_000)
