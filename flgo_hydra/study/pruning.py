"""Which runs are not worth going on with: Optuna's pruners over comparable runs, and patience as one of them.

A pruner compares a run's curve with other runs' curves, so they must be of the same task and seed (`compose.group`).
Each group has an Optuna study of its own in memory: a pruner sees nothing else, answers in the time of a look-up
whatever the sweep's storage is, and its notes (successive halving keeps some with each trial) stay out of the record.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from flgo_hydra import reference
from flgo_hydra.config.sweeper import PRUNERS
from flgo_hydra.federated.patience import Patience
from flgo_hydra.objective import VALID_LOSS, Objective

_KEY = "hydra.sweeper.pruner"


class PatiencePruner(BasePruner):
    """Prunes a trial when its best value has not improved for a number of steps in a row.

    It prunes exactly when `early_stop` of a run would stop it: steps are rounds, whether or not each is evaluated and
    reported; ties, NaN and infinity are no improvement; before the first finite value, rounds are counted from 0.
    (`optuna.pruners.PatientPruner` counts reports, one more of them, and never prunes a plateau.)

    In a sweep of ours `early_stop` is what you want: its runs are valid results. This class is for your own Optuna
    studies::

        study = optuna.create_study(pruner=PatiencePruner(5))
    """

    def __init__(self, patience: int) -> None:
        """
        Args:
            patience: steps without improvement, at least 1.
        """
        if patience < 1:
            raise ValueError(f"`patience >= 1` must hold, but got {patience}.")
        self._patience = patience

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        patience = Patience(Objective("value", study.direction == StudyDirection.MAXIMIZE))
        for step, value in sorted(trial.intermediate_values.items()):
            patience = patience.update(step, value)
            if patience.is_over(step, self._patience):
                return True
        return False


def make_pruner(setting: Any, num_rounds: int) -> BasePruner:
    """Returns the pruner that `hydra.sweeper.pruner` names.

    Args:
        setting: a name, `{name: …}` or `{_target_: …}` with arguments.
        num_rounds: of the runs, for pruners that divide it.
    Raises:
        ValueError: there is no such pruner, or it does not take those arguments.
    """
    given: dict[str, Any] = {"name": setting} if isinstance(setting, str) else dict(setting)
    target = given.pop("_target_", None)
    name = given.pop("name", None)
    kind = getattr(optuna.pruners, PRUNERS[name]) if target is None else reference.load(target, f"{_KEY}._target_")
    if name == "hyperband":
        given.setdefault("max_resource", max(num_rounds, given.get("min_resource", 1)))
    if name == "asha" and given.get("min_resource", "auto") == "auto":
        given["min_resource"] = max(1, num_rounds // 100)  # Optuna would wait for the first complete run to know it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            pruner = reference.call(kind, given, {}, _KEY)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`{_KEY}={reference.described(setting)}` cannot be made: {error}") from error
    if not isinstance(pruner, BasePruner):
        raise ValueError(f"`{_KEY}._target_={target}` must be a subclass of optuna.pruners.BasePruner.")
    return pruner


class Pruning:
    """Asks a pruner about runs under way, each among the runs of its group."""

    def __init__(
        self, setting: Any, earlier: Iterable[tuple[str, FrozenTrial]] = (), objective: Objective = VALID_LOSS
    ) -> None:
        """
        Args:
            setting: of `hydra.sweeper.pruner`.
            earlier: finished trials of the sweep's study, each with its group; their values are scores.
            objective: what the runs follow.
        Raises:
            ValueError: the setting is wrong.
        """
        make_pruner(setting, 1)
        self._setting = setting
        self._objective = objective
        self._earlier: dict[str, list[FrozenTrial]] = {}
        for group, trial in earlier:
            self._earlier.setdefault(group, []).append(trial)
        self._studies: dict[str, Study] = {}
        self._trials: dict[int, tuple[Study, Trial]] = {}
        self._last_rounds: dict[int, int] = {}
        self._pruned: set[int] = set()
        self.reason = f"pruned by {reference.described(setting)}"
        """what a pruned run's record says"""

    def start(self, number: int, group: str, num_rounds: int) -> None:
        """Takes in a trial by its number in the sweep's study."""
        if group not in self._studies:
            self._studies[group] = self._make_study(group, num_rounds)
        self._trials[number] = self._studies[group], self._studies[group].ask()

    def report(self, number: int, round_num: int, value: float) -> bool:
        """Notes a round of a running trial; True, once a trial, when it shall end.

        A value that is not finite is left to the run itself, which has diverged. A round that runs again after a crash
        says nothing new.
        """
        if number not in self._trials or not math.isfinite(value) or round_num <= self._last_rounds.get(number, -1):
            return False
        self._last_rounds[number] = round_num
        _, trial = self._trials[number]
        trial.report(self._objective.score(value), round_num)
        if number in self._pruned or not trial.should_prune():
            return False
        self._pruned.add(number)
        return True

    def is_pruned(self, number: int) -> bool:
        """Whether a running trial shall end. A new attempt does not know it yet."""
        return number in self._pruned

    def finish(self, number: int, value: float | None, is_pruned: bool = False) -> None:
        """Closes a trial: as pruned, with its value, or as failed (None)."""
        self._last_rounds.pop(number, None)
        self._pruned.discard(number)
        if number not in self._trials:
            return
        study, trial = self._trials.pop(number)
        if is_pruned:
            study.tell(trial, state=TrialState.PRUNED)
        elif value is None or not math.isfinite(value):
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, self._objective.score(value))

    def _make_study(self, group: str, num_rounds: int) -> Study:
        """The study of a group, with its trials of earlier sweeps as if they had run in this one."""
        study = optuna.create_study(
            study_name=group, sampler=optuna.samplers.RandomSampler(0), pruner=make_pruner(self._setting, num_rounds)
        )
        for earlier in self._earlier.pop(group, []):
            curve = {r: v for r, v in sorted(earlier.intermediate_values.items()) if math.isfinite(v)}
            asked = set(_rung_rounds(study.pruner, list(curve)))
            trial = study.ask()
            for round_num, loss in curve.items():
                trial.report(loss, round_num)
                if round_num in asked:
                    trial.should_prune()  # for the note it leaves; what it says is past
            value = earlier.value if earlier.state == TrialState.COMPLETE else None
            study.tell(trial, value, state=earlier.state)
        return study


def _rung_rounds(pruner: BasePruner, rounds: list[int]) -> Iterator[int]:
    """The reported rounds at which successive halving compares a run with the others."""
    if isinstance(pruner, SuccessiveHalvingPruner | HyperbandPruner) and isinstance(pruner._min_resource, int):
        rung: int = pruner._min_resource
        for round_num in rounds:
            if round_num >= rung:
                yield round_num
                while rung <= round_num:
                    rung *= pruner._reduction_factor
