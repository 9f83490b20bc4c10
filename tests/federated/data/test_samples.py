import sys

import numpy as np
import pytest
import torch

from flgo_hydra.federated.data import samples

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


MASKED = np.ma.array(X, mask=X == 7)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"x_train": MASKED}, ["`x_train`", "masked", "index (2, 1)"]),
        ({"x_train": np.ma.array(np.ones((4, 2, 3, 3)), mask=False, hard_mask=True) * 1, "y_train": MASKED[:, 1]},
         ["`y_train`", "index (2,)"]),
        ({"x_train": list(MASKED)}, ["`x_train`", "index (2, 1)"]),  # numpy would take the numbers below the masks
        ({"x_train": [list(row) for row in X[:3]] + [[1.0, np.ma.masked, 2.0]]}, ["`x_train`", "index (3, 1)"]),
        ({"x_test": MASKED, "y_test": Y}, ["`x_test`", "index (2, 1)"]),
        ({"y_train": np.ma.masked_equal(Y, 2)}, ["`y_train`", "index (2,)"]),
        ({"client": np.ma.array(Y, mask=[0, 0, 0, 1])}, ["`client`", "index (3,)"]),
        ({"valid": np.ma.array(Y == 1, mask=Y == 0)}, ["`valid`", "index (0,)"]),
        ({"x_train": np.where(X == 7, None, X)}, ["`x_train`", "missing", "(2, 1)", "None"]),
        ({"y_train": [0, 1, None, 2]}, ["`y_train`", "missing", "(2,)", "None"]),
        ({"client": ["a", None, "b", "c"]}, ["`client`", "missing", "(1,)", "None"]),
        ({"client": np.array(["a", "b", float("nan"), "c"], object)}, ["`client`", "missing", "(2,)", "nan"]),
        ({"x_train": [[1.0, 2.0], [3.0]] * 2}, ["`x_train`", "samples of one shape"]),
    ],
)  # fmt: skip
def test_every_entry_must_be_there(change, words):
    with pytest.raises(ValueError) as error:
        samples.check({"x_train": X, "y_train": Y} | change, "mine.make")
    assert all(word in str(error.value) for word in ["mine.make", *words]), error.value


def test_what_pandas_calls_missing_is_refused():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1, 2, 3, 4], "b": pandas.array([1, None, 3, 4], dtype="Int64")})
    for change, where in (({"x_train": table}, "(1, 1)"), ({"y_train": table["b"]}, "(1,)")):
        with pytest.raises(ValueError, match="missing entries.*NA|finite") as error:
            samples.check({"x_train": X, "y_train": Y} | change, "here")
        assert where in str(error.value)


def test_masks_that_hide_nothing_do_no_harm():
    checked = samples.check({"x_train": np.ma.array(X, mask=False), "y_train": np.ma.array(Y)}, "here")
    assert type(checked.x_train) is np.ndarray and (checked.x_train == X).all()
    assert "numpy.ma" in sys.modules


def test_integers_stay_exact_unless_they_are_intensities():
    ids = np.array([[2**24 + 1, -3], [2**40 + 1, 0]])
    for dtype in (np.int64, np.int32, np.int16, np.uint16, np.uint32, ">i8"):
        x = ids if np.dtype(dtype).itemsize == 8 else np.abs(ids) % 100
        checked = samples.check({"x_train": x.astype(dtype), "y_train": [0, 1]}, "here").x_train
        assert checked.dtype == np.int64 and (checked == x).all()
    assert samples.check({"x_train": ids > 0, "y_train": [0, 1]}, "here").x_train.dtype == np.float32
    mixed = samples.check({"x_train": ids, "y_train": [0, 1], "x_test": ids / 2, "y_test": [0, 1]}, "here")
    assert mixed.x_train.dtype == mixed.x_test.dtype == np.float32


def test_integers_that_nobody_can_hold_are_refused():
    too_large = np.array([[1, 2], [3, 2**64 - 1]], np.uint64)
    with pytest.raises(ValueError, match=r"`x_train`.*below 2\*\*63.*\(1, 1\).*18446744073709551615"):
        samples.check({"x_train": too_large, "y_train": [0, 1]}, "here")
    with pytest.raises(ValueError, match="`y_train`.*18446744073709551615"):
        samples.check({"x_train": X[:2], "y_train": too_large[:, 1]}, "here")
    with pytest.raises(ValueError, match="must be alike.*int64.*uint8"):
        samples.check({"x_train": X.astype(int), "y_train": Y, "x_test": X.astype(np.uint8), "y_test": Y}, "here")


_X = np.zeros((6, 2), np.float32)
_Y = np.arange(6) % 2


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(6, 2).bfloat16(),
        torch.ones(6, 2).half(),
        torch.ones(6, 2).to(torch.float8_e4m3fn),
        torch.ones(6, 2).requires_grad_(),
        [row.requires_grad_() for row in torch.ones(6, 2)],
        list(torch.ones(6, 2).bfloat16()),
        -torch.ones(6, 2, dtype=torch.complex64).mul(1j).conj().imag.neg(),
    ],
    ids=["bfloat16", "float16", "float8", "gradient", "gradients", "list", "negated view"],
)
def test_tensors_are_taken_as_they_are(x):
    got = samples.check({"x_train": x, "y_train": torch.from_numpy(_Y)}, "it").x_train
    assert got.dtype == np.float32 and abs(got).tolist() == [[1.0, 1.0]] * 6


@pytest.mark.parametrize(
    "arrays, message",
    [
        (
            {"x_train": torch.eye(6).to_sparse()},
            r"dense tensor, but its layout is sparse_coo. Take `.to_dense\(\)`",
        ),
        ({"x_train": torch.eye(6, device="meta")}, "on the device meta, which has none"),
        (
            {"x_train": [[1.0, 2.0]] * 5 + [[1.0]]},
            r"but at index 0 it is \(2,\), and at index 5 \(1,\)\. Pad",
        ),
        ({"x_train": [torch.ones(2)] * 5 + [torch.ones(3)]}, r"and at index 5 \(3,\)"),
        ({"x_train": np.zeros((6, 8, 8, 3), np.uint8)}, r"Put them first: `x.transpose\(0, 3, 1, 2\)`"),
        ({"x_train": np.zeros((6, 8, 8, 1), np.float32)}, "the channels seem to come last"),
        (
            {"y_train": _Y.astype(float)},
            r"must be integers if it is class labels, .* `y.astype\(int\)`",
        ),
        (
            {"y_train": 4 * _Y},
            r"of 5 classes up to 4 only 2 occur \(0, 4\).*`np.unique\(labels, return_inverse=True\)\[1\]`",
        ),
        ({"y_train": np.eye(2, dtype=int)[_Y]}, r"For labels take `y.argmax\(1\)`"),
        ({"y_train": _Y[:, None]}, r"For labels take `y\[:, 0\]`"),
        ({"y_train": _Y.astype(str)}, "Number the classes, train and test together"),
    ],
)
def test_what_to_do_with_what_came(arrays, message):
    with pytest.raises(ValueError, match=message):
        samples.check({"x_train": _X, "y_train": _Y, **arrays}, "it")


@pytest.mark.parametrize(
    "arrays",
    [
        {"x_train": np.zeros((6, 8, 9, 3), np.float32)},  # may be eight channels
        {"x_train": np.zeros((6, 3, 8, 8), np.uint8)},
        {"y_train": _Y.astype(float)[:, None]},
        {"y_train": _Y + 0.5},
        {"y_train": np.arange(6.0)},
        {"y_train": np.array([0, 0, 0, 1, 3, 3])},
    ],
)
def test_what_is_unusual_and_right(arrays):
    samples.check({"x_train": _X, "y_train": _Y, **arrays}, "it")
