"""Where studies are kept: a journal file in the sweep folder, or a database."""

import logging
import warnings
from pathlib import Path
from typing import Any

import optuna

from flgo_hydra.record.files import replacing, set_aside
from flgo_hydra.record.secrets import is_masked, masked
from flgo_hydra.study.journal import Damaged, SingleWriterJournal


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
    _mend(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        journal = SingleWriterJournal(path)
        try:
            return JournalStorage(journal), journal
        except Damaged as damage:
            # What nobody has waited for may be anything after a loss of power. What was there before is sound, and what
            # came after is in the run folders.
            journal.close()
            with open(path, "rb") as file:
                sound = file.read(damage.place)
            kept = set_aside(path)
            logging.getLogger("flgo_hydra").warning("%s (Kept as %s; what is before that line counts.)", damage, kept)
            with replacing(path) as file:
                file.write(sound)
            journal = SingleWriterJournal(path)
            return JournalStorage(journal), journal


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
    if not journal.exists():
        return None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            names = optuna.get_all_study_names(JournalStorage(JournalFileBackend(str(journal.resolve()))))
    except Exception:  # whatever a damaged journal makes its reader raise
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
        storage = optuna.storages.RDBStorage(url)
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


def _mend(path: Path) -> None:
    """Cuts off the torn last line of a journal whose writer was killed: Optuna would glue the next one to it."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        logging.getLogger("flgo_hydra").warning("%s ended in the middle of a line, which was removed.", path)
        with open(path, "r+b") as file:
            file.truncate(whole)
