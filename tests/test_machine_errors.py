import errno
import importlib.util
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flgo_hydra.machine_errors import in_words


@pytest.mark.parametrize(
    "code, message",
    [
        (errno.ENOSPC, "there is no space left. Make room there"),
        (errno.EROFS, "read-only. Have it mounted for writing, or choose another folder with `hydra.run.dir=…`"),
        (errno.EACCES, "no right"),
        (errno.ENAMETOOLONG, "255 bytes"),
        (errno.EMFILE, "`ulimit -n`"),
    ],
)
def test_errors_of_the_machine(code: int, message: str) -> None:
    said = in_words(OSError(code, "no", "some/file"))
    assert said is not None and said.startswith("some/file cannot be used: ") and message in said and "\n" not in said


def test_what_is_no_error_of_the_machine() -> None:
    assert in_words(FileNotFoundError(errno.ENOENT, "no", "x")) is None
    assert in_words(RuntimeError("no")) is None
    assert "no memory left" in str(in_words(MemoryError()))


def test_long_names_are_cut_short() -> None:
    assert in_words(OSError(errno.ENAMETOOLONG, "no", "a/" + 300 * "b" + "/c")).startswith("a/" + 20 * "b" + "…")


def test_users_code_is_told_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("def write():\n    raise PermissionError(13, 'no', 'x')\n")
    spec = importlib.util.spec_from_file_location("theirs", tmp_path / "theirs.py")
    assert spec is not None and spec.loader is not None
    theirs: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    with pytest.raises(PermissionError) as raised:
        theirs.write()
    assert in_words(raised.value) is None


@pytest.mark.parametrize("form", ["hydra.run.dir={}", "-m seed=0,1 hydra.sweep.dir={}"])
@pytest.mark.parametrize("folder", ["file/below", 300 * "x"])
def test_a_folder_that_cannot_be(command: Callable[..., Any], empty_folder: Path, form: str, folder: str) -> None:
    (empty_folder / "file").touch()
    ended = command(*form.format(folder).split(), "num_rounds=1", "task.num_clients=3")
    assert ended.status == 1
    assert "error: " in ended.err and " cannot be used: " in ended.err and "`hydra.run.dir=…`" in ended.err
    assert "Traceback" not in ended.err


def test_a_process_that_may_write_nothing(tmp_path: Path, cache_folder: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run(
        [sys.executable, "-m", "flgo_hydra", "num_rounds=1", "hydra.run.dir=out"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
    )  # fmt: skip
    assert ended.returncode == 1
    assert "error: " in ended.stderr and "Traceback" not in ended.stderr
