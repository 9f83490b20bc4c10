"""Null cases through the real comparison: how often a report without any true difference says that there is one.

A null case has methods and settings that all have the same expectation. It counts once if any sentence of its report
claims a difference, so the rate is of whole reports, which is at least that of each sentence.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from flgo_hydra.objective import Objective
from flgo_hydra.report.comparison import compare
from flgo_hydra.report.question import Question
from flgo_hydra.report.rows import Row
from flgo_hydra.report.runs import Run
from flgo_hydra.report.selection import Selection
from flgo_hydra.report.tables import sentences

LEVEL = 0.05
MOST = 0.06
NOTHING = {
    "no difference is larger than seed noise",
    "with one seed nobody knows which differences are larger than seed noise",
    "with two seeds nobody knows which differences are larger than seed noise",
}
"""what a report says that claims no difference; whatever else it says is counted"""


@dataclass(frozen=True)
class Null:
    """How runs of a null case come about. Deviations are of the metric; its units do not matter."""

    num_seeds: int = 5
    num_splits: int = 1
    """with more than one, replicates vary in seed and task.seed"""
    num_settings: tuple[int, ...] = (1, 1)
    """of each method"""
    num_conditions: int = 1
    correlation: float = 1.0
    """of what chooses with what is compared, within a run; 1: they are the same"""
    noise: str = "normal"
    own_seeds: bool = False
    """each split has seeds of its own, instead of the same ones"""
    most_seeds: int | None = None
    """unbalanced: split i has only 1 + i % most_seeds of the seeds"""
    split: float = 0.0
    """deviation of a method's luck with a split"""
    seed: float = 0.0
    """deviation of a method's luck with a seed, shared by all splits"""
    digits: int | None = None
    """metrics are rounded to: a small test set's accuracies"""

    @property
    def over(self) -> tuple[str, ...]:
        return ("seed", "task.seed") if self.num_splits > 1 else ("seed",)

    def levels(self) -> list[tuple[int, int]]:
        """Pairs of split and seed."""
        pairs = []
        for split in range(self.num_splits):
            count = self.num_seeds if self.most_seeds is None else 1 + split % self.most_seeds
            pairs += [(split, split * self.num_seeds * self.own_seeds + seed) for seed in range(count)]
        return pairs


def _draw(rng: np.random.Generator, noise: str, shape: tuple[int, ...]) -> np.ndarray:
    if noise == "heavy":
        return rng.standard_t(2.5, shape)
    return rng.laplace(size=shape) if noise == "laplace" else rng.standard_normal(shape)


def rate(null: Null, num_cases: int, entropy: int = 0) -> float:
    """The share of null cases in whose report some sentence claims a difference."""
    rng = np.random.default_rng([entropy, num_cases])
    levels = null.levels()
    runs, methods, splits, seeds = [], [], [], []
    for condition, method in itertools.product(range(null.num_conditions), range(len(null.num_settings))):
        for setting, (split, seed) in itertools.product(range(null.num_settings[method]), levels):
            values = {"algorithm": f"m{method}", "lr": 2.0**-setting, "task.partition.alpha": 0.1 * (1 + condition)}
            values |= {"seed": seed, "task.seed": split}
            row = Row(len(runs), (), Path(), "completed", 0.0, 1, 1, {"valid_loss": 0.0, "test_loss": 0.0})
            runs.append(Run(str(len(runs)), row, dict.fromkeys(values, ""), values))
            methods.append(condition * len(null.num_settings) + method)
            splits.append(split)
            seeds.append(seed)
    question = Question(
        Objective("test_loss@best(valid_loss)"),
        Selection(Objective("best_valid_loss")),
        (),
        null.over,
        ("algorithm",),
        ("task.partition.alpha",) if null.num_conditions > 1 else (),
    )
    shape = (num_cases, len(runs))
    test = _draw(rng, null.noise, shape)
    valid = null.correlation * test + np.sqrt(1 - null.correlation**2) * _draw(rng, null.noise, shape)
    num_methods = max(methods) + 1
    luck = null.split * _draw(rng, null.noise, (num_cases, num_methods, max(splits) + 1))[:, methods, splits]
    luck = luck + null.seed * _draw(rng, null.noise, (num_cases, num_methods, max(seeds) + 1))[:, methods, seeds]
    test, valid = test + luck, valid + luck
    if null.digits is not None:
        test, valid = test.round(null.digits), valid.round(null.digits)
    claims = 0
    for case in range(num_cases):
        for i, run in enumerate(runs):
            object.__setattr__(run.row, "best_valid_loss", float(valid[case, i]))
            run.row.best["test_loss"] = float(test[case, i])
        said = sentences(compare(runs, question), question)
        assert said
        claims += not set(said) <= NOTHING
    return claims / num_cases


NULLS = {
    "n = 2": Null(2),
    "n = 3": Null(3),
    "n = 10": Null(10),
    "four methods": Null(4, num_settings=(1, 1, 1, 1)),
    "four conditions": Null(4, num_settings=(2, 2), num_conditions=4),
    "ten settings against one": Null(5, num_settings=(10, 1)),
    "ten settings against one, n = 10": Null(10, num_settings=(10, 1)),
    "ten settings against ten": Null(6, num_settings=(10, 10), correlation=0.8),
    "two against one, n = 4": Null(4, num_settings=(2, 1)),
    "too few to choose and compare": Null(3, num_settings=(10, 1)),
    "heavy tails": Null(5, num_settings=(6, 1), noise="heavy"),
    "heavy tails, n = 3": Null(3, noise="heavy"),
    "laplace": Null(8, num_settings=(3, 1), noise="laplace", correlation=0.5),
    "splits and seeds": Null(3, 5, split=2.0),
    "splits and seeds, both with luck": Null(4, 4, split=1.0, seed=1.0),
    "luck of seeds only": Null(3, 6, seed=1.0),
    "two seeds of each of ten splits": Null(2, 10, split=1.0),
    "two seeds with luck": Null(2, 8, seed=1.0),
    "two splits": Null(8, 2, split=2.0),
    "seeds of their own": Null(4, 4, own_seeds=True, split=2.0),
    "unbalanced": Null(6, 6, own_seeds=True, most_seeds=6, split=1.0),
    "unbalanced, the same seeds": Null(4, 5, most_seeds=4, split=1.0),
    "splits, seeds and settings": Null(3, 5, num_settings=(6, 1), split=1.0),
    "splits with luck, three seeds": Null(3, 10, split=0.5, seed=1.0),
    "coarse metrics": Null(5, num_settings=(3, 3), digits=0),
    "coarse metrics, n = 3": Null(3, digits=0),
    "three methods, three conditions": Null(6, num_settings=(10, 5, 1), num_conditions=3),
}


def test_reports_without_a_difference_tell_of_none():
    """2,700 null cases over all designs; `test_each_design` looks at each of them longer."""
    rates = [rate(null, 100, i) for i, null in enumerate(NULLS.values())]
    assert sum(rates) / len(rates) <= MOST
    # A test that cannot fail would be one that never says anything.
    assert sum(rates) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NULLS)
def test_each_design(name):
    assert rate(NULLS[name], 2000) <= MOST


def test_a_difference_is_found():
    """A method that is better by two deviations is said to be so in most reports of ten seeds."""
    selection = Selection(Objective("best_valid_loss"))
    runs, question = [], Question(Objective("test_loss@best(valid_loss)"), selection, (), ("seed",), ("algorithm",))
    found = 0
    rng = np.random.default_rng(0)
    for _ in range(50):
        runs = []
        for method, lr, seed in itertools.product("ab", (0.1, 0.2), range(10)):
            value = float(rng.standard_normal()) - 2 * (method == "b") + 3 * (lr == 0.2)
            row = Row(len(runs), (), Path(), "completed", value, 1, 1, {"valid_loss": value, "test_loss": value})
            values = {"algorithm": method, "lr": lr, "seed": seed}
            runs.append(Run(str(len(runs)), row, dict.fromkeys(values, ""), values))
        said = sentences(compare(runs, question), question)
        found += any(
            s.startswith("b has a lower test_loss@best(valid_loss) than a") and "each at its best setting" in s
            for s in said
        )
    assert found >= 35
