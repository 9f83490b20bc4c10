"""What "best" means in a run: one metric, and which way it is better.

The round loop, the live table, the study, the summary, the rebuilt study, `frame()` and the reports all ask this one
value; nothing else compares two results. They speak of the metric's own values. Only Optuna hears scores, of which
less is better: `study.study` and `study.pruning`, which talk to it, turn the sign on the way.

The direction of our own metrics is known; of any other metric it is never guessed from its name: the user says it
(`monitor_mode`).
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OF_SERVER = {"valid_loss": False, "valid_accuracy": True, "test_loss": False, "test_accuracy": True}
PERSONAL = {
    f"personal_{part}_{name}{of}": name == "accuracy"
    for part in ("valid", "test")
    for name in ("loss", "accuracy")
    for of in ("", "_worst", "_worst_tenth")
}
"""of the models that clients would use themselves, on their own samples"""
KNOWN = OF_SERVER | PERSONAL
"""our metrics, and whether more of each is better"""
MODES = ("min", "max")


@dataclass(frozen=True)
class Objective:
    """The metric that decides which round, and which run, is best; options and files call it `monitor`."""

    metric: str = "valid_loss"
    is_maximized: bool = False

    @staticmethod
    def asked(metric: str, mode: str | None = None) -> "Objective":
        """As the options say it.

        Args:
            mode: min or max; None: by what is known of our own metrics.
        Raises:
            ValueError: there is no such mode, or the metric is a user's own and nobody said which way it is better.
        """
        if mode is not None and mode not in MODES:
            raise ValueError(f"`monitor_mode` must be one of {', '.join(MODES)}, but got {mode!r}.")
        if mode is None and metric not in KNOWN:
            near = difflib.get_close_matches(metric, KNOWN, n=1, cutoff=0.8)
            raise ValueError(
                f"`monitor={metric}` is none of our metrics ({', '.join(KNOWN)})"
                + (f". Did you mean `{near[0]}`? A metric of your own needs" if near else ", so it needs")
                + " the way in which it is better: `monitor_mode=min` or `monitor_mode=max`."
            )
        return Objective(metric, KNOWN[metric] if mode is None else mode == "max")

    @staticmethod
    def from_json(value: Any) -> "Objective":
        """What `dataclasses.asdict` made of one; the default of anything else."""
        is_one = isinstance(value, Mapping) and isinstance(value.get("metric"), str)
        return Objective(value["metric"], value.get("is_maximized") is True) if is_one else Objective()

    @property
    def mode(self) -> str:
        """min or max."""
        return MODES[self.is_maximized]

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value beats another. A tie does not, nor does what is not finite; any finite value beats that."""
        return math.isfinite(value) and (not math.isfinite(than) or self.score(value) < self.score(than))

    def score(self, value: float) -> float:
        """The value as a study minimises it: the negative of what is maximised. Its own inverse."""
        return -value if self.is_maximized else value

    def of(self, line: Mapping[str, float]) -> float:
        """The metric in an evaluated round; nan where it is not there."""
        return line.get(self.metric, math.nan)

    def best_of(self, rounds: Iterable[Mapping[str, float]]) -> Mapping[str, float] | None:
        """The best of the evaluated rounds, the first of equals; None where none is finite."""
        best: Mapping[str, float] | None = None
        for line in rounds:
            if self.is_better(self.of(line), math.nan if best is None else self.of(best)):
                best = line
        return best

    def rank(self, value: float) -> float:
        """A key to sort by, the best first; what is not finite comes last."""
        return self.score(value) if math.isfinite(value) else math.inf

    def at_best(self, metric: str) -> str:
        """What a metric is called where it is taken at the best round: `test_accuracy@best(valid_loss)`."""
        return f"{metric}@best({self.metric})"

    @property
    def label(self) -> str:
        """`best valid_loss`, for people."""
        return f"best {self.metric}"

    @property
    def samples(self) -> str:
        """What the metric is measured on, by its name: test, validation, training or unknown."""
        words = metric_of(self.metric).lower().replace("-", "_").split("_")
        return next((long for short, long in _SAMPLES.items() if short in words), "unknown")

    @property
    def column(self) -> str:
        """What tables call the metric itself at its best."""
        return BEST_VALID_LOSS if self == VALID_LOSS else self.at_best(self.metric)


_SAMPLES = {
    "test": "test",
    **dict.fromkeys(("valid", "validation", "val"), "validation"),
    **dict.fromkeys(("train", "training"), "training"),
}
"""by a word of the metric's name"""


def caveats(metric: str, mode: str | None) -> list[str]:
    """What somebody may not have meant: the direction of one of our metrics, turned round."""
    if metric not in KNOWN or mode is None or KNOWN[metric] == (mode == "max"):
        return []
    return [
        f"`monitor_mode={mode}` follows the worst {metric}, of which more is {'better' if KNOWN[metric] else 'worse'}. "
        "Leave `monitor_mode` out for the best."
    ]


def metric_of(column: str) -> str:
    """The metric of a column that `at_best` or `column` has named."""
    return "valid_loss" if column == BEST_VALID_LOSS else column.rpartition("@best(")[0] or column


BEST_VALID_LOSS = "best_valid_loss"
VALID_LOSS = Objective()
"""what decides unless the user says otherwise; `best_valid_loss` is its best, whatever is monitored"""
