"""Passwords in addresses are hidden, and nothing else is."""

import pytest

from flgo_hydra.record.secrets import is_masked, masked


@pytest.mark.parametrize(
    "text, hidden",
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:se@cr:et@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("mysql+pymysql://:secret@host/db", "mysql+pymysql://:***@host/db"),
        ("hydra.sweeper.storage='postgresql://me:s@host/db'", "hydra.sweeper.storage='postgresql://me:***@host/db'"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://host/db?sslpassword=secret", "postgresql://host/db?sslpassword=***"),
    ],
)
def test_a_password_is_hidden(text, hidden):
    assert masked(text) == hidden and is_masked(hidden) and not is_masked(text)
    assert masked(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///studies.db",
        "postgresql://me@host/db",
        "postgresql://host:5432/db",
        "${oc.env:MY_STUDIES}",
        "/a/path:with@signs",
        "lr=0.1,0.01",
        "",
    ],
)
def test_what_has_none_stays(text):
    assert masked(text) == text and not is_masked(text)


_URL = "postgresql://me:s3cr3t@127.0.0.1:1/db"
_OTHER = "postgresql://127.0.0.1:1/db?password=s3cr3t"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "lr=0.1", f"hydra.sweeper.storage={_URL},{_URL}"],
        ["-m", f"hydra.sweeper.storage=[{_URL}]"],
        ["-m", f"hydra.sweeper.storage={_OTHER}"],  # no quotes: Hydra's grammar does not take it
        ["-m", f"hydra.sweeper.storage {_URL}"],
        ["-m", f"hydra.sweeper.storages={_URL}"],
        [f"--hydra.sweeper.storage={_URL}"],
        [f"lr={_URL}"],
    ],
    ids=str,
)
def test_no_refusal_says_it(command, arguments):
    done = command(*arguments)
    assert done.status == 1 and done.err.startswith("error: ") and "s3cr3t" not in done.out + done.err


@pytest.mark.parametrize("storage", [_URL, f"'{_OTHER}'"])
def test_the_record_of_a_single_run_has_none(command, empty_folder, monkeypatch, storage):
    monkeypatch.setenv("MY_STUDIES", _URL)
    small = ("num_rounds=1", "model=logistic", "num_steps=1", "task.num_clients=2")
    assert command(*small, f"hydra.sweeper.storage={storage}", "hydra.run.dir=typed").status == 0
    assert command(*small, "hydra.sweeper.storage=${oc.env:MY_STUDIES}", "hydra.run.dir=named").status == 0
    files = [path for path in empty_folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"s3cr3t" in path.read_bytes()]
    assert "***" in (empty_folder / "typed/.hydra/hydra.yaml").read_text()
    assert "hydra.sweeper.storage=${oc.env:MY_STUDIES}" in (empty_folder / "named/.hydra/hydra.yaml").read_text()
