"""By which name another process finds a task function, and which functions have none."""

import functools
import pickle
import sys
import types

import pytest

from flgo_hydra.launch.processes import task_reference
from flgo_hydra.launch.processes.task_reference import TaskReference, find_task, load_task


@pytest.fixture
def module(monkeypatch):
    """A module that can be imported, with a task function behind a wrapper, as hydra.main makes one."""
    module = types.ModuleType("an_app")
    monkeypatch.setitem(sys.modules, "an_app", module)

    def task(cfg):
        return cfg * 2

    @functools.wraps(task)
    def decorated(cfg=None):
        raise AssertionError("this one reads the command line")

    for function in (task, decorated):
        function.__module__, function.__qualname__ = "an_app", "task"
    module.task, module.raw = decorated, task
    return module


def test_wrappers_are_taken_off(module):
    reference = find_task(module.raw)
    assert (reference.module, reference.qualname, reference.num_wrappers) == ("an_app", "task", 1)
    assert load_task(reference) is module.raw


def test_a_decorator_under_hydra_main_stays_on(module):
    @functools.wraps(module.raw)
    def timed(cfg):
        return module.raw(cfg) + 1

    @functools.wraps(timed)
    def decorated(cfg=None):
        raise AssertionError

    module.task = decorated
    assert load_task(find_task(timed))(3) == 7


def test_what_pickle_knows_travels_by_pickle():
    reference = find_task(functools.partial(divmod, 7))
    assert reference.pickled and load_task(reference)(2) == (3, 1)


def test_a_closure_needs_cloudpickle(monkeypatch):
    seven = 7
    reference = find_task(lambda cfg: cfg + seven)
    assert load_task(reference)(1) == 8
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ValueError, match="must be found by name in a worker process.*pip install cloudpickle"):
        find_task(lambda cfg: cfg + seven)


@pytest.mark.parametrize(
    "source, is_guarded",
    [
        ('if __name__ == "__main__":\n    main()', True),
        ('if "__main__" == __name__:\n    main()', True),
        ("main()", False),
        ("if True:\n    main()", False),
    ],
)
def test_programs_must_be_guarded(tmp_path, source, is_guarded):
    path = tmp_path / "app.py"
    path.write_text(f"def main(): pass\n{source}\n")
    if is_guarded:
        task_reference._check_is_guarded(str(path))
    else:
        with pytest.raises(ValueError, match='must start the app under `if __name__ == "__main__":`'):
            task_reference._check_is_guarded(str(path))


def test_the_program_stands_for_main(tmp_path, monkeypatch):
    path = tmp_path / "a-script.py"  # no name that could be imported
    path.write_text("class Conf:\n    pass\n\ndef task(cfg):\n    return __name__\n")
    for name in ("__main__", task_reference.MAIN):
        monkeypatch.setitem(sys.modules, name, sys.modules["__main__"])
    monkeypatch.setattr(task_reference, "_program", None)
    reference = TaskReference(task_reference.MAIN, "task", 0, None, str(path))
    assert load_task(reference)(None) == task_reference.MAIN
    kind = pickle.loads(b"c__main__\nConf\n.")  # as the launcher pickles a class of its own program
    assert kind is sys.modules[task_reference.MAIN].Conf


def test_a_function_that_travels_by_value_keeps_its_file_in_tracebacks():
    def fail():
        def inner():
            raise ValueError("in the worker")

        inner()

    with pytest.raises(ValueError, match="in the worker") as error:
        load_task(find_task(fail))()
    assert [entry.path.name for entry in error.traceback[-2:]] == ["test_task_reference.py"] * 2
