"""Real `python -m flgo_hydra …` processes that end before a run begins."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flgo_hydra.streams import Stream

_ROOT = Path(__file__).resolve().parents[1]


def _start(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "PYTHON"))}
    environment["PYTHONPATH"] = str(_ROOT)
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    "arguments, status, out, err",
    [
        (["--help"], 0, "learning rate of the clients' optimizer", ""),
        (["learning_rate=0.1"], 1, "", "error: There is no `learning_rate`. Did you mean `lr`?\n"),
        (["lr=-1", "hydra.run.dir=."], 1, "", "error: `lr > 0 and finite` must hold, but got -1.0.\n"),
        (["num_rounds=x"], 1, "", "error: `num_rounds` (communication rounds) must be a whole number, but got 'x'.\n"),
        (
            ["-m", "lr=1,2", "hydra.launcher.slots=0"],
            1,
            "",
            "error: `hydra.launcher.slots >= 1, or null for automatic`",
        ),
        (["lr=0.1", "--seed", "3"], 1, "", "error: There is no flag `--seed`. Keys of the config are set without"),
        (["--cfg", "job"], 0, "lr: 0.1\n", ""),
    ],
)
def test_process(tmp_path: Path, arguments: list[str], status: int, out: str, err: str) -> None:
    ended = _start(tmp_path, "-m", "flgo_hydra", *arguments)
    assert ended.returncode == status
    assert out in ended.stdout
    assert err in ended.stderr if err else ended.stderr == ""
    assert "Traceback" not in ended.stderr


_IMPORTED = """
import atexit, sys
from flgo_hydra import __main__
sys.argv = ["flgo_hydra", *sys.argv[1:]]
heavy = ("torch", "optuna", "matplotlib", "pynvml", "hydra")
atexit.register(lambda: print("imported:", *sorted(name for name in heavy if name in sys.modules)))
__main__.main()
"""


@pytest.mark.parametrize(
    "arguments, imported",
    [
        (["--help"], ""),
        (["learning_rate=0.1"], "hydra"),
        (["-m", "learning_rate=0.1,0.2"], "hydra"),
    ],
)
def test_answers_import_neither_torch_nor_optuna(tmp_path: Path, arguments: list[str], imported: str) -> None:
    # They are what makes an answer slow: torch takes seconds, hydra alone a third of one.
    ended = _start(tmp_path, "-c", _IMPORTED, *arguments)
    assert ended.stdout.splitlines()[-1].split()[1:] == imported.split()


def test_a_users_folder_is_looked_in(tmp_path: Path) -> None:
    (tmp_path / "own/algorithm").mkdir(parents=True)
    (tmp_path / "own/algorithm/mine.yaml").write_text("_target_: mine.Mine\nbeta: 0.5\n")
    ended = _start(
        tmp_path, "-m", "flgo_hydra", "--config-dir", "own", "algorithm=mine", "--cfg", "job", "-p", "algorithm"
    )
    assert "_target_: mine.Mine\nbeta: 0.5\n" in ended.stdout
    assert "mine" in _start(tmp_path, "-m", "flgo_hydra", "--help", "--config-dir", "own").stdout


def test_a_sweep_goes_on_when_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    arguments = ["-m", "task.num_clients=4", "num_rounds=2", "lr=0.1,0.01", "hydra.sweep.dir=s"]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-m", "flgo_hydra", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(120) == 0
    assert said == ""
    assert {path.name for path in (tmp_path / "s").iterdir()} > {"0", "1", "best.yaml", "results.csv", "curves.png"}


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO, errno.ENOSPC])
def test_a_stream_that_nobody_reads(tmp_path: Path, code: int) -> None:
    class Gone(io.TextIOWrapper):
        def write(self, text: str) -> int:
            raise OSError(code, "no")

    with (tmp_path / "out").open("wb") as file, Gone(file) as gone:
        stream = Stream(gone)
        if code == errno.ENOSPC:  # which is no matter of readers
            with pytest.raises(OSError, match="no"):
                stream.write("a")
        else:
            assert stream.write("a") == 1
        assert stream.writable() and stream.encoding
