"""What all points of a study have in common. A study never mixes two objectives: their values could not be compared."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flgo_hydra.objective import VALID_LOSS, Objective
from flgo_hydra.overrides import Override

_MOST_NAMED = 5


class Common:
    """The settings that are the same in every point of a sweep, collected point by point."""

    def __init__(self, axes: Iterable[str] = ()) -> None:
        """Args:
        axes: keys that vary by name, even where a sweep gives them one value.
        """
        self._axes = tuple(Override.read(key).key.partition("@")[0].replace("/", ".") for key in axes)
        self._values: dict[str, Any] | None = None
        self._monitor: Objective | None = None

    def add(self, config: Mapping[str, Any], monitor: Objective = VALID_LOSS) -> None:
        """Takes a point's settings (plain values, nested) into account.

        Args:
            monitor: what its run follows.
        Raises:
            ValueError: it follows another metric than the points before.
        """
        if self._monitor not in (None, monitor):
            assert self._monitor is not None
            raise ValueError(
                "`monitor` and `monitor_mode` must be the same in all points of a sweep, whose values are compared, "
                f"but got {_described(self._monitor)} and {_described(monitor)}. Run one sweep for each."
            )
        self._monitor = monitor
        point = flatten(config)
        if self._values is None:
            self._values = {key: value for key, value in point.items() if not self._varies(key)}
        elif any(point.get(key, _NOTHING) != value for key, value in self._values.items()):
            self._values = {key: value for key, value in self._values.items() if point.get(key, _NOTHING) == value}

    @property
    def monitor(self) -> Objective:
        """What the runs follow."""
        return self._monitor or VALID_LOSS

    @property
    def values(self) -> dict[str, Any]:
        return dict(self._values or {})

    def _varies(self, key: str) -> bool:
        return any(key == axis or key.startswith(f"{axis}.") for axis in self._axes)


_NOTHING = object()


def _described(monitor: Objective) -> str:
    return f"{monitor.metric} ({monitor.mode})"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"task.seed": 0, "model.hidden": [64]}` of nested settings; lists stay whole, as JSON would store them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif value is None or isinstance(value, str | int | float | bool):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = json.loads(json.dumps(value, default=str))
    return flat


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], study: str, folder: str) -> None:
    """Refuses a sweep that would put another objective into a study.

    Args:
        before: what the study's points have in common.
        now: what this sweep's points have in common.
        study: the study's name.
        folder: the sweep folder.
    Raises:
        ValueError: a setting that no axis varies has changed.
    """
    changed = [key for key in sorted(now, key=_importance) if key in before and before[key] != now[key]]
    if not changed:
        return
    named = [f"`{key}` was {_text(before[key])} and is {_text(now[key])} now" for key in changed[:_MOST_NAMED]]
    if len(changed) > _MOST_NAMED:
        named.append(f"{len(changed) - _MOST_NAMED} more differ")
    key = changed[0]
    typed = key.removesuffix(".name")
    together = f"To compare both, sweep it: `{typed}={_text(before[key])},{_text(now[key])}`. "
    if key in ("monitor", "monitor_mode"):  # all points of a study follow one
        together = ""
    raise ValueError(
        f"The study {study!r} in {folder} is of another objective: {'; '.join(named)}. Nothing was started. "
        f"{together}To run it apart, choose another `hydra.sweep.dir` or `hydra.sweeper.study_name`."
    )


def _importance(key: str) -> tuple[bool, bool, str]:
    """A choice's name says more than its parameters; `_target_` says least."""
    return (key.endswith("_target_"), not key.endswith(".name"), key)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
