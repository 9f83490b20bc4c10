"""Which data a study's tasks have. A study never mixes two data sets under one config: their values could not be
compared.

The study has an attribute `data <hash of the task's config>` for each task: the SHA-256 of its content by the folder
of data files (`task.data_dir`, which is no part of the config's hash). Where that folder is swept, each has its own;
else all must have the same.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flgo_hydra.study.points import Point

_PREFIX = "data "


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
            name: dict(value) for name, value in earlier.items() if name.startswith(_PREFIX)
        }
        self._is_by_folder = "task.data_dir" in set(apart)
        self._where = where
        self._describe = describe

    def check(self, point: Point) -> None:
        """Raises OtherData where the study has other data of the point's task, with both hashes."""
        known = self._known.get(f"{_PREFIX}{point.task}", {})
        folder = str(point.how.get("task.data_dir"))
        for place, before in known.items():
            if point.data_sha256 and before != point.data_sha256 and (place == folder or not self._is_by_folder):
                raise OtherData(
                    f"The study {self._where} is of other data: `data_sha256` of the task was {before[:16]} and is "
                    f"{point.data_sha256[:16]} now. Nothing was started. The source's files, its code or what it reads "
                    "have changed: put them back to go on, or choose another `hydra.sweep.dir` or "
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
            name, folder = f"{_PREFIX}{point.task}", str(point.how.get("task.data_dir"))
            if point.data_sha256 and self._known.get(name, {}).get(folder) != point.data_sha256:
                self._known.setdefault(name, {})[folder] = point.data_sha256
                changed[name] = dict(self._known[name])
        if changed:
            self._describe(changed)
