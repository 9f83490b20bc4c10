"""How many processes the kernel has killed for want of memory: the evidence behind a SIGKILL nobody admits to."""

from pathlib import Path


def read_kernel_kills(root: Path = Path("/")) -> int | None:
    """Returns the number of kills so far in this process's control group; else on the host; None: unknown.

    Args:
        root: where `/proc` and `/sys` are.
    """
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.events"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        # In a container the path may be the host's, which is not there: the mounted root is then the own group.
        for folder in (mount / path.lstrip("/"), mount):
            kills = _count(folder / name)
            if kills is not None:
                return kills
    return _count(root / "proc/vmstat")


def _count(path: Path) -> int | None:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == "oom_kill" and value.isdecimal():
            return int(value)
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
