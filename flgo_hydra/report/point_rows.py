"""One row a point whose jobs are replicates: points.csv, best.yaml, and what the summary prints."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

from flgo_hydra.objective import VALID_LOSS, Objective
from flgo_hydra.overrides import texts_of
from flgo_hydra.record.files import write_text
from flgo_hydra.record.plain_text import first_line, printable
from flgo_hydra.record.result import decimals


@dataclass(frozen=True)
class PointRow:
    """A point, and what its jobs came to: the monitored metric of each at its best round."""

    overrides: tuple[str, ...]
    jobs: tuple[int, ...]
    values: tuple[float, ...] = ()
    mean: float = math.nan
    std: float | None = None
    """sample standard deviation; None of a single value"""
    message: str = ""
    """why it has no mean"""
    monitor: Objective = VALID_LOSS

    @property
    def name(self) -> str:
        return printable(" ".join(self.overrides)) or "(a single point)"

    @property
    def value(self) -> str:
        """`0.483698 ± 0.012034`, for people."""
        return decimals(self.mean) if self.std is None else f"{decimals(self.mean)} ± {decimals(self.std)}"

    @property
    def of_jobs(self) -> str:
        return f"job{'s' * (len(self.jobs) > 1)} {', '.join(map(str, self.jobs))}"


def sort_points(rows: Sequence[PointRow]) -> list[PointRow]:
    """Those that have a mean, the best first."""
    return sorted((row for row in rows if math.isfinite(row.mean)), key=lambda row: row.monitor.rank(row.mean))


def write_points(path: Path, rows: Sequence[PointRow]) -> None:
    """Rewrites points.csv: the points with the best mean first, those without one last."""
    swept = [texts_of(row.overrides) for row in rows]
    keys = list(dict.fromkeys(key for values in swept for key in values))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ranked = sort_points(rows)
    monitor = (ranked or [PointRow((), ())])[0].monitor
    writer.writerow([*keys, f"mean_{monitor.column}", "std", "num_replicates", "values", "jobs", "message"])
    for row in [*ranked, *(row for row in rows if row not in ranked)]:
        values = texts_of(row.overrides)
        writer.writerow(
            [*(values.get(key, "") for key in keys)]
            + ["" if math.isnan(row.mean) else repr(row.mean), "" if row.std is None else repr(row.std), len(row.jobs)]
            + [" ".join(map(repr, row.values)), " ".join(map(str, row.jobs)), row.message]
        )
    write_text(path, buffer.getvalue())


def write_best_point(
    path: Path,
    rows: Sequence[PointRow],
    fixed: Sequence[str],
    apart: Sequence[tuple[Mapping[str, str], Sequence[PointRow]]] = (),
) -> None:
    """Rewrites best.yaml; there is none while no point has a mean.

    Args:
        apart: points by condition, the best first, where conditions were swept.
    """
    ranked = sort_points(rows)
    if not ranked:
        path.unlink(missing_ok=True)
        return
    best = ranked[0]
    content = {
        "overrides": list(best.overrides),
        "fixed": list(fixed),
        "monitor": asdict(best.monitor),
        f"mean_{best.monitor.column}": best.mean,
        "std": best.std,
        "replicates": list(best.values),
        "jobs": list(best.jobs),
    }
    if len(apart) > 1:
        content["best_under"] = [
            {
                "condition": dict(condition),
                "overrides": list(own[0].overrides),
                f"mean_{best.monitor.column}": own[0].mean,
                "jobs": list(own[0].jobs),
            }
            for condition, own in apart
            if own
        ]
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(content)))


def print_best_point(best: PointRow, under: str = "") -> None:
    """Args: under: which condition, if those vary."""
    print(f"optimal combination{under}:", best.name)
    several = "s" if len(best.jobs) > 1 else ""
    print(f"{f'{best.monitor.label}:':20} {best.value} over {len(best.jobs)} replicate{several} ({best.of_jobs})")


def print_points(rows: Sequence[PointRow], most: int) -> None:
    """The points from best to worst, then those without a mean."""
    listed = sort_points(rows)
    if len(listed) > 1:
        width = max(len("point"), *(len(row.name) for row in listed[:most]))
        print(f"\n  {'point':{width}}  {f'{listed[0].monitor.label}, mean ± std':>26}    n")
        for row in listed[:most]:
            print(f"  {row.name:{width}}  {row.value:>26}  {len(row.jobs):>3}")
        if len(listed) > most:
            print(f"  … and {len(listed) - most} more in points.csv")
    without = [row for row in rows if row.message]
    if without:
        print(f"\nwithout a mean: {len(without)} of {len(rows)} points")
        for row in without[:most]:
            print(f"  {row.name}  {first_line(row.message)}")
