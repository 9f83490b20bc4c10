"""Which runs of a sweep were trained with other code of the user's than there is now.

A run's result has the hash of each file of the user's own that its config leads to (`own_code.py`), and of what its
model, algorithm and metrics were seen to read. When a sweep goes on, these are looked at again: what differs is said,
or runs again (`hydra.sweeper.rerun_changed=true`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flgo_hydra import own_code
from flgo_hydra.record.result import RunResult

_MOST_NAMED = 10


class ChangedCode:
    """Compares results with the code as it is now; of each combination of parts the files are read once."""

    def __init__(self) -> None:
        self._now: dict[str, dict[str, str]] = {}

    def of(self, result: RunResult) -> list[str]:
        """The files that have changed since the run, or within it; none where nothing is known."""
        if "files" not in result.code:
            return []
        config = {"task": result.task, "model": result.model, "algorithm": result.algorithm, "option": result.option}
        option = [result.option.get(key) for key in ("metrics", "initial_weights")]
        key = repr([_targets(config["task"]), result.model.get("_target_"), result.algorithm, option])
        if key not in self._now:
            self._now[key] = own_code.behind(config)["files"]
        versions = [result.code, *result.code.get("before", [])]
        return sorted({name for code in versions for name in own_code.changed_since(code, self._now[key])})


def sentence(changed: Mapping[int, Iterable[str]], how: str) -> str:
    """What is said of jobs with other code, by number.

    Args:
        how: what to type to run them again.
    """
    names = sorted({name for files in changed.values() for name in files})
    numbers = [str(number) for number in sorted(changed)]
    jobs = f"job{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:_MOST_NAMED])}"
    if len(numbers) > _MOST_NAMED:
        jobs += f" and {len(numbers) - _MOST_NAMED} more"
    return (
        f"other code: {jobs} ran before {', '.join(names)} changed, and cannot be compared with what runs now. "
        f"To run again what has changed: {how}"
    )


def several_versions(results: Mapping[int, RunResult]) -> str:
    """What is said where a file has changed while its sweep ran; nothing where none has."""
    versions: dict[str, dict[str, list[str]]] = {}
    for number, result in sorted(results.items()):
        for name, sha256 in {**result.code.get("files", {}), **result.code.get("reads", {})}.items():
            versions.setdefault(name, {}).setdefault(sha256, []).append(str(number))
    several = {name: list(jobs.values()) for name, jobs in versions.items() if len(jobs) > 1}
    if not several:
        return ""
    name, groups = next(iter(several.items()))
    told = " and ".join(", ".join(jobs[:_MOST_NAMED]) + (" …" if len(jobs) > _MOST_NAMED else "") for jobs in groups)
    return (
        f"other code: {', '.join(several)} changed while the sweep ran: the jobs {told} are of different versions of "
        f"{name}, and cannot be compared. The same command with `hydra.sweeper.rerun_changed=true` runs the older again"
    )


def _targets(task: Mapping[str, Any]) -> list[Any]:
    parts = (task.get("source"), task.get("partition"))
    return [part.get("_target_") if isinstance(part, Mapping) else None for part in parts]
