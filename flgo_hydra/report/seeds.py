"""The end of a sweep whose seed varied: what its points came to over seeds, from what the sweep knows already."""

from collections.abc import Sequence

from flgo_hydra.report.comparison import compare, with_parameters
from flgo_hydra.report.formats import as_text
from flgo_hydra.report.groups import group_runs
from flgo_hydra.report.runs import keys_that_vary, runs_of_rows
from flgo_hydra.report.table import Row
from flgo_hydra.report.tables import Question, groups_table, sentences

_MOST_LISTED = 10


def seeds_summary(rows: Sequence[Row]) -> str:
    """The best points by their mean over `seed`, and which algorithms differ by more than its noise.

    Empty where no two valid rows differ in the seed alone.
    """
    if not any(text.startswith("seed=") for row in rows for text in row.overrides):
        return ""
    monitor, is_max = next(((row.monitor, row.is_maximized) for row in rows if row.is_valid), ("valid_loss", False))
    metric = "best_valid_loss" if monitor == "valid_loss" else monitor
    runs = runs_of_rows(rows)
    keys = keys_that_vary(runs)
    others = [key for key in keys if key != "seed"]
    groups = group_runs(runs, others, [metric], is_max=is_max)
    if all(len(group.valid) < 2 for group in groups):
        return ""
    compared = with_parameters(["algorithm"], runs) if "algorithm" in others else []
    question = Question(tuple(keys), ("seed",), tuple(compared), (metric,), is_max)
    text = as_text(groups_table(groups, others, question, _MOST_LISTED))
    differences = compare(runs, compared, ["seed"], metric, is_max) if compared else []
    if differences:
        text += "".join(f"\n  → {sentence}" for sentence in sentences(differences, question))
    return text
