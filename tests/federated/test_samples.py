import numpy as np
import pytest

from flgo_hydra.federated import samples

X, Y = np.arange(12.0).reshape(4, 3), np.array([0, 1, 2, 1])


def test_types():
    checked = samples.check(
        {"x_train": X, "y_train": Y, "client": list("abca"), "valid": Y == 1, "x_test": None}, "here"
    )
    assert checked.x_train.dtype == np.float32 and checked.y_train.dtype == np.int64 and checked.x_test is None
    assert samples.check({"x_train": X.astype(np.uint8), "y_train": Y}, "here").x_train.dtype == np.uint8


@pytest.mark.parametrize("targets, shape", [(Y / 2, (4, 1)), (X, (4, 3)), (Y.astype(np.float16), (4, 1))])
def test_floating_targets_are_a_regression(targets, shape):
    checked = samples.check({"x_train": X, "y_train": targets}, "here")
    assert checked.y_train.dtype == np.float32 and checked.y_train.shape == shape


@pytest.mark.parametrize(
    "change, words",
    [
        ({"y_train": None}, ["must have the key `y_train`"]),
        ({"x_tets": X}, ["no key `x_tets`", "x_test"]),
        ({"x_test": X}, ["must have the key `y_test`"]),
        ({"x_train": X[:, 0]}, ["`x_train`", "shape (4,)"]),
        ({"x_train": X[:0]}, ["`x_train`", "(0, 3)"]),
        ({"x_train": X[:, :0]}, ["`x_train`", "(4, 0)"]),
        ({"x_train": X.astype(str)}, ["`x_train`", "numbers", "<U"]),
        ({"x_train": X * 1j}, ["`x_train`", "complex"]),
        ({"x_train": np.where(X == 7, np.nan, X)}, ["`x_train`", "(2, 1)", "nan"]),
        ({"x_train": X * 1e300}, ["`x_train`", "finite"]),
        ({"y_train": Y[:3]}, ["`y_train`", "4 samples", "has 3"]),
        ({"y_train": Y[:, None]}, ["`y_train`", "labels", "(4, 1)"]),
        ({"y_train": Y - 1}, ["from -1 to 1", "np.unique"]),
        ({"y_train": Y + 1990}, ["from 1990 to 1992 in 4 samples", "np.unique"]),
        ({"y_train": np.array(list("abca"))}, ["`y_train`", "labels"]),
        ({"y_train": np.array([0, 1, 2, np.inf])}, ["`y_train`", "inf"]),
        ({"x_test": X[:, :2], "y_test": Y}, ["`x_train` and `x_test`", "(3,)", "(2,)"]),
        ({"x_test": X.astype(np.uint8), "y_test": Y}, ["uint8", "float32"]),
        ({"x_test": X, "y_test": Y / 2}, ["`y_train` and `y_test`"]),
        ({"x_test": X, "y_test": Y[1:]}, ["`y_test`", "`x_test`", "has 3"]),
        ({"client": Y / 2}, ["`client`", "integers or strings", "float64"]),
        ({"client": Y[1:]}, ["`client`", "has 3"]),
        ({"valid": Y}, ["`valid`", "booleans", "int64"]),
    ],
)
def test_errors_name_the_place_and_the_key(change, words):
    with pytest.raises(ValueError) as error:
        samples.check({"x_train": X, "y_train": Y} | change, "my.npz")
    assert all(word in str(error.value) for word in ["my.npz", *words]), error.value


def test_not_a_mapping():
    with pytest.raises(ValueError, match="by key .*tuple"):
        samples.check((X, Y), "here")
