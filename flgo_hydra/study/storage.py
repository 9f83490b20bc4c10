"""Where studies are kept: a journal file in the sweep folder, or a database."""

import random
import re
import time
import warnings
from pathlib import Path
from typing import Any

import optuna

from flgo_hydra.record.secrets import is_masked, masked
from flgo_hydra.study.journal import Damaged, SingleWriterJournal, study_names

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

    path = storage.resolve()  # a relative one breaks the lock of Optuna's own backend
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        journal = SingleWriterJournal(path)
        try:
            return JournalStorage(journal), journal
        except (OSError, Damaged):
            raise
        except Exception as error:  # what entries that contradict one another make Optuna raise
            raise Damaged(path, f"its entries do not fit together ({type(error).__name__}: {error})") from error


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
