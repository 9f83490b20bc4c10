import errno
import json
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from flgo_hydra.federated.data import dependencies, task_cache
from flgo_hydra.record.lock import holding, is_stopped

CONTENT = {"seed": 1}
ARRAYS = {"x": np.arange(600, dtype=np.float32).reshape(3, 200), "y": np.array([4, 5, 6])}


def build():
    build.calls += 1
    return {name: array.copy() for name, array in ARRAYS.items()}, build.state, "0" * 64


@pytest.fixture(autouse=True)
def reset():
    build.calls = 0
    build.state = dependencies.state_of(dependencies.Record())


def load(folder, content=CONTENT):
    found = task_cache.load_or_build(folder, "toy", content, build)
    arrays = found.arrays
    assert found.sha256 == task_cache.hash_arrays(ARRAYS)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert array.dtype == ARRAYS[name].dtype and array.flags.writeable
    return arrays


def entries(folder):
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


def test_built_once_then_mapped(tmp_path):
    load(tmp_path)
    again = load(tmp_path)
    assert build.calls == 1
    assert all(isinstance(array, np.memmap) for array in again.values())
    (entry,) = entries(tmp_path)
    assert entry.name.startswith("toy-") and {p.name for p in entry.iterdir()} == {"x.npy", "y.npy", "meta.json"}


def test_writing_to_an_array_changes_no_file(tmp_path):
    load(tmp_path)["x"][:] = 7
    load(tmp_path)


def test_other_content_is_another_entry(tmp_path):
    load(tmp_path)
    load(tmp_path, {"seed": 2})
    assert build.calls == 2 and len(entries(tmp_path)) == 2


def truncate(entry):
    os.truncate(entry / "x.npy", 1000)


def flip(entry):
    data = bytearray((entry / "x.npy").read_bytes())
    data[-1] ^= 1
    (entry / "x.npy").write_bytes(data)
    # Some file systems' clocks are too coarse to see a write this soon after the first.
    os.utime(entry / "x.npy", ns=(0, 1))


def other_shape(entry):
    np.save(entry / "y.npy", np.array([[4, 5, 6]]))
    meta = json.loads((entry / "meta.json").read_text())
    found = (entry / "y.npy").stat()
    meta["arrays"]["y"] |= {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
    (entry / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        other_shape,
        lambda entry: (entry / "x.npy").unlink(),
        lambda entry: (entry / "meta.json").unlink(),
        lambda entry: (entry / "meta.json").write_bytes(b"\xff\x00garbage"),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_text('{"arrays": {"x": {}}}'),
        lambda entry: (entry / "meta.json").write_text('{"arrays": {"x": 3}}'),
    ],
)
def test_damage_is_found_and_repaired(tmp_path, damage, caplog):
    load(tmp_path)
    (entry,) = entries(tmp_path)
    damage(entry)
    with caplog.at_level(logging.WARNING, "flgo_hydra"):
        load(tmp_path)
    assert build.calls == 2 and "is damaged" in caplog.text and str(entry) in caplog.text
    load(tmp_path)
    assert build.calls == 2 and entries(tmp_path) == [entry]


def test_a_new_time_alone_is_no_damage(tmp_path):
    load(tmp_path)
    os.utime(entries(tmp_path)[0] / "x.npy", ns=(0, 1))
    load(tmp_path)
    assert build.calls == 1


SCRIPT = """
import os, sys, time
from pathlib import Path
from unittest import mock
import numpy as np
from flgo_hydra.federated.data import dependencies
from flgo_hydra.federated.data import task_cache
from flgo_hydra.record.lock import holding, is_stopped

folder, log, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def build():
    with log.open("a") as file:
        file.write("built\\n")
    return {"x": np.zeros(200_000)}, dependencies.state_of(dependencies.Record()), "0" * 64

if mode == "killed":
    os.rename = lambda *names: os.kill(os.getpid(), 9)
else:
    print("ready", flush=True)
    sys.stdin.readline()
arrays = task_cache.load_or_build(folder, "toy", {"seed": 1}, build).arrays
assert isinstance(arrays["x"], np.memmap) and arrays["x"].sum() == 0
"""


def start(folder, log, mode):
    here = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, folder, log, mode],
        env={**os.environ, "PYTHONPATH": str(here)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_two_processes_build_once(tmp_path):
    processes = [start(tmp_path / "cache", tmp_path / "log", "both") for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:  # both wait here: off they go together
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert [process.communicate()[0] is not None and process.returncode for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
    assert len(entries(tmp_path / "cache")) == 1


@pytest.mark.parametrize("content", [{"seed": 1}, {"seed": 2}])
def test_the_next_builder_cleans_up_after_a_killed_one(tmp_path, content):
    folder = tmp_path / "cache"
    process = start(folder, tmp_path / "log", "killed")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [".tmp-" in path.name for path in entries(folder)] == [True]
    load(folder, content)
    assert [".tmp-" in path.name for path in entries(folder)] == [False]


def test_a_living_builders_folder_is_left_alone(tmp_path):
    (tmp_path / "abc.tmp-1").mkdir()
    with holding(tmp_path / "abc.lock"):
        load(tmp_path)
        assert (tmp_path / "abc.tmp-1").exists()


def test_no_folder_can_be_made(tmp_path, caplog):
    (tmp_path / "file").touch()
    load(tmp_path / "file" / "cache")
    assert build.calls == 1 and "in memory" in caplog.text


def test_read_only_folder(tmp_path, caplog):
    load(tmp_path)
    for path in tmp_path.glob("*.lock"):
        path.unlink()
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write to it")
        load(tmp_path)
        assert build.calls == 1 and not caplog.text  # what is there can be read
        load(tmp_path, {"seed": 2})
        assert build.calls == 2 and "in memory" in caplog.text
    finally:
        tmp_path.chmod(0o700)


def test_full_disk(tmp_path, caplog, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    load(tmp_path)
    assert build.calls == 1 and entries(tmp_path) == [] and "No space left" in caplog.text


def test_an_error_of_the_build_is_no_error_of_the_cache(tmp_path, caplog):
    def fail():
        raise OSError("no such data")

    with pytest.raises(OSError, match="no such data"):
        task_cache.load_or_build(tmp_path, "toy", CONTENT, fail)
    assert entries(tmp_path) == [] and not caplog.text
    load(tmp_path)


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert task_cache.find_folder(None) == tmp_path / "flgo_hydra/tasks"
    assert task_cache.find_folder(str(tmp_path / "mine")) == tmp_path / "mine/flgo_hydra/tasks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert task_cache.find_folder(None) == tmp_path / ".cache/flgo_hydra/tasks"


@pytest.mark.parametrize("form", ["alone", "-m lr=0.1,0.2"])
def test_a_user_without_a_home_goes_without_a_cache(command, monkeypatch, form):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", mock.Mock(side_effect=KeyError))  # as in a container, under another number
    more = [] if form == "alone" else form.split()
    done = command("num_rounds=1", "model=logistic", "task.num_clients=3", *more)
    assert done.status == 0 and "Traceback" not in done.err
    assert "this user has no home folder" in done.out + done.err


def test_the_hash_is_of_the_content_alone():
    hashed = task_cache.hash_arrays(ARRAYS)
    turned = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in reversed(ARRAYS.items())}
    assert task_cache.hash_arrays(turned) == hashed
    assert task_cache.hash_arrays({**ARRAYS, "x": np.asfortranarray(ARRAYS["x"])}) == hashed
    other = ARRAYS["x"].copy()
    other[2, 199] += 1
    for change in ({"x": other}, {"x": ARRAYS["x"].reshape(200, 3)}, {"y": ARRAYS["y"].astype(np.int32)}, {"z": other}):
        assert task_cache.hash_arrays({**ARRAYS, **change}) != hashed
    large = np.zeros(3_000_000, np.float32)  # of several chunks
    changed = large.copy()
    changed[2_500_000] = 1
    assert task_cache.hash_arrays({"x": large}) != task_cache.hash_arrays({"x": changed})
    assert task_cache.hash_arrays({"x": large[:0]}) != task_cache.hash_arrays({})


def test_what_the_build_depends_on_is_looked_at_before_it_is_used(tmp_path, caplog):
    data, cache = tmp_path / "data", tmp_path / "cache"

    def rely():
        build.state = dependencies.state_of(dependencies.Record(files={str(data)}))

    data.write_text("one")
    rely()
    load(cache)
    load(cache)
    assert build.calls == 1
    os.utime(data, ns=(0, 1))  # a new time, the old content: looked at once, and noted
    load(cache)
    assert (
        build.calls == 1
        and 1 in json.loads((entries(cache)[0] / "meta.json").read_text())["depends"]["files"][str(data)]
    )
    data.write_text("two")
    os.utime(data, ns=(0, 1))  # as `cp -p` would leave it: size and time are those from before
    rely()
    with caplog.at_level(logging.INFO, "flgo_hydra"):
        load(cache)
    assert build.calls == 2 and "has changed" in caplog.text and len(entries(cache)) == 1
    data.unlink()
    rely()
    load(cache)
    assert build.calls == 3


def test_without_a_cache_it_is_built_each_time(tmp_path):
    load(None)
    load(None)
    assert build.calls == 2


def _resum(entry, change):
    meta = json.loads((entry / "meta.json").read_text())
    meta.pop("meta_sha256")
    change(meta)
    (entry / "meta.json").write_text(json.dumps({**meta, "meta_sha256": task_cache._sum(meta)}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: _resum(entry, lambda meta: meta["arrays"].pop("x")),
        lambda entry: ((entry / "x.npy").unlink(), os.mkfifo(entry / "x.npy")),
        lambda entry: ((entry / "meta.json").unlink(), os.mkfifo(entry / "meta.json")),
        lambda entry: ((entry / "meta.json").unlink(), (entry / "meta.json").symlink_to("/dev/zero")),
        lambda entry: os.truncate(entry / "meta.json", 2**40),
        lambda entry: (entry / "meta.json").write_text("[" * 100_000),
        lambda entry: (entry.rename(entry.with_name("away")), entry.touch()),
        lambda entry: (entry.rename(entry.with_name("away")), entry.symlink_to(entry.name)),
    ],
)
def test_what_is_no_entry_is_built_again_once(tmp_path, damage):
    def load_whole():
        return task_cache.load_or_build(tmp_path, "toy", CONTENT, build, tuple(ARRAYS))

    load_whole()
    (entry,) = entries(tmp_path)
    damage(entry)
    assert load_whole().arrays.keys() == load_whole().arrays.keys() == ARRAYS.keys() and build.calls == 2


def test_a_builder_that_somebody_has_stopped_is_not_waited_for(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(task_cache, "_WAIT_S", 0.05)
    code = f"""
import signal, os
from pathlib import Path
from unittest import mock
from flgo_hydra.record.lock import holding, is_stopped
for path in Path({str(tmp_path)!r}).glob("*.lock"):
    with holding(path):
        print("held", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
"""
    load(tmp_path)
    (entry,) = entries(tmp_path)
    shutil.rmtree(entry)
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        while not is_stopped(str(holder.pid)):
            os.sched_yield()
        load(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    assert build.calls == 2 and f"is held by process {holder.pid}" in caplog.text and not entries(tmp_path)
    load(tmp_path)
    assert build.calls == 3 and len(entries(tmp_path)) == 1
