"""FLGo's schedulers by FLGo's names."""

import pytest

from flgo_hydra import AutoScheduler, BasicScheduler, RandomScheduler
from flgo_hydra.api.schedulers import as_scheduler, device_list, devices_override
from flgo_hydra.launch.scheduling.scheduler import CPU, Device, Request

GPUS = [Device("GPU-a", 24000, 24000, 4), Device("GPU-b", 24000, 24000, 4)]


def test_flgos_arguments_reach_our_rule():
    made = AutoScheduler([0, 1], 3, 2000, 4, False, "max", 5)
    assert (made.devices, made.put_interval, made.initial_memory_mib, made.available_interval) == ([0, 1], 3, 2000, 4)
    assert (made.dynamic, made.condition, made.max_jobs_per_device) == (False, "max", 5)
    with pytest.raises(ValueError, match="condition"):
        AutoScheduler([0], dynamic_condition="median")


def test_basic_takes_devices_in_turn_and_any_number_of_jobs():
    requests = [Request(i, "s") for i in range(5)]
    chosen = BasicScheduler([0, 1]).choose(requests, [], GPUS, 0.0)
    assert [p.device for p in chosen] == ["GPU-a", "GPU-b", "GPU-a", "GPU-b", "GPU-a"]
    assert len(RandomScheduler([0, 1]).choose(requests, [], GPUS, 0.0)) == 5


class InFlgosStyle:
    """Puts every second job on device 1, and makes the third wait."""

    devices = [0, 1]

    def __init__(self):
        self.asked = 0

    def get_available_device(self, option):
        self.asked += 1
        return None if self.asked == 3 else [self.asked % 2]


def test_a_users_own_in_flgos_style_is_asked_as_flgo_asks_it():
    scheduler = as_scheduler(InFlgosStyle())
    requests = [Request(i, "s") for i in range(4)]
    chosen = scheduler.choose(requests, [], GPUS, 0.0)
    assert [(p.job, p.device) for p in chosen] == [(0, "GPU-b"), (1, "GPU-a")]
    assert scheduler.wait_s(requests[2:], [], GPUS, 0.0) == 1.0
    cpu = [Device(CPU, 8000, 8000, 1)]
    assert [p.device for p in as_scheduler(InFlgosStyle()).choose(requests, [], cpu, 0.0)] == [CPU]


@pytest.mark.parametrize("wrong", [3, InFlgosStyle, object()])
def test_what_is_no_scheduler_is_refused(wrong):
    with pytest.raises(ValueError, match="`scheduler` must be an object with `choose`"):
        as_scheduler(wrong)


@pytest.mark.parametrize(
    "given, override",
    [([], None), (-1, "cpu"), ([-1], "cpu"), (0, "[0]"), ([0, 1, 0], "[0,1]"), ([[0], [1]], "[0,1]"), ([[]], None)],
)
def test_devices(given, override):
    assert devices_override(device_list(given)) == override


def test_mixed_devices_are_refused():
    with pytest.raises(ValueError, match="or the CPU alone"):
        devices_override([0, -1])
