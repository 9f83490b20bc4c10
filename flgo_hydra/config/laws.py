"""How a schema states its laws: each raises ValueError with the key, the law and what came."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

MISSING: Any = "???"
"""OmegaConf's mark of a value that must be given, spelled out: what trains needs torch and numpy only."""


MOST_WHOLE = 2**63 - 1
"""of whole numbers that are counted with: what a machine's word and torch hold"""


LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}
"""number of a dtype"""


def hold(is_true: bool, law: str, got: object) -> None:
    """Raises ValueError with the law and what came, unless the law holds."""
    if not is_true:
        raise ValueError(f"`{law}` must hold, but got {got!r}.")


def hold_whole_numbers(part: Any, above: str = "") -> None:
    """Raises ValueError for a whole number that is beyond what can be counted with, in any key of a schema.

    Seeds are not counted with: NumPy's may have 128 bits.

    Args:
        above: what comes before a field in its key: `hydra.launcher.`
    """
    for one in fields(part):
        name, value = one.name, getattr(part, one.name)
        if is_dataclass(value):
            hold_whole_numbers(value, f"{above}{name}.")
        if one.type is Any:  # it need not be a number, and has a law of its own
            continue
        for item in value if isinstance(value, list) else [value]:
            if type(item) is int and abs(item) > MOST_WHOLE and not name.endswith("seed"):
                got = str(item) if abs(item) < 10**40 else f"{str(item)[:8]}…, of {len(str(item))} digits"
                raise ValueError(f"`{above}{name}` must be a whole number below 2**63, but got {got}.")


def hold_representable(values: Mapping[str, Any], dtype: str) -> None:
    """Raises ValueError for a number, by its key, that tensors of a dtype cannot hold; infinity they can."""
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int | float) and LARGEST[dtype] < abs(item) < math.inf:
                raise ValueError(
                    f"`{key}` must be a number that dtype={dtype} holds, at most {LARGEST[dtype]:.2g}, but got {item}."
                )


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError with the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"`{key}` must be one of {', '.join(choices)}, but got {value!r}.")


def are_widths(values: Any) -> bool:
    """Whether it is a list of whole numbers from 1 on: a list in a list escapes the types."""
    return isinstance(values, list) and all(type(value) is int and value >= 1 for value in values)


MOST_THREADS = 1024
"""of one process; ten thousand end it without a word"""


MOST_SECONDS = 30 * 86400.0
"""that anything is waited for; the kernel counts no more than 2**31 milliseconds"""
