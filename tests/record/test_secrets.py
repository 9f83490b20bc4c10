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
