"""What a job returns, as it travels from its process, and as Hydra's sweepers are given it.

It is a text of known keys, checked when it arrives. What Python's numbers, texts and lists can say is said by them;
another value (an exception, an object of the user's) travels as a pickle beside its text, which stands for it where it
cannot be read. What the launcher knows itself, the config and the overrides, does not travel.
"""

import base64
import contextlib
import copy
import json
import pickle
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, flag_override

from flgo_hydra.record.plain_text import shortened, shown

_STATUSES = (JobStatus.COMPLETED.name, JobStatus.FAILED.name)
_MOST_OF_ERROR = 2**20
"""bytes of an exception that travels as itself: the launcher keeps those of a whole sweep"""


@dataclass(frozen=True)
class Arrived:
    """What has come from a job's process."""

    status: JobStatus
    value: Any
    working_dir: str = ""
    """empty: its folder"""
    task_name: str | None = None
    remote: dict[str, Any] = field(default_factory=dict)
    """what Hydra 1.4 has noted of an exception, to show it as it was raised; attributes of its `JobReturn`"""


def pack(returned: JobReturn, error: dict[str, Any] | None) -> bytes:
    """A job's end, as text.

    Args:
        error: what is known of the exception that it failed with.
    """
    value, name = returned._return_value, returned.status.name
    if error is not None:
        text, traceback = f"{error['type']}: {error['message']}", error["traceback"]
        if getattr(returned, "_remote_traceback", None) is None:  # Hydra 1.4 carries the traceback itself
            with contextlib.suppress(Exception):
                value.add_note("In the worker:\n" + traceback)
        name = JobStatus.FAILED.name
    else:
        text, traceback = shown(value), ""
    content = {"status": name, "working_dir": returned.working_dir, "task_name": returned.task_name}
    content |= {"traceback": shortened(traceback)}
    if error is None and _is_plain(value):
        content["value"] = value
    else:
        content |= {"text": shortened(text), "pickle": _pickled(value) if error is None else _pickled_error(returned)}
        if error is None and content["pickle"] is None:
            kind = type(value).__qualname__
            print(f"The return value, a {kind}, cannot be pickled: the sweeper gets its text.", file=sys.stderr)
    return json.dumps(content).encode()


def unpack(content: bytes) -> Arrived:
    """The same, checked.

    Raises:
        ValueError: it is nothing that `pack` has written.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(values, dict) or values.get("status") not in _STATUSES:
        raise ValueError("it has no status")
    for key in ("working_dir", "task_name", "traceback", "text", "pickle"):
        if not isinstance(values.get(key), str | None):
            raise ValueError(f"its `{key}` is no text")
    status = JobStatus[values["status"]]
    value, remote = values.get("value"), {}
    if status is JobStatus.FAILED:
        bare = _read(values) if values.get("pickle") else None
        if isinstance(bare, JobReturn):
            value = bare._return_value
            remote = {name: given for name, given in vars(bare).items() if name.startswith("_remote_")}
        if not isinstance(value, BaseException):
            value = RuntimeError(values.get("text") or "the job failed")
            if values.get("traceback"):
                value.add_note("In the worker:\n" + values["traceback"])
    elif "value" not in values:
        value = _read(values) if values.get("pickle") else values.get("text")
    return Arrived(status, value, values.get("working_dir") or "", values.get("task_name"), remote)


class Returned(JobReturn):
    """What Hydra's sweepers expect of an ended job. Its configs are read when somebody asks for them: a sweep has ten
    thousand of these, and each config is a quarter of a MiB."""

    def __init__(self, config: bytes, folder: Path, overrides: Sequence[str], arrived: Arrived) -> None:
        """Args:
        config: the job's, with Hydra's node, pickled; empty: it was never composed.
        folder: where it ran.
        """
        self._config = zlib.compress(config, 1)
        self._folder = str(folder)
        self.status = arrived.status
        self.return_value = arrived.value
        self.working_dir = arrived.working_dir or self._folder
        self.overrides = list(overrides)
        self.task_name = arrived.task_name
        vars(self).update(arrived.remote)

    @property
    def cfg(self) -> DictConfig | None:  # type: ignore[override]
        """The job's config, without Hydra's node."""
        config = self._read()
        if config is not None:
            with flag_override(config, ["readonly", "struct"], [False, False]):
                del config["hydra"]
        return config

    @property
    def hydra_cfg(self) -> DictConfig | None:  # type: ignore[override]
        """Hydra's node of it."""
        config = self._read()
        return None if config is None else OmegaConf.masked_copy(config, ["hydra"])

    def _read(self) -> DictConfig | None:
        content = zlib.decompress(self._config)
        if not content:
            return None
        config: DictConfig = pickle.loads(content)
        runtime = OmegaConf.select(config, "hydra.runtime")
        if runtime is not None:  # as Hydra has it in the job
            with flag_override(runtime, ["readonly", "struct"], [False, False]):
                runtime.output_dir = self._folder
        return config


def _pickled_error(returned: JobReturn) -> str | None:
    content = _pickled(_bare(returned))
    return content if content is not None and len(content) <= _MOST_OF_ERROR else None


def _bare(returned: JobReturn) -> JobReturn:
    """A failed job's return without what does not travel; how its exception is pickled is Hydra's to know."""
    bare = copy.copy(returned)
    bare.cfg = bare.hydra_cfg = bare.overrides = None
    return bare


def _read(values: dict[str, Any]) -> Any:
    try:
        return pickle.loads(base64.b64decode(values["pickle"]))
    except (Exception, SystemExit):  # a class that is not here, or whose own code fails
        return values.get("text")


def _pickled(value: Any) -> str | None:
    try:
        content = pickle.dumps(value)
        pickle.loads(content)
    except (Exception, SystemExit):
        return None
    return base64.b64encode(content).decode()


def _is_plain(value: Any) -> bool:
    """Whether JSON gives back the very value."""
    if type(value) in (list, dict):
        with contextlib.suppress(RecursionError):
            if type(value) is dict:
                return all(type(key) is str and _is_plain(one) for key, one in value.items())
            return all(map(_is_plain, value))
        return False
    return value is None or type(value) in (bool, int, float, str)
