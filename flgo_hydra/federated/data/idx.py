"""Reads IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

Big-endian: two zero bytes, a byte for the type (8: unsigned bytes), a byte for the number of dimensions, four bytes
for each dimension's length, then the values.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flgo_hydra.record.schema import Defect, open_plain

_PART = 2**22
_MOST_BYTES = 2**32

NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def find_files(folders: list[Path]) -> dict[str, Path] | None:
    """Returns the four files by key, from the first folder that has them all (plain before .gz), or None."""
    for folder in folders:
        found = {
            key: path
            for key, name in NAMES.items()
            for path in (folder / f"{name}.gz", folder / name)  # the last one stays
            if path.is_file()
        }
        if len(found) == len(NAMES):
            return found
    return None


def read_arrays(files: dict[str, Path]) -> dict[str, NDArray[np.uint8]]:
    """Returns images, shape (n, 1, H, W), and labels, shape (n,)."""
    arrays = {key: read(path, num_dims=3 if key.startswith("x") else 1) for key, path in files.items()}
    return {key: array[:, None] if array.ndim == 3 else array for key, array in arrays.items()}


def read(path: Path, num_dims: int) -> NDArray[np.uint8]:
    """Returns a file's unsigned bytes as an array of `num_dims` dimensions.

    Raises:
        ValueError: the file is damaged or another kind of file.
    """
    header_size = 4 + 4 * num_dims
    try:
        with _opened(path) as file:
            header = file.read(header_size)
            if len(header) < header_size or header[:4] != bytes([0, 0, 8, num_dims]):
                raise ValueError(
                    f"{path} must be an IDX file of unsigned bytes with {num_dims} dimensions (it begins with "
                    f"00 00 08 {num_dims:02}), but it begins with {header[:4].hex(' ') or 'nothing'}."
                )
            shape = struct.unpack(f">{num_dims}I", header[4:])
            # What is packed is hardly ever longer than what it unpacks to; else zeros follow, a terabyte of them maybe.
            if math.prod(shape) > _MOST_BYTES or path.stat().st_size > 1.01 * math.prod(shape) + 2**16:
                raise ValueError(
                    f"{path} is damaged: its header says {math.prod(shape)} values, and its length does not. Fetch "
                    "it again."
                )
            # One byte more than there should be tells a file that is too long, whatever it unpacks to.
            values = _read_up_to(file, math.prod(shape) + 1)
    except Defect as defect:
        raise ValueError(f"{path} must be an IDX file, but it {defect.why}.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error or 'it unpacks to more than fits'}. Fetch it again.") from error
    if len(values) != math.prod(shape):
        is_short = len(values) < math.prod(shape)
        raise ValueError(
            f"{path} must hold {math.prod(shape)} values, as its header says {' x '.join(map(str, shape))}, "
            f"but it holds {len(values) if is_short else 'more'}. Fetch it again."
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _opened(path: Path) -> Any:
    file = open_plain(path, most_bytes=None)
    if file is None:
        raise Defect(path, "is not there")
    return file if path.suffix != ".gz" else _Unpacked(file)


class _Unpacked(gzip.GzipFile):
    """A packed file, which is closed with it."""

    def __init__(self, packed: Any) -> None:
        super().__init__(fileobj=packed, mode="rb")
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def _read_up_to(file: Any, num_bytes: int) -> bytearray:
    """What a file has, by parts: memory is taken for what is there, not for what a header says."""
    values = bytearray()
    while len(values) < num_bytes and (part := file.read(min(_PART, num_bytes - len(values)))):
        values += part
    return values
