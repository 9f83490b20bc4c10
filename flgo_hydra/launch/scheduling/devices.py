"""The devices of this machine: GPUs by UUID through NVML, or the host's cores and memory as CPU slots.

The only file that imports pynvml. Indices are NVML's, which follow the PCI bus; CUDA's own may not, so everything but
the user's input goes by UUID. A `CUDA_VISIBLE_DEVICES` that is already set is respected: indices in
`hydra.launcher.devices` then count within it, as they would in CUDA. A GPU in MIG mode stands for its instances.

A figure that NVML does not give is None. A device that stops answering is left out of `read`'s answer until it answers
again. Memory by process is not asked for: containers hide it. What a device lacks of its total beyond our own jobs'
use is foreign: other people's processes, and the driver's own reserve.

A GPU's slots default to cores / GPUs: a process that drives a GPU keeps one core busy, so more of them add waiting, not
speed, and take host memory that nobody books.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra.config.laws import hold
from flgo_hydra.launch.scheduling.host import MIB, host_memory_mib, num_cores
from flgo_hydra.launch.scheduling.scheduler import CPU, Device


@dataclass(frozen=True)
class Gpu:
    """A GPU or a MIG instance, as found."""

    uuid: str
    name: str
    # UUID of the card; for a MIG instance that of the card it is a part of
    card: str


class Devices:
    """The devices a sweep may use, found once; `read` says how they are now."""

    def __init__(
        self,
        setting: str | Sequence[int | str] = "auto",
        slots: int | None = None,
        environ: Mapping[str, str] = os.environ,
        nvml: Any = None,
        root: Path = Path("/"),
    ) -> None:
        """Args:
        setting: "auto" (all visible GPUs, else the CPU), "cpu", or indices and UUIDs (or beginnings of them) of GPUs.
        slots: most jobs at once on a device; None: the host's cores, shared between the GPUs.
        environ: where `CUDA_VISIBLE_DEVICES` is read.
        nvml: the pynvml module, or one that pretends; None: pynvml, where it is installed.
        root: where `/proc` and `/sys` are.
        """
        hold(slots is None or slots >= 1, "hydra.launcher.slots >= 1, or null for the number of cores", slots)
        self._root = root
        # why there is no GPU, for people; empty where there is one
        self.no_gpu = ""
        self.driver: str | None = None
        self._nvml: Any = None
        self.gpus: list[Gpu] = []
        if setting != CPU:
            visible = _masked(self._find(nvml), environ.get("CUDA_VISIBLE_DEVICES"))
            if not visible and not self.no_gpu:
                self.no_gpu = "CUDA_VISIBLE_DEVICES hides every GPU."
            self.gpus = visible if setting == "auto" else _chosen(visible, setting, self.no_gpu)
        self.num_cores = num_cores(root)
        self.slots = slots or max(1, self.num_cores // max(1, len(self.gpus)))

    @property
    def is_cpu(self) -> bool:
        return not self.gpus

    @property
    def name(self) -> str:
        """What the devices are, for people and for the key of estimates."""
        return " + ".join(sorted({gpu.name for gpu in self.gpus})) or f"{CPU} {os.uname().machine}"

    def read(self, own_mib: Mapping[str, int | None]) -> list[Device]:
        """Returns the devices that answer, as they are now, in a fixed order.

        Args:
            own_mib: what our jobs use now, by device; None where a job has not said; absent: no job of ours.
        """
        if self.is_cpu:
            total, free = host_memory_mib(self._root)
            return [Device(CPU, total, free, self.slots, _foreign_mib(total, free, own_mib.get(CPU, 0)))]
        answers = []
        for gpu in self.gpus:
            memory = self._memory_mib(gpu)
            if memory is not None:
                total, free = memory
                foreign = _foreign_mib(total, free, own_mib.get(gpu.uuid, 0))
                answers.append(Device(gpu.uuid, total, free, self.slots, foreign))
        return answers

    def _find(self, nvml: Any) -> list[Gpu]:
        """Starts NVML and returns all GPUs; notes in `no_gpu` why there is none."""
        try:
            self._nvml = nvml or importlib.import_module("pynvml")
        except ImportError:
            self.no_gpu = "No GPU can be seen: the package nvidia-ml-py is not installed."
            return []
        try:
            self._nvml.nvmlInit()
            self.driver = _text(self._nvml.nvmlSystemGetDriverVersion())
            gpus = [gpu for i in range(self._nvml.nvmlDeviceGetCount()) for gpu in self._instances(i)]
        except self._nvml.NVMLError as error:
            self.no_gpu = f"No GPU can be seen: {error}."
            return []
        if not gpus:
            self.no_gpu = "This machine has no GPU."
        return gpus

    def _instances(self, index: int) -> list[Gpu]:
        """Returns the card itself or, in MIG mode, its instances; nothing where the card does not answer."""
        nvml = self._nvml
        try:
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = _text(nvml.nvmlDeviceGetUUID(card)), _text(nvml.nvmlDeviceGetName(card))
        except nvml.NVMLError:
            return []
        try:
            has_mig = nvml.nvmlDeviceGetMigMode(card)[0] == nvml.NVML_DEVICE_MIG_ENABLE
            num_places = nvml.nvmlDeviceGetMaxMigDeviceCount(card) if has_mig else 0
        except nvml.NVMLError:  # a card that knows no MIG says so by an error
            has_mig, num_places = False, 0
        if not has_mig:
            return [Gpu(uuid, name, card=uuid)]
        found = []
        for place in range(num_places):
            try:
                instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place)
                found.append(Gpu(_text(nvml.nvmlDeviceGetUUID(instance)), f"{name} MIG", card=uuid))
            except nvml.NVMLError:  # a place without an instance
                continue
        return found

    def _memory_mib(self, gpu: Gpu) -> tuple[int | None, int | None] | None:
        """Returns total and free memory, each None where unknown; None for a device that does not answer."""
        nvml = self._nvml
        silent = (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission)
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except silent:
            return None, None
        except nvml.NVMLError:
            return None
        return _mib(memory.total), _mib(memory.free)


def _masked(gpus: list[Gpu], mask: str | None) -> list[Gpu]:
    """Returns what `CUDA_VISIBLE_DEVICES` leaves, in its order. As in CUDA, the first wrong entry ends the list."""
    if mask is None:
        return gpus
    visible: list[Gpu] = []
    for entry in mask.split(","):
        found = _matching(gpus, entry.strip(), by_card=True)
        if not found:
            break
        visible += [gpu for gpu in found if gpu not in visible]
    return visible


def _chosen(visible: list[Gpu], setting: str | Sequence[int | str], no_gpu: str) -> list[Gpu]:
    entries = setting.split(",") if isinstance(setting, str) else list(setting)
    chosen: list[Gpu] = []
    for entry in entries:
        found = _matching(visible, str(entry).strip(), by_card=False)
        if not found:
            there = ", ".join(f"{i} ({gpu.uuid})" for i, gpu in enumerate(visible)) or f"none. {no_gpu}"
            raise ValueError(
                "`hydra.launcher.devices` must be auto, cpu, or a list of GPUs' indices and UUIDs, "
                f"but got {entry!r}. Visible GPUs: {there}"
            )
        chosen += [gpu for gpu in found if gpu not in chosen]
    hold(bool(chosen), "hydra.launcher.devices names at least one device", setting)
    return chosen


def _matching(gpus: list[Gpu], entry: str, by_card: bool) -> list[Gpu]:
    """Returns what an index, a UUID or the beginning of one names; a card in MIG mode stands for its instances.

    An index counts cards where `by_card`, as in a mask, else the list's own entries. A beginning must be unique.
    """
    if entry.isdecimal():
        cards = list(dict.fromkeys(gpu.card for gpu in gpus))
        if by_card:
            return [gpu for gpu in gpus if int(entry) < len(cards) and gpu.card == cards[int(entry)]]
        return gpus[int(entry) : int(entry) + 1]
    if not entry.startswith(("GPU-", "MIG-")):
        return []
    named = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
    of_cards = [gpu for gpu in gpus if gpu.card.startswith(entry)]
    return named if len(named) == 1 else of_cards if len({gpu.card for gpu in of_cards}) == 1 else []


def _foreign_mib(total: int | None, free: int | None, own: int | None) -> int | None:
    if total is None or free is None or own is None:
        return None
    return max(0, total - free - own)


def _mib(num_bytes: int | None) -> int | None:
    return None if num_bytes is None else int(num_bytes) // MIB


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
