"""Errors around a job's work rather than in it: that job's trouble, told in Hydra's own words, and no one else's."""

import json
import os

import pytest

SMALL = ("-m", "num_rounds=1", "model=logistic", "task.num_clients=3", "hydra.sweep.dir=sweep")
LONG = "x" * 260


@pytest.mark.parametrize(
    "override, words",
    [
        ("hydra.job.name=exp/first", "Unable to configure handler"),
        ("hydra.job_logging.handlers.file.filename=/nonexistent/x.log", "Unable to configure handler"),
        ('+hydra.job.env_set.X="${nowhere}"', "Interpolation key 'nowhere' not found"),
        (f"hydra.sweep.subdir={LONG}${{hydra.job.num}}", "File name too long"),
        (f"hydra.output_subdir={LONG}", "File name too long"),
    ],
)
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
