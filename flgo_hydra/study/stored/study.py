"""The Optuna study of a sweep: one trial for each attempt at a point.

Only the sweep's parent process writes it. Everything in it can be rebuilt from the run folders.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from flgo_hydra.objective import VALID_LOSS, Objective
from flgo_hydra.record.plain_text import plain
from flgo_hydra.record.secrets import masked
from flgo_hydra.report.rows import RETURNED, Row
from flgo_hydra.study.space.grid import Grid, Value
from flgo_hydra.study.space.replicates import mean_and_std
from flgo_hydra.study.stored.journal import SingleWriterJournal
from flgo_hydra.study.stored.storage import open_storage, refuse_foreign
from flgo_hydra.study.stored.widening import compatible, distributions, widen_database, widen_journal

MOST_REPORTS = 500
"""Rounds of a run that the study keeps: a dashboard loads them all."""
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class StoredTrial:
    """What a sweep that goes on needs to know of an earlier trial."""

    number: int
    identity: str
    jobs: tuple["StoredJob", ...]
    """more than one where the trial is the mean of replicates"""
    overrides: tuple[str, ...]
    params: Mapping[str, Value]
    status: str
    """of the run's result (completed, diverged, …), or running, interrupted, failed"""
    choice: int | None = None
    """which choice of a sampler it is an attempt at"""
    is_replicated: bool = False

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    @property
    def is_over(self) -> bool:
        """Whether all its jobs have ended, well or not."""
        return self.status not in ("running", INTERRUPTED)


@dataclass(frozen=True)
class StoredJob:
    """A job of an earlier trial."""

    identity: str
    number: int
    overrides: tuple[str, ...]
    value: float | None
    """where the study has it"""
    folder: str
    """its run folder, from the sweep folder"""
    fingerprint: str = ""
    """of its config's numbers, where the identity has more than these"""


class SweepStudy:
    """A study that minimises the best score over the points of a sweep.

    It is told of values and minimises scores (`Objective.score`): they turn into each other here.
    """

    def __init__(self, storage: str | Path, name: str) -> None:
        """Opens the study, or creates it.

        Args:
            storage: an Optuna URL, or the path of a journal file.
            name: of the study; a journal that holds one study is opened under that study's name.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._backend: Any = None
        self._journal: SingleWriterJournal | None = None
        self._sampler: BaseSampler | None = None  # the last one that was asked
        self._storage = storage
        self._trials: dict[int, Trial] = {}
        self._curves: dict[int, dict[int, float]] = {}
        self._monitor = VALID_LOSS
        self._declared: dict[str, Sequence[Value]] = {}
        self._distributions: dict[str, BaseDistribution] = {}
        self._space: Grid | None = None
        self._same_kinds: dict[str, BaseDistribution] = {}  # those of the last trial
        self._nothing: dict[Any, Any] = {}  # one for all trials
        self._open(name)

    def _open(self, name: str) -> None:
        self._backend, self._journal = open_storage(self._storage)
        if self._journal is not None:
            existing = optuna.get_all_study_names(self._backend)
            if len(existing) == 1:
                name = existing[0]
        self.name = name
        # Optuna wants a sampler, whoever chooses the points.
        sampler = self._sampler or optuna.samplers.RandomSampler()
        settings: dict[str, Any] = {"sampler": sampler, "pruner": optuna.pruners.NopPruner()}
        try:
            self._study = optuna.load_study(study_name=name, storage=self._backend, **settings)
        except KeyError:
            settings["direction"] = "minimize"
            self._study = optuna.create_study(study_name=name, storage=self._backend, **settings)
        if self._study.directions != [optuna.study.StudyDirection.MINIMIZE]:
            raise ValueError(
                f"The study {name!r} in {masked(str(self._storage))} was made elsewhere and does not minimize one "
                "value. Choose another `hydra.sweeper.study_name`."
            )

    def refuse_foreign(self) -> None:
        """Refuses a study with results of somebody else's, see `storage.refuse_foreign`."""
        refuse_foreign(self._study, masked(str(self._storage)))

    def close(self) -> None:
        """Lets go of the storage."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        elif self._backend is not None:
            self._backend.remove_session()
            self._backend.engine.dispose()
        self._backend = None

    def __del__(self) -> None:
        self.close()

    def stored_trials(self) -> list[StoredTrial]:
        """Every trial in the storage, in order."""
        return [_stored(trial, self._monitor) for trial in self._study.get_trials(deepcopy=False)]

    @property
    def description(self) -> dict[str, Any]:
        """What the study is of, as far as it was stored."""
        return dict(self._study.user_attrs)

    def finished_trials(self) -> list[tuple[str, FrozenTrial]]:
        """Every finished trial with its group, in order."""
        trials = self._study.get_trials(deepcopy=False)
        return [(str(trial.user_attrs.get("group", "")), trial) for trial in trials if trial.state.is_finished()]

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Stores what the study is of, where it does not say so yet."""
        known = self._study.user_attrs
        for name, value in attributes.items():
            if known.get(name) != value:
                self._study.set_user_attr(name, value)

    def declare(self, choices: Mapping[str, Sequence[Value]]) -> None:
        """Says which values each key may take; trials that the study has already are told of new kinds and categories.

        To be called while no trial of this process is open.
        """
        self._declared.update(choices)
        self._widen(*distributions(choices, self._study.get_trials(deepcopy=False)))

    def _widen(self, found: Mapping[str, BaseDistribution], changed: Mapping[str, BaseDistribution]) -> None:
        self._distributions.update(found)
        if not changed:
            return
        assert not self._trials, "trials are open"
        self.close()
        if isinstance(self._storage, str):
            widen_database(self._storage, self.name, changed)
        else:
            widen_journal(self._storage, changed)
        self._open(self.name)

    def start(
        self, point: Mapping[str, Value], choices: Mapping[str, Sequence[Value]], attributes: Mapping[str, Any]
    ) -> int:
        """Opens a RUNNING trial of a point; returns its number.

        Args:
            point: value by swept key.
            choices: every value that each key may take.
            attributes: the trial's user attributes (identity, job, overrides, attempt).
        """
        if any(self._declared.get(name) is not values for name, values in choices.items()):
            self.declare(choices)
        return self._start(point, {name: self._distributions[name] for name in choices}, attributes)

    def _start(
        self,
        point: Mapping[str, Value],
        kinds: Mapping[str, BaseDistribution],
        attributes: Mapping[str, Any],
        of_sampler: Mapping[str, Any] | None = None,
    ) -> int:
        # As one entry. `optuna.samplers.GridSampler` would count failed points as done, run finished ones again when a
        # value is added to an axis, and take seconds a trial in a grid of thousands; `Study.ask` would look through all
        # trials for an enqueued one.
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params={name: point[name] for name in kinds},
            distributions=dict(kinds),
            user_attrs=dict(attributes),
            system_attrs=dict(of_sampler or {}),
        )
        return self._note(Trial(self._study, self._study._storage.create_new_trial(self._study._study_id, template)))

    def find_started(self, attributes: Mapping[str, Any]) -> int | None:
        """The RUNNING trial with these user attributes that nobody here has; None where there is none."""
        for trial in reversed(self._study.get_trials(deepcopy=False)):
            is_it = trial.state == TrialState.RUNNING and trial.number not in self._trials
            if is_it and all(trial.user_attrs.get(name) == value for name, value in attributes.items()):
                return self._note(Trial(self._study, trial._trial_id))
        return None

    def interrupt_strays(self) -> None:
        """Closes RUNNING trials that nobody here has: made by a request of which only the answer was lost."""
        trials = self._study.get_trials(deepcopy=False)
        strays = [t.number for t in trials if t.state == TrialState.RUNNING and t.number not in self._trials]
        for number in strays:
            self.interrupt(number)

    def forget_told(self) -> None:
        """What was told of the open trials' curves may not be in the storage: it is looked up when they are closed."""
        self._curves.clear()

    def ask(self, sampler: Any, seed: int, space: Grid, choice: int) -> tuple[int, dict[str, Value]]:
        """Opens a RUNNING trial of the point that a sampler chooses; returns its number, and the value by key.

        Args:
            sampler: as `hydra.sweeper.sampler` says it.
            choice: how many points it has chosen before, which decides what it draws.
        """
        from flgo_hydra.study.samplers import make_sampler

        kinds = self._kinds(space)
        self._study.sampler = self._sampler = make_sampler(sampler, seed, choice, space, kinds)
        trial = self._study.ask(kinds)
        return self._note(trial), trial.params

    def ask_again(self, space: Grid, point: Mapping[str, Value], choice: int | None) -> int:
        """Opens a RUNNING trial of a point that a sampler has chosen before; returns its number."""
        kinds = self._kinds(space)
        trials = self._study.get_trials(deepcopy=False)
        chosen = [t for t in trials if choice is not None and t.user_attrs.get("choice") == choice]
        # What a sampler has noted at its choice: CMA-ES the generation.
        return self._start(point, kinds, {}, chosen[0].system_attrs if chosen else {})

    def _kinds(self, space: Grid) -> dict[str, BaseDistribution]:
        from flgo_hydra.study.samplers import kinds_of

        if self._space is not space:
            self._declare_space(kinds_of(space))
            self._space = space
        return {name: self._distributions[name] for name in kinds_of(space)}

    def _declare_space(self, kinds: Mapping[str, BaseDistribution]) -> None:
        try:
            self._widen(*compatible(kinds, self._study.get_trials(deepcopy=False)))
        except ValueError as error:
            raise ValueError(
                f"The study {self.name!r} has other kinds of values: {error}. "
                "Choose another `hydra.sweep.dir` or `hydra.sweeper.study_name`."
            ) from error

    def _note(self, trial: Trial) -> int:
        self._trials[trial.number] = trial
        self._curves[trial.number] = {}
        return trial.number

    def follow(self, monitor: Objective) -> None:
        """Says which metric the runs follow."""
        self._monitor = monitor

    def annotate(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Sets user attributes of a trial of this process."""
        for name, value in attributes.items():
            self._trials[number].set_user_attr(name, value)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is written in the block goes to a journal in one write, at its end."""
        with contextlib.nullcontext() if self._journal is None else self._journal.together():
            yield

    def report(self, number: int, round_num: int, value: float) -> None:
        """Adds a round to the curve of a RUNNING trial of this process. A round that ran again replaces itself."""
        self._report(self._trials[number], self._curves.setdefault(number, {}), round_num, value)

    def finish(self, number: int, result: Row, rounds: Sequence[Mapping[str, float]]) -> None:
        """Closes a trial with what its run came to, and its curve.

        COMPLETE with the score of its value (the best valid_loss, or what `monitor` names),
        PRUNED when other runs were better, FAIL when it diverged.
        """
        values = {int(line["round"]): result.monitor.of(line) for line in rounds}
        attributes: dict[str, Any] = {
            "status": result.status,
            "best_round": result.best_round,
            "last_round": result.last_round,
            "seconds": result.seconds,
            "best_valid_loss": result.best_valid_loss if math.isfinite(result.best_valid_loss) else None,
            **{result.monitor.at_best(name): value for name, value in result.best.items() if math.isfinite(value)},
        }
        if result.message:
            attributes["reason"] = result.message
        self._close(
            number,
            values,
            _thinned(list(values), result.best_round or 0, result.num_rounds),
            attributes,
            result.value if result.is_valid else None,
            otherwise=TrialState.PRUNED if result.status == "pruned" else TrialState.FAIL,
            is_whole=True,
        )

    def finish_value(self, number: int, value: float) -> None:
        """Closes a trial of a job that wrote no result, with the value it returned; FAIL unless it is finite."""
        if not math.isfinite(value):
            return self.fail(number, f"the job returned {value}", status="diverged")
        self._close(number, {}, (), {}, value)

    def finish_mean(self, number: int, outcomes: Sequence[Row], curve: Mapping[int, float]) -> None:
        """Closes a trial of replicates, all of which have a value: COMPLETE with the mean."""
        values = [outcome.value for outcome in outcomes]
        mean, std = mean_and_std(values)
        scores = [self._monitor.score(value) for value in values]
        attributes: dict[str, Any] = {"status": "completed", "replicates": scores, "num_replicates": len(values)}
        if std is not None:
            attributes["std"] = std
        num_rounds = None
        if all(outcome.monitor != RETURNED for outcome in outcomes):
            attributes["best_rounds"] = [outcome.best_round for outcome in outcomes]
            attributes["seconds"] = sum(outcome.seconds or 0.0 for outcome in outcomes)
            num_rounds = outcomes[0].num_rounds
            for name in outcomes[0].best:
                metrics = [outcome.best.get(name, math.nan) for outcome in outcomes]
                if all(map(math.isfinite, metrics)):
                    attributes[self._monitor.at_best(name)] = mean_and_std(metrics)[0]
        best_round = min(curve, key=lambda r: self._monitor.rank(curve[r]), default=0)
        self._close(number, curve, _thinned(list(curve), best_round, num_rounds), attributes, mean)

    def fail(
        self,
        number: int,
        reason: str,
        rounds: Sequence[Mapping[str, float]] = (),
        status: str = "failed",
        replicates: Sequence[float | None] | None = None,
    ) -> None:
        """Closes a trial that has no value: FAIL, with the reason and the rounds it got to.

        Args:
            replicates: the values of its jobs, None for those that have none.
        """
        monitor = self._monitor
        curve = {int(line["round"]): monitor.of(line) for line in rounds if monitor.metric in line}
        scores = [None if value is None else monitor.score(value) for value in replicates or ()]
        known = {} if replicates is None else {"replicates": scores}
        attributes = {**known, "status": status, "reason": reason}
        self._close(number, curve, _thinned(list(curve), 0, None), attributes, None)

    def interrupt(self, number: int) -> None:
        """Closes a trial whose jobs were stopped before they had ended: it will be tried again."""
        self.fail(number, "the sweep was interrupted", status=INTERRUPTED)

    def _report(self, trial: Trial, told: dict[int, float], round_num: int, value: float) -> None:
        score = self._monitor.score(value) if math.isfinite(value) else math.nan
        if round_num not in told or not _is_same(told[round_num], score):
            # `Trial.report` would keep the first value, with a warning.
            self._study._storage.set_trial_intermediate_value(trial._trial_id, round_num, score)
            told[round_num] = score

    def _close(
        self,
        number: int,
        curve: Mapping[int, float],
        rounds: Iterable[int],
        attributes: Mapping[str, Any],
        value: float | None,
        otherwise: TrialState = TrialState.FAIL,
        is_whole: bool = False,
    ) -> None:
        """Ends a trial with its curve and attributes: COMPLETE with the value, or another state where there is none.

        Args:
            curve: values by round.
            rounds: those that the study keeps.
            is_whole: what was told of other rounds does not count: after a crash they came out differently, or not.
        """
        is_own = number in self._trials
        taken = self._take(number)
        if taken is None:
            return
        trial, told = taken
        score = None if value is None else self._monitor.score(value)
        is_sampled = self._sampler is not None or otherwise is TrialState.PRUNED
        with self.together():
            for round_num in (*rounds, *(told if is_whole else ())):
                self._report(trial, told, round_num, curve.get(round_num, math.nan))
            for name, attribute in attributes.items():
                trial.set_user_attr(name, plain(attribute))
            if not is_sampled:  # `Study.tell` would copy the trial, for a sampler that need not hear of it
                state, scores = (otherwise, None) if score is None else (TrialState.COMPLETE, [score])
                self._study._storage.set_trial_state_values(trial._trial_id, state, scores)
        if is_sampled:
            self._study.tell(number, score, state=otherwise if score is None else None)
        if self._journal is not None:
            self._journal.commit()
            if is_own:
                self._slim(trial._trial_id)

    def _slim(self, trial_id: int) -> None:
        """Takes from an ended trial what nobody asks for again: Optuna keeps all trials of a journal in memory.

        A sampler, also one that is asked later, may look at all of it; in a grid nobody does. What earlier calls have
        left is asked for by `stored_trials`.
        """
        trial = self._backend.get_trial(trial_id)  # Optuna's own, not a copy
        if self._space is None:
            trial.user_attrs = trial.system_attrs = trial.intermediate_values = self._nothing
            trial.datetime_start = trial.datetime_complete = None
        if trial.distributions == self._same_kinds:
            trial.distributions = self._same_kinds
        self._same_kinds = trial.distributions

    def _take(self, number: int) -> tuple[Trial, dict[int, float]] | None:
        """The trial to close and its curve: of this process, or one that a killed sweep left RUNNING; None: a storage
        that was away has closed it, and only its answer was lost."""
        trial, told = self._trials.pop(number, None), self._curves.pop(number, None)
        if trial is not None and told is not None:
            return trial, told
        # Optuna would rather have this constructor to itself, but offers no other way to a trial of another process.
        stored = self._study.get_trials(deepcopy=False)[number]
        if stored.state.is_finished():
            return None
        return Trial(self._study, stored._trial_id), dict(stored.intermediate_values)


def _stored(trial: FrozenTrial, monitor: Objective) -> StoredTrial:
    attributes = trial.user_attrs
    identity, overrides = str(attributes.get("identity", "")), tuple(attributes.get("overrides", ()))
    is_complete = trial.state == TrialState.COMPLETE
    status = str(attributes.get("status", "completed" if is_complete else "failed"))
    if "identities" in attributes:
        scores = attributes.get("replicates") or [None] * len(attributes["identities"])
        fingerprints = attributes.get("fingerprints") or attributes["identities"]
        folders = attributes.get("folders") or map(str, attributes["jobs"])
        jobs = tuple(
            StoredJob(own, int(number), tuple(lines), None if score is None else monitor.score(score), folder, numbers)
            for own, number, lines, score, folder, numbers in zip(
                *(attributes[name] for name in ("identities", "jobs", "job_overrides")),
                scores,
                folders,
                fingerprints,
                strict=True,
            )
        )
    elif identity:
        value = math.nan if status == "diverged" else None
        if is_complete and trial.value is not None:
            value = monitor.score(trial.value)
        numbers = str(attributes.get("fingerprint", ""))
        number = int(attributes.get("job", -1))
        jobs = (StoredJob(identity, number, overrides, value, str(attributes.get("folder", number)), numbers),)
    else:
        jobs = ()  # the sweep was killed before the trial said what it is
    choice = attributes.get("choice")
    status = "running" if trial.state == TrialState.RUNNING else status
    return StoredTrial(
        trial.number, identity, jobs, overrides, trial.params, status, choice, "identities" in attributes
    )


def _is_same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def stride(num_rounds: int) -> int:
    """How many rounds share one report, so that a run of so many rounds has at most `MOST_REPORTS`.

    It is known before the run, so that runs of a sweep report the same rounds, and a round is reported when it comes.
    """
    return math.ceil((num_rounds + 1) / (MOST_REPORTS - 2))  # 2: the best and the last round are added at the end


def _thinned(rounds: Sequence[int], best_round: int, num_rounds: int | None) -> list[int]:
    """At most `MOST_REPORTS` of the rounds in order, the best and the last among them."""
    if len(rounds) <= MOST_REPORTS:
        return list(rounds)
    every = stride(max(num_rounds or 0, rounds[-1]))
    starts = [r for i, r in enumerate(rounds) if i == 0 or r // every != rounds[i - 1] // every]
    return sorted({*starts, best_round, rounds[-1]})
