"""What a run comes to: one result, read back from its folder and believed only if it is as it was written."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flgo_hydra import machine_errors
from flgo_hydra.objective import VALID_LOSS, Objective
from flgo_hydra.record.files import line_of, replacing, set_aside, settle, to_json, write_json
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.plain_text import make_plain
from flgo_hydra.record.schema import Defect, made_of, parse_object, parse_rounds, read_bytes

STATUSES = ("completed", "early_stopped", "pruned", "diverged")
NOT_STARTED: Literal["not_started"] = "not_started"
"""kind of a failure: the machine did not let the job start, for want of descriptors, memory, processes"""
_FORMAT = 2
"""of result.json; 1, which does not say so, may have no hash of its own"""


@dataclass(frozen=True)
class RunResult:
    """The content of result.json."""

    status: str
    """one of `STATUSES`"""
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
    monitor: Objective = VALID_LOSS
    """what decided which round is best"""
    warnings: list[str] = field(default_factory=list)
    """what a reader should know of the settings: laws of the algorithm that they break, weights that are biased"""
    data_sha256: str = ""
    """of the content of the samples and their split"""
    source: str = ""
    """what the task's source was and returned, see `federated.task.Task`"""
    code: dict[str, Any] = field(default_factory=dict)
    """the user's own: `sha256` of all, `files` with the hash of each (`own_code.py`)"""
    parts: dict[str, Any] = field(default_factory=dict)
    """what was composed with the algorithm"""

    def __post_init__(self) -> None:
        make_plain(self, "message", "engine", "warnings")

    @property
    def config(self) -> dict[str, Any]:
        """By the keys that people type; empty where it is none."""
        named = {"task": self.task, "model": self.model, "algorithm": self.algorithm, "parts": self.parts}
        return {**self.option, **named} if all(isinstance(part, dict) for part in named.values()) else {}

    @property
    def value(self) -> float:
        """The monitored metric at the best round; nan for a diverged run, whose best means nothing."""
        return math.nan if self.status == "diverged" else self.monitor.of(self.best)


def write_result(paths: RunPaths, result: RunResult) -> None:
    """Writes result.json last: where it lies, everything else of the run does, after a loss of power too."""
    settle([paths.rounds, paths.best_model, *paths.config], paths.sweep)
    rounds = read_bytes(paths.rounds)
    content = {**asdict(result), "rounds_sha256": "" if rounds is None else hashlib.sha256(rounds).hexdigest()}
    content["format"] = _FORMAT
    write_json(paths.result, {**content, "sha256": _sum(content)})
    if rounds is None and not paths.config:  # nothing that was settled has told the folder's name
        settle([paths.result], paths.sweep)
    _clear(paths)


def confirm_result(paths: RunPaths) -> None:
    """Does what `write_result` had left to do when it was killed, or its disk refused to say that all is there.

    Raises:
        CannotWrite: it refuses again.
    """
    if os.path.lexists(paths.checkpoint) or os.path.lexists(paths.failure):
        settle([paths.rounds, paths.best_model, *paths.config, paths.result], paths.sweep)
        _clear(paths)


def _clear(paths: RunPaths) -> None:
    """Removes what does not count beside a result."""
    with contextlib.suppress(OSError):
        paths.checkpoint.unlink(missing_ok=True)
        paths.failure.unlink(missing_ok=True)


def read_result(paths: RunPaths) -> RunResult | None:
    """Returns the folder's result; None where there is none, or none to be believed (`defect_of`)."""
    try:
        return _read_result(paths)
    except Defect:
        return None


def defect_of(paths: RunPaths) -> Defect | None:
    """What is wrong with the records of a run; None where nothing is.

    A result is believed if it has its types, has not been changed since it was written, and the rounds that it is of
    have not been changed either. Rounds that somebody has deleted are no defect: the result stands alone.
    """
    try:
        if _read_result(paths) is None:
            for _ in parse_rounds(paths.rounds, read_bytes(paths.rounds) or b""):
                pass
            _read_failure(paths)
    except Defect as defect:
        return defect
    return None


def _read_result(paths: RunPaths) -> RunResult | None:
    content = read_bytes(paths.result)
    if content is None:
        return None
    path, values = paths.result, parse_object(paths.result, content)
    written = values.pop("sha256", None)
    if written is not None and written != _sum(values):
        raise Defect(path, "has been changed since it was written")
    result = made_of(path, RunResult, values)
    if result.status not in STATUSES:
        raise Defect(path, f"has no `status` of ours: {result.status!r}")
    if not 0 <= result.best_round <= result.last_round:
        raise Defect(path, f"has `best_round` {result.best_round} of {result.last_round}")
    if written is None and "format" in values:
        raise Defect(path, "has been changed since it was written: it has lost its `sha256`")
    rounds = read_bytes(paths.rounds)
    if rounds is not None and values.get("rounds_sha256"):
        if hashlib.sha256(rounds).hexdigest() != values["rounds_sha256"]:
            raise Defect(paths.rounds, "has been changed since the run ended")
    if written is None:
        _check_itself(path, result, None if rounds is None else list(parse_rounds(paths.rounds, rounds)))
    if math.isnan(result.best_valid_loss):
        return replace(result, best_valid_loss=math.inf)
    return result


def _check_itself(path: Path, result: RunResult, rounds: Sequence[Mapping[str, float]] | None) -> None:
    """Checks a result without a hash against what it says itself, and against its rounds, where they are there.

    Raises:
        Defect: two things that it says cannot both be so.
    """
    num_rounds = result.option.get("num_rounds")
    if isinstance(num_rounds, int) and (
        result.last_round > num_rounds or (result.status == "completed" and result.last_round != num_rounds)
    ):
        raise Defect(path, f"is {result.status} after round {result.last_round} of {num_rounds}")
    if not rounds:
        return
    monitor, by_round = result.monitor, {line["round"]: line for line in rounds}
    best = monitor.best_of(rounds) or {}
    if rounds[-1]["round"] > result.last_round:
        raise Defect(path, f"ends in round {result.last_round}, but rounds.jsonl in {rounds[-1]['round']}")
    if result.best and _values(by_round.get(result.best_round, {}), result.best) != _values(result.best, result.best):
        raise Defect(path, f"has another `best` than round {result.best_round} in rounds.jsonl")
    if result.best and monitor.of(result.best) != monitor.of(best):
        raise Defect(path, f"has a best {monitor.metric} that is not the best in rounds.jsonl")
    lowest = VALID_LOSS.best_of(rounds)
    if lowest is not None and VALID_LOSS.of(lowest) != result.best_valid_loss:
        raise Defect(path, "has another `best_valid_loss` than rounds.jsonl")


def _values(line: Mapping[str, float], names: Iterable[str]) -> list[float | None]:
    """Of these metrics; of what is not finite, None."""
    return [line[name] if math.isfinite(line.get(name, math.nan)) else None for name in names]


def _sum(content: Mapping[str, Any]) -> str:
    text = json.dumps(to_json(content), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_rounds(paths: RunPaths) -> list[dict[str, float]]:
    """Returns the evaluated rounds in order, up to the first defect; a loss that was not finite is nan."""
    rounds: list[dict[str, float]] = []
    with contextlib.suppress(Defect):
        for line in parse_rounds(paths.rounds, read_bytes(paths.rounds) or b""):
            rounds.append(line)
    return rounds


def keep_rounds(paths: RunPaths, last_round: int) -> list[dict[str, float]]:
    """Rewrites rounds.jsonl with the rounds up to one and returns them: what is appended goes on from there."""
    kept = [line for line in read_rounds(paths) if line["round"] <= last_round]
    if paths.rounds.exists():
        with replacing(paths.rounds) as file:
            file.write(b"".join(map(line_of, kept)))
    return kept


def set_defects_aside(paths: RunPaths) -> list[str]:
    """Renames what is wrong among a run's records, so that the run can be done again; returns a line on each.

    Raises:
        OSError: a file cannot be renamed.
    """
    told = []
    while (defect := defect_of(paths)) is not None:
        told.append(f"{defect} (kept as {set_aside(defect.path).name})")
        if defect.path == paths.rounds and paths.result.exists():
            set_aside(paths.result)  # it is of those rounds
    for path in (paths.checkpoint, paths.best_model):
        if path.exists() and not path.is_file():  # it would be in the way when it is written
            told.append(f"{path.name} is no file (kept as {set_aside(path).name})")
    return told


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

    def __post_init__(self) -> None:
        make_plain(self, "kind", "message", "traceback", "attempts")

    @property
    def is_of_machine(self) -> bool:
        """Whether it says nothing of the job: the disk was full, too many files were open, or the like."""
        if self.kind == NOT_STARTED:
            return True
        # a launcher's record has the error as text, and Hydra's own writes name no file of ours
        return machine_errors.tells_of_storage(f"{self.kind}: {self.message}\n{self.traceback}")


def write_failure(paths: RunPaths, failure: Failure) -> None:
    write_json(paths.failure, asdict(failure))


def forget_failure(paths: RunPaths) -> None:
    """Removes what an earlier attempt says of its failure; a folder that cannot be used says so when it is."""
    with contextlib.suppress(OSError):
        paths.failure.unlink()


def read_failure(paths: RunPaths) -> Failure | None:
    try:
        return _read_failure(paths)
    except Defect:
        return None


def _read_failure(paths: RunPaths) -> Failure | None:
    content = read_bytes(paths.failure)
    return None if content is None else made_of(paths.failure, Failure, parse_object(paths.failure, content))


def decimals(value: float) -> str:
    """Six decimals, or as many digits where the number is longer than a line."""
    return f"{value:.6e}" if 1e15 <= abs(value) < float("inf") else f"{value:.6f}"


def summarize(values: Mapping[str, float], digits: int = 4) -> str:
    """`valid_loss 0.1234, test_accuracy 0.9876`, for people."""
    return ", ".join(f"{name} {value:.{digits}f}" for name, value in values.items())
