"""What a user's Python keeps between its calls: counters, lists, caches, generators.

A recording repeats what is computed with tensors, not what Python does beside it; and clients side by side make one
call of many. So it is looked at from outside, before and after a trial: the attributes of modules and objects, what
they hold, what their functions close over, and the globals, defaults, attributes and class attributes that these name,
in other modules of the user's own too. Libraries' own functions are not followed.

Outside is what a deep copy of the object shares with it: a trial on a copy changes it all the same, and it is put back.
What can be neither looked at nor put back, an iterator that is shared, is refused.
"""

import contextlib
import contextvars
import copy
import decimal
import dis
import functools
import logging
import os
import sys
import threading
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules_of_torch

from flgo_hydra import own_code
from flgo_hydra.federated import torch_settings
from flgo_hydra.federated.backend.putting_back import (
    drop_new,
    refill,
    refill_where_changed,
    slots_of,
    undos_of,
)
from flgo_hydra.federated.backend.snapshot import (
    PLAIN,
    SMALL,
    SMALL_OUTSIDE,
    Content,
    Identity,
    Noise,
    alike,
    same,
    snapshot,
)
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.users_code import is_users, is_users_module

_MOST = 200_000
"""Things that are looked at, at most."""
_LONG = 10_000
"""Of a longer container the items themselves are compared; what they hold is more than can be looked at."""
_OURS_OF_MODULES = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"}
_OURS_OF_MODULES |= {"_flat_weights", "_flat_weight_refs"}  # of recurrent layers: their parameters once more
_BY_TEXT = {"globals", "exec", "eval", "__globals__", "_getframe", "currentframe", "import_module", "__import__"}
"""What a function names that finds things of its module by a text; `sys.modules` does, too."""
_OF_MODULES_BY_TEXT = {"vars", "__dict__", "getattr", "setattr", "delattr", "attrgetter"}
"""The same, of a module that it names."""
_PEEKS = {"initial_seed", "get_rng_state", "getstate", "get_state", "seed_seq", "_version", "data_ptr"}
_PEEKS |= {"exists", "isfile", "isdir", "getmtime", "is_file", "is_dir", "listdir", "scandir", "iterdir"}
"""What a function names that asks where a generator, a tensor or a file stands, which no trial sees change."""
_OF_NUMBERS = {"float", "Number", "Real", "numbers"}
_OF_THREADS = {"threading", "_thread", "queue", "_queue", "multiprocessing", "concurrent", "asyncio", "subprocess"}
"""Modules whose objects are others' too: to put one back could stop a thread for ever."""
_OF_EVERY_CLASS = {
    *vars(object),
    *("__abstractmethods__", "__annotations__", "__dict__", "__doc__", "__firstlineno__", "__module__"),
    *("__orig_bases__", "__parameters__", "__qualname__", "__slots__", "__static_attributes__", "__weakref__"),
}


_LARGE = {"torch", "numpy", "flgo_hydra", "builtins"}
"""Libraries that are too large to be a root's own."""


class TooMuch(Exception):
    """There is more than can be looked at."""


class PythonState:
    """What is kept, as it is now.

    Args:
        shared: ids of things that are outside, wherever they are found.
        roots: objects by name.
    """

    def __init__(self, shared: Collection[int] = (), **roots: Any) -> None:
        self.generator = ""
        """the name of a generator object, which cannot be copied, nor its place be seen"""
        self.opaque = ""
        """the name of a thing that threads or processes talk by, whose state is theirs too"""
        self.peeks = ""
        """what one of its functions asks of a generator or a tensor without changing it"""
        self.asks_types = False
        """one of its functions asks of something whether it is a number of Python's"""
        self._caches: list[tuple[Any, int]] = []
        self._found: dict[str, Any] = {}
        self._undo: list[Callable[[], Any]] = []
        self._inside: dict[int, Any] = {}
        self._outside: dict[int, Any] = {}
        self._shared = shared
        self._functions: set[int] = set()
        self._modules: set[tuple[int, str]] = set()
        self._registered: set[int] = set()
        self._storages: set[int] = set()
        self._part = ""
        self._trained: set[int] = set()
        self._packages = {_package_of(root) for root in roots.values()} - _LARGE
        """of libraries that are the roots' own"""
        try:
            self._look_at_roots(roots)
        except RecursionError:
            raise TooMuch("it holds what is nested too deeply to be looked at") from None

    def _look_at_roots(self, roots: Mapping[str, Any]) -> None:
        for name, root in roots.items():
            self._found["torch's settings"] = Noise(settings := torch_settings.now())
            self._undo.append(functools.partial(torch_settings.put_back, settings))
            if isinstance(root, nn.Module):
                self._registered = {id(module) for module in root.modules()}
                # A layer's own tensors belong to it, wherever else it or a function may hold them.
                self._inside |= {id(t): t for t in (*root.parameters(), *root.buffers())}
                self._trained |= self._inside.keys()
                self._storages |= {_storage_of(t) for t in self._inside.values()} - {0}
                self._look("a hook of all modules", global_hooks(), is_outside=True)
            self._look(name, root, is_outside=False)

    @classmethod
    def of_originals(cls, **roots: Any) -> "PythonState":
        """The same, of what is going to be copied: what a copy shares with its original is outside."""
        try:
            # A copy of its Python only: tensors need not be doubled for this.
            modules = [root for root in roots.values() if isinstance(root, nn.Module)]
            tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
            copies = cls(**copy.deepcopy(roots, {id(t): t for t in tensors}))
        except Exception:  # whoever copies it in earnest will tell
            return cls(**roots)
        one = cls(**roots)
        shared = one._inside.keys() & copies._inside.keys() - one._trained
        if shared & one._registered:
            one._part = one._part or "a reference"  # its copy leads to the original
            return one
        return cls(shared, **roots) if shared else one

    @property
    def holds_a_part(self) -> str:
        """What has hold of a part of the object that a copy of the object would not have hold of, or nothing."""
        return self._part or ("a function" if self._inside.keys() & self._outside.keys() else "")

    @property
    def has_filled_a_cache(self) -> bool:
        """Whether a function's cache has got results since."""
        return any(cached.cache_info().misses != misses for cached, misses in self._caches)

    def changed(self, later: "PythonState") -> str:
        """The name of something that is another one later, or nothing."""
        for path, value in self._found.items():
            if path not in later._found or not same(value, later._found[path]):
                return path
        return next((path for path in later._found if path not in self._found), "")

    def differs(self, other: "PythonState", without: str = "\0") -> str:
        """The name of something that another object of the same kind has otherwise, or nothing.

        Args:
            without: what is called so is not looked at.
        """
        for path, value in self._found.items():
            if without not in path and (path not in other._found or not alike(value, other._found[path])):
                return path
        return next((path for path in other._found if path not in self._found and without not in path), "")

    def put_back_outside(self) -> None:
        """Gives what a copy shares the values it had."""
        for undo in self._undo:
            undo()

    def _look(self, path: str, value: Any, is_outside: bool) -> None:
        if isinstance(value, PLAIN):
            self._found[path] = value
            return
        is_outside = is_outside or id(value) in self._shared
        seen = self._outside if is_outside else self._inside
        is_known = id(value) in seen and not isinstance(value, Tensor)
        if is_known:
            self._found[path] = Identity(value)
            return
        if isinstance(value, types.ModuleType):
            self._look_at_module(value)
            return
        if isinstance(value, type):
            self._look_at_class(path, value)
            return
        if isinstance(value, types.FunctionType):
            self._look_at_function(path, value)
            return
        if len(self._found) > _MOST:
            raise TooMuch("it holds more than can be looked at")
        if type(value).__module__.partition(".")[0] in _OF_THREADS and not isinstance(value, threading.local):
            self.opaque = self.opaque or path
            self._found[path] = Identity(value)
            return
        if isinstance(value, functools._lru_cache_wrapper):
            self._caches.append((value, value.cache_info().misses))
        if isinstance(value, types.GeneratorType):
            self.generator = self.generator or path
        if is_iterator(value) and is_outside:
            name = f"{path[0].upper()}{path[1:]}"
            raise Refused(
                f"{name} is an iterator, which can be neither looked at nor put back: a trial would use it up, and a "
                "run that is gone on with would begin it again. Keep a number, and take what it gives from that."
            )
        seen[id(value)] = value
        most = SMALL_OUTSIDE if is_outside else SMALL
        self._found[path] = token = Identity(value) if id(value) in self._trained else snapshot(value, most)
        if is_outside:
            self._undo += undos_of(value, token.content if isinstance(token, Content) else None)
        if isinstance(token, Content) and id(value) not in self._trained and _storage_of(value) in self._storages:
            self._part = self._part or f"`{path}`"
        if isinstance(value, dict) and any(type(key) is int and key in self._registered for key in value):
            self._part = self._part or f"`{path}`"  # by its id
        has_objects = isinstance(value, np.ndarray) and value.dtype.hasobject
        if has_objects or not isinstance(token, Noise | Content):
            for name, part in self._parts(value):
                self._look(f"{path}{name}", part, is_outside)

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        """What the thing holds."""
        if isinstance(value, list | dict | deque | set | tuple | functools.partial):
            for name, part in list(getattr(value, "__dict__", {}).items()):
                yield f".{name}", part
        if isinstance(value, types.MethodType):
            yield "", value.__func__
            yield "", value.__self__
        elif isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
            if not isinstance(value.__self__, types.ModuleType):
                yield "", value.__self__
        elif isinstance(value, functools.partial):
            yield "", value.func
            yield " (arguments)", [value.args, value.keywords]
        elif isinstance(value, dict):
            if isinstance(value, defaultdict):
                yield " (by default)", value.default_factory
            if self._is_to_be_seen(value.values()):
                for i, (key, part) in enumerate(list(value.items())):
                    is_plain = isinstance(key, PLAIN)
                    yield f"[{key!r}]" if is_plain else f"[{i}]", part
                    if not is_plain:
                        yield f" (key {i})", key
        elif isinstance(value, list | tuple | deque | set | frozenset):
            if self._is_to_be_seen(value):
                for i, part in enumerate(value):
                    yield f"[{i}]", part
        elif isinstance(value, nn.Module):
            is_one_of_ours = id(value) in self._registered
            for name, part in list(vars(value).items()):
                if not (is_one_of_ours and name in _OURS_OF_MODULES) and not _is_empty(part):
                    yield f".{name}", part
            for name, child in value._modules.items() if is_one_of_ours else ():
                yield f".{name}", child
            for name, p in value._parameters.items() if is_one_of_ours else ():
                if p is not None:
                    yield f".{name}.requires_grad", p.requires_grad
                    yield f".{name} (hooks)", [*(p._backward_hooks or {}).values()]
                for key, part in vars(p).items() if p is not None else ():
                    yield f".{name}.{key}", part
            yield "", type(value)
        elif isinstance(value, Tensor | np.ndarray):
            for name, part in vars(value).items() if isinstance(value, Tensor) else ():
                yield f".{name}", part
            if isinstance(value, np.ndarray) and value.dtype.hasobject:
                yield " (objects)", value.tolist()
        elif type(value).__module__ in _HELD_BY_C or is_iterator(value):
            yield from _reduced(value)
        elif isinstance(value, weakref.ref):
            yield " (referred to)", value()
        elif isinstance(value, contextvars.ContextVar):
            yield " (value)", value.get(None)
        else:
            for name, part in list(getattr(value, "__dict__", {}).items()):
                yield f".{name}", part
            for name in slots_of(value):
                yield f".{name}", getattr(value, name)
            if isinstance(value, BaseException):
                yield ".args", value.args
            yield "", type(value)

    def _is_to_be_seen(self, items: Collection[Any]) -> bool:
        """Whether what these items hold is looked at, too."""
        if len(items) <= _LONG:
            return True
        if all(isinstance(item, PLAIN) for item in items):
            return False
        raise TooMuch("it holds more than can be looked at")

    def _look_at_module(self, module: types.ModuleType, names: Iterable[str] | None = None) -> None:
        """What a module of the user's own has under these names, or all of its, whoever changes it."""
        file = getattr(module, "__file__", None) or ""
        if not is_users_module(module.__name__) or self._is_installed(module.__name__, file):
            return
        made_up = vars(module).get("__getattr__")
        if names is None or made_up is not None:
            if isinstance(made_up, types.FunctionType):
                self._look_at_function(f"{module.__name__}.__getattr__", made_up)
            self._look_at_all(module.__name__, vars(module))
        for name in names or ():
            if name in vars(module) and (id(module), name) not in self._modules:
                self._modules.add((id(module), name))
                part = vars(module)[name]
                if isinstance(part, types.ModuleType):
                    self._look_at_module(part, names)
                else:
                    self._look_at_global(f"{module.__name__}.{name}", vars(module), name)
            elif name not in vars(module):
                self._undo.append(functools.partial(vars(module).pop, name, None))

    def _is_installed(self, module: str | None, file: str) -> bool:
        """Whether it is of a library that is not the roots' own."""
        return own_code.is_installed(file) and str(module).partition(".")[0] not in self._packages

    def _look_at_library(self, holder: Any, names: Collection[str], within: tuple[Any, ...] = ()) -> None:
        """What a library's module or class has under these names: users may put things there, and replace others."""
        for name in names:
            part = vars(holder).get(name)
            if isinstance(part, types.ModuleType | type) and part is not holder and part not in within:
                self._look_at_library(part, names, (*within, holder))
            if name.startswith("__") or isinstance(part, types.ModuleType) or (id(holder), name) in self._modules:
                continue
            self._modules.add((id(holder), name))
            if name not in vars(holder):
                self._undo.append(functools.partial(_take_away, holder, name))
                continue
            value = vars(holder)[name]
            path = f"{holder.__name__}.{name}"
            if isinstance(value, list | dict | set) and len(value) <= _LONG and value is not sys.modules:
                self._look(path, value, is_outside=True)
            else:
                self._found[path] = value if isinstance(value, PLAIN) else Identity(value)
            self._undo.append(functools.partial(_restore, holder, name, value))

    def _look_at_all(self, module: str, names: dict[str, Any]) -> None:
        """All that a module of the user's own has, where one cannot tell what of it."""
        if (id(names), "") in self._modules:
            return
        self._modules.add((id(names), ""))
        self._undo.append(functools.partial(_drop_names, names, set(names)))
        for name in [name for name in names if not name.startswith("__")]:
            if not isinstance(names[name], types.ModuleType):
                with contextlib.suppress(Refused):  # an iterator, which may be another's
                    self._look_at_global(f"{module}.{name}", names, name)

    def _look_at_global(self, path: str, names: dict[str, Any], name: str) -> None:
        value = names[name]
        self._look(path, value, is_outside=True)
        if isinstance(value, PLAIN):
            self._undo.append(functools.partial(names.__setitem__, name, value))

    def _look_at_class(self, path: str, kind: type) -> None:
        for one in [*kind.__mro__, *type.mro(type(kind))]:
            if id(one) in self._functions or not is_users(one):
                continue
            self._functions.add(id(one))
            self._undo.append(functools.partial(drop_new, one, set(vars(one))))
            for name, value in list(vars(one).items()):
                if name in _OF_EVERY_CLASS and name != "__init__" and not isinstance(value, types.FunctionType):
                    continue
                at = f"{one.__name__}.{name}"
                value = getattr(value, "__func__", value) if isinstance(value, staticmethod | classmethod) else value
                if isinstance(value, property):
                    for function in (value.fget, value.fset):
                        if isinstance(function, types.FunctionType):
                            self._look_at_function(at, function)
                elif isinstance(value, types.FunctionType):
                    self._look_at_function(at, value)
                elif (
                    not hasattr(value, "__get__")
                    or isinstance(value, functools.partialmethod | functools._lru_cache_wrapper)
                    or is_users(type(value))
                ):
                    self._look(at, value, is_outside=True)
                    if isinstance(value, PLAIN):
                        self._undo.append(functools.partial(setattr, one, name, value))

    def _look_at_function(self, path: str, function: types.FunctionType) -> None:
        if id(function) in self._functions:
            return
        self._functions.add(id(function))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not given a value yet
                value = cell.cell_contents
                self._look(f"{name} of {function.__name__}", value, is_outside=True)
                if isinstance(value, PLAIN):
                    self._undo.append(functools.partial(setattr, cell, "cell_contents", value))
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._look(f"a default of {function.__name__}", default, is_outside=True)
        if not is_users(function) or self._is_installed(function.__module__, function.__code__.co_filename):
            return
        self._undo.append(functools.partial(refill, function.__dict__, dict(function.__dict__)))
        for name, value in list(function.__dict__.items()):
            self._look(f"{function.__name__}.{name}", value, is_outside=True)
        names = dict.fromkeys(_names_in(function.__code__))
        if function.__name__ != "__init__":
            self.peeks = self.peeks or next(iter(sorted(_PEEKS & names.keys())), "")
        self.asks_types = self.asks_types or _asks_types(function.__code__)
        code = function.__code__
        self._look_at_names(names, function.__globals__, list(_texts_in(code)), set(_words_in(code)))

    def _look_at_names(
        self, names: Collection[str], of_module: dict[str, Any], texts: Collection[str], words: Collection[str]
    ) -> None:
        """What a function's code reaches by these names, by a text that names a module, and by one that may name what
        a module has."""
        is_by_text = not _BY_TEXT.isdisjoint(names) or ("sys" in names and "modules" in names)
        if is_by_text:
            self._look_at_all(str(of_module.get("__name__")), of_module)
        asked = None if is_by_text or not _OF_MODULES_BY_TEXT.isdisjoint(names) else names
        # `getattr(nn.Linear, "calls", 0)`
        of_libraries = {*names, *words} if "getattr" in names else names
        for name in (*names, *texts):
            # What is imported within the function, or named by a text.
            found = of_module.get(name, sys.modules.get(name))
            if isinstance(found, types.ModuleType):
                self._look_at_module(found, asked)
                if not is_users_module(found.__name__):
                    self._look_at_library(found, of_libraries)
            elif name in of_module and name in names:
                self._look_at_global(f"the global {name}", of_module, name)
                if isinstance(found, type) and not is_users(found):
                    self._look_at_library(found, of_libraries)
            elif name in names:
                self._undo.append(functools.partial(of_module.pop, name, None))
        if not {"environ", "putenv", "getenv"}.isdisjoint(names):
            self._found["os.environ"] = Noise(dict(os.environ))
            self._undo.append(functools.partial(refill_where_changed, os.environ, dict(os.environ)))
        if not {"getcontext", "localcontext"}.isdisjoint(names):
            self._found["decimal's context"] = Noise(repr(decimal.getcontext()))
            self._undo.append(functools.partial(decimal.setcontext, decimal.getcontext().copy()))
        if "getLogger" in names:
            loggers = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
            levels = [(one.name, one.level, one.disabled) for one in loggers if one.level or one.disabled]
            self._found["the levels of loggers"] = Noise(levels)
            self._undo.append(functools.partial(_put_back_levels, {name: rest for name, *rest in levels}))
            for logger in (logging.root, *loggers):
                for part in (*logger.handlers, *logger.filters):
                    if is_users(type(part)):
                        self._look(f"a handler of the logger {logger.name}", part, is_outside=True)


@contextlib.contextmanager
def outside_kept(**roots: Any) -> Iterator[None]:
    """Leaves what a copy shares with these objects (globals of their modules, attributes of classes) as it was."""
    kept: PythonState | None = None
    with contextlib.suppress(TooMuch):
        kept = PythonState.of_originals(**roots)
    try:
        yield
    finally:
        if kept is not None:
            kept.put_back_outside()


def _storage_of(value: Any) -> int:
    """Where a tensor's or an array's numbers begin in memory, whatever view of them it is; 0 where that is unknown."""
    while isinstance(value, np.ndarray) and value.base is not None:
        value = value.base
    if isinstance(value, np.ndarray):
        return int(value.__array_interface__["data"][0])
    if (
        not isinstance(value, Tensor)
        or nn.parameter.is_lazy(value)
        or value.layout != torch.strided
        or value.device.type == "meta"
    ):
        return 0
    try:
        return value.untyped_storage().data_ptr()
    except NotImplementedError:  # of a call by vmap that is over
        return 0


def global_hooks() -> list[Any]:
    """Hooks of all modules of the process, whichever model they were made for."""
    found = (held for name, held in vars(modules_of_torch).items() if name.startswith("_global_") and "hooks" in name)
    return [hook for held in found if isinstance(held, dict) for hook in held.values() if callable(hook)]


_HELD_BY_C = ("itertools", "collections")


def is_iterator(value: Any) -> bool:
    """Whether it is used up by who reads it; files and objects of the user's own classes are looked at otherwise."""
    kind = type(value)
    return hasattr(kind, "__next__") and kind.__module__ in ("builtins", "itertools", "collections")


def _reduced(value: Any) -> Iterator[tuple[str, Any]]:
    """What a thing without attributes is made of, as pickle would have it."""
    try:
        _, arguments, *state = value.__reduce_ex__(4)
    except Exception:  # it cannot be taken apart
        return
    for i, part in enumerate((*arguments, *state[:1])):
        yield f"({i})", part


def _package_of(root: Any) -> str:
    of_class = root if isinstance(root, type | types.FunctionType) else type(root)
    return str(of_class.__module__).partition(".")[0]


def _restore(holder: Any, name: str, value: Any) -> None:
    if vars(holder).get(name) is not value:
        setattr(holder, name, value)


def _take_away(holder: Any, name: str) -> None:
    """What has come to a library, but for what it imports when asked."""
    if name in vars(holder) and not isinstance(vars(holder)[name], types.ModuleType):
        delattr(holder, name)


def _put_back_levels(levels: Mapping[str, Sequence[int]]) -> None:
    """Of all loggers but the root, which is the program's; one that is new has none."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            level, is_disabled = levels.get(name, (logging.NOTSET, False))
            logger.disabled = bool(is_disabled)
            if logger.level != level:
                logger.setLevel(level)


def _is_empty(part: Any) -> bool:
    return isinstance(part, dict | set | list) and not part


def _drop_names(holder: dict[str, Any], names: set[str]) -> None:
    for name in [name for name in holder if name not in names]:
        del holder[name]


@functools.lru_cache(10_000)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """All names that it has, those of functions within too."""
    return tuple(dict.fromkeys(_all_names_in(code)))


def _all_names_in(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_names_in(constant)


def _words_in(code: types.CodeType) -> Iterator[str]:
    """What may be names among the constants."""
    return (text for text in _strings_in(code) if text.isidentifier())


@functools.lru_cache(10_000)
def _asks_types(code: types.CodeType) -> bool:
    """Whether it has `isinstance(x, float)`, `type(x) is float` or the like."""
    names = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    names |= {"__class__"} & set(code.co_names)
    nested = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return (not names.isdisjoint({"isinstance", "type", "__class__"}) and not names.isdisjoint(_OF_NUMBERS)) or any(
        map(_asks_types, nested)
    )


def _texts_in(code: types.CodeType) -> Iterator[str]:
    """Names of modules that have been imported, among the constants."""
    return (text for text in _strings_in(code) if text in sys.modules)


@functools.lru_cache(10_000)
def _strings_in(code: types.CodeType) -> frozenset[str]:
    found: set[str] = set()
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _strings_in(constant)
        elif isinstance(constant, str):
            found.add(constant)
    return frozenset(found)
