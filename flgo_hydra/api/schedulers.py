"""FLGo's schedulers by FLGo's names and arguments, and a user's own in FLGo's style.

    from flgo_hydra import AutoScheduler, multi_init_and_run

    multi_init_and_run(runner_args, scheduler=AutoScheduler([0, 1], put_interval=2, dynamic_condition="max"))

They are ours (`launch/`), which know in addition the GPUs they are for.
"""

from collections.abc import Sequence
from typing import Any

from flgo_hydra.launch.scheduling import auto, scheduler
from flgo_hydra.launch.scheduling.scheduler import Device, Placement, Request, RunningJob, Scheduler, has_slot, started

Devices = Sequence[int | str] | int | str


class BasicScheduler(scheduler.BasicScheduler):
    """Devices in turn. Like FLGo's it takes any number of jobs a GPU, unless `max_processes_per_device` says less."""

    def __init__(self, devices: Devices = (), max_processes_per_device: int | None = None) -> None:
        super().__init__(max_processes_per_device)
        self.devices = device_list(devices)


class RandomScheduler(scheduler.RandomScheduler):
    """A random device for each job."""

    def __init__(self, devices: Devices = (), max_processes_per_device: int | None = None, seed: int = 0) -> None:
        super().__init__(max_processes_per_device, seed)
        self.devices = device_list(devices)


class AutoScheduler(auto.AutoScheduler):
    """A GPU whose free memory has exceeded what the running jobs take, for long enough (`launch/scheduling/auto.py`).

    Args:
        devices: indices or UUIDs of GPUs; none: all there are, or the CPU.
        put_interval: seconds between two jobs put on one GPU; None: 5, or until what its jobs take is known.
        mean_memory_occupated: MiB that a job is taken to need until one runs.
        available_interval: seconds for which memory must have been free; None: as for `put_interval`.
        dynamic_memory_occupated: whether the estimate follows the running jobs.
        dynamic_condition: their "mean" or "max".
        max_processes_per_device: most jobs at once on a GPU.
    """

    def __init__(
        self,
        devices: Devices = (),
        put_interval: float | None = None,
        mean_memory_occupated: int = 1000,
        available_interval: float | None = None,
        dynamic_memory_occupated: bool = True,
        dynamic_condition: str = "mean",
        max_processes_per_device: int | None = 10,
    ) -> None:
        super().__init__(
            put_interval,
            available_interval,
            mean_memory_occupated,
            dynamic_memory_occupated,
            dynamic_condition,
            max_processes_per_device,
        )
        self.devices = device_list(devices)


class FlgoStyle(Scheduler):
    """A user's own scheduler as FLGo asks it: `get_available_device(option)` returns a device, or None to wait."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self.devices = device_list(getattr(own, "devices", ()))

    def choose(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> list[Placement]:
        placements: list[Placement] = []
        running = list(running)
        for request in waiting:
            if not any(has_slot(device, running, request) for device in devices):
                continue  # not asked: its answer would change its state, and be for nothing
            answer = self._own.get_available_device({"job": request.job})
            if answer is None:
                break
            device = self._find(answer, devices)
            if has_slot(device, running, request):
                placements.append(Placement(request.job, device.id))
                running.append(started(request, placements[-1], now_s))
        return placements

    def wait_s(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> float | None:
        return 1.0 if waiting else None  # FLGo asks every second: the answer may depend on anything

    def _find(self, answer: Any, devices: Sequence[Device]) -> Device:
        while isinstance(answer, list | tuple):
            answer = answer[0] if answer else -1
        if len(devices) == 1:
            return devices[0]
        by_name: dict[Any, Device] = {device.id: device for device in devices}
        names = self.devices or list(range(len(devices)))
        by_name |= dict(zip(names, devices, strict=False))
        if answer not in by_name:
            raise ValueError(f"{type(self._own).__name__} chose the device {answer!r}; there are {list(by_name)}.")
        return by_name[answer]


def as_scheduler(given: Any) -> Scheduler | None:
    """Returns what the launcher takes, from a scheduler of ours, a user's own subclass, or one in FLGo's style.

    Raises:
        ValueError: it is none of them.
    """
    if given is None or isinstance(given, Scheduler):
        return given
    if callable(getattr(given, "get_available_device", None)) and not isinstance(given, type):
        return FlgoStyle(given)
    raise ValueError(
        "`scheduler` must be an object with `choose` (a subclass of flgo_hydra.launch.scheduling.scheduler.Scheduler) "
        f"or with FLGo's `get_available_device`, but got {given!r}."
    )


def device_list(devices: Devices) -> list[int | str]:
    """FLGo's lists of devices: a single one may stand for a list; -1 and [] are the CPU or whatever there is."""
    flat: list[int | str] = []
    for device in [devices] if isinstance(devices, int | str) else devices:
        if isinstance(device, list | tuple):  # FLGo's [[]] and [[0], [1]]
            flat.extend(device)
        else:
            flat.append(device)
    return flat


def devices_override(devices: Sequence[int | str]) -> str | None:
    """The value of `hydra.launcher.devices`; None: what there is."""
    if not devices:
        return None
    if all(device in (-1, "-1", "cpu") for device in devices):
        return "cpu"
    wrong = [d for d in devices if isinstance(d, bool) or not isinstance(d, int | str) or d in (-1, "-1", "cpu")]
    if wrong:
        raise ValueError(f"Devices are GPU indices or UUIDs, or the CPU alone (-1), but got {list(devices)!r}.")
    return "[" + ",".join(str(device) for device in dict.fromkeys(devices)) + "]"
