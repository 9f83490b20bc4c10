import io
import resource

import pytest
import torch

from flgo_hydra.federated.clients import client_state
from flgo_hydra.federated.clients.client_state import ClientStates

MIXED = {
    "own": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(4), "none": torch.empty(0)},
    "seen": {"is": torch.tensor([True, False, True]), "z": torch.tensor([1 + 2j]), "h": torch.ones(3).bfloat16()},
}
"""of sizes that no number lies even in"""


@pytest.fixture(params=["memory", "file"])
def home(request, monkeypatch, tmp_path):
    """Where rows may lie."""
    if request.param == "file":
        monkeypatch.setattr(client_state, "IN_MEMORY", 0)
    return tmp_path


def like(template, number):
    return {s: {n: torch.full_like(t, number) for n, t in ts.items()} for s, ts in template.items()}


def same(a, b):
    return all(a[s].keys() == b[s].keys() and all(torch.equal(a[s][n], b[s][n]) for n in a[s]) for s in {**a, **b})


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_rows_are_as_at_first_until_they_are_put_and_only_used_rows_are_exported(home, first):
    states = ClientStates({"control": {"w": torch.full((2, 3), first)}}, 5, home)
    assert states.get(4)["control"]["w"].tolist() == 2 * [3 * [first]]
    assert states.get_many([4, 0])["control"]["w"].tolist() == 2 * [2 * [3 * [first]]]
    states.put(3, {"control": {"w": torch.full((2, 3), 7.0)}})
    assert states.export()["clients"] == [3]
    assert b"".join(states.rows()) == torch.full((2, 3), 7.0).numpy().tobytes()
    assert states.get_many([4, 3, 0])["control"]["w"][:, 0, 0].tolist() == [first, 7, first]
    states.put_many([0, 3], {"control": {"w": torch.stack([torch.full((2, 3), k) for k in (8.0, 9.0)])}})
    assert states.get_many([3, 4, 0])["control"]["w"][:, 1, 2].tolist() == [9, first, 8]
    assert list(home.iterdir()) == []


def test_tensors_of_any_kind_go_into_a_checkpoint_and_out_of_it_some_at_a_time(home, monkeypatch):
    monkeypatch.setattr(client_state, "_AT_ONCE", 200)  # two rows and a half
    states = ClientStates(MIXED, 9, home)
    for k, number in ((7, 1), (2, 0), (5, 3), (0, 2), (2, 5)):
        states.put(k, like(MIXED, number))
    assert states.export()["clients"] == [7, 2, 5, 0]
    rows = b"".join(states.rows())
    assert len(rows) == 4 * sum(t.nbytes for ts in MIXED.values() for t in ts.values())
    other = ClientStates(MIXED, 9, home)
    other.restore(states.export(), io.BytesIO(rows))
    for k, number in ((7, 1), (2, 5), (5, 3), (0, 2)):
        assert same(other.get(k), like(MIXED, number))
    assert same(other.get(1), MIXED)
    stacked = other.get_many([1, 0])
    assert all(same({s: {n: t[i] for n, t in ts.items()} for s, ts in stacked.items()}, one)
               for i, one in enumerate((MIXED, like(MIXED, 2))))  # fmt: skip


def test_what_the_version_before_has_kept_is_put(home):
    states = ClientStates({"s": {"w": torch.zeros(2)}}, 5, home)
    states.restore({"clients": [1, 4], "rows": {"s": {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}}}, None)
    assert states.get_many([4, 0, 1])["s"]["w"].tolist() == [[3, 4], [0, 0], [1, 2]]


def test_a_checkpoint_of_another_algorithm_is_refused():
    states = ClientStates({"s": {"w": torch.zeros(2)}}, 5)
    with pytest.raises(ValueError, match="must be as it was when the run's checkpoint was written.*Put the code back"):
        states.restore(ClientStates({"s": {"v": torch.zeros(2)}}, 5).export(), io.BytesIO())


def test_rows_are_read_into_the_first_of_more(home):
    states = ClientStates({"s": {"w": torch.zeros(2)}}, 5, home)
    states.put(1, {"s": {"w": torch.ones(2)}})
    into = {"s": {"w": torch.full((4, 2), 9.0)}}
    found = states.get_many([0, 1, 2], into)
    assert found["s"]["w"].data_ptr() == into["s"]["w"].data_ptr()
    assert into["s"]["w"].tolist() == [[0, 0], [1, 1], [0, 0], [9, 9]]


def test_a_kept_state_does_not_follow_the_tensor_it_was_copied_from(home):
    states = ClientStates({"s": {"w": torch.zeros(1)}}, 2, home)
    tensor = torch.ones(1)
    states.put(0, {"s": {"w": tensor}})
    tensor += 1
    assert states.get(0)["s"]["w"].item() == 1


def test_a_state_may_be_made_of_what_was_kept(home):
    """Of the one before: {last: new, before: last}."""
    states = ClientStates({"s": {"last": torch.zeros(2), "before": torch.zeros(2)}}, 2, home)
    for number in (1.0, 2.0):
        states.put(1, {"s": {"last": torch.full((2,), number), "before": states.get(1)["s"]["last"]}})
    assert states.get(1)["s"]["last"].tolist() == [2, 2] and states.get(1)["s"]["before"].tolist() == [1, 1]


def test_many_clients_cost_no_memory_before_they_take_part():
    """A model's worth for each of 10,000 clients would be 16 GB here; one row is written."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    states = ClientStates({"control": {"w": torch.zeros(400_000)}}, num_clients=10_000)
    states.put(9_999, {"control": {"w": torch.ones(400_000)}})
    assert states.get(9_999)["control"]["w"].sum() == 400_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_many_rows_lie_in_a_file_and_the_process_holds_few_of_them(tmp_path, monkeypatch):
    """100 rows of 1 MiB are written and read again, to a checkpoint too."""
    monkeypatch.setattr(client_state, "IN_MEMORY", 2**20)
    states = ClientStates({"s": {"w": torch.zeros(2**18), "b": torch.zeros(3)}}, 100, tmp_path)
    before = resident_kib()
    for k in range(0, 100, 2):
        w = torch.stack([torch.full((2**18,), float(k)), torch.full((2**18,), k + 1.0)])
        states.put_many([k, k + 1], {"s": {"w": w, "b": torch.full((2, 3), k - 1.0)}})
    assert resident_kib() - before < 32 * 1024
    for k in (0, 57, 98):
        state = states.get(k)["s"]
        assert state["w"].unique().tolist() == [k] and state["b"].tolist() == [k // 2 * 2 - 1] * 3
    assert states.get_many([3, 99])["s"]["b"].tolist() == [[1, 1, 1], [97, 97, 97]]
    assert sum(len(some) for some in states.rows()) == 100
    assert resident_kib() - before < 32 * 1024
    assert list(tmp_path.iterdir()) == []


def resident_kib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


@pytest.mark.parametrize("template", [{}, {"s": {}}, {"s": {"w": torch.empty(0)}}])
def test_algorithms_without_state_keep_none(template):
    states = ClientStates(template, 3)
    states.put(1, template)
    assert same(states.get(1), template) and states.export()["clients"] == [] and list(states.rows()) == []
    states.restore(states.export(), io.BytesIO())
    assert same(
        states.get_many([]), {s: {n: t.expand(0, *t.shape) for n, t in ts.items()} for s, ts in template.items()}
    )
