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
    opened: Any = gzip.open if path.suffix == ".gz" else open
    header_size = 4 + 4 * num_dims
    try:
        with opened(path, "rb") as file:
            header = file.read(header_size)
            if len(header) < header_size or header[:4] != bytes([0, 0, 8, num_dims]):
                raise ValueError(
                    f"{path} must be an IDX file of unsigned bytes with {num_dims} dimensions (it begins with "
                    f"00 00 08 {num_dims:02}), but it begins with {header[:4].hex(' ') or 'nothing'}."
                )
            shape = struct.unpack(f">{num_dims}I", header[4:])
            # One byte more than there should be tells a file that is too long, whatever it unpacks to.
            values = file.read(math.prod(shape) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error, MemoryError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}. Fetch it again.") from error
    if len(values) != math.prod(shape):
        is_short = len(values) < math.prod(shape)
        raise ValueError(
            f"{path} must hold {math.prod(shape)} values, as its header says {' x '.join(map(str, shape))}, "
            f"but it holds {len(values) if is_short else 'more'}. Fetch it again."
        )
    return np.frombuffer(values, np.uint8).reshape(shape)
