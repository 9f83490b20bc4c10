"""Composes and checks points before they run, and says which of them are the same."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig

from flgo_hydra import compose, mistakes
from flgo_hydra.chosen import check_identities, writes_identity
from flgo_hydra.composer import MOST_KEPT, Composed, Composer
from flgo_hydra.config.conf import Conf
from flgo_hydra.help import GROUPS, keys_by_choice
from flgo_hydra.job import engines
from flgo_hydra.objective import VALID_LOSS
from flgo_hydra.overrides import Override
from flgo_hydra.study.space.common import Common


@dataclass(frozen=True)
class Point:
    """One job to run."""

    overrides: tuple[str, ...]
    """its swept overrides"""
    identity: str
    """the same for the same point, however it is written: `lr=0.1` and `lr=1e-1` are one"""
    group: str = ""
    """shared by points whose curves may be compared; empty: of another Hydra app"""
    num_rounds: int = 0
    written: list[tuple[str, ...]] = field(default_factory=list, compare=False)
    """its overrides in all forms in which the grid has it"""
    fingerprint: str = ""
    """of what decides its run's numbers, as in result.json; empty: the identity"""
    how: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """the rest of its config: where files lie, how it is computed"""
    is_refused: bool = False
    """it breaks a law, and does not run"""

    task: str = field(default="", compare=False)
    """a hash of its task's config"""
    data_sha256: str = field(default="", compare=False)
    """of its task's content; empty where it is not known"""
    source: str = field(default="", compare=False)
    """what its task's source is and returns, see `federated.task.Task`"""

    @property
    def run_fingerprint(self) -> str:
        """What its run's result.json must have."""
        return self.fingerprint or self.identity


def keys_apart(points: Iterable[Point]) -> set[str]:
    """The keys that decide no numbers, and in which points that have the same numbers differ all the same.

    Who sweeps `engine.backend=loop,vmap`, `task.data_dir=clean,noisy` or a group whose choices differ in such a key
    asks for both.
    """
    by_numbers: dict[str, Mapping[str, Any]] = {}
    keys: set[str] = set()
    for point in points:
        first = by_numbers.setdefault(point.run_fingerprint, point.how)
        if first is not point.how:
            keys.update(key for key, value in point.how.items() if not _is_same(first[key], value))
    return keys


def tell_apart(point: Point, keys: Iterable[str]) -> Point:
    """The same point with an identity that holds its values of these keys."""
    values = {key: point.how[key] for key in sorted(keys) if key in point.how}
    if not values:
        return point
    numbers = point.run_fingerprint
    told = replace(point, identity=compose.hash_of({"numbers": numbers, "how": values}), fingerprint=numbers)
    folder = values.get("task.data_dir")
    # Curves on the data of two folders are not to be compared round by round.
    return replace(told, group=f"{point.group.partition(' ')[0]} {folder}") if point.group and folder else told


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


class PointChecker:
    """Composes points of one sweep, one at a time, and holds them to their laws."""

    def __init__(
        self, composer: Composer, sweep_config: DictConfig, fixed: Sequence[str], common: Common | None = None
    ) -> None:
        """Args:
        sweep_config: the sweep's own config, with Hydra's node.
        fixed: the overrides that all points share.
        common: takes in every point's settings.
        """
        self._composer = composer
        self._fixed = tuple(fixed)
        self._outer = sweep_config.hydra.sweeper.get("params")
        self._common = common
        self._seen: set[str] = set()
        self._data: dict[str, tuple[str, str]] = {}
        self._hows: dict[str, Mapping[str, Any]] = {}
        self.apart: set[str] = set()
        """keys that belong to a point's identity though they decide no numbers"""
        self.take_in: Callable[[Sequence[Point]], None] = lambda points: None
        """called with each point that `check` finds lawful; may refuse it"""

    def compose(self, overrides: tuple[str, ...]) -> tuple[Point, Composed]:
        """Returns the point, and its config.

        Raises:
            ValueError: it breaks a law; the error says at which point.
            HydraException: it does not compose (a wrong key, choice or type).
        """
        everything = [*self._fixed, *overrides]
        if not self._seen:
            self._refuse_unknown(overrides)
        composed = None if writes_identity(everything) else self._composer.typed_quickly(everything)
        if composed is None:
            composed = self._load(everything, overrides)
        conf, parts, identity = composed.conf, composed.parts, composed.identity
        if conf is not None:
            settings = {**parts["option"], **{key: value for key, value in parts.items() if key != "option"}}
            group, num_rounds, how = compose.group_of(parts), conf.num_rounds, self._how(conf)
            task = compose.hash_of(parts["task"])
        else:
            group, num_rounds, how, task, settings = "", 0, {}, "", dict(parts)
        if self._common is not None and identity not in self._seen:
            self._common.add(settings, VALID_LOSS if conf is None else conf.followed)
        self._seen.add(identity)
        return tell_apart(Point(overrides, identity, group, num_rounds, how=how, task=task), self.apart), composed

    def _refuse_unknown(self, overrides: Sequence[str]) -> None:
        """Refuses a point with a plain key that its config does not have."""
        unknown = self._composer.find_unknown_key([*self._fixed, *overrides])
        if unknown is None:
            return
        key, cfg = unknown
        elsewhere = keys_by_choice()
        chooses = any(self._composer.group_options(Override.read(text).name) for text in overrides)
        if chooses and (self._seen or key in elsewhere):
            others = [elsewhere[key]] if key in elsewhere else []
            raise ValueError(mistakes.of_other_points(key, overrides, others))
        raise ValueError(mistakes.unknown_key(key, [*GROUPS, *mistakes.keys_of(cfg)], elsewhere))

    def _how(self, conf: Conf) -> Mapping[str, Any]:
        """One object for all points that have the same: a grid may have ten thousand."""
        how = compose.not_deciding(conf)
        return self._hows.setdefault(repr(how), how)

    def _load(self, everything: Sequence[str], overrides: Sequence[str]) -> Composed:
        """A point's config, composed and typed."""
        try:
            cfg = self._composer.compose(everything)
        except HydraException as error:
            if "changed it" in str(error):  # Hydra 1.4 refuses by itself what 1.3 would ignore
                raise ValueError(_nested_grid(overrides)) from error
            self._refuse_unknown(overrides)
            raise
        own = cfg.hydra.sweeper.get("params")
        if own and own != self._outer:
            raise ValueError(_nested_grid(overrides))
        try:
            if compose.is_ours(cfg):
                check_identities(cfg, cfg.hydra)
            return self._composer.typed(everything, cfg)
        except ValueError as error:
            raise ValueError(f"{error}{_at(overrides)}") from error

    def refer(self, overrides: tuple[str, ...], conf: Conf) -> tuple[str, str]:
        """Checks what a config refers to: functions, data files, the task they make, and whether a model fits it.

        Returns:
            the hash of the task's content, and its source's; empty where they are not known.
        Raises:
            ValueError: something is missing or impossible.
        """
        try:
            engines.check(conf, self._data)
        except ValueError as error:
            raise ValueError(f"{error}{_at(overrides)}") from error
        return self._data.get(repr(conf.task), ("", ""))

    def check(self, overrides: tuple[str, ...]) -> Point:
        """Does both for one point."""
        point, composed = self.compose(overrides)
        if composed.conf is not None:
            data_sha256, source = self.refer(overrides, composed.conf)
            point = replace(point, data_sha256=data_sha256, source=source)
            self.take_in([point])
        self.keep(overrides, composed)
        return point

    def keep(self, overrides: Sequence[str], composed: Composed) -> None:
        """Keeps a point's config for who starts it."""
        self._composer.keep([*self._fixed, *overrides], composed)


def check_points(
    checker: PointChecker,
    points: Sequence[tuple[str, ...]],
    when_first_is_lawful: Callable[[], None] = lambda: None,
) -> list[Point]:
    """Composes and checks every point; points written twice in other words count once.

    Args:
        when_first_is_lawful: called when the first point composes and keeps the laws: most mistakes are out then.
    Raises:
        ValueError: the first point that breaks a law, with what it is.
        HydraException: a point does not compose (a wrong key, choice or type).
    """
    composed: list[Point] = []
    confs: list[tuple[tuple[str, ...], Conf]] = []
    for overrides in points:
        point, made = checker.compose(overrides)
        if made.conf is not None:
            confs.append((overrides, made.conf))
        if not composed:
            when_first_is_lawful()
        if len(composed) < MOST_KEPT:  # those that start first
            checker.keep(overrides, made)
        composed.append(point)
    data: dict[tuple[str, ...], tuple[str, str]] = {}
    for overrides, conf in confs:  # laws first: what they refer to takes longer to look at
        data[overrides] = checker.refer(overrides, conf)
    checker.apart |= keys_apart(composed)
    unique: dict[str, Point] = {}
    for point in composed:
        data_sha256, source = data.get(point.overrides, ("", ""))
        point = replace(tell_apart(point, checker.apart), data_sha256=data_sha256, source=source)
        unique.setdefault(point.identity, point).written.append(point.overrides)
    return list(unique.values())


def _at(overrides: Sequence[str]) -> str:
    return f" (at the point {' '.join(overrides)})" if overrides else ""


def _nested_grid(overrides: Sequence[str]) -> str:
    """A preset that is a grid, swept itself, would silently run as a single point."""
    return (
        f"`{' '.join(overrides)}` changes the sweep itself, so it cannot be one of its points. "
        "Run presets that are grids one after another."
    )
