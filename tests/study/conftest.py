"""Storages that a study may lie in: our journal, SQLite, and a PostgreSQL server of the session's own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def _binaries() -> Path | None:
    """The folder of PostgreSQL's programs; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders and (folders[-1] / "initdb").exists() else None


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Starts a PostgreSQL server that listens on a socket in a folder of its own; gives the URL of its `postgres`."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("there is no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="there is no driver: pip install 'flgo_hydra[postgresql]'")
    user = None
    if os.getuid() == 0:  # the server refuses to be root
        user = next((name for name in ("postgres", "nobody") if _exists(name)), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user")
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if user is not None:
            shutil.chown(folder, user)
        data = Path(folder, "data")
        settings = ["-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        _call([binaries / "initdb", *settings], user)
        options = f"-k {folder} -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
        _call([binaries / "pg_ctl", "-D", data, "-l", f"{folder}/log", "-w", "-o", options, "start"], user)
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            _call([binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], user)


@pytest.fixture
def postgresql(postgresql_server: str) -> str:
    """The URL of an empty database."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("DROP DATABASE IF EXISTS test WITH (FORCE)"))
        connection.execute(sqlalchemy.text("CREATE DATABASE test"))
    engine.dispose()
    return postgresql_server.replace("/postgres?", "/test?")


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """The path of a journal, or an URL."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgresql")
        return url
    return tmp_path / "study.journal" if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


def _exists(user: str) -> bool:
    import pwd

    return any(entry.pw_name == user for entry in pwd.getpwall())


def _call(command: list[str | Path], user: str | None) -> None:
    done = subprocess.run(command, user=user, capture_output=True, text=True, cwd="/", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
