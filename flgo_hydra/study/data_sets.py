"""Which data a study's tasks have. A study never mixes two data sets under one config: their values could not be
compared.

The study has an attribute `data <hash of the task's config>` for each task: the SHA-256 of its content by the folder
of data files (`task.data_dir`, which is no part of the config's hash). Where that folder is swept, each has its own;
else all must have the same. So it is with what a source returns (`source <hash of its call>`): tasks that split it in
other ways, by another seed or for more clients, have other contents, but are of one data set.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flgo_hydra.study.space.points import Point

_PREFIX = "data "
_OF_SOURCE = "source "


class OtherData(ValueError):
    """A sweep would put other data into a study."""


class DataSets:
    """The data of a study's tasks, and of the points that this sweep adds."""

    def __init__(
        self,
        earlier: Mapping[str, Any],
        apart: Iterable[str],
        where: str,
        describe: Callable[[dict[str, Any]], None],
    ) -> None:
        """Args:
        earlier: the study's attributes.
        apart: keys that tell points apart though they decide no numbers.
        where: the study, for people.
        describe: stores attributes in the study.
        """
        self._known: dict[str, dict[str, str]] = {
            name: dict(value) for name, value in earlier.items() if name.startswith((_PREFIX, _OF_SOURCE))
        }
        self._is_by_folder = "task.data_dir" in set(apart)
        self._where = where
        self._describe = describe

    def check(self, point: Point) -> None:
        """Raises OtherData where the study has other data of the point's task or source, with both hashes."""
        folder = str(point.how.get("task.data_dir"))
        for name, now in _hashes(point).items():
            for place, before in self._known.get(name, {}).items():
                if before != now and (place == folder or not self._is_by_folder):
                    what = (
                        "`data_sha256` of the task" if name.startswith(_PREFIX) else "what the task's source returned"
                    )
                    raise OtherData(
                        f"The study {self._where} is of other data: {what} was {before[:16]} and is {now[:16]} now "
                        "(`data_sha256`). Nothing was started. The source's files, its code or what it reads have "
                        "changed: put them back to go on, or choose another `hydra.sweep.dir` or "
                        "`hydra.sweeper.study_name`."
                    )

    def add(self, points: Iterable[Point]) -> None:
        """Takes points into the study.

        Raises:
            OtherData: the study has other data of one's task; none has been taken in.
        """
        points = list(points)
        for point in points:
            self.check(point)
        changed: dict[str, dict[str, str]] = {}
        for point in points:
            folder = str(point.how.get("task.data_dir"))
            for name, now in _hashes(point).items():
                if self._known.get(name, {}).get(folder) != now:
                    self._known.setdefault(name, {})[folder] = now
                    changed[name] = dict(self._known[name])
        if changed:
            self._describe(changed)


def _hashes(point: Point) -> dict[str, str]:
    """What is known of a point's data, by the attribute that has it."""
    key, _, sha256 = point.source.partition(":")
    found = {f"{_PREFIX}{point.task}": point.data_sha256, f"{_OF_SOURCE}{key}": sha256}
    return {name: value for name, value in found.items() if value}
