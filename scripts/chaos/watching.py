"""Looks at a sweep from outside: its processes, how far it is, whether it still moves."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

STILL_S = 60.0
"""Without a line, a file or CPU time for so long, a sweep hangs."""
_STILL_CPU_S = 0.6
"""of all its processes while nothing happens: what a parent needs to look around once a second"""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    state: str
    cpu_s: float
    command: str


def marked(mark: str) -> list[Process]:
    """The living processes whose environment has a mark."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if mark.encode() not in Path("/proc", entry, "environ").read_bytes():
                continue
            stat = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            command = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if stat[0] not in "ZX":
            cpu_s = (int(stat[11]) + int(stat[12])) * _TICK_S
            kind = "forkserver: " if "import forkserver" in command else ""
            found.append(Process(int(entry), int(stat[1]), stat[0], cpu_s, kind + command[:120]))
    return found


def by_role(mark: str, parent: int) -> dict[str, list[int]]:
    """Process ids of the `parent`, of its forkserver (`server`) and of the `worker`s."""
    processes = marked(mark)
    servers = [one.pid for one in processes if one.parent == parent and one.command.startswith("forkserver")]
    workers = [one.pid for one in processes if one.parent in servers]
    return {"parent": [parent], "server": servers, "worker": workers}


def progress(folder: Path) -> int:
    """Bytes of all records: it grows with each round."""
    total = 0
    for path in folder.glob("*/rounds.jsonl"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def wait_until_gone(mark: str, most_s: float) -> list[Process]:
    """Waits for the marked processes to end; returns those that live on."""
    end = time.monotonic() + most_s
    while (left := marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


class Stillness:
    """Tells how long nothing has happened: no record, no word of its output, and next to no CPU time."""

    def __init__(self, mark: str, folder: Path, output: Path) -> None:
        self._mark, self._folder, self._output = mark, folder, output
        self._seen: tuple[int, int, int] = (-1, -1, -1)
        self._cpu_s = 0.0
        self._since = self._looked = time.monotonic()

    def seconds(self) -> float:
        """Looks once a second, at most."""
        now = time.monotonic()
        if now - self._looked < 1.0:
            return now - self._since
        self._looked = now
        size = self._output.stat().st_size if self._output.exists() else 0
        seen = (progress(self._folder), size, len(list(self._folder.glob("*/*"))))
        cpu_s = sum(one.cpu_s for one in marked(self._mark))
        if seen != self._seen or cpu_s < self._cpu_s or cpu_s - self._cpu_s > _STILL_CPU_S:
            self._seen, self._cpu_s, self._since = seen, cpu_s, now
        return now - self._since


def write_stacks(mark: str, into: Path) -> None:
    """Has each process write where it is, and notes what the kernel says of it."""
    lines = []
    for one in marked(mark):
        try:
            wait = Path("/proc", str(one.pid), "wchan").read_text()
        except OSError:
            wait = "?"
        lines.append(f"{one.pid} of {one.parent} {one.state} {one.cpu_s:.1f} s, in {wait}: {one.command}")
        try:
            os.kill(one.pid, signal.SIGUSR2)
        except OSError:
            continue
    into.write_text("\n".join(lines) + "\n")
    time.sleep(1.0)  # for them to write
