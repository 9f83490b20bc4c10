"""What is printed at the end of a sweep."""

import random
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from flgo_hydra.machine_errors import CannotWrite
from flgo_hydra.progress import duration
from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.record.result import decimals, read_rounds
from flgo_hydra.record.secrets import masked
from flgo_hydra.report.curves import Curve, draw_curves, line_names
from flgo_hydra.report.optimum import print_optimal_point, print_optimum
from flgo_hydra.report.point_rows import PointRow, print_points, sort_points
from flgo_hydra.report.rows import NO_BEST, Row, best_row
from flgo_hydra.report.seeds import seeds_summary

_MOST_LISTED = 20
_MOST_DRAWN = 300
"""Curves of curves.png: to read and draw thousands takes a minute, and nobody can tell them apart."""
_BEST_DRAWN = 50


def print_summary(
    rows: Sequence[Row],
    paths: SweepPaths,
    storage: str,
    study_name: str,
    num_left: int,
    curve: str | None,
    num_untried: int = 0,
    is_ours: bool = True,
    points: Sequence[PointRow] | None = None,
    num_outgrown: int = 0,
) -> Row | None:
    """Draws curves.png and prints the optimum, what failed, where things lie and how to go on. Returns the best row.

    Args:
        curve: the metric that is drawn; None: the one that decides.
        num_left: points that did not run (the sweep was stopped).
        num_untried: failed points that were not tried again.
        is_ours: the jobs are ours, and not of another Hydra app that uses our sweeper.
        points: where jobs are replicates, what they come to; the best row is then one of the best point's.
        num_outgrown: trials of the study whose points have more replicates by now.
    Raises:
        CannotWrite: curves.png; all the rest has been told then.
    """
    ranked = None if points is None else sort_points(points)
    best = best_row(rows if ranked is None else [row for row in rows if ranked and row.job in ranked[0].jobs])
    drawn = rows_to_draw(rows, best)
    rounds = {row.job: read_rounds(RunPaths(row.folder)) for row in drawn}
    curve = curve or (best or rows[0] if rows else PointRow((), ())).monitor.metric
    refused = None
    try:
        is_drawn = _draw(paths.curves, rows, drawn, rounds, best, curve)
    except CannotWrite as error:  # after all that there is to say
        is_drawn, refused = False, error
    print()
    if ranked:
        print_optimal_point(rows, ranked)
    elif best is not None:
        print_optimum(rows, best)
    elif rows:
        print("no point has a finite value")
    if points is None:
        _print_points(rows, best)
    else:
        print_points(points, _MOST_LISTED)
    _print_pruned([row for row in rows if row.status == "pruned"], len(rows), paths)
    for status in ("failed", "diverged", NO_BEST):
        listed = [row for row in rows if row.end == status]
        if listed:
            print(f"\n{status}: {len(listed)} of {len(rows)}")
        for row in listed[:_MOST_LISTED]:
            where = f"  {_relative(RunPaths(row.folder).newest_log())}" if status == "failed" else ""
            print(f"  job {row.job}  {row.label}  {row.reason}{where}")
        if len(listed) > _MOST_LISTED:
            print(f"  … and {len(listed) - _MOST_LISTED} more in {_relative(paths.results)}")
        if status == "failed" and num_untried:
            print(f"  {num_untried} failed before and {'was' if num_untried == 1 else 'were'} not tried again; to try:")
            print(f"  {resume_command(paths.folder, is_ours, 'hydra.sweeper.retry_failed=true')}")
    _print_warnings(rows)
    if num_left:
        print(f"\nnot run: {num_left} points")
    print(f"\nfolder:  {_relative(paths.folder)}")
    there = {"results.csv": True, "points.csv": points is not None, "best.yaml": best is not None}
    files = {**there, "curves.png": is_drawn, "<job>/rounds.jsonl": True}
    print(f"files:   {', '.join(name for name, is_there in files.items() if is_there)}")
    if not is_drawn and refused is None and any(rounds.values()):
        known = sorted({name for lines in rounds.values() for line in lines for name in line} - {"round"})
        print(f"         no curves.png: no job recorded `{curve}`; there are {', '.join(known)}")
    print(f"resume:  {resume_command(paths.folder, is_ours)}")
    if any(rounds.values()):
        print(f"report:  python -m flgo_hydra.report {shlex.quote(_relative(paths.folder))}")
    where = _relative(Path(storage)) if "://" not in storage else masked(storage)
    print(f"study:   optuna best-trial --storage {shlex.quote(where)} --study-name {shlex.quote(study_name)}")
    print(f"         optuna-dashboard {shlex.quote(where)}", flush=True)
    if num_outgrown:
        verb, whose = ("is", "its point has") if num_outgrown == 1 else ("are", "their points have")
        print(f"         {num_outgrown} of its trials {verb} of fewer replicates than {whose} now", flush=True)
    if refused is not None:
        raise refused
    return best


def _print_points(rows: Sequence[Row], best: Row | None) -> None:
    """The points from best to worst."""
    listed = sorted((row for row in rows if row.is_valid), key=lambda row: row.rank)
    if len(listed) < 2:
        return
    print()
    width = max(len("point"), *(len(row.label) for row in listed[:_MOST_LISTED]))
    print(f"  job  {'point':{width}}  {listed[0].monitor.label:>15}  round  of  status")
    for row in listed[:_MOST_LISTED]:
        name = row.label
        rounds = f"{row.best_round!s:>5}  {row.last_round!s:>2}" if row.best_round is not None else "    -   -"
        print(f"  {row.job:>3}  {name:{width}}  {decimals(row.value):>15}  {rounds}  {row.status}")
    if len(listed) > _MOST_LISTED:
        print(f"  … and {len(listed) - _MOST_LISTED} more")
    over_seeds = seeds_summary(rows)
    if over_seeds:
        print(f"\n{over_seeds}")


def _print_pruned(pruned: Sequence[Row], num_rows: int, paths: SweepPaths) -> None:
    """The runs that a pruner ended, and what that saved against running each to its last round."""
    if not pruned:
        return
    saved_rounds, of_rounds, saved_s = 0, 0, 0.0
    for row in pruned:
        left = (row.num_rounds or 0) - (row.last_round or 0)
        saved_rounds, of_rounds = saved_rounds + left, of_rounds + (row.num_rounds or 0)
        saved_s += left * (row.seconds or 0.0) / max(1, row.last_round or 0)
    print(f"\npruned: {len(pruned)} of {num_rows}, saving {saved_rounds} of their {of_rounds} rounds, ", end="")
    print(f"about {duration(saved_s)} of training")
    for row in pruned[:_MOST_LISTED]:
        best = f"best {decimals(row.value)} at round {row.best_round}"
        print(f"  job {row.job}  {row.label}  after round {row.last_round}, {best}")
    if len(pruned) > _MOST_LISTED:
        print(f"  … and {len(pruned) - _MOST_LISTED} more in {_relative(paths.results)}")


def _print_warnings(rows: Sequence[Row]) -> None:
    """What the settings of some runs make of their results, each text once."""
    jobs: dict[str, list[int]] = {}
    for row in rows:
        for text in row.warnings:
            jobs.setdefault(text, []).append(row.job)
    for text, those in list(jobs.items())[:_MOST_LISTED]:
        listed = ", ".join(map(str, those[:_MOST_LISTED])) + (", …" if len(those) > _MOST_LISTED else "")
        print(f"\nwarning: {text}\n  {len(those)} of {len(rows)} jobs: {listed}")
    if len(jobs) > _MOST_LISTED:
        print(f"  … and {len(jobs) - _MOST_LISTED} more warnings in the jobs' result.json")


def rows_to_draw(rows: Sequence[Row], best: Row | None) -> Sequence[Row]:
    """The rows whose curves are drawn: of very many the best, and some of the others at random."""
    if len(rows) <= _MOST_DRAWN:
        return rows
    ranked = sorted((row for row in rows if row.is_valid and row is not best), key=lambda row: row.rank)
    chosen = {row.job for row in ([] if best is None else [best]) + ranked[: _BEST_DRAWN - 1]}
    others = [row.job for row in rows if row.job not in chosen]
    chosen.update(random.Random(0).sample(others, _MOST_DRAWN - len(chosen)))
    return [row for row in rows if row.job in chosen]


def _draw(
    path: Path,
    rows: Sequence[Row],
    drawn: Sequence[Row],
    rounds: Mapping[int, list[dict[str, float]]],
    best: Row | None,
    metric: str,
) -> bool:
    curves = []
    names = dict(zip((row.job for row in rows), line_names([row.overrides for row in rows]), strict=True))
    for row in drawn:
        lines = [line for line in rounds[row.job] if metric in line]
        if lines:
            curves.append(
                Curve(
                    " ".join(row.overrides) or f"job {row.job}",
                    [line["round"] for line in lines],
                    [line[metric] for line in lines],
                    is_best=best is not None and row.job == best.job,
                    best_round=row.best_round,
                    chosen_by=row.monitor.metric,
                    line=names[row.job],
                )
            )
    if not curves:
        return False
    draw_curves(path, curves, metric, len(rows) - len(drawn), list(names.values()))
    return True


def resume_command(folder: Path, is_ours: bool, *more: str) -> str:
    """What to type to go on with a sweep."""
    if is_ours:
        return shlex.join(["python", "-m", "flgo_hydra.resume", _relative(folder), *more])
    return f"the same command with {shlex.join([f'hydra.sweep.dir={_relative(folder)}', *more])}"


def _relative(path: Path) -> str:
    """From the current folder where it lies below it: shorter, and as the user would write it."""
    try:
        shown = str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
    return f"./{shown}" if shown.startswith("-") else shown  # which would be a flag
