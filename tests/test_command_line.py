"""Real `python -m flgo_hydra …` processes that end before a run begins."""

import errno
import io
import os
import re
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
        (["lr=1e308", "hydra.run.dir=."], 1, "", "error: `lr` must be a number that dtype=float32 holds, at most"),
        (["-m", "lr=0.1,1e308"], 1, "", "at most 3.4e+38, but got 1e+308. (at the point lr=1e+308)\n"),
        (["hydra.launcher.timeout_min=" + 400 * "9"], 1, "", "digits, but got one of 400, 99999999…. Write"),
        (["-m", f"lr=0.1,{5000 * '9'}"], 1, "", "error: `lr` must have numbers of at most 308 digits, but got one of"),
        (["seed=" + 5000 * "9"], 1, "", "error: `seed` must have numbers of at most 308 digits, but got one of 5000"),
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


@pytest.mark.parametrize(
    "code, lost", [(errno.EPIPE, ""), (errno.EIO, ""), (errno.ENOSPC, "no"), (errno.EAGAIN, "no"), (errno.EBADF, "no")]
)
def test_a_stream_that_cannot_be_written(tmp_path: Path, code: int, lost: str) -> None:
    class Gone(io.TextIOWrapper):
        def write(self, text: str) -> int:
            raise OSError(code, "no")

    with (tmp_path / "out").open("wb") as file, Gone(file) as gone:
        stream = Stream(gone)
        assert stream.write("a") == 1 and stream.refused == lost
        assert stream.writable() and stream.encoding


def test_a_file_is_written_again_when_there_is_room(tmp_path: Path) -> None:
    class Full(io.TextIOWrapper):
        has_room = False

        def flush(self) -> None:
            if not self.has_room:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().flush()

    with (tmp_path / "out").open("wb") as file, Full(file) as full:
        stream = Stream(full)
        stream.write("lost? ")
        stream.flush()
        full.has_room = True
        stream.write("there")
        stream.flush()
        assert (tmp_path / "out").read_text() == "lost? there" and stream.refused == "No space left on device"


@pytest.mark.parametrize(
    "encoding, errors, said", [("ascii", "strict", "\\u2026 \\xe9"), ("latin-1", "surrogateescape", "\\u2026 é")]
)
def test_a_character_that_an_encoding_has_not_is_spelt_out(encoding: str, errors: str, said: str) -> None:
    written = io.BytesIO()
    stream = Stream(io.TextIOWrapper(written, encoding, errors))
    stream.write("… é")
    stream.flush()
    assert written.getvalue().decode(encoding) == said


_SMALL = "task.num_clients=4 num_rounds=1"
_RUNS = {
    "a run": f"-m flgo_hydra {_SMALL} hydra.run.dir=s",
    "a sweep": f"-m flgo_hydra -m {_SMALL} lr=0.1,0.01 hydra.sweep.dir=s",
    "from Python": f"-c 'import flgo_hydra as f; f.sweep(*\"{_SMALL} lr=0.1,0.01 hydra.sweep.dir=s\".split())'",
}


def _in_shell(folder: Path, command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), **more}
    return subprocess.run(
        f"{sys.executable} {command}",
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="latin-1",
        timeout=120,
    )


@pytest.mark.parametrize("to", [">&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("what", _RUNS)
@pytest.mark.few(3)
def test_work_is_done_whatever_becomes_of_what_is_printed(tmp_path: Path, what: str, to: str) -> None:
    ended = _in_shell(tmp_path, f"{_RUNS[what]} {to}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    runs = [tmp_path / "s"] if what == "a run" else [tmp_path / "s/0", tmp_path / "s/1"]
    assert all((run / "result.json").is_file() for run in runs)


@pytest.mark.slow
def test_what_a_terminal_cannot_say_ends_nothing(tmp_path: Path) -> None:
    (folder := tmp_path / "é").mkdir()
    for encoding, sweep in (("ascii", f"{_RUNS['a sweep']} hydra.launcher.view=table"), ("latin-1", _RUNS["a sweep"])):
        ended = _in_shell(folder, sweep, PYTHONIOENCODING=encoding)
        assert ended.returncode == 0 and "optimal combination" in ended.stdout and "codec" not in ended.stderr
    for command in ("-m flgo_hydra --help", "-m flgo_hydra.report s", "-m flgo_hydra.resume s"):
        ended = _in_shell(folder, command, PYTHONIOENCODING="ascii")
        assert (ended.returncode, ended.stderr) == (0, "") and ended.stdout.isascii() and len(ended.stdout) > 100


@pytest.mark.parametrize("to, why", [(">&-", "it is closed"), (">/dev/full", "No space left on device")])
@pytest.mark.few(1)
def test_who_only_prints_says_that_it_is_lost(tmp_path: Path, to: str, why: str) -> None:
    assert _in_shell(tmp_path, _RUNS["a sweep"]).returncode == 0
    report = f"{_ROOT}/scripts/report s"
    for command in ("-m flgo_hydra --help", "-m flgo_hydra --cfg job", "-m flgo_hydra.report s", report):
        ended = _in_shell(tmp_path, f"{command} {to}")
        assert ended.returncode == 1 and ended.stderr.startswith("error: What was to be printed is lost"), command
        assert why in ended.stderr and ended.stderr.count("\n") == 1
    for command in ("-m flgo_hydra.resume s", f"{_ROOT}/scripts/rebuild_study s --force"):  # that is not all they do
        ended = _in_shell(tmp_path, f"{command} {to}")
        assert (ended.returncode, ended.stderr) == (0, ""), command
    assert _in_shell(tmp_path, "-m flgo_hydra.report s --format md | head -1").stderr == ""


def test_every_refusal_is_printed_in_one_place() -> None:
    """Which keeps passwords, and what a terminal would obey, out of all of them."""
    files = [*(_ROOT / "flgo_hydra").rglob("*.py")]
    telling = [file.name for file in files if re.search(r"(print|write)\(\s*f?\"error: ", file.read_text())]
    assert telling == ["streams.py"]
