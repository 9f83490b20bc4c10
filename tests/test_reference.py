import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flgo_hydra import reference


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module of a user's, which can be imported in this test only."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


def test_load() -> None:
    assert reference.load("math.sqrt", "key") is __import__("math").sqrt


@pytest.mark.parametrize(
    "target, message",
    [
        ("sqrt", "`model._target_` must read package.module.name, but got 'sqrt'"),
        ("", "must read package.module.name, but got ''"),
        (".mine.Net", "must read package.module.name, but got '.mine.Net'"),
        ("no_such_module.Net", "`model._target_=no_such_module.Net`: there is no module 'no_such_module' in "),
        ("math.nothing", "`model._target_=math.nothing`: the module 'math' has no 'nothing'"),
        ("math.pi.real", "there is no module 'math.pi'"),
        ("math.pi", "must be a function or a class, but it is float"),
    ],
)
def test_wrong_references(target: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        reference.load(target, "model._target_")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "text, error",
    [
        ("import no_such_dependency", ModuleNotFoundError),
        ("(1).missing", AttributeError),
        ("def f(:", SyntaxError),
        ("1 / 0", ZeroDivisionError),
    ],
)
def test_a_broken_module_raises_its_own_error(user_module: Any, text: str, error: type[Exception]) -> None:
    # "There is no module" or "has no Net" would send the user to the wrong place.
    user_module("broken_module", text)
    with pytest.raises(error) as raised:
        reference.load("broken_module.Net", "model._target_")
    assert not isinstance(raised.value, ValueError)


def _plain(a: int, b: int = 2) -> tuple[int, int]:
    return a, b


def _greedy(**all_of_it: int) -> dict[str, int]:
    return all_of_it


@pytest.mark.parametrize(
    "function, given, offered, result",
    [
        (_plain, {"a": 1}, {"b": 3, "c": 4}, (1, 3)),
        (_plain, {"a": 1, "b": 5}, {"b": 3}, (1, 5)),  # what is given wins
        (_greedy, {"a": 1}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
    ],
)
def test_call(function: Any, given: dict[str, int], offered: dict[str, int], result: object) -> None:
    assert reference.call(function, given, offered, "key") == result


@pytest.mark.parametrize("given, message", [({"a": 1, "c": 2}, "'c'"), ({}, "'a'")])
def test_call_with_wrong_arguments(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        reference.call(_plain, given, {}, "model")
    assert "`model`: _plain(a: int, b: int = 2) -> tuple[int, int] cannot be called" in str(raised.value)
    assert message in str(raised.value)


def test_an_error_inside_the_function_is_its_own() -> None:
    def function() -> None:
        raise TypeError("inside")

    with pytest.raises(TypeError, match="inside"):
        reference.call(function, {}, {}, "model")


@pytest.mark.parametrize("path, after", [(["/x"], ["/mine", "/x"]), (["/mine"], ["/mine"]), ([""], [""])])
def test_import_folder(monkeypatch: pytest.MonkeyPatch, path: list[str], after: list[str]) -> None:
    monkeypatch.setattr(sys, "path", list(path))
    reference.import_folder("/mine")
    assert sys.path == after
