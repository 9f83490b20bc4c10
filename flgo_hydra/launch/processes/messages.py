"""What a job may say to its launcher, checked when it arrives: a value of the wrong type or size is dropped, texts are
made plain, and what is left is as it should be. No message of a job can harm the sweep that hears it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from flgo_hydra.record.plain_text import plain, shortened

_MOST_MIB = 2**40
_LARGEST = 2**53
_MOST_OF_TYPE = 500
_MOST_OF_REASON = 2000
"""it travels on to other jobs, in their environment"""
_END_STATUSES = ("completed", "failed", "stopped", "apart")
OWN_KINDS = ("memory", "end", "unreadable")
"""what a worker says itself; an app's reports have other names"""


def parse(line: bytes) -> dict[str, Any] | None:
    """The message that a line holds, checked, or None."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):  # half of a line, a stranger's bytes
        return None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        return None
    checks = _CHECKS.get(message["kind"], {})
    try:
        checked = {key: plain(value) for key, value in message.items() if key not in checks or checks[key](value)}
    except RecursionError:
        return None
    if checked["kind"] == "end":
        if "status" not in checked:
            return None
        checked["error"] = _error(checked.get("error"))
        if "why" in checked:
            checked["why"] = shortened(checked["why"], _MOST_OF_REASON)
    return checked


def _is_memory(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_MIB


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def _is_value(value: Any) -> bool:
    """A metric: it may be nan or infinite, as a loss of a diverged run is."""
    return value is None or (isinstance(value, int | float) and (isinstance(value, float) or abs(value) < _LARGEST))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_value, value.values()))


def _error(value: Any) -> dict[str, Any] | None:
    """Type, message, traceback and causes of an exception, as texts."""
    if not isinstance(value, Mapping):
        return None
    told: dict[str, Any] = {key: shortened(str(value.get(key) or "")) for key in ("type", "message", "traceback")}
    told["type"] = shortened(told["type"], _MOST_OF_TYPE)
    chain = value.get("chain")
    pairs = [pair for pair in chain if isinstance(pair, list) and len(pair) == 2] if isinstance(chain, list) else []
    told["chain"] = [(shortened(str(name), _MOST_OF_TYPE), shortened(str(text))) for name, text in pairs[:16]]
    return told


_CHECKS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "memory": {"memory_mib": _is_memory, "context_mib": _is_memory},
    "round": {
        "round": _is_count,
        "num_rounds": _is_count,
        "best": _is_value,
        "best_round": _is_count,
        "monitor": lambda value: isinstance(value, dict),
        "metrics": _is_metrics,
    },
    "end": {
        "status": lambda value: value in _END_STATUSES,
        "has_heeded_stop": _is_flag,
        "has_heeded_prune": _is_flag,
        "why": lambda value: isinstance(value, str),
    },
}
