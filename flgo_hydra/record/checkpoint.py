"""The state of an unfinished run on disk: what a run that is started again in the same folder goes on from.

A checkpoint holds tensors and plain values only, and is read with `weights_only`: reading it runs no code. What the
clients keep may be larger than memory: it is a part of the file for itself, written and read a piece at a time.
"""

import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from flgo_hydra.record.files import replacing, set_aside

_VERSION = 6
_BEFORE = 5
"""The version before, which has what the clients keep among the content."""
_ROWS = "client_rows"
_COST_SHARE = 0.01
_log = logging.getLogger(__name__)


def save_checkpoint(path: Path, fingerprint: str, content: dict[str, Any], rows: Iterable[memoryview] = ()) -> None:
    """Writes `content` (tensors, numbers, strings, dicts and lists of them); what was there before stays until then.

    What it refers to must be on disk already: after a loss of power it is there itself.

    Args:
        rows: what the clients keep, for `reading_rows`, some at a time.
    Raises:
        CannotWrite: the storage refused.
    """
    with replacing(path) as file:
        torch.save({"version": _VERSION, "fingerprint": fingerprint, **_without_the_rest(content)}, file)
        with zipfile.ZipFile(file, "a") as archive:
            with archive.open(zipfile.ZipInfo(_name_in(archive)), "w", force_zip64=True) as part:
                for some in rows:
                    part.write(some)


@contextmanager
def reading_rows(path: Path) -> Iterator[BinaryIO | None]:
    """What the clients keep, as `save_checkpoint` was given it; None where the version before has written the file."""
    with zipfile.ZipFile(path) as archive:
        if _name_in(archive) not in archive.namelist():
            yield None
            return
        with archive.open(_name_in(archive)) as part:
            yield part  # type: ignore[misc]  # it reads as a binary file does


def _name_in(archive: zipfile.ZipFile) -> str:
    """In the folder in which torch wants everything."""
    return f"{archive.namelist()[0].partition('/')[0]}/{_ROWS}"


def _without_the_rest(value: Any) -> Any:
    """Copies of tensors that are a part of a larger memory: torch would write all of it."""
    if isinstance(value, dict):
        return {key: _without_the_rest(one) for key, one in value.items()}
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


def load_checkpoint(
    path: Path,
    fingerprint: str,
    device: torch.device | None = None,
    data_sha256: str = "",
    is_of_sweep: bool = False,
) -> dict[str, Any] | None:
    """Returns the content (on the CPU, unless there is a `device`), or None when there is none to go on from.

    A file that is none of ours, or damaged, is set aside with a warning: the run starts anew.

    Args:
        data_sha256: of the run's data, if it is known.
        is_of_sweep: the folder is a sweep's, where what another config has left is set aside as well.
    Raises:
        ValueError: the checkpoint is of another config, or of other data.
    """
    try:
        _check_sums(path)
        content = torch.load(path, map_location=device or "cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (torch.OutOfMemoryError, MemoryError):
        raise  # the file is good: this attempt has too little memory
    except Exception as error:  # what a damaged pickle makes its reader raise may be anything
        _set_aside(path, f"cannot be read ({str(error).partition(chr(10))[0]})")
        return None
    if (
        not isinstance(content, dict)
        or content.get("version") not in (_BEFORE, _VERSION)
        or "fingerprint" not in content
    ):
        _set_aside(path, "is no checkpoint of this version")
        return None
    if content["fingerprint"] != fingerprint and is_of_sweep:
        _set_aside(path, "belongs to a run with another config")
        return None
    if content["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path} belongs to a run with another config. "
            "Choose another folder (`hydra.run.dir=…`), or delete this one to start anew."
        )
    before = content.get("data_sha256", "")
    if before and data_sha256 and before != data_sha256:
        raise ValueError(
            f"{path} belongs to a run on other data: data_sha256 was {before[:16]} and is {data_sha256[:16]} now. A "
            "curve is of one data set. Put the data back, choose another folder (`hydra.run.dir=…`), or delete this "
            "file to start anew."
        )
    return content


def _set_aside(path: Path, why: str) -> None:
    kept = set_aside(path)
    _log.warning("%s %s (kept as %s): the run starts from round 0.", path, why, kept.name)


def _check_sums(path: Path) -> None:
    """Raises BadZipFile unless every part has the sum it was written with: `torch.load` does not look at them."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


class CheckpointClock:
    """Decides after which rounds to write: every `interval` rounds, or as often as costs under 1 % of the time."""

    def __init__(self, interval: int | None, clock: Callable[[], float]) -> None:
        self._interval = interval
        self._clock = clock
        self._last_end = clock()
        self._last_cost = 0.0

    def is_due(self, round_num: int) -> bool:
        if self._interval is not None:
            return self._interval > 0 and round_num % self._interval == 0
        # The first one is written after a second: until then there is little to lose, and its cost is not known.
        return self._clock() - self._last_end >= max(self._last_cost / _COST_SHARE, 1.0)

    def timed(self, write: Callable[[], None]) -> None:
        """Writes, and remembers what it cost."""
        begin = self._clock()
        write()
        self._last_end = self._clock()
        self._last_cost = self._last_end - begin
