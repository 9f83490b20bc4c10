"""What an end means, and whether another attempt follows: tables over values."""

import signal

import pytest

from flgo_hydra.launch.failures import Attempt, End, Failure, Retry, classify, decide, wanted_mib

KILL = -signal.SIGKILL


def error(type_name, message="", chain=()):
    return {"type": type_name, "message": message, "traceback": "…", "chain": [(type_name, message), *chain]}


@pytest.mark.parametrize(
    "end, kind",
    [
        (End(status=0, is_complete=True), None),
        (End(status=-11, is_complete=True), None),  # died after it had told its result
        (End(status=KILL, is_complete=True, ended_for="timeout"), None),
        (End(status=0), "crashed"),
        (End(status=3), "crashed"),
        (End(status=None, note="cannot fork"), "crashed"),
        (End(status=-11), "killed"),
        (End(status=KILL), "killed"),
        (End(status=KILL, has_kernel_killed=True), "out_of_memory"),
        (End(status=KILL, has_kernel_killed=True, is_on_cpu=False), "killed"),
        (End(status=KILL, peak_mib=910, total_mib=1000), "out_of_memory"),
        (End(status=KILL, peak_mib=890, total_mib=1000), "killed"),
        (End(status=KILL, peak_mib=910, total_mib=None), "killed"),
        (End(status=-11, peak_mib=910, total_mib=1000), "killed"),
        (End(status=1, error=error("ValueError", "bad")), "error"),
        (End(status=1, error=error("MemoryError")), "out_of_memory"),
        (End(status=1, error=error("numpy._core._exceptions._ArrayMemoryError", "Unable…")), "out_of_memory"),
        (End(status=1, error=error("torch.OutOfMemoryError", "CUDA out of memory. Tried…")), "out_of_memory"),
        (End(status=1, error=error("RuntimeError", "CUDA error: out of memory")), "out_of_memory"),
        (End(status=1, error=error("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when…")), "out_of_memory"),
        (End(status=1, error=error("RuntimeError", "DefaultCPUAllocator: can't allocate memory")), "out_of_memory"),
        (End(status=1, error=error("OSError", "[Errno 12] Cannot allocate memory")), "out_of_memory"),
        (End(status=1, error=error("RuntimeError", "wrapped", [("MemoryError", "")])), "out_of_memory"),
        (End(status=143, ended_for="timeout"), "timeout"),
        (End(status=1, ended_for="timeout", error=error("ValueError")), "timeout"),
        (End(status=143, ended_for="cancelled"), "cancelled"),
        (End(status=1, ended_for="stopped", error=error("ValueError")), "error"),
        (End(status=130, ended_for="stopped", has_heeded_stop=True), "stopped"),
        (End(status=0, is_complete=True, ended_for="stopped", has_heeded_stop=True), "stopped"),
        (End(status=0, is_complete=True, ended_for="stopped"), None),  # it was done before it was asked
    ],
)
def test_classify(end, kind):
    failure = classify(end)
    assert (failure.kind if failure else None) == kind


@pytest.mark.parametrize(
    "message, peak_mib, wanted",
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has…", 100, 120),
        ("CUDA out of memory. Tried to allocate 1.50 GiB.", None, 1536),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1048576 bytes. Error", 10, 11),
        ("Unable to allocate 7.45 GiB for an array with shape (1000000000,)", 0, 7629),
        ("", 10, 10),
        ("", None, None),
    ],
)
def test_wanted_memory(message, peak_mib, wanted):
    assert wanted_mib(message, peak_mib) == wanted


def attempt(kind, number=1, **values):
    message = values.pop("message", kind)
    failure = Failure(kind, message, wanted_mib=values.pop("wanted_mib", None))
    return Attempt(number, "cpu", "log", failure=failure, **values)


OOM, KILLED, ERROR = "out_of_memory", "killed", "error"


@pytest.mark.parametrize(
    "attempts, retry",
    [
        # out of memory: larger, alone, no more
        ([attempt(OOM, reserved_mib=1000)], Retry(memory_mib=1300)),
        ([attempt(OOM, reserved_mib=1000, peak_mib=2000)], Retry(memory_mib=2000)),
        ([attempt(OOM, reserved_mib=1000, peak_mib=900, wanted_mib=1900)], Retry(memory_mib=1900)),
        ([attempt(OOM, peak_mib=1000)], Retry(memory_mib=1300)),
        ([attempt(OOM)], Retry(alone=True)),  # nothing is known: nothing can be enlarged
        ([attempt(OOM), attempt(OOM, reserved_mib=1000)], Retry(memory_mib=1300, alone=True)),
        ([attempt(OOM), attempt(OOM), attempt(OOM, reserved_mib=1000)], None),
        ([attempt(OOM, reserved_mib=1000, alone=True)], None),
        # killed and crashed: with backoff, so many times; out of memory does not count
        ([attempt(KILLED)], Retry(2.0)),
        ([attempt(KILLED), attempt("crashed")], Retry(4.0)),
        ([attempt(KILLED), attempt("crashed"), attempt(KILLED)], None),
        ([attempt(OOM), attempt(KILLED)], Retry(2.0)),
        ([attempt(OOM), attempt(KILLED, alone=True)], Retry(2.0, alone=True)),
        # a Python error: not in the first round, nor the same one again
        ([attempt(ERROR)], None),
        ([attempt(ERROR, round=0)], None),
        ([attempt(ERROR, round=1)], Retry(2.0)),
        ([attempt(ERROR, round=5), attempt(ERROR, round=5)], None),
        ([attempt(ERROR, round=5), attempt(ERROR, round=6)], Retry(4.0)),
        ([attempt(ERROR, round=5), attempt(ERROR, round=5, message="another")], Retry(4.0)),
        ([attempt(ERROR, message="RuntimeError: CUDA error: unspecified launch failure")], Retry(2.0)),
        ([attempt(ERROR, message="RuntimeError: CUDA error: device-side assert triggered")], None),
        # by request
        ([attempt("timeout")], None),
        ([attempt("cancelled")], None),
        ([attempt("stopped")], None),
    ],
)
def test_decide(attempts, retry):
    assert decide(attempts, max_retries=2, backoff_s=2.0) == retry


def test_backoff_has_a_ceiling():
    assert decide([attempt(KILLED)] * 30, max_retries=99, backoff_s=2.0).after_s == 600
