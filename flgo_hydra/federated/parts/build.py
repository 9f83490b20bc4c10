"""Parts from the config that names them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flgo_hydra import reference
from flgo_hydra.federated.parts.base import Hostile, Part, Selection, ServerRule, Transport


class Named(NamedTuple):
    """A part by its name in the config."""

    name: str
    part: Part


def build_parts(config: Mapping[str, Mapping[str, Any]]) -> tuple[list[Named], dict[str, float]]:
    """Returns the parts that a config names, and the numbers of all of them by their keys: `parts.top.share`.

    A part's numbers are given to its functions with each call; whatever else it has goes to its constructor.

    Raises:
        ValueError: a reference is wrong, or is no part.
    """
    found: list[Named] = []
    numbers: dict[str, float] = {}
    for name, given in config.items():
        key = f"parts.{name}"
        target = str(given["_target_"])
        kind = reference.load(target, f"{key}._target_")
        kinds = (Selection, Hostile, Transport, ServerRule)
        if not (isinstance(kind, type) and issubclass(kind, kinds)):
            among = ", ".join(one.__name__ for one in kinds)
            raise ValueError(
                f"`{key}._target_={target}` must be a subclass of one of {among} of flgo_hydra.federated.parts.base."
            )
        rest = {k: v for k, v in given.items() if k != "_target_"}
        own = {k: v for k, v in rest.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        numbers |= {f"{key}.{k}": v for k, v in own.items()}
        _require_numbers(kind, key, own)
        part = reference.call(kind, {k: v for k, v in rest.items() if k not in own}, {}, key)
        if isinstance(part, Hostile):
            share = own.get("share")
            if share is None or not 0 <= share <= 1:
                raise ValueError(
                    f"`0 <= {key}.share <= 1`, the share of hostile clients, must hold, but got {share!r}."
                )
        found.append(Named(name, part))
    for one_kind, what in ((Selection, "draws the clients"), (ServerRule, "makes one message of all")):
        if len(own_kind := [one.name for one in found if isinstance(one.part, one_kind)]) > 1:
            names = " and ".join(f"`parts.{name}`" for name in own_kind)
            raise ValueError(f"{names}: only one of them {what}. Drop the others.")
    return found, numbers


def _require_numbers(kind: type[Part], key: str, given: Mapping[str, float]) -> None:
    """Raises ValueError where a part's numbers are not those that it has, or not lawful."""
    if kind.numbers is None:
        return
    for name in given:
        if name not in kind.numbers:
            has = f"has {' and '.join(kind.numbers)}" if kind.numbers else "has no numbers"
            raise ValueError(f"There is no `{key}.{name}`: {kind.__name__} {has}.")
    for name, (least, most) in kind.numbers.items():
        if name not in given:
            raise ValueError(f"`{key}.{name}` must be given, a number of {kind.__name__}: `+{key}.{name}=…`.")
        if not least <= given[name] <= most:
            raise ValueError(f"`{least:g} <= {key}.{name} <= {most:g}` must hold, but got {given[name]}.")


def of_part(name: str, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """A part's own numbers, by their names."""
    before = f"parts.{name}."
    return {key.removeprefix(before): value for key, value in hyper.items() if key.startswith(before)}
