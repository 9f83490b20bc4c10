"""Who works in a sweep folder: one process at a time, since two would run the same points twice."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from flgo_hydra.record.lock import Held, NoLockFile, holding
from flgo_hydra.record.paths import SweepPaths
from flgo_hydra.record.schema import Defect, read_bytes


@contextlib.contextmanager
def owning(paths: SweepPaths) -> Iterator[None]:
    """Holds the sweep folder while the block runs; a process that dies lets go of it.

    Raises:
        ValueError: another process holds it, or something lies where its lock should.
    """
    paths.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            # a report may look, for a moment, whether it is held
            stack.enter_context(holding(paths.owner, wait_s=0.5))
        except Held as held:
            raise ValueError(
                f"{paths.folder} is in use by the sweep of process {held.holder or 'unknown'}. "
                "Wait for it, or choose another `hydra.sweep.dir`."
            ) from None
        except NoLockFile as error:
            raise ValueError(str(error)) from None
        yield


def check_files(paths: SweepPaths) -> None:
    """Refuses a folder where files lie that a sweep would write over, and that none of ours has written.

    Raises:
        ValueError: there are some.
    """
    record = paths.folder / "multirun.yaml"
    if paths.study.exists() or (record.exists() and (_is_hydras(record) or next(paths.folder.glob("[0-9]*/"), None))):
        return
    alone = [name for name in (".hydra", "result.json", "rounds.jsonl") if (paths.folder / name).exists()]
    if alone:
        raise ValueError(
            f"{paths.folder} is a single run's (it holds {', '.join(alone)}): reports could not tell the run from the "
            "sweep. Choose another `hydra.sweep.dir`."
        )
    foreign = [path.name for path in (paths.results, paths.points, paths.best, paths.curves, record) if path.exists()]
    if foreign:
        them = "it" if len(foreign) == 1 else "them"
        raise ValueError(
            f"{paths.folder} holds {', '.join(foreign)}, and no sweep that wrote {them}: it would write over {them}. "
            "Choose another `hydra.sweep.dir`."
        )


def _is_hydras(record: Path) -> bool:
    """Whether a file is the record of a sweep's command."""
    try:
        return re.search(rb"^hydra:", read_bytes(record) or b"", re.MULTILINE) is not None
    except (Defect, OSError):  # damaged, or no file: what else is there says whose folder it is
        return False


def check_folder(before: str | None, paths: SweepPaths, study: str) -> None:
    """Refuses to go on with a database's study in another sweep folder than its own.

    Who holds the folder is the study's only writer; and its finished runs lie there.

    Args:
        before: the folder that the study was in; None: it is new.
    Raises:
        ValueError: that folder is another one, and still there.
    """
    if before is not None and before != str(paths.folder) and os.path.isdir(before):
        raise ValueError(
            f"The study {study!r} belongs to the sweep folder {before}, and not to {paths.folder}. To go on with it: "
            f"`hydra.sweep.dir={before}`. For a study of its own: another `hydra.sweeper.study_name`."
        )
