"""Where studies are kept: a journal file in the sweep folder, or a database."""

import logging
import random
import re
import time
import warnings
from pathlib import Path
from typing import Any

import optuna

from flgo_hydra.record.files import replacing, set_aside
from flgo_hydra.record.schema import Defect, open_plain
from flgo_hydra.record.secrets import is_masked, masked
from flgo_hydra.study.hydra_records import read_hydra
from flgo_hydra.study.stored.journal import Damaged, SingleWriterJournal, study_names

_LOCK_S = 1.0
_MOST_MAKING_S = 20.0
_BEING_MADE = re.compile(
    r"already exists|locked|UNIQUE|duplicate key|no such table|deadlock|no longer compatible", re.I
)


def open_storage(storage: str | Path) -> tuple[Any, SingleWriterJournal | None]:
    """Opens a database, or a journal for the process that owns it; which is returned too.

    Args:
        storage: an Optuna URL, or the path of a journal file.
    """
    if isinstance(storage, str):
        return open_database(storage), None
    from optuna.storages import JournalStorage

    path = storage.absolute()  # a relative one breaks the lock of Optuna's own backend
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        journal = SingleWriterJournal(path)
        try:
            return JournalStorage(journal), journal
        except Damaged as damage:
            # What nobody has waited for may be anything after a loss of power. What was there before is sound, and what
            # came after is in the run folders.
            journal.close()
            if damage.place is None:
                raise
            _keep_sound(path, damage)
            journal = SingleWriterJournal(path)
            return JournalStorage(journal), journal
        except OSError:
            raise
        except Exception as error:  # what entries that contradict one another make Optuna raise
            raise Damaged(path, f"its entries do not fit together ({type(error).__name__}: {error})") from error


def _keep_sound(path: Path, damage: Damaged) -> None:
    """Sets a damaged journal aside, and leaves what is before the damage in its place."""
    assert damage.place is not None
    kept = set_aside(path)
    logging.getLogger("flgo_hydra").warning("%s It is kept as %s; what is before that line counts.", damage, kept.name)
    with open(kept, "rb") as damaged, replacing(path) as file:
        left = damage.place
        while left and (content := damaged.read(min(left, 2**20))):
            file.write(content)
            left -= len(content)


def open_study(storage: str, name: str) -> optuna.Study:
    """The study as anybody may read it, with Optuna's own storage.

    Args:
        storage: an Optuna URL, or the path of a journal file.
    """
    if "://" in storage:
        return optuna.load_study(study_name=name, storage=storage)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        backend = JournalStorage(JournalFileBackend(storage))
    return optuna.load_study(study_name=name, storage=backend)


def located(url: str | None, folder: Path) -> str | None:
    """An SQLite file named by a relative path, where a sweep's command is given from another folder than before.

    It lies where the command was typed. From elsewhere a new, empty study would be made beside it.

    Args:
        folder: of the sweep, where Hydra recorded the command.
    Returns:
        the URL with the whole path of the file that the sweep has had; as it is where there is nothing to look for.
    """
    file = None if url is None else _file_of(url)
    if url is None or file is None or file.is_absolute() or file.exists():
        return url
    try:
        hydra = read_hydra(folder / "multirun.yaml")
    except ValueError:
        return url
    before = Path(hydra["runtime"]["cwd"], file)
    if hydra["sweeper"].get("storage") != url or not before.is_file():
        return url
    found = url.replace(str(file), str(before), 1)
    logging.getLogger("flgo_hydra").warning("The sweep's study is in %s, where it was begun: it goes on there.", before)
    return found


def refuse_foreign(study: optuna.Study, where: str) -> None:
    """Refuses a study with results that no sweep of ours has written: they would count, and win, among its points.

    Args:
        where: the study is kept, as it may be printed.
    Raises:
        ValueError: there are some.
    """
    finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    foreign = [trial.number for trial in finished if not trial.user_attrs.keys() & {"identity", "identities"}]
    if foreign:
        raise ValueError(
            f"The study {study.study_name!r} in {where} was made elsewhere: its trial {foreign[0]} is of no run of a "
            "sweep, and would count among the points. Choose another `hydra.sweeper.study_name`."
        )


def _file_of(url: str) -> Path | None:
    """The file of an SQLite URL; None of any other database, and of one in memory."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return None
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
    return Path(str(parsed.database)) if is_file and not str(parsed.database).startswith("file:") else None


def name_in(journal: Path) -> str | None:
    """The name of a journal's only study; None where there is none that can be read."""
    try:
        names = study_names(journal)
    except (OSError, ValueError):
        return None
    return names[0] if len(names) == 1 else None


def exists(url: str, name: str) -> bool:
    """Whether a database has a study of this name."""
    storage = open_database(url)
    try:
        storage.get_study_id_from_name(name)
    except KeyError:
        return False
    finally:
        storage.engine.dispose()
    return True


def delete(url: str, name: str) -> None:
    """Deletes a study from a database, if it is there."""
    storage = open_database(url)
    try:
        storage.delete_study(storage.get_study_id_from_name(name))
    except KeyError:
        pass
    finally:
        storage.engine.dispose()


def open_database(url: str) -> Any:
    """Opens an Optuna storage in a database, with its tables.

    Raises:
        ValueError: the URL, its driver or its server is no good.
    """
    from sqlalchemy.exc import SQLAlchemyError

    if is_masked(url):
        raise ValueError(
            f"`hydra.sweeper.storage={url}`: the password was not recorded. Give `hydra.sweeper.storage` again, or "
            "keep the password out of it: in ~/.pgpass, or as `hydra.sweeper.storage='${oc.env:MY_STUDIES}'`."
        )
    file = _file_of(url)
    try:
        if file is not None and (opened := open_plain(file, most_bytes=None)) is not None:
            opened.close()
    except Defect as defect:
        raise ValueError(f"`hydra.sweeper.storage={url}`: {file} {defect.why}. Move it away.") from None
    try:
        storage = _made(url)
        if storage.engine.dialect.name == "sqlite":
            _write_ahead(storage)
        return storage
    except ImportError as error:
        raise ValueError(
            f"`hydra.sweeper.storage={masked(url)}`: its driver is not installed ({error.__cause__ or error}). "
            "For PostgreSQL: pip install 'flgo_hydra[postgresql]'; for MySQL: pip install pymysql, and mysql+pymysql://…"
        ) from error
    except (SQLAlchemyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`hydra.sweeper.storage={masked(url)}` cannot be opened: {masked(str(error).partition(chr(10))[0])}. "
            "It reads sqlite:///file.db, postgresql://user:password@host/database or mysql+pymysql://…"
        ) from error


def _made(url: str, most_s: float = _MOST_MAKING_S) -> optuna.storages.RDBStorage:
    """The storage. Who makes a database's tables beside others who make them looks again when those have."""
    from sqlalchemy.exc import SQLAlchemyError

    # The sweep's parent has other things to do than to wait for a lock: it tries again (`behind.py`).
    own = {"connect_args": {"timeout": _LOCK_S}} if url.startswith("sqlite") else {}
    deadline = time.monotonic() + most_s
    while True:
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=own)
        except (SQLAlchemyError, RuntimeError) as error:
            if not _BEING_MADE.search(str(error)) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.05, 0.3))


def _write_ahead(storage: optuna.storages.RDBStorage) -> None:
    """Has SQLite append to a log, without a wait for the disk at every report, and let others read meanwhile.

    A loss of power may cost the last trials (the run folders still have them), never the database.
    """
    from sqlalchemy import event

    @event.listens_for(storage.engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()  # connections that were opened before
