"""Numbers that tell of what is done with them beside computing.

In faster forms a tensor stands in a number's place: looked up in a table, compared, rounded or written it would be
found, or read, otherwise.
"""

from collections.abc import Callable
from typing import Any


class _Noticed:
    """Notices that a number is looked up in a table, compared or written: a tensor in its place would be found or read
    otherwise."""

    name: str
    noticed: list[str]
    decided: list[str]

    def _notice(self) -> None:
        self.noticed.append(self.name)

    def __hash__(self) -> int:
        self._notice()
        return super().__hash__()

    def __str__(self) -> str:
        self._notice()
        return super().__str__()

    def __repr__(self) -> str:
        self._notice()
        return super().__repr__()

    def __format__(self, form: str) -> str:
        self._notice()
        return super().__format__(form)

    def __round__(self, digits: Any = None) -> Any:
        self._notice()
        return round(self.__class__.__mro__[2](self), digits)

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)

    def __bool__(self) -> bool:
        self._notice_value()
        return super().__ne__(0)

    def _notice_value(self) -> None:
        """Which way the code goes follows from the number: the learning rate is another one than in the trial, and
        others are other runs'."""
        (self.noticed if self.name == "lr" else self.decided).append(self.name)

    def __deepcopy__(self, memo: Any) -> "_Noticed":
        return self


class _Number(_Noticed, float):
    pass


class _WholeNumber(_Noticed, int):
    pass


def _derives(method: str, kind: type) -> Callable[..., Any]:
    """What is computed from a number that is noticed is noticed, too."""

    def compute(self: Any, *others: Any) -> Any:
        found = getattr(kind, method)(self, *others)
        return found if found is NotImplemented else noticed(found, self.name, self.noticed, self.decided)

    return compute


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    for _method in (f"__{_name}__", f"__r{_name}__"):
        setattr(_Number, _method, _derives(_method, float))
        setattr(_WholeNumber, _method, _derives(_method, int))
for _method in ("__neg__", "__abs__", "__pos__"):
    setattr(_Number, _method, _derives(_method, float))
    setattr(_WholeNumber, _method, _derives(_method, int))


def _decides(method: str, kind: type) -> Callable[..., Any]:
    """What is made of a number that is no number computed with: the code goes one way or another."""

    def compute(self: Any, *others: Any) -> Any:
        self._notice_value()
        return getattr(kind, method)(self, *others)

    return compute


for _name in ("lt", "le", "gt", "ge", "eq", "ne", "int", "float", "floor", "ceil", "trunc", "divmod", "rdivmod"):
    for _class, _kind in ((_Number, float), (_WholeNumber, int)):
        setattr(_class, f"__{_name}__", _decides(f"__{_name}__", _kind))
for _name in ("is_integer", "as_integer_ratio", "hex"):
    setattr(_Number, _name, _decides(_name, float))


def noticed(value: Any, name: str, noticed: list[str], decided: list[str]) -> Any:
    """The same number, which adds its name to `noticed` when it is looked up or written.

    Args:
        decided: gets the name when the code goes one way or another by its value; of the learning rate, `noticed`.
    """
    kind = {float: _Number, int: _WholeNumber}.get(type(value))
    if kind is None:
        return value
    number = kind(value)
    number.name, number.noticed, number.decided = name, noticed, decided
    return number
