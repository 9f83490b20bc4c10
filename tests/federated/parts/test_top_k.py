"""Sparse updates with memory, by hand and by a law."""

import pytest
import torch

from flgo_hydra.federated.parts.top_k import TopK

UPDATE = torch.tensor([[1.0, -4.0], [3.0, 0.5]])


@pytest.mark.parametrize(
    "share, expected",
    [(0.5, [[0.0, -4.0], [3.0, 0.0]]), (0.01, [[0.0, -4.0], [0.0, 0.0]]), (0.51, [[1.0, -4.0], [3.0, 0.0]])],
)
def test_the_largest_are_sent_and_the_rest_is_kept(share, expected):
    part = TopK()
    sent, kept = part.send({"w": UPDATE}, part.first({"w": UPDATE}), None, {"share": share})
    assert sent["w"].tolist() == expected
    assert torch.equal(sent["w"] + kept["w"], UPDATE)


def test_what_was_left_out_is_sent_when_it_has_grown():
    part, kept = TopK(), {"w": torch.zeros(2)}
    sent = []
    for _ in range(4):
        out, kept = part.send({"w": torch.tensor([1.0, 0.6])}, kept, None, {"share": 0.5})
        sent.append(out["w"].tolist())
    # memories before each round: (0, 0), (0, .6), (1, 0), (0, .6)
    assert sent == [[1.0, 0.0], pytest.approx([0.0, 1.2]), [2.0, 0.0], pytest.approx([0.0, 1.2])]
