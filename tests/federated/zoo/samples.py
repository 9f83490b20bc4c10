"""The zoo's samples: random, and as few and small as they can be."""

import numpy as np

TEST = 6


def vectors(sizes, seed=0):
    """6 features, 3 classes that a line tells apart badly."""
    rng = np.random.default_rng(seed)
    n = sum(sizes) + TEST
    x = rng.normal(size=(n, 6)).astype(np.float32)
    y = np.argmax(x[:, :3] + 0.5 * rng.normal(size=(n, 3)), axis=1)
    y[:3] = range(3)
    return _split(x, y.astype(np.int64))


def images(sizes):
    """2 channels of 4x4, 3 classes."""
    found = vectors(sizes)
    rng = np.random.default_rng(1)
    for part in ("train", "test"):
        x = rng.normal(size=(len(found[f"y_{part}"]), 2, 4, 4)).astype(np.float32)
        x[:, 0, 0, :3] += found[f"x_{part}"][:, :3]
        found[f"x_{part}"] = x
    return found


def signals(sizes):
    """2 channels of 16, 3 classes."""
    return {key: a.reshape(len(a), 2, 16) if a.ndim == 4 else a for key, a in images(sizes).items()}


def tokens(sizes):
    """5 whole numbers below 10, as floats, 3 classes."""
    found = vectors(sizes)
    for part in ("train", "test"):
        x = np.random.default_rng(2).integers(0, 10, size=(len(found[f"y_{part}"]), 5))
        found[f"x_{part}"] = x.astype(np.float32)
    return found


def targets(sizes, outputs=2):
    """6 features, targets of squared error."""
    found = vectors(sizes)
    for part in ("train", "test"):
        found[f"y_{part}"] = np.tanh(found[f"x_{part}"][:, :outputs]).astype(np.float32)
    return found


def one_target(sizes):
    return targets(sizes, 1)


def _split(x, y):
    return {"x_train": x[:-TEST], "y_train": y[:-TEST], "x_test": x[-TEST:], "y_test": y[-TEST:]}
