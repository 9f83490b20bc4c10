"""What a function or class is: its code and all that it has captured.

Two functions of one factory, `of_width(2)` and `of_width(64)`, have the same text and compute something else. So the
hash is of the compiled code, the closure, the defaults, the global values that the code reads, base classes, and the
state of objects, as far as they are the user's own; what is installed is known by its name. The hash does not depend on
where the text stands or when it was run, so that a script that runs again means the same.
"""

import functools
import hashlib
import re
import struct
import sys
import types
from collections.abc import Iterable
from typing import Any

from flgo_hydra import own_code

_LEFT_OUT = {
    *("__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__"),
    *("__abstractmethods__", "_abc_impl", "__annotations__", "__annotate__", "__annotate_func__"),
    *("__annotations_cache__", "__classdictcell__", "__orig_bases__", "__parameters__", "__slotnames__"),
}
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def hash_of(value: Any) -> str:
    """A hash of what a value is, equal in another process; of an object of which nothing can be said, of its type."""
    walk = _Walk()
    walk.add(value)
    return walk.digest.hexdigest()


class _Walk:
    """Goes through everything that a value reaches, and feeds it to one digest."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # an id is another's when its object is gone

    def add(self, value: Any) -> None:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray | range):
            if type(value).__module__ == "builtins":
                return self._say(type(value).__name__, repr(value))
        # Not of what compilers share between functions, or do not, as they like.
        if not isinstance(value, tuple | frozenset | types.CodeType):
            if id(value) in self._seen:
                return self._say("seen", str(self._seen[id(value)]))
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            self._say(type(value).__name__, str(len(value)))
            for item in value:
                self.add(item)
        elif type(value) is dict:
            self._say("dict", str(len(value)))
            for key, item in value.items():
                self.add(key)
                self.add(item)
        elif isinstance(value, set | frozenset):
            self._say("set", *sorted(hash_of(item) for item in value))
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.MethodType):
            self._say("method")
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, functools.partial):
            self._say("partial")
            self.add((value.func, value.args, value.keywords, vars(value)))
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.ModuleType):
            self._add_module(value)
        elif isinstance(value, staticmethod | classmethod):
            self._say(type(value).__name__)
            self.add(value.__func__)
        elif isinstance(value, property):
            self._say("property")
            self.add((value.fget, value.fset, value.fdel))
        elif isinstance(value, types.CellType):
            self._add_cell(value)
        elif not self._add_array(value):
            self._add_object(value)

    def _say(self, *words: str) -> None:
        for word in words:
            data = word.encode("utf-8", "surrogatepass")
            self.digest.update(struct.pack("<q", len(data)) + data)

    def _add_code(self, code: types.CodeType) -> None:
        self._say("code", code.co_name)
        self.digest.update(code.co_code)
        for part in (code.co_consts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self.add(part)
        self._say(str((code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)))

    def _add_function(self, function: types.FunctionType) -> None:
        if own_code.is_installed(function.__code__.co_filename) and "<locals>" not in function.__qualname__:
            return self._say("installed", function.__module__ or "", function.__qualname__)
        self._say("function")
        for part in (function.__code__, function.__defaults__, function.__kwdefaults__, function.__closure__):
            self.add(part)
        self.add({key: value for key, value in vars(function).items() if not key.startswith("__")})
        names = set(_names(function.__code__))
        for name in sorted(names & function.__globals__.keys()):
            self._say("global", name)
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType):
                self._add_module(value, names)
            else:
                self.add(value)

    def _add_module(self, module: types.ModuleType, names: Iterable[str] = ()) -> None:
        """Of the user's own, its files, and what the code may read of it as it is now."""
        self._say("module", module.__name__)
        if not own_code.is_own_module(module.__name__) or module.__name__ in ("__main__", "__mp_main__"):
            return
        self.add(own_code.hash_files([f"{module.__name__}.x"]))
        for name in sorted(set(names) & vars(module).keys()):
            self._say("attribute", name)
            self.add(vars(module)[name])

    def _add_class(self, kind: type) -> None:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
        is_own = kind.__module__ in ("__main__", "__mp_main__") or "<locals>" in kind.__qualname__
        if not is_own and (own_code.is_installed(file) or kind.__module__ == "builtins"):
            return self._say("installed", kind.__module__, kind.__qualname__)
        self._say("class", kind.__name__)
        self.add(tuple(kind.__bases__))
        self.add(type(kind))
        for name, value in sorted(vars(kind).items()):
            if name not in _LEFT_OUT and not isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
                self._say("attribute", name)
                self.add(value)

    def _add_cell(self, cell: types.CellType) -> None:
        self._say("cell")
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            return self._say("empty")
        self.add(content)

    def _add_array(self, value: Any) -> bool:
        """The numbers of NumPy's arrays and of tensors. Neither package is imported for it."""
        numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            self._say("tensor", str(value.dtype), str(tuple(value.shape)), str(value.requires_grad))
            if not value.is_sparse and value.device.type != "meta":
                plain = value.detach().cpu().contiguous().flatten()
                self.digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
            return True
        if numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
            self._say("array", str(value.dtype), str(value.shape))
            self.digest.update(numpy.ascontiguousarray(value).tobytes())
            return True
        return False

    def _add_object(self, value: Any) -> None:
        """An object by its class and its state, as pickle would take it apart; else what it is called."""
        self._say("object")
        self.add(type(value))
        if isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
            self._say(getattr(value, "__qualname__", ""))
            owner = getattr(value, "__self__", None)
            return None if isinstance(owner, types.ModuleType) else self.add(owner)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # locks, files, generators: whatever cannot be taken apart
            state = getattr(value, "__dict__", None)
            if isinstance(state, dict):
                self.add(state)
            return
        if isinstance(reduced, str):
            self._say(_ADDRESS.sub("", reduced))
            return self.add(getattr(value, "__wrapped__", None))  # of functools.cache
        function, arguments, *rest = reduced
        self.add(function)
        self.add(arguments)
        for part in rest[:3]:
            self.add(list(part) if part is not None and not isinstance(part, dict | tuple | list) else part)


def _names(code: types.CodeType) -> Iterable[str]:
    """Names that the code, or a function inside it, may read from its globals or from modules."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
