"""The command line of reports: what to read, what to show of it, how."""

import argparse
import contextlib
import difflib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

from flgo_hydra.flags import name_and_value
from flgo_hydra.objective import Objective
from flgo_hydra.record.files import to_json, write_text
from flgo_hydra.report import pictures
from flgo_hydra.report.comparison import Difference, compare, with_parameters
from flgo_hydra.report.conditions import by_condition, conditions_of, covers
from flgo_hydra.report.formats import TEXT_FORMATS, Table, as_records
from flgo_hydra.report.over import default_over, replicates_of
from flgo_hydra.report.over_seeds import group_runs
from flgo_hydra.report.page import html_page
from flgo_hydra.report.question import Question
from flgo_hydra.report.runs import Run, keys_that_vary, read_runs
from flgo_hydra.report.selection import (
    best_first,
    check_direction,
    check_keys,
    check_metric,
    choose,
    is_maximized,
    metrics_of,
    selection_of,
    varying,
)
from flgo_hydra.report.tables import (
    comparison_table,
    groups_table,
    points_table,
    relative,
    sentences,
    troubles_table,
)
from flgo_hydra.streams import tell_error

_TABLES = ("points", "groups", "comparison")
_DESCRIPTION = """\
Reads run folders, finished or not, and shows which points are best, how much of a difference is noise of seeds, and
what the curves look like. It writes nothing but the pictures and pages it is asked for."""
_EXAMPLES = """\
examples:
  python -m flgo_hydra.report multirun/2026-11-22/17-21-17
  python -m flgo_hydra.report sweep1 sweep2 --where lr=0.1 --format md
  python -m flgo_hydra.report sweep --over seed,task.seed --compare algorithm --metric test_accuracy
  python -m flgo_hydra.report sweep --plot test_loss --by algorithm --out figure.pdf
  python -m flgo_hydra.report sweep --heatmap lr,algorithm --parallel --html sweep.html"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Answers a mistyped option with the nearest one."""
        options = [option for action in self._actions for option in action.option_strings]
        for word in message.split():
            near = difflib.get_close_matches(name_and_value(word)[0], options, n=1) if word.startswith("--") else []
            if near and "unrecognized" in message:
                message += f". Did you mean `{near[0]}`?"
                break
        self.exit(2, f"error: {message}\n`{self.prog} --help` shows what there is.\n")


def parser() -> argparse.ArgumentParser:
    """The options, for the command line and for --help."""
    parser = _Parser(
        prog="python -m flgo_hydra.report",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="folder", help="a sweep, a folder of sweeps, or a single run"
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="only runs with one of the values; repeatable",
    )
    what.add_argument(
        "--metric",
        help="what is shown and compared: the runs' `monitor` (default), another metric at the best round "
        "(test_accuracy), or seconds",
    )
    what.add_argument(
        "--select",
        metavar="METRIC",
        help="what chooses the best settings (default: the runs' `monitor`, whatever --metric shows)",
    )
    direction = what.add_mutually_exclusive_group()
    direction.add_argument(
        "--maximize",
        action="store_true",
        help="more of --metric and --select is better (of accuracies it is); refused of the runs' `monitor` if less is",
    )
    direction.add_argument("--minimize", action="store_true", help="less of them is better")
    what.add_argument("--key", action="append", metavar="KEYS", help="columns of the points (default: keys that vary)")
    what.add_argument(
        "--over",
        default=None,
        metavar="KEYS",
        help="keys whose values are replicates: means are over them; of `seed,task.seed` runs of one split are "
        "averaged first (default: seed and the sweeps' `hydra.sweeper.replicate`, where they vary)",
    )
    what.add_argument(
        "--conditions",
        default="",
        metavar="KEYS",
        help="keys that all is chosen and compared within, beside the task's and the model's",
    )
    what.add_argument(
        "--settings", default="", metavar="KEYS", help="keys to choose the best of, though they are of task or model"
    )
    what.add_argument(
        "--compare",
        default=None,
        metavar="KEY",
        help="values to compare pair by pair (default: algorithm, if it varies)",
    )
    what.add_argument(
        "--top", type=_positive, default=None, metavar="N", help="only the N best points and groups of each condition"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--format", choices=["text", "json", "csv", "md", "latex"], default="text", help="of the tables")
    how.add_argument(
        "--table",
        choices=_TABLES,
        action="append",
        help="which tables (default: all that there are; of csv the points); repeatable",
    )
    draw = parser.add_argument_group("pictures (written as PNG; their paths are printed)")
    draw.add_argument(
        "--plot",
        action="append",
        default=[],
        metavar="METRIC",
        help="a metric by round (test_loss): the mean over seeds in a band, a line for each value of --by; repeatable",
    )
    draw.add_argument("--by", metavar="KEYS", default="", help="config keys of the lines (default: algorithm)")
    draw.add_argument(
        "--band",
        choices=["std", "ci", "range"],
        default="std",
        help="standard deviation (default), 95 %% interval of the mean, or lowest to highest",
    )
    draw.add_argument("--log", action="store_true", help="a logarithmic axis for the metric")
    draw.add_argument(
        "--heatmap",
        action="append",
        default=[],
        metavar="X,Y",
        help="--metric over two keys, averaged over the others, a panel for each condition; repeatable",
    )
    draw.add_argument("--parallel", action="store_true", help="parallel coordinates of every key that varies")
    draw.add_argument("--html", type=Path, metavar="FILE", help="all of it in one page that loads nothing")
    draw.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="a folder, or for one picture a file (.png, .pdf, .svg); default: the folder that was read",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0, or 1 with a reason on stderr."""
    options = parser().parse_intermixed_args(arguments)
    try:
        _report(options)
    except ValueError as error:
        return tell_error(str(error))
    return 0


def _report(options: argparse.Namespace) -> None:
    known, remarks = read_runs(options.folders)
    runs = choose(known, options.where)
    question = _question(options, runs)
    differences = compare(runs, question)
    in_order, runs = runs, best_first(runs, question.selection, question.conditions)
    group_keys = [key for key in keys_that_vary(runs) if key not in question.over]
    groups = [
        group
        for own in by_condition(runs, question.conditions)
        for group in group_runs(own, group_keys, question.metrics, question.over, question.selection)
    ]
    has_replicates = any(len(group.runs) > 1 for group in groups) and any(group.estimates for group in groups)
    wanted = options.table or (["points"] if options.format == "csv" else _TABLES)
    if options.table:
        _refuse_empty(options.table, has_replicates, differences, question)
    wanted_pictures, files = _wanted_pictures(options, in_order, question, known)
    tables: dict[str, Table] = {}
    if "points" in wanted:
        tables["points"] = points_table(runs, question, options.top)
        troubles = troubles_table(runs, question)
        if troubles is not None and options.format != "csv":
            tables["failed"] = troubles
    if "groups" in wanted and has_replicates:
        tables["groups"] = groups_table(groups, group_keys, question, options.top)
    if "comparison" in wanted and differences:
        tables["comparison"] = comparison_table(differences, question.settings(runs), question)
    if options.format == "json":
        print(json.dumps(_as_json(options, question, tables, differences, remarks), indent=2, allow_nan=False))
    elif options.format == "text":
        _print_text(tables, differences, question, remarks)
    else:
        print("\n\n".join(TEXT_FORMATS[options.format](table) for table in tables.values()))
        for remark in remarks:
            print(remark, file=sys.stderr)
    sys.stdout.flush()
    # Tables of other formats are alone on stdout.
    stream = sys.stdout if options.format == "text" else sys.stderr
    _write_pictures(wanted_pictures, files, stream)
    if options.html:
        said = sentences(differences, question) if "comparison" in tables else []
        by = _split(options.by)
        shown = wanted_pictures or pictures.usual(in_order, question, by, options.band, options.log, known)
        make = partial(html_page, tables=tables, conclusions=said, pictures=shown, remarks=remarks)
        _write_page(options.html, options.folders, make, stream)


def _wanted_pictures(
    options: argparse.Namespace, runs: Sequence[Run], question: Question, known: Sequence[Run]
) -> tuple[list[pictures.Picture], list[Path]]:
    """What was asked for, and the files; mistakes are found before anything is printed."""
    if not (options.plot or options.heatmap or options.parallel or options.html):
        if options.by or options.out:
            raise ValueError(f"`--{'by' if options.by else 'out'}` has no picture to be of. Add `--plot test_loss`.")
        return [], []
    if options.html and options.html.is_dir():
        raise ValueError(f"`--html {options.html}` is a folder. Give a file: `--html {options.html / 'report.html'}`.")
    by = _split(options.by)
    wanted = [pictures.curves(runs, question, name, by, options.band, options.log, known) for name in options.plot]
    wanted += [pictures.heatmap(runs, question, _split(axes)) for axes in options.heatmap]
    wanted += [pictures.parallel(runs, question)] if options.parallel else []
    return wanted, [pictures.file_of(one, options.out, options.folders, len(wanted) == 1) for one in wanted]


def _write_pictures(wanted: Sequence[pictures.Picture], files: Sequence[Path], stream: TextIO) -> None:
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    for picture, file in zip(wanted, files, strict=True):
        with _explained(file):
            picture.draw(file)
        print(f"picture: {relative(file)}", file=stream)


def _write_page(file: Path, folders: Sequence[Path], make: Callable[[str, str], str], stream: TextIO) -> None:
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    with _explained(file):
        write_text(file, make(", ".join(map(str, folders)), f"flgo_hydra report, {when}"))
    print(f"page:    {relative(file)}", file=stream)


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{file} cannot be written: {error.strerror}. Choose another place with `--out`.") from error


def _question(options: argparse.Namespace, runs: Sequence[Run]) -> Question:
    is_max = True if options.maximize else False if options.minimize else None
    selection = selection_of(runs, options.select, is_max)
    metric = check_metric(options.metric, runs) if options.metric else selection.metric
    if is_max is not None:
        # Both, or what is shown: a selection that nobody asked for keeps the direction that the runs followed.
        check_direction(is_max, [metric, selection.metric] if options.select else [metric], runs)
    else:
        is_max = selection.by.is_maximized if metric == selection.metric else is_maximized(metric, runs)
    varied = keys_that_vary(runs)
    keys = check_keys([key for text in options.key for key in _split(text)], runs) if options.key else varied
    conditions, settings = (_parts(text, runs) for text in (options.conditions, options.settings))
    if options.over:
        over = check_keys(_split(options.over), runs)
    else:
        over = [*default_over(runs, replicates_of(runs), [*_split(options.compare or ""), *conditions, *settings])]
    if options.compare is not None:
        compared = check_keys(_split(options.compare), runs)
        if not any(key in varied for key in compared):
            raise ValueError(f"`--compare {options.compare}`: all runs have the same. {varying(runs)}")
        if any(key in over for key in compared):
            raise ValueError(f"`--compare {options.compare}` cannot also be what the means are over (`--over`).")
    else:
        is_taken = "algorithm" in (*over, *conditions, *settings)
        compared = ["algorithm"] if "algorithm" in varied and not is_taken else []
    named = [key for key in varied if any(covers(one, key) for one in (*conditions, *settings))]
    compared = [*compared, *(key for key in with_parameters(compared, runs) if key not in (*compared, *named))]
    return Question(
        Objective(metric, is_max),
        selection,
        tuple(name for name in metrics_of(runs) if name != metric),
        tuple(over),
        tuple(compared),
        conditions_of(varied, [*compared, *over], conditions, settings),
        tuple(keys),
    )


def _parts(text: str, runs: Sequence[Run]) -> list[str]:
    """Keys of `--conditions` and `--settings`: a part of the config (`task.partition`) stands for all below it."""
    known = {key for run in runs for key in run.values}
    keys = _split(text)
    check_keys([key for key in keys if not any(covers(key, one) for one in known)], runs)
    return keys


def _refuse_empty(
    tables: Sequence[str], has_replicates: bool, differences: Sequence[Difference], question: Question
) -> None:
    """A table that was asked for by name and has nothing to show is an error, not silence."""
    over = ", ".join(question.over)
    if "groups" in tables and not has_replicates:
        raise ValueError(f"There are no groups: no two runs differ in {over} alone. Choose other keys with `--over`.")
    if "comparison" in tables and not differences:
        if not question.compared:
            raise ValueError("There is nothing to compare: `algorithm` does not vary. Choose a key with `--compare`.")
        raise ValueError(
            f"There is nothing to compare: no two valid runs differ in {', '.join(question.compared)} and have the "
            f"same {', '.join((over, *question.conditions))}."
        )


def _print_text(
    tables: dict[str, Table],
    differences: Sequence[Difference],
    question: Question,
    remarks: Sequence[str],
) -> None:
    """For people: what it comes to is said in words."""
    as_text = TEXT_FORMATS["text"]
    print("\n\n".join(as_text(table) for table in tables.values()))
    if "comparison" in tables:
        print("\n".join(f"  → {sentence}" for sentence in sentences(differences, question)))
    for remark in remarks:
        print(f"\n{remark}")


def _as_json(
    options: argparse.Namespace,
    question: Question,
    tables: dict[str, Table],
    differences: Sequence[Difference],
    remarks: Sequence[str],
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "folders": [str(folder) for folder in options.folders],
        "metric": question.metric,
        "mode": question.shown.mode,
        "selection": {
            "metric": question.selection.metric,
            "mode": question.selection.by.mode,
            "samples": question.selection.by.samples,
            "is_asked": question.selection.is_asked,
            "notes": question.notes,
        },
        "over": list(question.over),
        "conditions": list(question.conditions),
        **{name: as_records(table) for name, table in tables.items()},
        "remarks": [*remarks],
    }
    if "comparison" in tables:
        content["conclusions"] = sentences(differences, question)
    return dict(to_json(content))


def _split(text: str) -> list[str]:
    return [key.strip() for key in text.split(",") if key.strip()]


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, but got {text!r}")
    return value
