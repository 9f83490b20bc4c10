"""Devices, from a pretended NVML and from real files laid out like /proc and /sys."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from flgo_hydra.launch.scheduling.devices import Devices
from flgo_hydra.launch.scheduling.scheduler import CPU, Device

MIB = 2**20


class FakeNvml:
    """As much of pynvml as is used. Cards are UUIDs with their MIG instances."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    class NVMLError_NoPermission(NVMLError):
        pass

    class NVMLError_GpuIsLost(NVMLError):
        pass

    def __init__(self, cards: dict[str, Sequence[str] | None], as_bytes: bool = False) -> None:
        self.cards = cards
        self.as_bytes = as_bytes
        # UUID: (total, free) in MiB, or the error it answers with
        self.memory: dict[str, tuple[int | None, int | None] | Exception] = {}
        self.start_error: Exception | None = None

    def _text(self, text: str) -> str | bytes:
        return text.encode() if self.as_bytes else text

    def nvmlInit(self) -> None:
        if self.start_error:
            raise self.start_error

    def nvmlSystemGetDriverVersion(self) -> str | bytes:
        return self._text("580.1")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        uuid = list(self.cards)[index]
        if uuid == "GPU-broken":
            raise self.NVMLError_GpuIsLost("lost")
        return uuid

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetUUID(self, handle: str) -> str | bytes:
        return self._text(handle)

    def nvmlDeviceGetName(self, handle: str) -> str | bytes:
        return self._text("H100")

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        if self.cards[handle] is None:
            raise self.NVMLError_NotSupported("no MIG")
        return [1, 1] if self.cards[handle] else [0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, place: int) -> str:
        instances = self.cards[handle] or []
        if place >= len(instances):
            raise self.NVMLError("Not Found")
        return instances[place]

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        answer = self.memory.get(handle, (80000, 79000))
        if isinstance(answer, Exception):
            raise answer
        total, free = (None if mib is None else mib * MIB for mib in answer)
        return SimpleNamespace(total=total, free=free, used=None)


PLAIN: dict[str, Sequence[str] | None] = {"GPU-a1": None, "GPU-a2": [], "GPU-b1": None}
MIG: dict[str, Sequence[str] | None] = {"GPU-a1": ["MIG-x1", "MIG-x2"], "GPU-b1": []}


def found(
    setting: str | Sequence[int | str] = "auto", mask: str | None = None, cards: dict[str, Sequence[str] | None] = PLAIN
) -> list[str]:
    environ = {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}
    return [gpu.uuid for gpu in Devices(setting, environ=environ, nvml=FakeNvml(cards)).gpus]


@pytest.mark.parametrize(
    "mask, uuids",
    [
        (None, ["GPU-a1", "GPU-a2", "GPU-b1"]),
        ("1", ["GPU-a2"]),
        ("2, 0", ["GPU-b1", "GPU-a1"]),
        ("GPU-b1,0", ["GPU-b1", "GPU-a1"]),
        ("GPU-b", ["GPU-b1"]),  # the beginning of a UUID
        ("GPU-a", []),  # of two UUIDs
        ("0,7,1", ["GPU-a1"]),  # as in CUDA, a wrong entry ends the list
        ("0,0", ["GPU-a1"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_mask(mask: str | None, uuids: list[str]) -> None:
    assert found(mask=mask) == uuids


@pytest.mark.parametrize(
    "setting, mask, uuids",
    [
        ([1], None, ["GPU-a2"]),
        ("1", None, ["GPU-a2"]),
        ("0,GPU-b1", None, ["GPU-a1", "GPU-b1"]),
        (["GPU-b", 0, 0], None, ["GPU-b1", "GPU-a1"]),
        ([0], "2,1", ["GPU-b1"]),  # counts within the mask
        ("cpu", None, []),
    ],
)
def test_setting(setting: str | list[int | str], mask: str | None, uuids: list[str]) -> None:
    assert found(setting, mask) == uuids


@pytest.mark.parametrize(
    "setting, mask, uuids",
    [
        ("auto", None, ["MIG-x1", "MIG-x2", "GPU-b1"]),
        ("auto", "0", ["MIG-x1", "MIG-x2"]),  # a card stands for its instances
        ("auto", "1", ["GPU-b1"]),
        ("auto", "MIG-x2", ["MIG-x2"]),
        ("auto", "GPU-a1", ["MIG-x1", "MIG-x2"]),
        ("MIG-x2", None, ["MIG-x2"]),
        ([1], None, ["MIG-x2"]),
    ],
)
def test_mig(setting: str | list[int | str], mask: str | None, uuids: list[str]) -> None:
    assert found(setting, mask, MIG) == uuids


@pytest.mark.parametrize("setting", [[3], "GPU-z", ["GPU-a"], "gpu", [-1]])
def test_wrong_setting_names_what_is_there(setting: str | list[int | str]) -> None:
    with pytest.raises(ValueError, match=r"must be auto, cpu, or a list .* Visible GPUs: 0 \(GPU-a1\), 1 \(GPU-a2\)"):
        found(setting)


def test_laws() -> None:
    with pytest.raises(ValueError, match="names at least one device"):
        found([])
    with pytest.raises(ValueError, match="slots >= 1, or null for the number of cores` must hold, but got 0"):
        Devices("cpu", slots=0)
    with pytest.raises(ValueError, match="Visible GPUs: none. CUDA_VISIBLE_DEVICES hides every GPU"):
        found([0], mask="")


def test_without_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    devices = Devices(environ={})
    assert devices.is_cpu and "nvidia-ml-py is not installed" in devices.no_gpu
    with pytest.raises(ValueError, match="Visible GPUs: none. No GPU can be seen"):
        Devices([0], environ={})


def test_without_driver_or_gpu() -> None:
    nvml = FakeNvml(PLAIN)
    nvml.start_error = nvml.NVMLError("Driver Not Loaded")
    assert Devices(nvml=nvml, environ={}).no_gpu == "No GPU can be seen: Driver Not Loaded."
    assert Devices(nvml=FakeNvml({}), environ={}).no_gpu == "This machine has no GPU."
    assert Devices(nvml=FakeNvml(PLAIN), environ={}).no_gpu == ""


def test_card_that_is_broken_from_the_start() -> None:
    assert found(cards={"GPU-broken": None, "GPU-b1": None}) == ["GPU-b1"]


def test_read() -> None:
    nvml = FakeNvml(PLAIN, as_bytes=True)
    nvml.memory = {"GPU-a2": (80000, 50000), "GPU-b1": (80000, 79500)}
    devices = Devices(slots=3, environ={}, nvml=nvml)
    assert (devices.name, devices.driver, devices.is_cpu) == ("H100", "580.1", False)
    assert devices.read({"GPU-a2": 20000, "GPU-b1": None}) == [
        Device("GPU-a1", 80000, 79000, 3, foreign_mib=1000),
        Device("GPU-a2", 80000, 50000, 3, foreign_mib=10000),
        Device("GPU-b1", 80000, 79500, 3, foreign_mib=None),  # a job of ours has not said what it uses
    ]
    # strangers grow
    nvml.memory["GPU-a2"] = (80000, 10000)
    assert devices.read({"GPU-a2": 20000})[1].foreign_mib == 50000
    # our figure is older than NVML's
    nvml.memory["GPU-a2"] = (80000, 79000)
    assert devices.read({"GPU-a2": 20000})[1].foreign_mib == 0


def test_read_unknown_is_none() -> None:
    nvml = FakeNvml(PLAIN)
    denied, unsupported = nvml.NVMLError_NoPermission("denied"), nvml.NVMLError_NotSupported("not supported")
    nvml.memory = {"GPU-a1": denied, "GPU-a2": unsupported, "GPU-b1": (80000, None)}
    assert Devices(slots=1, environ={}, nvml=nvml).read({}) == [
        Device("GPU-a1", None, None, 1, None),
        Device("GPU-a2", None, None, 1, None),
        Device("GPU-b1", 80000, None, 1, None),
    ]


def test_device_that_vanishes_is_gone_until_it_answers() -> None:
    nvml = FakeNvml(PLAIN)
    devices = Devices(environ={}, nvml=nvml)
    nvml.memory["GPU-a2"] = nvml.NVMLError_GpuIsLost("lost")
    assert [device.id for device in devices.read({})] == ["GPU-a1", "GPU-b1"]
    del nvml.memory["GPU-a2"]
    assert [device.id for device in devices.read({})] == ["GPU-a1", "GPU-a2", "GPU-b1"]


MEMINFO = {"proc/meminfo": f"MemTotal: {16000 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {12000 * 1024} kB\n"}


def test_slots_share_the_cores(lay: Callable[[dict[str, str]], Path], tmp_path: Path) -> None:
    lay({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 100000"})
    assert Devices(environ={}, nvml=FakeNvml(PLAIN), root=tmp_path).slots == 1
    assert Devices("cpu", root=tmp_path).slots == 1
    assert Devices("cpu", slots=9, root=tmp_path).slots == 9


def test_a_host_whose_memory_is_unknown(tmp_path: Path) -> None:
    assert Devices("cpu", slots=2, root=tmp_path).read({}) == [Device(CPU, None, None, 2, None)]


def test_cpu_read(lay: Callable[[dict[str, str]], Path]) -> None:
    devices = Devices("cpu", slots=2, root=lay(MEMINFO))
    assert devices.name.startswith("cpu ")
    assert devices.read({CPU: 1000}) == [Device(CPU, 16000, 12000, 2, foreign_mib=3000)]
    assert devices.read({CPU: None}) == [Device(CPU, 16000, 12000, 2, foreign_mib=None)]


def test_this_machine_answers() -> None:
    [device] = Devices("cpu").read({})
    assert device.slots is not None and device.slots >= 1
    assert device.total_mib is None or device.free_mib is None or 0 <= device.free_mib <= device.total_mib
