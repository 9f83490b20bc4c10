"""Memory and cores, within control groups of both versions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flgo_hydra.launch.scheduling.host import MIB, host_memory_mib, num_cores

Lay = Callable[[dict[str, str]], Path]


MEMINFO = {"proc/meminfo": f"MemTotal: {16000 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {12000 * 1024} kB\n"}
V1 = "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    "files, total, free",
    [
        ({}, 16000, 12000),
        # v2: a limit of a group above the own one
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/memory.max": str(8000 * MIB),
                "sys/fs/cgroup/a/memory.current": str(3000 * MIB),
                "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {1000 * MIB}\n",
            },
            8000,
            6000,
        ),
        # v1, and the limit leaves more than the kernel has
        (
            {
                "proc/self/cgroup": "5:cpu:/\n4:memory:/a\n",
                V1 + "a/memory.limit_in_bytes": str(15000 * MIB),
                V1 + "a/memory.usage_in_bytes": str(1000 * MIB),
                V1 + "memory.limit_in_bytes": "9223372036854771712",
            },
            15000,
            12000,
        ),
        # v1 in a container: the path is the host's, the mounted root is the own group
        (
            {
                "proc/self/cgroup": "4:memory:/docker/123\n",
                V1 + "memory.limit_in_bytes": str(4000 * MIB),
                V1 + "memory.usage_in_bytes": str(3000 * MIB),
                V1 + "memory.stat": f"total_inactive_file {500 * MIB}\n",
            },
            4000,
            1500,
        ),
        # use unknown
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(8000 * MIB)}, 8000, 12000),
    ],
)
def test_host_memory(lay: Lay, files: dict[str, str], total: int, free: int) -> None:
    assert host_memory_mib(lay(MEMINFO | files)) == (total, free)


def test_memory_that_nothing_tells(tmp_path: Path) -> None:
    assert host_memory_mib(tmp_path) == (None, None)


@pytest.mark.parametrize(
    "files, cores",
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "350000 100000"}, 3),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000"}, 8),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_num_cores(lay: Lay, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert num_cores(lay(files)) == cores
