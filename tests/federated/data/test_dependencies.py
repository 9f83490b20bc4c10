"""A cached task is used as long as all that its source depended on is as it was, and no longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPER = """
import os
import numpy as np

SCALE = 1.0
PLACE = os.environ.get("PLACE_AT_IMPORT", "a.npy")


def load(name):
    return SCALE * np.load(name)
"""
SOURCE = """
import functools, importlib, os, glob, mmap
from pathlib import Path
import numpy as np
import helper

KEPT = functools.cache(np.load)


def task(x):
    return {"x_train": np.asarray(x, np.float64).reshape(-1, 1), "y_train": np.arange(np.size(x)) % 2}


def by_argument(path):
    return task(np.load(path))


def by_code():
    return task(np.load("a.npy"))


def by_file():
    return task(np.load(Path(__file__).parent / "a.npy"))


def by_helper():
    return task(helper.load("a.npy"))


def by_late_import():
    from lib import inner
    return task(inner.values())


def by_name_only():
    return task(importlib.import_module("lib.inner").values())


def by_variable():
    return task(np.arange(40) * float(os.environ.get("SCALE_OF_SOURCE", "1")))


def by_variable_of_path():
    return task(np.load(os.path.expandvars("$PLACE_OF_SOURCE")))


def by_variable_at_import():
    return task(np.load(helper.PLACE))


def by_listing():
    return task(np.concatenate([np.load(name) for name in sorted(glob.glob("parts/*.npy"))]))


def by_missing():
    return task(np.load("b.npy" if os.path.exists("b.npy") and open("b.npy") else "a.npy"))


def by_try():
    try:
        return task(np.load("b.npy"))
    except FileNotFoundError:
        return task(np.load("a.npy"))


def by_memory_map():
    with open("a.npy", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return task(np.frombuffer(content[128:], dtype=np.float64).copy())


def by_descriptor():
    fd = os.open("a.npy", os.O_RDONLY)
    with open(fd, "rb") as file:
        return task(np.load(file))


def by_kept():
    return task(KEPT("a.npy"))


def still():
    return task(np.arange(40.0))
"""
BUILD = """
import sys
sys.path.insert(0, "")
from flgo_hydra.config.task import TaskConf, PartitionConf
from flgo_hydra.federated.data import task
import my_source
calls = []
target, path, *rest = sys.argv[1:]
partition = PartitionConf(_target_="flgo_hydra.federated.partition.iid", name="iid")
for num_clients in (2, 3):
    conf = TaskConf(name="t", source={"_target_": f"my_source.{target}"}, partition=partition, num_clients=num_clients,
                    path=path or None, cache_dir="cache", cache="off" not in rest)
    built = task.build_task(conf)
    print(built.data_sha256, built.x_train.sum() + built.x_valid.sum() + built.x_test.sum())
"""


def build(target, path="", folder=".", **environment):
    """The hashes that a process of its own says of two tasks of one source."""
    variables = {**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, target, path], cwd=folder, capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stderr
    return [line.split()[0] for line in done.stdout.splitlines()], done.stdout


def save(name, start):
    import numpy as np

    Path(name).parent.mkdir(exist_ok=True)
    times = Path(name).stat() if Path(name).exists() else None
    np.save(name, np.arange(40.0) + start)
    if times is not None:  # nothing but the content tells
        os.utime(name, ns=(times.st_atime_ns, times.st_mtime_ns))


def entries():
    return {path.name: path.stat().st_ino for path in Path("cache/flgo_hydra/tasks").iterdir() if path.is_dir()}


@pytest.fixture
def folder(empty_folder):
    Path("helper.py").write_text(HELPER)
    Path("my_source.py").write_text(SOURCE)
    Path("lib").mkdir()
    Path("lib/__init__.py").touch()
    Path("lib/inner.py").write_text(
        "from lib.deep import START\n\ndef values():\n    return [START + i for i in range(40)]\n"
    )
    Path("lib/deep.py").write_text("START = 1\n")
    save("a.npy", 0)
    save("parts/0.npy", 0)
    return empty_folder


def edit(name, old, new):
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "target, change",
    [
        ("by_argument", lambda: save("a.npy", 1)),
        ("by_code", lambda: save("a.npy", 1)),
        ("by_file", lambda: save("a.npy", 1)),
        ("by_helper", lambda: save("a.npy", 1)),
        ("by_helper", lambda: edit("helper.py", "SCALE = 1.0", "SCALE = 2.0")),
        ("by_late_import", lambda: edit("lib/deep.py", "1", "2")),
        ("by_name_only", lambda: edit("lib/deep.py", "1", "2")),
        ("by_listing", lambda: save("parts/1.npy", 5)),
        ("by_try", lambda: save("b.npy", 5)),
        ("by_memory_map", lambda: save("a.npy", 1)),
        ("by_descriptor", lambda: save("a.npy", 1)),
        ("by_kept", lambda: save("a.npy", 1)),
        ("still", lambda: edit("my_source.py", "np.arange(40.0)", "np.arange(41.0)")),
    ],
)
@pytest.mark.few(5)
def test_what_changes_is_built_again(folder, target, change):
    path = "a.npy" if target == "by_argument" else ""
    before, _ = build(target, path)
    known = entries()
    assert build(target, path)[0] == before and entries() == known and len(set(before)) == 2
    change()
    after, _ = build(target, path)
    assert len({*before, *after}) == 4, "the old data were served"
    assert build(target, path)[0] == after


@pytest.mark.parametrize(
    "target, name, one, other",
    [
        ("by_variable", "SCALE_OF_SOURCE", "1", "2"),
        ("by_variable_of_path", "PLACE_OF_SOURCE", "a.npy", "parts/1.npy"),
        ("by_variable_at_import", "PLACE_AT_IMPORT", "a.npy", "parts/1.npy"),
    ],
)
def test_environment_variables_that_it_reads(folder, target, name, one, other):
    save("parts/1.npy", 5)
    before, _ = build(target, **{name: one})
    known = entries()
    assert build(target, **{name: one, "SOMETHING_ELSE": "1"})[0] == before and entries() == known
    after, _ = build(target, **{name: other})
    assert len({*before, *after}) == 4
    assert build(target, **{name: one})[0] == before


def test_the_same_path_from_another_folder_is_another_file(folder):
    Path("other").mkdir()
    os.symlink("../cache", "other/cache")
    for name in ("my_source.py", "helper.py", "lib"):
        os.symlink(f"../{name}", f"other/{name}")
    before, _ = build("by_code")
    save("other/a.npy", 7)
    after, _ = build("by_code", folder="other")
    assert len({*before, *after}) == 4


def test_other_files_and_new_times_build_nothing_again(folder):
    before, _ = build("by_code")
    known = entries()
    os.utime("a.npy")
    Path("multirun").mkdir()
    Path("unread.npy").touch()
    assert build("by_code")[0] == before and entries() == known


def test_the_hash_does_not_depend_on_where_data_lie_nor_on_the_cache(folder):
    before, _ = build("by_argument", "a.npy")
    os.rename("a.npy", "c.npy")
    assert build("by_argument", "c.npy")[0] == before
    assert build("by_argument", "c.npy")[0] == before
    variables = {**os.environ}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "by_argument", "c.npy", "off"], capture_output=True, text=True, env=variables
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == before


def test_a_recording_leaves_the_environment_as_it_was(monkeypatch):
    from flgo_hydra.federated.data.dependencies import recording

    monkeypatch.setenv("NOTED", "1")
    kind = type(os.environ)
    with recording() as outer, recording() as inner:
        assert os.environ["NOTED"] == "1" and os.getenv("NOT_THERE") is None and "NOTED" in os.environ
    assert type(os.environ) is kind and os.environ["NOTED"] == "1"
    assert inner.variables == outer.variables == {"NOTED", "NOT_THERE"}
    os.listdir(".")
    assert not inner.folders
