"""What means are over unless a reader says so: the seed, and what the sweeps were told are replicates."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flgo_hydra.overrides import Override
from flgo_hydra.report.conditions import covers
from flgo_hydra.report.runs import Run, read_yaml
from flgo_hydra.report.selection import values_of


def default_over(runs: Sequence[Run], replicates: Iterable[str], named: Sequence[str] = ()) -> tuple[str, ...]:
    """`seed` and the replicate keys, those of them that vary; `seed` where none does.

    Args:
        named: keys that the reader gave another part (`--compare`, `--conditions`, `--settings`): the sweep's own word
            counts less.
    """
    keys = ["seed", *(key for key in replicates if not any(covers(one, key) for one in named))]
    return tuple(key for key in dict.fromkeys(keys) if len(values_of(runs, key)) > 1) or ("seed",)


def replicates_of(runs: Iterable[Run]) -> list[str]:
    """The keys of `hydra.sweeper.replicate` in the `multirun.yaml` of the runs' sweeps, each once."""
    sweeps = dict.fromkeys(_sweep_of(parent) for parent in dict.fromkeys(run.row.folder.parent for run in runs))
    return list(dict.fromkeys(key for sweep in sweeps if sweep is not None for key in replicate_keys(sweep)))


def replicate_keys(path: Path) -> list[str]:
    """Of a `multirun.yaml`: a key or a list of them; none where it cannot be read, or is another sweeper's."""
    content: Any = read_yaml(path)
    try:
        found = content["hydra"]["sweeper"]["replicate"]
    except (KeyError, TypeError):
        return []
    keys = found if isinstance(found, list) else [found]
    return [Override.read(key).key for key in keys if isinstance(key, str) and key]


def _sweep_of(folder: Path) -> Path | None:
    """The nearest one above: `hydra.sweep.subdir` may put runs more than one folder deep."""
    return next((path for at in (folder, *folder.parents) if (path := at / "multirun.yaml").is_file()), None)
