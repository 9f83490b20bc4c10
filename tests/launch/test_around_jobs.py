"""Errors around a job's work rather than in it: that job's trouble, told in Hydra's own words, and no one else's."""

import errno
import json
import os

import pytest

SMALL = ("-m", "num_rounds=1", "model=logistic", "task.num_clients=3", "hydra.sweep.dir=sweep")
LONG = "x" * 260


@pytest.mark.parametrize(
    "override, words",
    [
        ("hydra.job.name=exp/first", "/0/exp/first.log"),
        ("hydra.job_logging.handlers.file.filename=/nonexistent/x.log", "No such file or directory: '/nonexistent/x"),
        ('+hydra.job.env_set.X="${nowhere}"', "Interpolation key 'nowhere' not found"),
        (f"hydra.sweep.subdir={LONG}${{hydra.job.num}}", "File name too long"),
        (f"hydra.output_subdir={LONG}", "File name too long"),
    ],
)
@pytest.mark.few(2)
def test_every_point_fails_with_the_reason_and_the_sweep_ends(command, override, words):
    done = command(*SMALL, "lr=0.1,0.01", override)
    assert done.status == 1
    assert "failed: 2 of 2" in done.out and words in done.out, done.out
    assert "Traceback" not in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(command, empty_folder):
    (empty_folder / "sweep" / "0").mkdir(parents=True)
    (empty_folder / "sweep" / "0").chmod(0o500)
    done = command(*SMALL, "lr=0.1,0.01", "hydra.sweep.subdir=${hydra.job.num}")
    assert done.status == 1 and "Permission denied" in done.out


def test_a_folder_in_the_way_of_one_point_is_that_points_trouble(command, empty_folder):
    # Another order, so that the folder's job is the second: the first one goes on beside it.
    subdir = "hydra.sweep.subdir=${lr}"
    (empty_folder / "sweep").mkdir()
    (empty_folder / "sweep" / "0.01").write_text("in the way")
    done = command(*SMALL, "lr=0.1,0.01,0.2", subdir)
    assert done.status == 1
    assert "failed: 1 of 3" in done.out and "File exists" in done.out
    (empty_folder / "sweep" / "0.01").unlink()
    again = command(*SMALL, "lr=0.1,0.01,0.2", subdir)
    assert again.status == 0 and json.loads((empty_folder / "sweep" / "0.01" / "result.json").read_text())


ODD = r"""
from flgo_hydra.federated.algorithm.fedavg import FedAvg


class Odd(FedAvg):
    def __init__(self, text="", is_half=False):
        super().__init__()
        if text:
            raise ValueError(("\udc80" if is_half else "x") * {"short": 1, "long": 2**22}[text] + "end")
"""


@pytest.mark.parametrize("fuse", ["2", pytest.param("off", marks=pytest.mark.slow)])
def test_an_error_of_any_text_is_that_points_failure_and_small(command, empty_folder, fuse):
    (empty_folder / "odd.py").write_text(ODD)
    odd = ("algorithm=custom", "algorithm._target_=odd.Odd", "+algorithm.is_half=false,true")
    odd += ("+algorithm.text='',short,long",)
    done = command(*SMALL, *odd, f"hydra.launcher.fuse={fuse}")
    assert done.status == 1 and "failed: 4 of 6" in done.out and "Traceback" not in done.err, done.err[-3000:]
    sweep = empty_folder / "sweep"
    failures = [json.loads((sweep / f"{num}" / "failure.json").read_text()) for num in (1, 2, 4, 5)]
    assert [failure["message"][-9:] for failure in failures] == ["xend", "xxxxxxend", "\\udc80end", "\\udc80end"]
    assert "odd.py" in failures[1]["traceback"] and "odd.py" in failures[3]["traceback"]
    sizes = {path.name: path.stat().st_size for path in sweep.rglob("*") if path.is_file() and path.suffix != ".log"}
    assert max(sizes.values()) < 2**21, sizes
    assert max(map(len, done.out.splitlines())) < 2000
    assert "failed: 4 of 6" in command(*SMALL, *odd).out


@pytest.mark.slow
def test_a_study_with_a_line_that_is_too_long_is_made_again(command, empty_folder):
    """As earlier versions wrote it: the failure as it was, in failure.json and in the journal."""
    (empty_folder / "odd.py").write_text(ODD)
    arguments = (*SMALL, "algorithm=custom", "algorithm._target_=odd.Odd", "+algorithm.text='',short")
    assert "failed: 1 of 2" in command(*arguments).out
    sweep = empty_folder / "sweep"
    failure, journal = sweep / "1" / "failure.json", sweep / "study.journal"
    long = "x" * 2**24 + "\udc80"
    failure.write_text(json.dumps(json.loads(failure.read_text()) | {"message": long}))
    lines = journal.read_text().splitlines()
    told = next(i for i, line in enumerate(lines) if '"reason":' in line)
    lines[told] = lines[told].replace('"reason":"', '"reason":"' + json.dumps(long)[1:-1])
    journal.write_text("\n".join(lines) + "\n")
    for _ in range(2):
        done = command(*arguments)
        assert done.status == 1 and "failed: 1 of 2" in done.out, done.err[-2000:]
    assert journal.stat().st_size < 2**20 and len(list(sweep.glob("study.journal.damaged*"))) == 1


def test_what_the_machine_did_not_let_start_is_tried_again_by_the_same_command(command, empty_folder, monkeypatch):
    from flgo_hydra.launch.processes.pool import Pool

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    arguments = (*SMALL, "lr=0.1,0.01", "hydra.launcher.backoff_s=0")
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "start_group", refuse)
        done = command(*arguments)
    assert done.status == 1 and "failed: 2 of 2" in done.out and "could not be started: [Errno 24]" in done.out
    assert "(log: )" not in done.out
    assert json.loads((empty_folder / "sweep" / "0" / "failure.json").read_text())["kind"] == "not_started"
    assert command(*arguments).status == 0


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError, AssertionError])
@pytest.mark.few(2)
def test_an_error_of_ours_has_its_traceback_where_the_words_say(command, empty_folder, monkeypatch, kind):
    def wrong(*_):
        raise kind("our\nown")

    monkeypatch.setattr("flgo_hydra.launch.launcher.signature", wrong)
    done = command(*SMALL, "lr=0.1,0.01")
    failure = empty_folder / "sweep" / "1" / "failure.json"
    assert done.status == 1 and "failed: 2 of 2" in done.out and f"(its traceback is in {failure})" in done.out
    assert "in wrong" in json.loads(failure.read_text())["traceback"]
