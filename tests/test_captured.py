"""What a function captured is part of what it is, and what is only written otherwise is not."""

import functools
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.captured import hash_of

WIDTH = 2


def of_width(width):
    def build(input_shape, num_outputs):
        return nn.Linear(width, num_outputs)

    return build


def by_default(width=2, *, depth=1):
    return width, depth


def by_global():
    return lambda: WIDTH + 1


class Maker:
    def __init__(self, width):
        self.width = width

    def build(self):
        return self.width

    def __call__(self):
        return self.width


class Slotted:
    __slots__ = ("width",)

    def __init__(self, width):
        self.width = width


def two(name, **differing):
    """One class by name, made twice."""
    return [type(name, (nn.Module,), {"width": value}) for value in differing["width"]]


def sub(base):
    class Model(base):
        pass

    return Model


def dictionary(**changed):
    return {"a": [1, {"b": 2}], **changed}


def array_of(values):
    array = np.array(values)
    return lambda: array


def tensor_of(values):
    tensor = torch.tensor(values)
    return lambda: tensor


@pytest.mark.parametrize(
    "one, other",
    [
        (of_width(2), of_width(16)),
        (lambda: 1, lambda: 2),
        (functools.partial(by_default, 2), functools.partial(by_default, 3)),
        (functools.partial(by_default, width=2), functools.partial(by_default, width=2, depth=3)),
        (Maker(2), Maker(16)),
        (Maker(2).build, Maker(16).build),
        (Slotted(2), Slotted(16)),
        (two("Model", width=(2, 16))),
        (sub(two("Base", width=(2, 16))[0]), sub(two("Base", width=(2, 16))[1])),
        (array_of([1, 2]), array_of([1, 3])),
        (array_of([1, 2]), array_of([1.0, 2.0])),
        (tensor_of([1.0, 2.0]), tensor_of([1.0, 3.0])),
        (tensor_of([1.0, 2.0]), tensor_of([[1.0, 2.0]])),
        (dictionary(), dictionary(c=1)),
        (1, True),
        (1, 1.0),
        ([1, [2]], [[1], 2]),
        (functools.cache(lambda: 1), functools.cache(lambda: 2)),
        (staticmethod(lambda: 1), staticmethod(lambda: 2)),
        (property(lambda self: 1), property(lambda self: 2)),
        (nn.ReLU, nn.Tanh),
        (nn.Linear(2, 2), nn.Linear(2, 3)),
        (np.random.default_rng(0).normal, np.random.default_rng(1).normal),
    ],
)
def test_what_is_captured_counts(one, other):
    assert hash_of(one) == hash_of(one)
    assert hash_of(one) != hash_of(other)


def test_default_arguments_count():
    def make(value):
        def function(width=value, *, depth=value):
            return width

        return function

    assert hash_of(make(1)) == hash_of(make(1)) != hash_of(make(2))


def test_a_global_value_that_changes_counts_and_one_that_is_not_read_does_not(monkeypatch):
    before, other = hash_of(by_global), hash_of(by_default)
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", 64)
    assert hash_of(by_global) != before and hash_of(by_default) == other


def test_cycles_end():
    class Node:
        pass

    node = Node()
    node.self, node.others = node, [node]

    def recursive(n):
        return recursive(n - 1)

    assert hash_of(node) == hash_of(node) and hash_of(recursive)


PROGRAM = """
import numpy as np, torch
from torch import nn
from flgo_hydra.captured import hash_of
{space}
SCALE = {{"a": {{1, 2, 3}}, "b": ("x", 1.5)}}
LOCK = __import__("threading").Lock()
class Base(nn.Module):
    kind = "base"
class Model(Base):
    def __init__(self, width: int = 3):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
    @staticmethod
    def scale(x): return SCALE["b"][1] * x if LOCK and x in (1, 2, 3) else np.float32(x)
    @property
    def width(self): return [(lambda y: y + i)(1) for i in range(3)]
def factory(w):
    return lambda x: Model(w).scale(x)
print(hash_of(Model), hash_of(factory(4)), hash_of(factory(5)))
"""


@pytest.mark.slow
def test_another_process_says_the_same_wherever_the_text_stands(tmp_path):
    said = []
    for number, space in enumerate(("", "# moved down\n\n\n")):
        file = tmp_path / f"script{number}.py"
        file.write_text(textwrap.dedent(PROGRAM).format(space=space))
        done = subprocess.run([sys.executable, file], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    module = subprocess.run(
        [sys.executable, "-c", "import script0"], cwd=tmp_path, capture_output=True, text=True
    ).stdout.split()
    compiled = subprocess.run(
        [sys.executable, "-c", "import script0"], cwd=tmp_path, capture_output=True, text=True
    ).stdout.split()
    assert said[0] == said[1] and len(set(said[0])) == 3
    assert module == compiled and len(module) == 3
