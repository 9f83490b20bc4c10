import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flgo_hydra.federated.patience import Patience

nan, inf = math.nan, math.inf


def stop_round(losses, patience, interval=1):
    """The round in which a run with these losses (round 0 first, every `interval` rounds) stops, or None."""
    state = Patience()
    for i, loss in enumerate(losses):
        state = state.update(i * interval, loss)
        if state.is_over(i * interval, patience):
            return i * interval
    return None


@pytest.mark.parametrize(
    "losses, patience, stops",
    [
        ([4, 3, 2, 1], 1, None),
        ([4, 4], 1, 1),  # a tie is no improvement
        ([4, 3, 3.5, 3.6, 2.9, 3, 3, 3], 3, 7),
        ([4, 3, 3.5, 3.6, 2.9, 3, 3, 3], 2, 3),
        ([1, nan, nan], 2, 2),
        ([1, inf, 0.5, 0.6], 2, None),
        ([nan, nan, nan], 2, 2),
        ([inf, 1, 2, 2], 2, 3),
        ([1, 2, 3, 4], None, None),
        ([0.5, 0.6, 0.7], 2, 2),  # round 0 counts
    ],
)
def test_stops_after_rounds_without_improvement(losses, patience, stops):
    assert stop_round(losses, patience) == stops


def test_counts_rounds_and_not_evaluations():
    assert stop_round([3, 2, 2, 2], patience=4, interval=2) == 6
    assert stop_round([3, 2, 2, 2], patience=3, interval=2) == 6  # two rounds are not three


loss = st.sampled_from([0.0, 1.0, 2.0, 3.0, nan, inf, -inf])


@given(losses=st.lists(loss, min_size=1, max_size=30), patience=st.integers(1, 6), interval=st.integers(1, 4))
def test_equals_the_definition(losses, patience, interval):
    """Stop at the first evaluated round r such that no finite loss of the last `patience` rounds beat all before."""
    expected = None
    for i in range(len(losses)):
        best_round = 0
        for j in range(i + 1):
            earlier = [v for v in losses[:j] if math.isfinite(v)]
            if math.isfinite(losses[j]) and all(losses[j] < v for v in earlier):
                best_round = j * interval
        if i * interval - best_round >= patience:
            expected = i * interval
            break
    assert stop_round(losses, patience, interval) == expected
