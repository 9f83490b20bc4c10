"""The host as this process may use it: memory and cores, within its control groups."""

import os
from collections.abc import Sequence
from pathlib import Path

MIB = 2**20


def host_memory_mib(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Returns the host memory that this process may have in all, and that it could get now.

    The smallest of what the kernel has and what each control group above the process allows.
    """
    lines = [line.split() for line in _lines(root / "proc/meminfo")]
    kernel = {line[0]: int(line[1]) * 1024 for line in lines if len(line) >= 2}
    totals, frees = [kernel.get("MemTotal:")], [kernel.get("MemAvailable:")]
    for folder, limit_name, used_name, cache_name in _memory_groups(root):
        limit = _number(folder / limit_name)
        # cgroup v1 writes "no limit" as a number near 2**63
        if limit is None or limit >= 2**60:
            continue
        used = _number(folder / used_name)
        stat = dict(line.split()[:2] for line in _lines(folder / "memory.stat"))
        # Pages of files that were read once are given back when memory gets short.
        cache = int(stat.get(cache_name, 0))
        totals.append(limit)
        frees.append(None if used is None else max(0, limit - used + cache))
    return _mib(_smallest(totals)), _mib(_smallest(frees))


def num_cores(root: Path = Path("/")) -> int:
    """Returns the cores this process may keep busy: its affinity, cut by the control groups' CPU quota."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:  # not Linux
        cores = float(os.cpu_count() or 1)
    for folder in _groups(root, "cpu"):
        quota, period = [*(_lines(folder / "cpu.max") or ["max 0"])[0].split(), "0"][:2]
        if not (folder / "cpu.max").exists():
            quota = str(_number(folder / "cpu.cfs_quota_us") or -1)
            period = str(_number(folder / "cpu.cfs_period_us") or 0)
        if quota.isdecimal() and int(period) > 0:
            cores = min(cores, int(quota) / int(period))
    return max(1, int(cores))


def _groups(root: Path, controller: str) -> list[Path]:
    """Returns the folders of the control groups this process is in, from its own up to the root, of v1 and v2.

    In a container the group's path may be the host's, which is not there: then the mounted root is the own group.
    """
    folders = []
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        own = mount / path.strip().lstrip("/")
        folders += [folder for folder in [own, *own.parents] if folder == mount or mount in folder.parents]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _memory_groups(root: Path) -> list[tuple[Path, str, str, str]]:
    """Returns each memory group's folder with the names of its limit, its use and its reclaimable cache."""
    v2 = ("memory.max", "memory.current", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return [(folder, *(v1 if (folder / v1[0]).exists() else v2)) for folder in _groups(root, "memory")]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _smallest(values: Sequence[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


def _mib(num_bytes: int | None) -> int | None:
    return None if num_bytes is None else int(num_bytes) // MIB
