"""Reads arrays from an `.npz` file that anybody may have made: no code is run, and no header is believed.

Such a file is a zip archive whose members begin with a header, an array's type and shape. Directory, member and header
each say how long they are. NumPy takes memory for what the header says; here that must be what the member holds, which
must be what its packed bytes can unpack to, and all of it must fit into this machine's memory.
"""

import io
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flgo_hydra.record.schema import Defect, open_plain

_MOST_MEMBERS = 1000
_MOST_AT_ONCE = 2**24
"""bytes asked for at once: members are read by smaller parts, a directory of so many members is smaller"""
_MOST_RATIO = 1100
"""that deflate packs zeros by"""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Archive(io.BufferedReader):
    """A file of which nobody reads much at once, whatever it says of itself."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > _MOST_AT_ONCE:
            size = _MOST_AT_ONCE
        return super().read(size)


def read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays by name.

    Raises:
        ValueError: the file is damaged, or no such file.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        plain = open_plain(path, most_bytes=None)
        if plain is None:
            raise Defect(path, "is not there")
        with _Archive(plain.detach()) as file:
            begin = file.peek(6)[:6]
            if begin and not begin.startswith((b"PK", b"\x93NUMPY")):
                what = "a text" if begin.isascii() else "a file of another kind"
                raise ValueError(f"it is {what}; write arrays with np.savez(path, x_train=..., y_train=...)")
            if begin == b"\x93NUMPY":
                raise ValueError("it is a single array; write it with np.savez(path, x_train=..., y_train=...)")
            with zipfile.ZipFile(file) as archive:
                members = [one for one in archive.infolist() if not one.is_dir()]
                _check_sizes(members, os.fstat(file.fileno()).st_size)
                for member in members:
                    name = member.filename.removesuffix(".npy")
                    try:
                        arrays[name] = _read_member(archive, member)
                    except Exception as error:  # whatever damaged bytes make their reader raise
                        raise _Member(name, error) from error
    except _Member as error:
        raise _refusal(f"{path}: `{error.name}`", f"it {_told(error.cause)}") from error.cause
    except Defect as defect:
        raise _refusal(str(path), f"it {defect.why}") from None
    except Exception as error:
        raise _refusal(str(path), _told(error)) from error
    return arrays


def _refusal(where: str, why: str) -> ValueError:
    return ValueError(f"{where} must be readable as arrays without pickle, but it is not: {why}.")


class _Member(Exception):
    def __init__(self, name: str, cause: Exception) -> None:
        self.name, self.cause = name, cause


def _told(error: Exception) -> str:
    return str(error).partition("\n")[0] or f"({type(error).__name__})"


def _check_sizes(members: list[zipfile.ZipInfo], packed_bytes: int) -> None:
    if len(members) > _MOST_MEMBERS:
        raise ValueError(f"it has {len(members)} arrays")
    for member in members:
        if member.compress_type not in _METHODS:
            raise ValueError(f"`{member.filename}` is packed in a way that NumPy does not write")
        if member.compress_size > packed_bytes or member.file_size > _MOST_RATIO * member.compress_size + 1000:
            raise ValueError(f"`{member.filename}` cannot unpack to the {member.file_size} bytes that it says")
    total = sum(member.file_size for member in members)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total > memory:
        raise ValueError(f"it unpacks to {total / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f}")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        # 3.0 differs from 2.0 by names of fields in other letters, which plain numbers have none of
        if version not in headers:
            raise ValueError(f"has version {version} of NumPy's format")
        shape, _, dtype = headers[version](opened)
        if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
            raise ValueError(f"holds Python objects or records ({dtype}), which are read by pickle or not at all")
        num_bytes, there = math.prod(shape) * dtype.itemsize, member.file_size - opened.tell()
        if not all(type(n) is int and n >= 0 for n in shape) or num_bytes != there:
            raise ValueError(f"says that it is {dtype} of shape {shape}, but has {there} bytes")
    with archive.open(member) as opened:
        array: NDArray[Any] = np.lib.format.read_array(opened, allow_pickle=False)
        if opened.read(1):
            raise ValueError("is longer than it says")
    return array
