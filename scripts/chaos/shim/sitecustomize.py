"""Faults inside the processes of a sweep, switched on and off from outside while they run.

Python runs this module when it starts, where its folder is on PYTHONPATH. Calls that open, write, sync, rename and make
files, and the clock, go through it. What they are to do wrong stands in a page of shared memory (see `control.py`), so
that looking costs no call to the system, and a forked worker sees what its forkserver sees.

SIGUSR2 writes the stacks of all threads into a file beside the page: of a sweep that hangs it is asked where.
"""

import builtins
import faulthandler
import functools
import io
import json
import mmap
import os
import signal
import time

SIZE = 4096
_HEAD = 8
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_started_as = os.getpid()


class _Page:
    """What is to go wrong now."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)
        self._head = b""
        self._settings = {}
        self._num_met = 0

    def read(self):
        head = self._map[:_HEAD]
        if head != self._head:
            try:
                self._settings = json.loads(self._map[_HEAD:].rstrip(b"\0") or b"{}")
            except ValueError:  # its writer is at it
                return self._settings
            self._head = head
        return self._settings

    def meet(self, call, path):
        """Fails, or takes its time, as the page says of such a call.

        Args:
            path: returns what it is about; asked only where something is to go wrong.
        """
        settings = self.read()
        slow = settings.get("slow")
        if slow and call in slow["calls"] and self._is_meant(slow, path):
            time.sleep(slow["seconds"])
        fault = settings.get("fail")
        if fault and call in fault["calls"] and self._is_meant(fault, path):
            self._num_met += 1
            if self._num_met % fault["every"] == 0:
                raise OSError(fault["errno"], os.strerror(fault["errno"]), path())

    @staticmethod
    def _is_meant(what, path):
        is_job = os.getpid() != _started_as
        if what["who"] != "all" and is_job != (what["who"] == "jobs"):
            return False
        return path().startswith(what["under"])


def _named(path):
    if isinstance(path, int):
        try:
            return os.readlink(f"/proc/self/fd/{path}")
        except OSError:
            return ""
    return os.path.abspath(os.fsdecode(path))


def _put_in(page):
    def watched(name, is_about=lambda args, kwargs: True, which=0):
        function = getattr(os, name)

        @functools.wraps(function)
        def call(*args, **kwargs):
            if page.read() and len(args) > which and is_about(args, kwargs):
                page.meet(name, lambda: _named(args[which]))
            return function(*args, **kwargs)

        if function in os.supports_dir_fd:
            os.supports_dir_fd.add(call)
        setattr(os, name, call)

    for name in ("write", "fsync", "ftruncate", "mkdir"):
        watched(name)
    for name in ("replace", "rename", "link"):
        watched(name, which=1)
    watched("open", lambda args, kwargs: bool((args[1] if len(args) > 1 else kwargs.get("flags", 0)) & _WRITING))
    open_file = io.open

    @functools.wraps(open_file)
    def open_(file, mode="r", *args, **kwargs):
        if page.read() and not isinstance(file, int) and set(mode) & set("wax+"):
            page.meet("open", lambda: _named(file))
        return open_file(file, mode, *args, **kwargs)

    builtins.open = io.open = open_
    clock, clock_ns = time.time, time.time_ns
    time.time = lambda: clock() + page.read().get("clock", 0)
    time.time_ns = lambda: clock_ns() + int(page.read().get("clock", 0) * 1e9)


if "CHAOS_PAGE" in os.environ:
    _put_in(_Page(os.environ["CHAOS_PAGE"]))
    _stacks = open(os.path.join(os.path.dirname(os.environ["CHAOS_PAGE"]), f"stacks-{os.getpid()}"), "a")  # noqa: SIM115
    faulthandler.register(signal.SIGUSR2, file=_stacks, all_threads=True)
