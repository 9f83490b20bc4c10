"""What may befall a sweep: one class for each kind of misfortune, and the table of them all.

A misfortune strikes while the sweep runs (`running`), between two commands (`rest`), or is there when a command starts
(`start`). Some last: they are asked whether they are over, and undone when they are, or when the command has ended.
"""

import errno
import fcntl
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import watching
from control import Control
from sweeps import DATABASE, Sweep


@dataclass
class World:
    """A sweep, and what can be reached of it."""

    sweep: Sweep
    home: Path
    """where the command is typed"""
    folder: Path
    """of the sweep"""
    control: Control
    rng: random.Random
    mark: str
    start: Callable[[], "subprocess.Popen[bytes]"]
    """gives the same command a second time, beside the first"""
    parent: int = 0
    terminal: int | None = None
    """what is to be closed for the output to have nobody who reads it"""
    touched: set[str] = field(default_factory=set)
    """run folders whose records were damaged: they may run again"""
    is_forgetful: bool = False
    """the study, or runs of it, were taken away"""
    damaged: list[Path] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    """troubles that a misfortune itself sees"""

    @property
    def cache(self) -> Path:
        return self.home / "cache" / "flgo_hydra"

    @property
    def temporary(self) -> Path:
        return self.home / "tmp"

    def pids(self, role: str) -> list[int]:
        roles = watching.by_role(self.mark, self.parent)
        return [pid for pids in roles.values() for pid in pids] if role == "all" else roles[role]

    def send(self, pid: int, number: int) -> bool:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True


class Misfortune:
    """Something that goes wrong.

    Attributes:
        moments: when it can strike.
        output: where the command's output has to go for it: file, pipe, terminal.
        most_s: how long it lasts, at most, where it lasts.
    """

    moments: tuple[str, ...] = ("running",)
    output = "file"
    most_s = 0.0

    def strike(self, world: World) -> str | None:
        """Does it; returns what was done, or None where there is nothing to do it to (yet)."""
        raise NotImplementedError

    def undo(self, world: World) -> None:
        """Puts the world right."""


class Signal(Misfortune):
    def __init__(self, name: str, role: str) -> None:
        self.name, self.role = name, role

    def strike(self, world: World) -> str | None:
        pids = world.pids(self.role)
        chosen = pids if self.role == "all" else [world.rng.choice(pids)] if pids else []
        sent = [pid for pid in chosen if world.send(pid, getattr(signal, f"SIG{self.name}"))]
        return f"SIG{self.name} to {self.role} {sent}" if sent else None


class TwoInterrupts(Misfortune):
    def strike(self, world: World) -> str | None:
        for _ in range(2):
            world.send(world.parent, signal.SIGINT)
        return "SIGINT twice"


class Stopped(Misfortune):
    """A process stands still for a while."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._stopped: list[int] = []

    def strike(self, world: World) -> str | None:
        pids = world.pids(self.role)
        chosen = pids if self.role == "all" else [world.rng.choice(pids)] if pids else []
        self._stopped = [pid for pid in chosen if world.send(pid, signal.SIGSTOP)]
        self.most_s = world.rng.choice((0.5, 3.0, 8.0))
        return f"{self.role} {self._stopped} stopped for {self.most_s} s" if self._stopped else None

    def undo(self, world: World) -> None:
        for pid in self._stopped:
            world.send(pid, signal.SIGCONT)


class ServerStoppedParentKilled(Misfortune):
    """The forkserver cannot see that its parent is gone."""

    def strike(self, world: World) -> str | None:
        servers = world.pids("server")
        for pid in servers:
            world.send(pid, signal.SIGSTOP)
        return "forkserver stopped, parent killed" if servers and world.send(world.parent, signal.SIGKILL) else None


class Fails(Misfortune):
    """Calls that write fail (or each third of them)."""

    WRITING = ("write", "fsync", "open", "mkdir", "replace", "rename", "link")

    def __init__(self, name: str, who: str, calls: tuple[str, ...] = WRITING, where: str = "") -> None:
        self.name, self.who, self.calls, self.where = name, who, calls, where

    def strike(self, world: World) -> str | None:
        self.most_s = world.rng.choice((0.3, 2.0, 6.0))
        every = world.rng.choice((1, 1, 3))
        under = str(world.folder / self.where)
        number = getattr(errno, self.name)
        fault = {"errno": number, "calls": self.calls, "who": self.who, "under": under, "every": every}
        world.control.set("fail", fault)
        return f"{self.name} for {self.who} under {under}, each {every}., for {self.most_s} s"

    def undo(self, world: World) -> None:
        world.control.set("fail", None)


class DiskStaysFull(Fails):
    """Until the command has ended: it has to end by itself."""

    def __init__(self) -> None:
        super().__init__("ENOSPC", "all")

    def strike(self, world: World) -> str | None:
        told = super().strike(world)
        self.most_s = 300.0
        return f"{told} and on"


class SlowDisk(Misfortune):
    most_s = 20.0

    def strike(self, world: World) -> str | None:
        seconds = world.rng.choice((0.02, 0.2, 1.0))
        calls = world.rng.choice((["fsync"], ["fsync", "replace", "open"], ["fsync", "write", "replace"]))
        seconds = min(seconds, 0.05) if "write" in calls else seconds
        slow = {
            "seconds": seconds,
            "calls": calls,
            "who": world.rng.choice(("parent", "all")),
            "under": str(world.home),
        }
        world.control.set("slow", slow)
        return f"{calls} take {seconds} s"

    def undo(self, world: World) -> None:
        world.control.set("slow", None)


class ClockJumps(Misfortune):
    moments = ("running", "rest")
    most_s = 300.0

    def strike(self, world: World) -> str | None:
        seconds = world.rng.choice((3600.0, -3600.0, 10 * 365 * 86400.0, -20 * 365 * 86400.0, 0.5, -0.5))
        world.control.set("clock", seconds)
        return f"the clock jumps by {seconds} s"  # and stays there: also for the next command


class Limit(Misfortune):
    """The kernel's own refusal: a limit that a living process gets."""

    def __init__(self, name: str, role: str) -> None:
        self.name, self.role = name, role
        # What it says must not go into a file that may not grow.
        self.output = "pipe" if name == "FSIZE" else "file"
        self._before: dict[int, tuple[int, int]] = {}

    def strike(self, world: World) -> str | None:
        self._before = {}
        self.most_s = world.rng.choice((0.3, 2.0, 6.0))
        number = getattr(resource, f"RLIMIT_{self.name}")
        for pid in world.pids(self.role):
            try:
                soft = self._limit(pid)
                self._before[pid] = resource.prlimit(pid, number)
                resource.prlimit(pid, number, (soft, self._before[pid][1]))
            except OSError:
                continue
        return f"RLIMIT_{self.name} for {self.role} {list(self._before)} for {self.most_s} s" if self._before else None

    def _limit(self, pid: int) -> int:
        if self.name == "NOFILE":
            return len(os.listdir(f"/proc/{pid}/fd")) + 1
        if self.name in ("AS", "DATA"):
            wanted = "VmSize" if self.name == "AS" else "VmData"
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith(wanted)) * 1024
        return 1  # of CPU time, of a file's size

    def undo(self, world: World) -> None:
        number = getattr(resource, f"RLIMIT_{self.name}")
        others = watching.marked(world.mark) if self.role != "parent" else []  # children have inherited it
        before = next(iter(self._before.values()), None)
        for pid in {*self._before, *(one.pid for one in others)}:
            try:
                resource.prlimit(pid, number, self._before.get(pid, before))
            except OSError:
                continue


class DatabaseLocked(Misfortune):
    """Another process writes in the database, and takes its time."""

    moments = ("running", "start")

    def __init__(self, most_s: float) -> None:
        self._wanted_s = most_s
        self._holder: sqlite3.Connection | None = None

    def strike(self, world: World) -> str | None:
        path = world.home / DATABASE
        if not world.sweep.is_database or not path.exists():
            return None
        self._holder = sqlite3.connect(path, timeout=5, isolation_level=None)
        try:
            self._holder.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            self._holder.close()
            return None
        self.most_s = self._wanted_s
        return f"the database is locked for {self.most_s} s"

    def undo(self, world: World) -> None:
        if self._holder is not None:
            self._holder.execute("ROLLBACK")
            self._holder.close()
            self._holder = None


class Damaged(Misfortune):
    """A file is cut, emptied, changed in one place, filled up, replaced by a folder, or removed."""

    moments = ("rest",)
    HOW = ("cut", "emptied", "byte", "digit", "appended", "folder", "removed")

    def __init__(self, pattern: str, how: tuple[str, ...] = HOW, moments: tuple[str, ...] = ("rest",)) -> None:
        self.pattern, self.how, self.moments = pattern, how, moments

    def strike(self, world: World) -> str | None:
        paths = sorted(path for path in world.folder.glob(self.pattern) if path.is_file())
        if not paths:
            return None
        path = world.rng.choice(paths)
        how = world.rng.choice(self.how)
        damage(path, how, world.rng)
        world.damaged.append(path)
        name = str(path.relative_to(world.folder))
        if "/" in name and path.name in ("result.json", "rounds.jsonl", "best_model.safetensors", "config.yaml"):
            world.touched.add(name.partition("/")[0])
        if "/" in name or path.name in ("study.journal", "multirun.yaml"):
            world.is_forgetful = True
        return f"{name} {how}"


def damage(path: Path, how: str, rng: random.Random) -> None:
    """Does one thing to a file."""
    content = path.read_bytes()
    at = rng.randrange(len(content)) if content else 0
    if how == "cut":
        path.write_bytes(content[:at])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "byte":
        path.write_bytes(content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :])
    elif how == "digit":
        places = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
        if places:
            i = rng.choice(places)
            path.write_bytes(content[:i] + bytes([48 + (content[i] - 47) % 10]) + content[i + 1 :])
    elif how == "appended":
        path.write_bytes(content + rng.choice((b"{", b"garbage\n", b"\0" * 100)))
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        assert how == "removed"
        path.unlink()


class RunRemoved(Misfortune):
    moments = ("rest", "running")

    def strike(self, world: World) -> str | None:
        runs = sorted(path.parent for path in world.folder.glob("*/.hydra"))
        if not runs:
            return None
        run = world.rng.choice(runs)
        shutil.rmtree(run, ignore_errors=True)
        world.touched.add(run.name)
        world.is_forgetful = True
        return f"run folder {run.name} removed"


class RecordRemoved(Misfortune):
    """A run's .hydra folder."""

    moments = ("rest", "running")

    def strike(self, world: World) -> str | None:
        folders = sorted(world.folder.glob("*/.hydra"))
        if not folders:
            return None
        chosen = world.rng.choice(folders)
        shutil.rmtree(chosen, ignore_errors=True)
        world.touched.add(chosen.parent.name)
        world.is_forgetful = True
        return f"{chosen.parent.name}/.hydra removed"


class DatabaseDamaged(Misfortune):
    moments = ("rest",)

    def __init__(self, how: str) -> None:
        self.how = how

    def strike(self, world: World) -> str | None:
        path = world.home / DATABASE
        if not path.exists():
            return None
        damage(path, self.how, world.rng)
        for beside in world.home.glob(f"{DATABASE}-*"):  # what its log has would be put back
            beside.unlink()
        world.damaged.append(path)
        world.is_forgetful = True
        return f"{DATABASE} {self.how}"


class MovedAway(Misfortune):
    """The folder (a mount, say) is not there for a moment."""

    def __init__(self) -> None:
        self._aside: Path | None = None

    def strike(self, world: World) -> str | None:
        if not any(world.folder.glob("*/rounds.jsonl")):
            return None
        self.most_s = world.rng.choice((0.1, 1.0, 4.0))
        self._aside = world.home / "away"
        os.rename(world.folder, self._aside)
        return f"the sweep's folder is away for {self.most_s} s"

    def undo(self, world: World) -> None:
        if self._aside is not None:
            # What was made in its place meanwhile lies below the mount, unseen.
            if world.folder.exists():
                os.rename(world.folder, world.home / f"below-{time.monotonic_ns()}")
                world.is_forgetful = True  # the study may have a trial of a run that ended there
            os.rename(self._aside, world.folder)
            self._aside = None


class Closed(Misfortune):
    """Nobody reads the output any more."""

    def __init__(self, output: str) -> None:
        self.output = output

    def strike(self, world: World) -> str | None:
        if world.terminal is None:
            return None
        os.close(world.terminal)
        world.terminal = None
        return f"its {self.output} is closed"


class Cache(Misfortune):
    """Files that this machine keeps for all sweeps are damaged."""

    moments = ("rest", "running")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def strike(self, world: World) -> str | None:
        paths = sorted(path for path in world.cache.glob(self.pattern) if path.is_file())
        if not paths:
            return None
        path = world.rng.choice(paths)
        how = world.rng.choice(("cut", "emptied", "byte", "appended", "removed"))
        damage(path, how, world.rng)
        return f"{path.name} of the cache {how}"


class CacheRemoved(Misfortune):
    moments = ("rest", "running")

    def strike(self, world: World) -> str | None:
        shutil.rmtree(world.cache, ignore_errors=True)
        return "the cache removed"


class LockHolder(Misfortune):
    """A process that has a lock, and was stopped."""

    moments = ("start", "running")

    def __init__(self, name: str, most_s: float) -> None:
        self.name, self._wanted_s = name, most_s
        self._files: list[Any] = []

    def strike(self, world: World) -> str | None:
        paths = sorted(world.cache.glob(self.name)) or ([] if "*" in self.name else [world.cache / self.name])
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a")  # noqa: SIM115  # held until it is over
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            self._files.append(file)
        self.most_s = self._wanted_s
        return f"{self.name} held for {self.most_s} s" if self._files else None

    def undo(self, world: World) -> None:
        while self._files:
            self._files.pop().close()


class SecondParent(Misfortune):
    """The same command is given beside the first."""

    most_s = 120.0

    def __init__(self, is_stopped: bool) -> None:
        self.is_stopped = is_stopped
        self._second: subprocess.Popen[bytes] | None = None

    def strike(self, world: World) -> str | None:
        if not world.folder.exists():
            return None
        if self.is_stopped and not world.send(world.parent, signal.SIGSTOP):
            return None
        self._second = world.start()
        try:
            told, _ = self._second.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            self._second.kill()
            told, _ = self._second.communicate()
            world.found.append("hang: the second command did not end in 90 s")
        text = told.decode(errors="replace")
        has_met = watching.by_role(world.mark, world.parent)["server"] or self.is_stopped
        if self._second.returncode == 0 and has_met and not (world.folder / "best.yaml").exists():
            world.found.append("second: it ended with status 0 beside the first")
        if self._second.returncode not in (0, None) and "is in use by the sweep of process" not in text:
            world.found.append(f"second: it did not say that the folder is in use, but: {text[-300:]}")
        self.most_s = 0.0
        return f"the same command beside{' a stopped one' if self.is_stopped else ''} ({self._second.returncode})"

    def undo(self, world: World) -> None:
        if self.is_stopped:
            world.send(world.parent, signal.SIGCONT)


class TemporaryGone(Misfortune):
    moments = ("running", "start")

    def strike(self, world: World) -> str | None:
        shutil.rmtree(world.temporary, ignore_errors=True)
        self.most_s = 300.0
        return "TMPDIR removed"

    def undo(self, world: World) -> None:
        world.temporary.mkdir(exist_ok=True)


class FewDescriptors(Misfortune):
    """A shell with a low limit."""

    moments = ("start",)
    limits: ClassVar[dict[int, int]] = {resource.RLIMIT_NOFILE: 40}
    most_s = 300.0

    def strike(self, world: World) -> str | None:
        return f"ulimit -n {self.limits[resource.RLIMIT_NOFILE]}"


class ChildOfNobody(Misfortune):
    """The parent is killed while a worker is stopped."""

    def strike(self, world: World) -> str | None:
        workers = world.pids("worker")
        for pid in workers:
            world.send(pid, signal.SIGSTOP)
        return "workers stopped, parent killed" if workers and world.send(world.parent, signal.SIGKILL) else None


def _kinds() -> dict[str, Callable[[], Misfortune]]:
    kinds: dict[str, Callable[[], Misfortune]] = {}
    for name in ("KILL", "TERM", "INT", "HUP", "QUIT", "SEGV", "ABRT", "PIPE", "USR1", "XCPU", "ALRM"):
        for role in ("parent", "server", "worker"):
            kinds[f"SIG{name} to {role}"] = lambda name=name, role=role: Signal(name, role)
    for name in ("KILL", "TERM", "INT", "HUP"):
        kinds[f"SIG{name} to all"] = lambda name=name: Signal(name, "all")
    for role in ("parent", "server", "worker", "all"):
        kinds[f"{role} stopped for a while"] = lambda role=role: Stopped(role)
    for name in ("ENOSPC", "EIO", "EDQUOT"):
        for who in ("parent", "jobs", "all"):
            kinds[f"{name} for {who}"] = lambda name=name, who=who: Fails(name, who)
    for role in ("parent", "server", "worker"):
        kinds[f"no descriptors for {role}"] = lambda role=role: Limit("NOFILE", role)
        kinds[f"no file may grow for {role}"] = lambda role=role: Limit("FSIZE", role)
    for pattern in ("*/result.json", "*/rounds.jsonl", "*/checkpoint.pt", "study.journal"):
        kinds[f"{pattern} damaged"] = lambda pattern=pattern: Damaged(pattern)
        kinds[f"{pattern} removed"] = lambda pattern=pattern: Damaged(pattern, ("removed",), ("rest", "running"))
    for pattern in ("multirun.yaml", "results.csv", "best.yaml", "curves.png", "*/.hydra/*.yaml", "*/attempt-*.log"):
        kinds[f"{pattern} damaged"] = lambda pattern=pattern: Damaged(pattern)
    return kinds | {
        "SIGINT twice": TwoInterrupts,
        "forkserver stopped, parent killed": ServerStoppedParentKilled,
        "workers stopped, parent killed": ChildOfNobody,
        "the disk stays full": DiskStaysFull,
        "read-only": lambda: Fails("EROFS", "all", ("open", "mkdir", "replace", "rename", "link")),
        "the journal read-only": lambda: Fails("EROFS", "parent", ("open", "write"), "study.journal"),
        "slow disk": SlowDisk,
        "the clock jumps": ClockJumps,
        "little memory for workers": lambda: Limit("AS", "worker"),
        "little data for workers": lambda: Limit("DATA", "worker"),
        "little memory for the server": lambda: Limit("AS", "server"),
        "a second of CPU time for workers": lambda: Limit("CPU", "worker"),
        "the database locked for a moment": lambda: DatabaseLocked(3.0),
        "the database locked for long": lambda: DatabaseLocked(20.0),
        "the database removed": lambda: DatabaseDamaged("removed"),
        "the database cut": lambda: DatabaseDamaged("cut"),
        "run folder removed": RunRemoved,
        ".hydra removed": RecordRemoved,
        "the sweep's folder moved away": MovedAway,
        "terminal closed": lambda: Closed("terminal"),
        "reader of the output gone": lambda: Closed("pipe"),
        "task cache damaged": lambda: Cache("tasks/*/*"),
        "estimates damaged": lambda: Cache("estimates.json"),
        "the cache removed": CacheRemoved,
        "estimates.lock held": lambda: LockHolder("estimates.lock", 8.0),
        "a task's lock held": lambda: LockHolder("tasks/*.lock", 8.0),
        "the same command beside": lambda: SecondParent(False),
        "the same command beside a stopped one": lambda: SecondParent(True),
        "TMPDIR removed": TemporaryGone,
        "few descriptors": FewDescriptors,
    }


KINDS = _kinds()
