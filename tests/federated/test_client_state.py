import pytest
import torch

from flgo_hydra.federated import client_state
from flgo_hydra.federated.client_state import ClientStates


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_rows_are_as_at_first_until_they_are_put_and_only_used_rows_are_exported(first):
    states = ClientStates({"control": {"w": torch.full((2, 3), first)}}, num_clients=5)
    assert states.get(4)["control"]["w"].tolist() == 2 * [3 * [first]]
    assert states.get_many([4, 0])["control"]["w"].tolist() == 2 * [2 * [3 * [first]]]
    states.put(3, {"control": {"w": torch.full((2, 3), 7.0)}})
    exported = states.export()
    assert exported["clients"] == [3]
    assert states.get_many([4, 3, 0])["control"]["w"][:, 0, 0].tolist() == [first, 7, first]
    other = ClientStates({"control": {"w": torch.full((2, 3), first)}}, num_clients=5)
    other.restore(exported)
    assert other.get(3)["control"]["w"].tolist() == [[7, 7, 7], [7, 7, 7]]
    assert other.get(0)["control"]["w"].sum() == 6 * first


def test_a_kept_state_does_not_follow_the_tensor_it_was_copied_from():
    states = ClientStates({"s": {"w": torch.zeros(1)}}, 2)
    tensor = torch.ones(1)
    states.put(0, {"s": {"w": tensor}})
    tensor += 1
    assert states.get(0)["s"]["w"].item() == 1


def test_many_clients_cost_no_memory_before_they_take_part():
    """A model's worth for each of 10,000 clients would be 16 GB here; one row is written."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    states = ClientStates({"control": {"w": torch.zeros(400_000)}}, num_clients=10_000)
    states.put(9_999, {"control": {"w": torch.ones(400_000)}})
    assert states.get(9_999)["control"]["w"].sum() == 400_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_many_rows_lie_in_a_file_and_the_process_holds_few_of_them(tmp_path, monkeypatch):
    """100 rows of 1 MiB are written and read again, with 8 MiB held at a time."""
    monkeypatch.setattr(client_state, "IN_MEMORY", 2**20)
    monkeypatch.setattr(client_state, "_HELD", 8 * 2**20)
    states = ClientStates({"s": {"w": torch.zeros(2**18), "b": torch.zeros(3)}}, 100, tmp_path)
    before = resident_kib()
    for k in range(0, 100, 2):
        states.put_many([k, k + 1], {"s": {"w": torch.full((2, 2**18), k + 1.0), "b": torch.full((2, 3), k - 1.0)}})
    assert resident_kib() - before < 32 * 1024
    for k in (0, 57, 98):
        state = states.get(k)["s"]
        assert state["w"].unique().tolist() == [k // 2 * 2 + 1] and state["b"].tolist() == [k // 2 * 2 - 1] * 3
    stacked = states.get_many([3, 99])["s"]["b"]
    assert stacked.tolist() == [[1, 1, 1], [97, 97, 97]]
    assert list(tmp_path.iterdir()) == []


def resident_kib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def test_algorithms_without_state_keep_none():
    states = ClientStates({}, 3)
    states.put(1, {})
    assert states.get(1) == {} and states.export() == {"clients": [], "rows": {}}
