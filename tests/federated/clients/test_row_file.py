"""Rows at their places, whatever a call of the system takes; and what it refuses, in the machine's words."""

import errno
import os
import resource

import pytest

from flgo_hydra.federated.clients.row_file import RowFile
from flgo_hydra.machine_errors import CannotWrite


def parts(*texts):
    return [memoryview(bytearray(text)) for text in texts]


def text_of(found):
    return b"".join(bytes(part) for part in found)


def test_rows_lie_one_after_the_other_and_have_no_name(tmp_path):
    file = RowFile(tmp_path, 5)
    file.write(3, parts(b"ab", b"", b"cde"))
    file.write(0, parts(b"fghij"))
    for row, text in ((3, b"abcde"), (0, b"fghij")):
        found = parts(b"0", b"0000")
        file.read(row, found)
        assert text_of(found) == text
    assert list(tmp_path.iterdir()) == []


def test_more_parts_than_a_call_takes(tmp_path):
    file = RowFile(tmp_path, 5000)
    file.write(1, parts(*(b"%04d" % i for i in range(1250))))
    found = parts(*1250 * [b"0000"])
    file.read(1, found)
    assert text_of(found) == b"".join(b"%04d" % i for i in range(1250))


@pytest.mark.parametrize("most", [1, 2, 3, 4, 100])
def test_a_call_that_takes_a_part_is_followed_by_another(tmp_path, monkeypatch, most):
    file = RowFile(tmp_path, 6)
    write, read = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda fd, given, at: write(fd, [memoryview(text_of(given))[:most]], at))
    file.write(2, parts(b"a", b"bcd", b"", b"ef"))
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: read(fd, [next(p for p in into if p.nbytes)[:most]], at))
    found = parts(b"00", b"", b"0000")
    file.read(2, found)
    assert text_of(found) == b"abcdef"


def test_a_row_that_ends_early_is_the_storages_fault(tmp_path):
    file = RowFile(tmp_path, 4)
    with pytest.raises(CannotWrite) as raised:
        file.read(0, parts(b"0000"))
    assert raised.value.errno == errno.EIO and raised.value.filename == str(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("name", ["preadv", "pwritev"])
def test_what_the_storage_refuses_is_told_with_the_folder(tmp_path, monkeypatch, code, name):
    file = RowFile(tmp_path, 4)

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(CannotWrite, match=f"{tmp_path} cannot be written: {os.strerror(code)}") as raised:
        (file.read if name == "preadv" else file.write)(0, parts(b"abcd"))
    assert raised.value.errno == code


def test_a_limit_on_the_size_of_files_is_told(tmp_path):
    file = RowFile(tmp_path, 1000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, before[1]))
    try:
        file.write(1, parts(1000 * b"a"))
        with pytest.raises(CannotWrite, match="ulimit -f"):  # of which 500 bytes are taken
            file.write(2, parts(1000 * b"b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = parts(1000 * b"0")
    file.read(1, found)
    assert text_of(found) == 1000 * b"a"


def test_a_folder_that_takes_no_file_is_told(tmp_path):
    with pytest.raises(CannotWrite, match="not there cannot be written: No such file"):
        RowFile(tmp_path / "not there", 4)
