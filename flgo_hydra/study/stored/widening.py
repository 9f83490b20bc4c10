"""Lets a finished study take values of another kind, or one more category, where Optuna refuses.

Optuna lets the range of a number grow, but fixes a parameter's kind and its categories with its first trial. Which
values an axis may take is not known then: `model.activation=relu,tanh` grows by `gelu` later, and `num_steps=1,2` by
`null`. So the stored trials are told of the wider choice, and their values keep their meaning: as if the axis had had
all its values from the first trial on. Only the sweep's parent does so, before it opens the study to write.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial

from flgo_hydra.record.files import replacing
from flgo_hydra.study.space.grid import Value


def distribution(values: Sequence[Value], before: Iterable[BaseDistribution] = ()) -> BaseDistribution:
    """The distribution of an axis: a range where all values are numbers, else categories.

    Args:
        before: distributions and so values that the study has for it already.
    """
    known = list(before)
    values = [*(value for old in known for value in _values_of(old)), *values]
    is_log = any(getattr(old, "log", False) for old in known)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return IntDistribution(min(values), max(values), log=is_log)  # type: ignore[type-var, arg-type]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = float(min(values)), float(max(values))  # type: ignore[type-var, arg-type]
        return FloatDistribution(low, high, log=is_log)
    return distribution_of_categories(values)


def _values_of(old: BaseDistribution) -> Sequence[Any]:
    if isinstance(old, CategoricalDistribution):
        return old.choices
    return (old.low, old.high) if isinstance(old, IntDistribution | FloatDistribution) else ()


def distributions(
    choices: Mapping[str, Sequence[Value]], trials: Iterable[FrozenTrial]
) -> tuple[dict[str, BaseDistribution], dict[str, BaseDistribution]]:
    """Returns the distribution of each axis, and of those the ones that the stored trials have to be told of."""
    before: dict[str, dict[str, BaseDistribution]] = {name: {} for name in choices}
    values: dict[str, dict[tuple[str, Any], Any]] = {name: {} for name in choices}
    seen: set[int] = set()
    for trial in trials:
        for name, old in trial.distributions.items():
            if name not in before:
                continue
            if id(old) not in seen:
                seen.add(id(old))
                before[name][repr(old)] = old
            value = trial.params[name]
            values[name][type(value).__name__, value] = value
    found: dict[str, BaseDistribution] = {}
    changed: dict[str, BaseDistribution] = {}
    for name, new in choices.items():
        old_ones = list(before[name].values())
        numbers = [old for old in old_ones if not isinstance(old, CategoricalDistribution)]
        found[name] = distribution(new, old_ones)
        if isinstance(found[name], CategoricalDistribution) and numbers:
            # Of a range only the values that were tried become categories.
            categories = [old for old in old_ones if isinstance(old, CategoricalDistribution)]
            found[name] = distribution([*values[name].values(), *new], categories)
        if any(not _is_compatible(old, found[name]) for old in old_ones):
            changed[name] = found[name]
    return found, changed


def compatible(
    kinds: Mapping[str, BaseDistribution], trials: Iterable[FrozenTrial]
) -> tuple[dict[str, BaseDistribution], dict[str, BaseDistribution]]:
    """As `distributions`, where a sampler needs these kinds. Categories that the study has already are kept.

    Raises:
        ValueError: stored values are none of a kind.
    """
    trials = list(trials)
    found = dict(kinds)
    changed: dict[str, BaseDistribution] = {}
    for name, kind in kinds.items():
        stored = [trial for trial in trials if name in trial.distributions]
        old_ones = {repr(trial.distributions[name]): trial.distributions[name] for trial in stored}
        if all(_is_compatible(old, kind) for old in old_ones.values()):
            continue
        values = [trial.params[name] for trial in stored]
        if isinstance(kind, CategoricalDistribution):
            before = [old for old in old_ones.values() if isinstance(old, CategoricalDistribution)]
            tried = values if len(before) < len(old_ones) else []
            found[name] = distribution_of_categories(
                [*(c for old in before for c in old.choices), *tried, *kind.choices]
            )
        elif not all(_is_number_of(kind, value) for value in values):
            raise ValueError(f"`{name}` was {values[0]!r}, which is no value of {kind}")
        if any(not _is_compatible(old, found[name]) for old in old_ones.values()):
            changed[name] = found[name]
    return found, changed


def distribution_of_categories(values: Iterable[Any]) -> CategoricalDistribution:
    """Each value once; 1, 1.0 and True are three."""
    return CategoricalDistribution(list({(type(value).__name__, value): value for value in values}.values()))


def _is_number_of(kind: BaseDistribution, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = not isinstance(kind, IntDistribution) or isinstance(value, int)
    return is_number and is_whole and (value > 0 or not getattr(kind, "log", False))


def _is_compatible(old: BaseDistribution, new: BaseDistribution) -> bool:
    """Whether Optuna takes the new one beside the old one."""
    if type(old) is not type(new) or getattr(old, "log", False) != getattr(new, "log", False):
        return False
    return not isinstance(old, CategoricalDistribution) or old == new


def _translate(old_json: str, internal: float, new: BaseDistribution) -> tuple[str, float]:
    """A stored parameter under its new distribution: the same value."""
    value = json_to_distribution(old_json).to_external_repr(internal)
    if isinstance(new, CategoricalDistribution):
        # 1, 1.0 and True are equal: the index is of the value with its type
        same = [i for i, c in enumerate(new.choices) if type(c) is type(value) and c == value]
        return distribution_to_json(new), float(same[0])
    return distribution_to_json(new), float(new.to_internal_repr(value))


def widen_journal(path: Path, changed: Mapping[str, BaseDistribution]) -> None:
    """Rewrites a journal, under a temporary name first. Whoever reads it meanwhile (a dashboard) has to be reloaded."""
    with open(path, "rb") as old, replacing(path) as new:
        for line in old:
            log = json.loads(line)
            if log["op_code"] == JournalOperation.SET_TRIAL_PARAM and log["param_name"] in changed:
                log["distribution"], log["param_value_internal"] = _translate(
                    log["distribution"], log["param_value_internal"], changed[log["param_name"]]
                )
            elif log["op_code"] == JournalOperation.CREATE_TRIAL and changed.keys() & log.get("distributions", {}):
                for name in changed.keys() & log["distributions"]:
                    log["distributions"][name], log["params"][name] = _translate(
                        log["distributions"][name], log["params"][name], changed[name]
                    )
            else:
                new.write(line)
                continue
            new.write(json.dumps(log, separators=(",", ":")).encode() + b"\n")


def widen_database(url: str, study: str, changed: Mapping[str, BaseDistribution]) -> None:
    """Rewrites the parameters of one study in a database, all or none."""
    import sqlalchemy
    from optuna.storages._rdb.models import TrialModel, TrialParamModel

    storage = optuna.storages.RDBStorage(url)
    study_id = storage.get_study_id_from_name(study)
    params, trials = TrialParamModel.__table__, TrialModel.__table__
    chosen = (
        sqlalchemy.select(params.c.param_id, params.c.param_name, params.c.param_value, params.c.distribution_json)
        .join(trials, trials.c.trial_id == params.c.trial_id)
        .where(trials.c.study_id == study_id, params.c.param_name.in_(list(changed)))
    )
    update = (
        sqlalchemy.update(params)
        .where(params.c.param_id == sqlalchemy.bindparam("id"))
        .values(param_value=sqlalchemy.bindparam("value"), distribution_json=sqlalchemy.bindparam("json"))
    )
    with storage.engine.begin() as connection:
        rows = []
        for param_id, name, internal, old_json in connection.execute(chosen).all():
            text, value = _translate(old_json, internal, changed[name])
            rows.append({"id": param_id, "value": value, "json": text})
        if rows:
            connection.execute(update, rows)
    storage.engine.dispose()
