"""Models that count their calls where nobody would look: each scales its outputs by how often it was called.

The count changes every step, so that a recording or a call for many clients would show it, and so would a trial that
left a trace.
"""

import collections
import contextvars
import ctypes
import functools
import io
import itertools
import logging
import queue
import shutil
import sqlite3
import sys
import tempfile
import threading
import types
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import nn

from . import by_getattr
from .models import Body, zoo

_COUNT = 0
_VARIABLE = contextvars.ContextVar("calls", default=0)
_NUMBER = ctypes.c_long(0)
_TEXT = io.StringIO()
_BYTES = io.BytesIO()
_KEY = type("Key", (), {})()
_WEAK = weakref.WeakKeyDictionary()
_ERROR = ValueError(0)
_SPACE = types.SimpleNamespace(calls=0)
_COUNTER = collections.Counter()
_LOCAL = threading.local()
_BY_NEED = collections.defaultdict(itertools.count().__next__)
_VIEW = memoryview(bytearray(8))
_QUEUE = collections.deque([0], maxlen=1)
_FOLDER = Path(tempfile.mkdtemp())


class _Handler(logging.Handler):
    calls = 0

    def emit(self, record):
        self.calls += 1


def _forget():
    global _COUNT
    _COUNT = 0
    _VARIABLE.set(0)
    _NUMBER.value = 0
    for stream in (_TEXT, _BYTES):
        stream.seek(0)
        stream.truncate()
    _WEAK.clear()
    _WEAK[_KEY] = 0
    _ERROR.args = (0,)
    _SPACE.calls = 0
    _COUNTER.clear()
    _LOCAL.calls = 0
    _BY_NEED.default_factory = itertools.count().__next__
    _BY_NEED.clear()
    _VIEW[0] = 0
    _QUEUE.append(0)
    by_getattr.calls = 0
    Dunder.__calls__ = 0
    OtherDunder.by_text = 0
    shutil.rmtree(_FOLDER)
    _FOLDER.mkdir()
    logging.getLogger("zoo.hidden").handlers = [_Handler()]
    logging.getLogger("zoo.hidden").propagate = False
    logging.getLogger("zoo.hidden").setLevel(logging.INFO)


class Counted(Body):
    """What its outputs are times follows from `count`, which counts a call."""

    def forward(self, x):
        outputs = super().forward(x)
        return outputs * min(1.0, 0.3 + self.count() / 40) if self.training else outputs

    def count(self):
        raise NotImplementedError


def hidden(why, **more):
    return zoo(why, before=_forget, is_one_model=True, **more)


@hidden("a global reached by a text")
class GlobalByText(Counted):
    def count(self):
        globals()["_COUNT"] += 1
        return globals()["_CO" + "UNT"]


@hidden("a global set in the module, found by its name")
class ModuleByText(Counted):
    def count(self):
        module = sys.modules[type(self).__module__]
        setattr(module, "_CO" + "UNT", getattr(module, "_CO" + "UNT") + 1)
        return getattr(module, "_CO" + "UNT")


@hidden("a global in a dictionary of the module's names")
class ModulesVars(Counted):
    def count(self):
        names = vars(sys.modules[__name__])
        names["_CO" + "UNT"] += 1
        return names["_CO" + "UNT"]


@hidden("a global changed by a statement in a text")
class ByExec(Counted):
    def count(self):
        exec("_CO" + "UNT += 1", globals())
        return eval("_CO" + "UNT")


@hidden("a name that a module makes up")
class ByModulesGetattr(Counted):
    def count(self):
        return by_getattr.made_up


@hidden("a context variable")
class ByContextVariable(Counted):
    def count(self):
        _VARIABLE.set(_VARIABLE.get() + 1)
        return _VARIABLE.get()


@hidden("a number of C's")
class ByCType(Counted):
    def count(self):
        _NUMBER.value += 1
        return _NUMBER.value


@hidden("a text in memory")
class ByStringIO(Counted):
    def count(self):
        _TEXT.write("x")
        return len(_TEXT.getvalue())


@hidden("bytes in memory")
class ByBytesIO(Counted):
    def count(self):
        _BYTES.write(b"x")
        return len(_BYTES.getvalue())


@hidden("a dictionary of weak keys")
class ByWeakKeys(Counted):
    def count(self):
        _WEAK[_KEY] = _WEAK.get(_KEY, 0) + 1
        return _WEAK[_KEY]


@hidden("what a logger's handler counts")
class ByHandler(Counted):
    def count(self):
        logger = logging.getLogger("zoo.hidden")
        logger.info("a call")
        return logger.handlers[0].calls


@hidden("an attribute of the class with underscores around")
class Dunder(Counted):
    __calls__ = 0

    def count(self):
        type(self).__calls__ += 1
        return self.__calls__


@hidden("an attribute of the class, set by a text")
class OtherDunder(Counted):
    by_text = 0

    def count(self):
        setattr(type(self), "by" + "_text", getattr(self, "by" + "_text") + 1)
        return self.by_text


@hidden("what an error was raised with")
class ByError(Counted):
    def count(self):
        _ERROR.args = (_ERROR.args[0] + 1,)
        return _ERROR.args[0]


@hidden("a namespace")
class ByNamespace(Counted):
    def count(self):
        _SPACE.calls += 1
        return _SPACE.calls


@hidden("a counter of things")
class ByCounter(Counted):
    def count(self):
        _COUNTER["calls"] += 1
        return _COUNTER["calls"]


@hidden("what belongs to a thread")
class ByThread(Counted):
    def count(self):
        _LOCAL.calls += 1
        return _LOCAL.calls


@zoo("numbers that a dictionary hands out", before=_forget, expect="is an iterator")
class ByDefault(Counted):
    def count(self):
        return _BY_NEED[len(_BY_NEED)]


@hidden("a view of bytes")
class ByView(Counted):
    def count(self):
        _VIEW[0] += 1
        return _VIEW[0]


@hidden("the only item of a queue")
class ByQueue(Counted):
    def count(self):
        _QUEUE.append(_QUEUE[0] + 1)
        return _QUEUE[0]


@hidden("a file that grows")
class ByFile(Counted):
    def count(self):
        path = _FOLDER / "calls"
        with path.open("a") as file:
            file.write("x")
        return path.stat().st_size


@hidden("a table in a database")
class ByDatabase(Counted):
    def count(self):
        with sqlite3.connect(_FOLDER / "calls.db") as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS calls (number)")
            connection.execute("INSERT INTO calls VALUES (1)")
            [(number,)] = connection.execute("SELECT COUNT(*) FROM calls")
        connection.close()
        return number


@hidden("a folder that files are made in")
class ByFolder(Counted):
    def count(self):
        (_FOLDER / str(len(list(_FOLDER.iterdir())))).mkdir()
        return len(list(_FOLDER.iterdir()))


@zoo("an attribute that is its own copy", before=_forget, is_one_model=True)
class OwnDeepcopy(Counted):
    class Calls:
        number = 0

        def __deepcopy__(self, memo):
            return self

    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.calls = self.Calls()

    def count(self):
        self.calls.number += 1
        return self.calls.number


@zoo("a counter of its own, reached by text", is_one_model=True)
class OwnByText(Counted):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.number = torch.zeros(()).item()

    def count(self):
        vars(self)["num" + "ber"] += 1
        return self.number


_SCALES = weakref.WeakKeyDictionary()
_BY_ID = {}


@zoo("a setting of its own in a dictionary of weak keys", is_one_model=True)
class WeakSetting(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        _SCALES[self] = 0.3

    def forward(self, x):
        return super().forward(x) * _SCALES.get(self, 1.0)


@zoo("a setting of its own by its id", is_one_model=True)
class SettingById(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        _BY_ID[id(self)] = 0.3

    def forward(self, x):
        return super().forward(x) * _BY_ID.get(id(self), 1.0)


class _Decoder(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, h):
        return h @ self.parent().hidden.weight


@zoo("a child that knows its parent weakly", is_one_model=True)
class WeakParent(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.decoder = _Decoder(self)

    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        return self.output(torch.tanh(self.hidden(self.decoder(h))))


@zoo("a view of a weight, as an attribute", is_one_model=True)
class ViewOfWeight(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.double()
        self.target = self.hidden.weight.detach()

    def forward(self, x):
        return super().forward(x) + self.target.square().mean()


@zoo("a view of a weight in numpy", is_one_model=True)
class NumpyViewOfWeight(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.double()
        self.target = self.hidden.weight.detach().numpy()[1:]

    def forward(self, x):
        return super().forward(x) * (1 + float(self.target.sum()))


@zoo("a copy that is made with the constructor's defaults", is_one_model=True)
class OwnCopy(Body):
    def __init__(self, input_shape, num_outputs, scale=0.3):
        super().__init__(input_shape, num_outputs)
        self.scale = scale

    def forward(self, x):
        return super().forward(x) * self.scale

    def __deepcopy__(self, memo):
        other = type(self)([6], 3, scale=1.0)
        other.to(self.hidden.weight.dtype).load_state_dict(self.state_dict())
        return other


@zoo("a generator that is made in each call", is_one_model=True)
class MakesGenerator(Body):
    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        if self.training:
            mask = torch.rand(h.shape, generator=torch.Generator().manual_seed(9), dtype=h.dtype) > 0.01
            h = h * mask
        return self.output(h)


@zoo("a test within a list of tensors")
class TestInAList(Body):
    def forward(self, x):
        outputs = super().forward(x)
        return torch.where(torch.tensor([x.abs().max() > 2.2]), 0.1 * outputs, outputs)


@zoo("a queue that a thread empties", is_one_model=True)
class Worker(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.queue = _QUEUE_OF_THREAD

    def forward(self, x):
        self.queue.put(1)
        self.queue.join()
        return super().forward(x)


def _empty():
    while True:
        _QUEUE_OF_THREAD.get()
        _QUEUE_OF_THREAD.task_done()


_QUEUE_OF_THREAD = queue.Queue()
threading.Thread(target=_empty, daemon=True).start()


@zoo("what is nested deeply", is_one_model=True)
class Nested(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.nested = {}
        for _ in range(2000):
            self.nested = {"next": self.nested}


class _Unspeakable:
    def __repr__(self):
        raise RuntimeError("no name")


@zoo("a key that cannot be written", is_one_model=True)
class NoName(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.named = {_Unspeakable(): 1}


@zoo("a dictionary of the model's state changes it", is_one_model=True)
class StateDictChanges(Body):
    def state_dict(self, *args, **kwargs):
        with torch.no_grad():
            self.hidden.weight.mul_(0.5)
        return super().state_dict(*args, **kwargs)


@functools.lru_cache
def _drawn(width):
    return torch.rand(width, dtype=torch.float64)


@zoo(
    "a draw that is kept in a cache of the module's",
    before=lambda: _drawn.cache_clear(),
    is_one_model=True,
)
class CachedDraw(Body):
    def forward(self, x):
        return super().forward(x) * _drawn(3).to(x.dtype)


@zoo("the seed of torch's generator, which is not drawn from")
class PeeksSeed(Body):
    def forward(self, x):
        outputs = super().forward(x)
        return outputs * (0.5 + torch.initial_seed() % 7 / 7) if self.training else outputs


@zoo("numpy's bits, without a generator", is_one_model=True)
class RawBits(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.bits = np.random.PCG64(0)

    def forward(self, x):
        return super().forward(x) * (0.5 + self.bits.random_raw() % 2) if self.training else super().forward(x)


@zoo("seeds that numpy spawns", is_one_model=True)
class SpawnsSeeds(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.seeds = np.random.SeedSequence(0)

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        return super().forward(x) * (0.5 + np.random.default_rng(self.seeds.spawn(1)[0]).random())
