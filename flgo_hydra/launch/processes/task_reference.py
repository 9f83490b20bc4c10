"""How another process finds a Hydra app's task function: by name, as pickle does, but for `__main__` too.

Three things stand in pickle's way. `hydra.main` hides the function behind a wrapper of the same name: the
reference says how many wrappers to take off. A function of the program itself lives in a module called `__main__`:
its file is run again in the worker under the name `__mp_main__`, the one multiprocessing uses, so that `if __name__
== "__main__":` keeps it from starting a second program. A closure or lambda has no name that leads to it: it
travels by cloudpickle where that is installed, and is refused with advice where it is not.
"""

import ast
import base64
import importlib
import importlib.util
import io
import os
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

MAIN = "__mp_main__"
_program: ModuleType | None = None


@dataclass(frozen=True)
class TaskReference:
    """Where a task function is. All values are JSON's, so it travels as text."""

    # module to import; MAIN: the program itself
    module: str = ""
    # name in the module, dotted for a member of a class
    qualname: str = ""
    # wrappers (`__wrapped__`) around the function that Hydra calls
    num_wrappers: int = 0
    # the program: its module for `python -m`, else its file; both None in a notebook
    main_module: str | None = None
    main_path: str | None = None
    # the function itself, pickled, in base64; None: module and qualname lead to it
    pickled: str | None = None


def find_task(function: Callable[..., Any]) -> TaskReference:
    """Returns the reference by which a worker finds `function`.

    Raises:
        ValueError: no worker could.
    """
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    main_module = spec.name if spec is not None else None
    main_file = getattr(main, "__file__", None)
    # what came from a pipe has a name that no file has
    main_path = os.path.abspath(main_file) if main_module is None and main_file and os.path.isfile(main_file) else None
    module_name, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    num_wrappers = _count_wrappers(function, sys.modules.get(module_name or ""), qualname)
    has_file = main_module is not None or main_path is not None
    if num_wrappers is None or (module_name == "__main__" and not has_file):
        pickled = _pickle(function, name, has_file)
        return TaskReference(main_module=main_module, main_path=main_path, pickled=pickled)
    assert module_name is not None and qualname is not None
    if module_name == "__main__":
        module_name = MAIN
        sys.modules.setdefault(MAIN, main)  # objects of its classes come back under this name
        _check_is_guarded(str(main_file))
    return TaskReference(module_name, qualname, num_wrappers, main_module, main_path)


def load_task(reference: TaskReference) -> Callable[..., Any]:
    """Returns the function, importing what it needs. For the worker."""
    if reference.pickled is not None:
        return load_pickled(base64.b64decode(reference.pickled), reference)  # type: ignore[no-any-return]
    found: Any = load_main(reference) if reference.module == MAIN else importlib.import_module(reference.module)
    for part in reference.qualname.split("."):
        found = getattr(found, part)
    for _ in range(reference.num_wrappers):
        found = found.__wrapped__
    return found  # type: ignore[no-any-return]


def load_pickled(data: bytes, reference: TaskReference) -> Any:
    """Returns the object in `data`, which may name things that the program itself defines."""
    if b"__main__" in data and (reference.main_module or reference.main_path):
        load_main(reference)
    return pickle.loads(data)


def load_main(reference: TaskReference) -> ModuleType:
    """Returns the program's module, run once in this process, and lets it stand for `__main__` too."""
    global _program
    if _program is not None:
        return _program
    if reference.main_module is not None:
        _program = importlib.import_module(reference.main_module)
        sys.modules[MAIN] = sys.modules["__main__"] = _program
        return _program
    spec = importlib.util.spec_from_file_location(MAIN, reference.main_path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules["__main__"]
    sys.modules[MAIN] = sys.modules["__main__"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules[MAIN] = sys.modules["__main__"] = before
        raise
    _program = module
    return module


def _count_wrappers(function: Any, module: Any, qualname: str | None) -> int | None:
    """Returns how many `__wrapped__` lead from what the name stands for to `function`; None: they do not."""
    found = module
    for part in (qualname or "<none>").split("."):
        found = getattr(found, part, None)
    num_wrappers = 0
    while found is not None and found is not function:
        found = getattr(found, "__wrapped__", None)
        num_wrappers += 1
    return None if found is None else num_wrappers


def _pickle(function: Callable[..., Any], name: str, has_file: bool) -> str:
    for module_name, dumps in (("pickle", pickle.dumps), ("cloudpickle", _dumps_by_value)):
        try:
            data = dumps(function)
        except Exception:  # whatever keeps it from travelling this way, the next may do
            continue
        if has_file or b"__main__" not in data or module_name == "cloudpickle":
            return base64.b64encode(data).decode()
    raise ValueError(
        f"The task function must be found by name in a worker process, but {name} is not: it is defined inside a "
        "function, in a notebook, or behind a decorator without functools.wraps. Move it to the top level of a module, "
        "or `pip install cloudpickle`."
    )


def _dumps_by_value(function: Callable[..., Any]) -> bytes:
    """Pickles with cloudpickle, and keeps where code stands, which its versions from 3.1.3 on leave out: a worker's
    traceback shall say it."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)

    with io.BytesIO() as file:
        Pickler(file).dump(function)
        return file.getvalue()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    import cloudpickle

    _, parts = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _make_code, (parts, code.co_filename)


def _make_code(parts: tuple[Any, ...], file: str) -> CodeType:
    return CodeType(*parts).replace(co_filename=file)


def _check_is_guarded(path: str) -> None:
    """Raises ValueError where running the program's file again would start the program again."""
    try:
        with open(path, "rb") as file:
            body = ast.parse(file.read()).body
    except (OSError, SyntaxError):
        return  # not a file of source: nothing to say about it
    tests = [node.test for node in body if isinstance(node, ast.If)]
    if not any(isinstance(leaf, ast.Name) and leaf.id == "__name__" for test in tests for leaf in ast.walk(test)):
        raise ValueError(
            f'{path} must start the app under `if __name__ == "__main__":`, but it has no such line. Workers '
            "import this file and would each start the app again. Add the line, or move the task function to a module."
        )
