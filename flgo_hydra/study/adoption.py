"""Run folders of a sweep that its study does not know: found by what their runs compute, and gone on with in place.

A sweep may be killed before its study has heard of a job, the study may be deleted, or be away while jobs run. Their
folders are there all the same, with checkpoints, or with records to be looked at: a point has one folder.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.errors import HydraException

from flgo_hydra.record.paths import SweepPaths
from flgo_hydra.record.result import read_result
from flgo_hydra.study import hydra_records
from flgo_hydra.study.jobs import Jobs
from flgo_hydra.study.space.points import Point, PointChecker

log = logging.getLogger(__name__)
_MOST_DEPTH = 8
"""of folders that `hydra.sweep.subdir` may name"""


def adopt(jobs: Jobs, paths: SweepPaths, checker: PointChecker, record: str | None, fixed: Sequence[str]) -> int:
    """Has `jobs` know every run folder that holds a job's record; returns how many it did not know.

    Args:
        checker: composes a job's overrides.
        record: the folder in a run's where Hydra recorded it (`hydra.output_subdir`); None: it did not.
        fixed: the overrides that all jobs share.
    """
    if record is None or not paths.folder.is_dir():
        return 0
    found: list[tuple[bool, int, Point, str]] = []
    for name in _unknown(paths.folder, jobs.folders(), record):
        run = paths.run(name)
        try:
            number, overrides = hydra_records.read_job(run.folder, record)
            point, _ = checker.compose(tuple(overrides))
        except (ValueError, HydraException) as error:  # nobody's, or of another time: left as it is
            log.debug("%s: %s", run.folder, error)
            continue
        swept = tuple(text for text in overrides if text not in fixed)
        result = read_result(run)
        is_finished = result is not None and result.fingerprint == point.run_fingerprint
        found.append((not is_finished, number, replace(point, overrides=swept, written=[]), name))
    num = 0
    for _, number, point, name in sorted(found, key=lambda one: one[:2]):
        if not jobs.knows(point.identity) and jobs.may_be(number, name):
            jobs.know(number, point, name)
            num += 1
    return num


def _unknown(root: Path, known: set[str], record: str) -> Iterator[str]:
    """Folders that hold a job's record and that nobody has, from the sweep folder."""
    pending = [""]
    while pending:
        around = pending.pop()
        with os.scandir(root / around) as entries:
            for entry in entries:
                name = os.path.join(around, entry.name)
                if name in known or entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                    continue
                if os.path.isfile(os.path.join(entry.path, record, "hydra.yaml")):
                    yield name
                elif name.count(os.sep) + 1 < _MOST_DEPTH:
                    pending.append(name)
