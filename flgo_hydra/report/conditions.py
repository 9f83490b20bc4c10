"""Which keys are conditions, and which are settings.

A setting is a knob that an experimenter turns until a method works best: a learning rate, a batch size. A condition is
what methods are compared under: the data, how they are split, the model. A method is at its best under each condition
by itself; the easiest data are no method's best setting. So what is chosen, averaged over or compared is so within
every condition apart.
"""

import re
from collections.abc import Sequence

from flgo_hydra.report.runs import CODE, DATA, Run
from flgo_hydra.report.selection import ranks_of

_PARTS = ("task", "model", DATA, CODE)
"""of a run that are conditions unless a reader says otherwise, with all that lies below them"""


def is_condition(key: str) -> bool:
    """Whether a key is one unless a reader says otherwise."""
    return re.split(r"[./]", key)[0] in _PARTS


def conditions_of(
    varied: Sequence[str], taken: Sequence[str], conditions: Sequence[str] = (), settings: Sequence[str] = ()
) -> tuple[str, ...]:
    """The conditions among the keys that vary.

    Args:
        taken: keys that have another part already: those compared and those that are replicates.
        conditions, settings: what the reader says; a group (`task/partition`) stands for all below it.
    Raises:
        ValueError: a key is both, has another part already, or does not vary.
    """
    if any(covers(key, DATA) for key in settings) or DATA in taken:
        raise ValueError(f"`{DATA}` can only be a condition: results on other data are no better or worse.")
    for option, named in (("conditions", conditions), ("settings", settings)):
        for key in named:
            below = [one for one in varied if covers(key, one)]
            if not below:
                told = ", ".join(f"`{one}`" for one in varied)
                raise ValueError(
                    f"`--{option} {key}`: all runs have the same. "
                    + (f"What varies: {told}." if varied else "Nothing varies.")
                )
            if all(one in taken for one in below):
                raise ValueError(f"`--{option} {key}` is compared, or what the means are over (`--compare`, `--over`).")
    both = [key for key in conditions if any(covers(key, one) or covers(one, key) for one in settings)]
    if both:
        raise ValueError(f"`{both[0]}` cannot be of `--conditions` and of `--settings`.")

    def is_one(key: str) -> bool:
        if any(covers(named, key) for named in conditions):
            return True
        return is_condition(key) and not any(covers(named, key) for named in settings)

    return tuple(key for key in varied if key not in taken and is_one(key))


def covers(named: str, key: str) -> bool:
    """Whether a key is the one named or lies below it: `task/partition` has `task.partition.alpha`."""
    return key == named or key.replace("/", ".").startswith(f"{named.replace('/', '.')}.")


def by_condition(runs: Sequence[Run], conditions: Sequence[str]) -> list[list[Run]]:
    """Runs of each condition, in order of the conditions' values."""
    ranks = ranks_of(runs, conditions)
    apart: dict[tuple[int, ...], list[Run]] = {}
    for run in runs:
        apart.setdefault(tuple(ranks(run)), []).append(run)
    return [apart[rank] for rank in sorted(apart)]
