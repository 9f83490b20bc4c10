"""What a form cannot do is said in one line; want of memory is no such reason."""

import pytest
import torch

from flgo_hydra.federated.backend.cannot import Cannot, cannot


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("first\nsecond"), "`finish`: ValueError: first"),
        (KeyError("w"), "`finish`: KeyError: 'w'"),
        (Cannot("it draws"), "it draws"),
    ],
)
def test_what_fails_is_the_reason(error, said):
    with pytest.raises(Cannot) as caught, cannot("`finish`: "):
        raise error
    assert str(caught.value) == said


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), KeyboardInterrupt()])
def test_what_is_no_reason_goes_on_up(error):
    with pytest.raises(type(error)), cannot():
        raise error
