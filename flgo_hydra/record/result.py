"""What a run comes to: one result, read back from its folder."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flgo_hydra.monitor import VALID_LOSS, Monitor
from flgo_hydra.record.files import read_json, read_json_lines, settle, write_json
from flgo_hydra.record.paths import RunPaths


@dataclass(frozen=True)
class RunResult:
    """The content of result.json."""

    status: str
    """completed, early_stopped, pruned or diverged"""
    best_valid_loss: float
    """the best valid_loss of all evaluated rounds, whatever is monitored; inf when none was finite"""
    best_round: int
    """where the monitored metric was best"""
    last_round: int
    best: dict[str, float]
    """metrics at the best round"""
    last: dict[str, float]
    """metrics at the last evaluated round"""
    seconds: float
    """training and evaluation, over all attempts"""
    peak_memory_mib: float | None
    device: str
    seed: int
    task: dict[str, Any]
    model: dict[str, Any]
    algorithm: dict[str, Any]
    option: dict[str, Any]
    versions: dict[str, str]
    fingerprint: str
    """of the config: what decides the numbers"""
    message: str = ""
    attempts: int = 1
    engine: dict[str, Any] = field(default_factory=dict)
    """how local training was computed, and why so"""
    monitor: Monitor = VALID_LOSS
    """what decided which round is best"""
    warnings: list[str] = field(default_factory=list)
    """what a reader should know of the settings: laws of the algorithm that they break, weights that are biased"""
    data_sha256: str = ""
    source: str = ""
    """what the task's source was and returned, see `federated.task.Task`"""
    """of the content of the samples and their split"""
    code: dict[str, Any] = field(default_factory=dict)
    """the user's own: `sha256` of all, `files` with the hash of each (`own_code.py`)"""

    @property
    def objective(self) -> float:
        """The monitored metric at the best round, which a sweeper minimises (or maximises, as `monitor_mode` says);
        nan for a diverged run, whose best means nothing."""
        return math.nan if self.status == "diverged" else self.monitor.value_at(self.best)

    @property
    def score(self) -> float:
        """The objective as a study minimises it: the negative of a metric that is maximised."""
        return self.monitor.score(self.objective)


def write_result(paths: RunPaths, result: RunResult) -> None:
    """Writes result.json last: where it lies, everything else of the run does, after a loss of power too."""
    settle([paths.rounds, paths.best_model, *(paths.folder / ".hydra").glob("*.yaml")])
    write_json(paths.result, asdict(result))
    paths.checkpoint.unlink(missing_ok=True)
    paths.failure.unlink(missing_ok=True)


def read_result(paths: RunPaths) -> RunResult | None:
    """Returns the folder's result, or None when the run is not finished or the file is not one of ours."""
    values = read_json(paths.result)
    if values is None:
        return None
    values = {name: value for name, value in values.items() if name in RunResult.__dataclass_fields__}
    try:
        for metrics in ("best", "last"):
            values[metrics] = {name: _number(value) for name, value in values[metrics].items()}
        values["best_valid_loss"] = math.inf if values["best_valid_loss"] is None else values["best_valid_loss"]
        return RunResult(**{**values, "monitor": Monitor.from_json(values.get("monitor"))})
    except (KeyError, TypeError, AttributeError):
        return None


def read_rounds(paths: RunPaths) -> list[dict[str, float]]:
    """Returns the evaluated rounds in order; a loss that was not finite is nan."""
    return [{name: _number(value) for name, value in line.items()} for line in read_json_lines(paths.rounds)]


@dataclass(frozen=True)
class Failure:
    """The content of failure.json: why a job failed for good."""

    kind: str
    """the exception's class, or how the process died"""
    message: str
    traceback: str = ""
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """what happened in each attempt"""
    wanted_memory_mib: int | None = None


def write_failure(paths: RunPaths, failure: Failure) -> None:
    write_json(paths.failure, asdict(failure))


def forget_failure(paths: RunPaths) -> None:
    """Removes what an earlier attempt says of its failure; a folder that cannot be used says so when it is."""
    with contextlib.suppress(OSError):
        paths.failure.unlink()


def read_failure(paths: RunPaths) -> Failure | None:
    values = read_json(paths.failure)
    if values is None:
        return None
    try:
        return Failure(**{name: value for name, value in values.items() if name in Failure.__dataclass_fields__})
    except TypeError:
        return None


def _number(value: Any) -> Any:
    return math.nan if value is None else value


def decimals(value: float) -> str:
    """Six decimals, or as many digits where the number is longer than a line."""
    return f"{value:.6e}" if 1e15 <= abs(value) < float("inf") else f"{value:.6f}"


def summarize(values: Mapping[str, float], digits: int = 4) -> str:
    """`valid_loss 0.1234, test_accuracy 0.9876`, for people."""
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in values.items())
