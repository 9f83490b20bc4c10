"""What a job returns arrives as it was, or as its text; nothing else is taken for a result."""

import json
import math
import pickle
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from flgo_hydra.launch.processes import worker
from flgo_hydra.launch.processes.returned import Arrived, Returned, pack, unpack


def returned(value, status=JobStatus.COMPLETED):
    made = JobReturn(status=status, working_dir="/somewhere", task_name="app")
    made.return_value = value
    return made


@pytest.mark.parametrize(
    "value", [None, 0.1, 1e-320, math.inf, 3, True, "a\n\u2028", [1, "b", [2.5]], {"a": {"b": None}}]
)
def test_plain_values_need_no_pickle(value):
    content = pack(returned(value), None)
    assert b"pickle" not in content
    arrived = unpack(content)
    assert arrived.value == value and type(arrived.value) is type(value) and arrived.status is JobStatus.COMPLETED
    assert arrived.working_dir == "/somewhere" and arrived.task_name == "app"


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {"a": (1,)}, frozenset([1]), 1j])
def test_others_arrive_as_they_were(value):
    assert unpack(pack(returned(value), None)).value == value


def test_an_error_arrives_with_its_class_and_its_traceback():
    try:
        raise LookupError("not there")
    except LookupError as error:
        arrived = unpack(pack(returned(error, JobStatus.FAILED), worker.describe(error)))
    assert type(arrived.value) is LookupError and arrived.status is JobStatus.FAILED
    told = "".join(getattr(arrived.value, "__notes__", [])) + repr(arrived.remote)
    assert "test_returned.py" in told  # a note, or Hydra 1.4's own record


class Leaves:
    def __reduce__(self):
        return exit, ()


def test_a_value_that_ends_its_reader_arrives_as_text(capsys):
    arrived = unpack(pack(returned(Leaves()), None))
    assert "Leaves object" in arrived.value
    content = json.loads(pack(returned((1,)), None))
    content["pickle"] = "gANjYnVpbHRpbnMKZXhpdApxAClScQEu"  # exit()
    assert unpack(json.dumps(content).encode()).value == "(1,)"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04.",
        pickle.dumps(returned(1)),
        b"[" * 100_000,
        b"[]",
        b'{"status": "DONE"}',
        b'{"status": ["COMPLETED"]}',
        b'{"status": "FAILED", "text": 3}',
    ],
)
def test_nothing_else_is_a_result(content):
    with pytest.raises(ValueError):
        unpack(content)


def test_a_failure_without_an_error_is_one():
    arrived = unpack(b'{"status": "FAILED", "text": "why"}')
    assert isinstance(arrived.value, RuntimeError) and str(arrived.value) == "why"


def test_configs_are_there_when_somebody_asks():
    config = OmegaConf.create({"lr": 0.1, "hydra": {"job": {"name": "x"}, "runtime": {"output_dir": "???"}}})
    made = Returned(pickle.dumps(config), Path("/f/0"), ["lr=0.1"], Arrived(JobStatus.COMPLETED, 2.0, "/f"))
    assert made.cfg == {"lr": 0.1} and made.return_value == 2.0
    assert made.hydra_cfg == {"hydra": {"job": {"name": "x"}, "runtime": {"output_dir": "/f/0"}}}
    assert isinstance(made, JobReturn) and made.overrides == ["lr=0.1"]
    none = Returned(b"", Path("/f/0"), [], Arrived(JobStatus.FAILED, LookupError("x")))
    assert none.cfg is None and none.hydra_cfg is None
    with pytest.raises(LookupError):
        _ = none.return_value


def test_an_error_that_is_too_large_travels_as_its_text():
    failed = returned(KeyError("x" * 2**24 + "\udc80"), JobStatus.FAILED)
    error = {"type": "KeyError", "message": "x" * 2**24 + "\udc80", "traceback": "t" * 2**24}
    packed = pack(failed, error)
    assert len(packed) < 2**20
    arrived = unpack(packed)
    assert isinstance(arrived.value, RuntimeError) and str(arrived.value).endswith("x\\udc80")
