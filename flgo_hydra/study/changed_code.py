"""Which runs of a sweep were trained with other code of the user's than there is now.

A run's result has the hash of each file of the user's own that its config leads to (`own_code.py`), and of what its
model, algorithm and metrics were seen to read. When a sweep goes on, these are looked at again: what differs is said,
or runs again (`hydra.sweeper.rerun_changed=true`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flgo_hydra import own_code
from flgo_hydra.record.result import RunResult

_MOST_NAMED = 10


@dataclass(frozen=True, eq=False)
class RunCode:
    """The user's own code that a run was of. Runs of the same code share one."""

    content: Mapping[str, Any]
    """as result.json has it"""
    parts: Mapping[str, Any]
    """what of the run's config leads to it"""


class ChangedCode:
    """Compares runs with the code as it is now; of each combination of parts the files are read once."""

    def __init__(self) -> None:
        self._known: dict[str, RunCode] = {}
        self._now: dict[str, dict[str, str]] = {}

    def take(self, result: RunResult) -> RunCode | None:
        """The code that a run was of; None where nothing is known."""
        if "files" not in result.code:
            return None
        parts = {
            "task": {name: _only(result.task.get(name), "_target_") for name in ("source", "partition")},
            "model": _only(result.model, "_target_"),
            "algorithm": _only(result.algorithm, "_target_", "module"),
            "option": _only(result.option, "metrics", "initial_weights"),
            "parts": {name: _only(part, "_target_") for name, part in result.parts.items()},
        }
        return self._known.setdefault(json.dumps([result.code, parts]), RunCode(result.code, parts))

    def of(self, run: RunCode) -> list[str]:
        """The files that have changed since the run, or within it."""
        key = json.dumps(run.parts)
        if key not in self._now:
            self._now[key] = own_code.behind(run.parts)["files"]
        versions = [run.content, *run.content.get("before", [])]
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


def several_versions(runs: Mapping[int, RunCode]) -> str:
    """What is said where a file has changed while its sweep ran; nothing where none has.

    Args:
        runs: by number.
    """
    versions: dict[str, dict[str, list[str]]] = {}
    for number, run in sorted(runs.items(), key=lambda one: one[0]):
        for name, sha256 in {**run.content["files"], **run.content.get("reads", {})}.items():
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


def _only(part: Any, *keys: str) -> dict[str, Any] | None:
    return {key: part[key] for key in keys if key in part} if isinstance(part, Mapping) else None
