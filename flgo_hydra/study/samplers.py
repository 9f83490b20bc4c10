"""Optuna's samplers by name, as a sweep uses them.

A sampler is made anew for every choice, from the sweep's seed and the number of choices before, however many attempts
these took: a sweep that was interrupted asks for the points that it would have asked for. What it learns from is not
quite the study (`_Known`), and its numbers are rounded to what people can read; the trial holds the rounded value,
which is the one that ran.

A sampler of the user's own has Optuna's interface. For example every number near the best point's, in `my_samplers.py`:

    from optuna.samplers import RandomSampler
    from optuna.trial import TrialState

    class Near(RandomSampler):
        def __init__(self, factor, seed):
            super().__init__(seed)
            self.factor = factor

        def sample_independent(self, study, trial, name, kind):
            known = study.get_trials(states=(TrialState.COMPLETE,))
            if not known:
                return super().sample_independent(study, trial, name, kind)
            best = min(known, key=lambda trial: trial.value).params[name]
            return min(max(best * self.factor, kind.low), kind.high)

run by `hydra.sweeper.sampler='{_target_: my_samplers.Near, factor: 0.5}' hydra.sweeper.n_trials=8`. It too is made anew
for every choice, so what it knows is the study's: scores, of which less is better. One that takes a `seed` gets another
one for each choice. Where it chooses several values at once (`sample_relative`), the trial's number is its choice's.
"""

import copy
import importlib.util
import math
import warnings
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from flgo_hydra import reference
from flgo_hydra.study.space.grid import Axis, Grid, Interval

_PACKAGES = {"tpe": (), "random": (), "qmc": ("scipy",), "cmaes": ("cmaes",), "gp": ("scipy", "torch")}
_NUMBERS_ONLY = ("qmc", "cmaes")


_KEY = "hydra.sweeper.sampler"


def check_sampler(setting: Any) -> None:
    """Raises ValueError unless the sampler that `hydra.sweeper.sampler` says can be made."""
    if not isinstance(setting, str):
        _make_own(setting, 0)
        return
    name = setting
    missing = [package for package in _PACKAGES[name] if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"`{_KEY}={name}` needs {' and '.join(missing)}: pip install 'flgo_hydra[samplers]'")


def _make_own(setting: Mapping[str, Any], seed: int) -> BaseSampler:
    given = dict(setting)
    kind = reference.load(given.pop("_target_"), f"{_KEY}._target_")
    try:
        sampler = reference.call(kind, given, {}, _KEY, by_name={"seed": seed})
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{_KEY}={reference.described(setting)}` cannot be made: {error}") from error
    if not isinstance(sampler, BaseSampler):
        raise ValueError(f"`{_KEY}._target_={setting['_target_']}` must be a subclass of optuna.samplers.BaseSampler.")
    return sampler


def chosen_at_random(setting: Any, space: Grid) -> list[str]:
    """The keys of which the sampler learns nothing, because it knows numbers only."""
    kinds = kinds_of(space)
    is_unknown = setting in _NUMBERS_ONLY
    return [key for key, kind in kinds.items() if is_unknown and isinstance(kind, CategoricalDistribution)]


def kinds_of(space: Grid) -> dict[str, BaseDistribution]:
    """What each key may be: a range and an interval are numbers, any other list is categories."""
    return {axis.name: _of_axis(axis) for axis in space.axes} | {i.name: _of_interval(i) for i in space.intervals}


def _of_axis(axis: Axis) -> BaseDistribution:
    values = list(axis.texts())
    if axis.is_range and len(values) > 1 and all(isinstance(value, int) for value in values):
        numbers = sorted(int(value) for value in values if isinstance(value, int))
        return IntDistribution(numbers[0], numbers[-1], step=numbers[1] - numbers[0])
    return CategoricalDistribution(values)


def _of_interval(interval: Interval) -> BaseDistribution:
    if interval.is_int:
        return IntDistribution(int(interval.low), int(interval.high), log=interval.is_log)
    return FloatDistribution(interval.low, interval.high, log=interval.is_log)


def make_sampler(
    setting: Any, seed: int, choice: int, space: Grid, stored: Mapping[str, BaseDistribution]
) -> BaseSampler:
    """The sampler of one choice.

    Args:
        setting: a name of `config.SAMPLERS`, but grid, or `{_target_: …}` with arguments.
        seed: the sweep's.
        choice: how many points have been chosen before.
        stored: what the study has each key as: of categories also those that earlier sweeps had.
    """
    # One sequence for all trials, of which each choice has its own place.
    own_seed = seed if setting == "qmc" else int(np.random.SeedSequence([seed, choice]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        makers: dict[str, Callable[[], BaseSampler]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=own_seed, multivariate=True, constant_liar=True),
            "random": lambda: optuna.samplers.RandomSampler(seed=own_seed),
            "qmc": lambda: _Placed(
                choice,
                kinds_of(space),
                seed=own_seed,
                scramble=True,
                independent_sampler=optuna.samplers.RandomSampler(
                    seed=int(np.random.SeedSequence([seed, choice]).generate_state(1)[0])
                ),
                warn_independent_sampling=False,
            ),
            "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=own_seed, warn_independent_sampling=False),
            "gp": lambda: optuna.samplers.GPSampler(seed=own_seed),
        }
        sampler = makers[setting]() if isinstance(setting, str) else _make_own(setting, own_seed)
        # CMA-ES draws by the trial's number, which attempts count into.
        is_numbered = setting == "cmaes" or not isinstance(setting, str)
        return _Readable(sampler, space, stored, choice if is_numbered else None)


class _Placed(optuna.samplers.QMCSampler):
    """Takes the point at a choice's place of its sequence.

    Optuna takes the next one, and draws the first at random: a point that could not be kept, as the storage was away,
    would cost its place, or be another one when it is chosen again.
    """

    def __init__(self, place: int, kinds: Mapping[str, BaseDistribution], **settings: Any) -> None:
        super().__init__(**settings)
        self._place = place
        self._numbers = {
            name: kind
            for name, kind in kinds.items()
            if not isinstance(kind, CategoricalDistribution) and not kind.single()
        }

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._numbers

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._place


class _Readable(BaseSampler):
    """A sampler whose numbers have few digits, and which learns from `_Known`."""

    def __init__(
        self, sampler: BaseSampler, space: Grid, stored: Mapping[str, BaseDistribution], number: int | None = None
    ) -> None:
        self._inner = sampler
        self._number = number
        self._intervals = {interval.name: interval for interval in space.intervals}
        self._kinds = kinds_of(space)
        self._stored = stored
        self._relative: dict[str, BaseDistribution] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._relative = self._inner.infer_relative_search_space(self._known(study), trial)
        return {name: self._stored[name] for name in self._relative}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._number is not None:
            trial = copy.copy(trial)
            trial.number = self._number
        values = self._inner.sample_relative(self._known(study), trial, self._relative)
        return {name: self._round(name, value) for name, value in values.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = self._inner.sample_independent(self._known(study), trial, param_name, self._kinds[param_name])
        return self._round(param_name, value)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._inner.after_trial(study, trial, state, values)

    def _round(self, name: str, value: Any) -> Any:
        interval = self._intervals.get(name)
        return value if interval is None or interval.is_int else interval.rounded(value)

    def _known(self, study: optuna.Study) -> Any:
        return _Known(study, self._kinds)


class _Known:
    """A study as a sampler shall see it.

    - A diverged point, FAIL in the study, has been as bad as the worst: else a sampler, which skips what failed, would
      go on trying learning rates that are too large.
    - Of a point that was measured again with more replicates, only the last trial counts.
    - Trials outside the present space, or with other keys, are left out; the others are as if asked in it, so that an
      interval may be widened.
    """

    def __init__(self, study: optuna.Study, space: Mapping[str, BaseDistribution]) -> None:
        self._study = study
        self._space = dict(space)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._study._get_trials(deepcopy=deepcopy, use_cache=use_cache)
        # A finite number in place of infinity: samplers compute with it.
        finite = [t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
        worst = max(finite, default=math.nan)
        newest: dict[object, int] = {
            tuple(t.user_attrs["overrides"]): t.number
            for t in trials
            if t.state == TrialState.COMPLETE and "overrides" in t.user_attrs
        }
        known = []
        for trial in trials:
            if trial.state.is_finished() and trial.state != TrialState.FAIL:
                point = tuple(trial.user_attrs.get("overrides", ()))
                if newest.get(point, trial.number) > trial.number or not self._has(trial):
                    continue
                trial = copy.copy(trial)
                trial.distributions = dict(self._space)
            elif trial.user_attrs.get("status") == "diverged" and math.isfinite(worst) and self._has(trial):
                trial = copy.copy(trial)
                trial.state, trial.values = TrialState.COMPLETE, [worst]
                trial.distributions = dict(self._space)
            if states is None or trial.state in states:
                known.append(trial)
        return known

    def _has(self, trial: FrozenTrial) -> bool:
        """Whether the trial is a point of the present space."""
        if trial.params.keys() != self._space.keys():
            return False
        try:
            return all(kind._contains(kind.to_internal_repr(trial.params[name])) for name, kind in self._space.items())
        except (TypeError, ValueError):
            return False
