"""The end of a sweep whose seed varied: what its points came to over seeds, from what the sweep knows already."""

from collections.abc import Sequence

from flgo_hydra.overrides import texts_of
from flgo_hydra.report.comparison import compare, with_parameters
from flgo_hydra.report.conditions import by_condition, conditions_of
from flgo_hydra.report.formats import as_text
from flgo_hydra.report.over_seeds import group_runs
from flgo_hydra.report.question import Question
from flgo_hydra.report.rows import Row
from flgo_hydra.report.runs import keys_that_vary, runs_of_rows
from flgo_hydra.report.selection import selection_of
from flgo_hydra.report.tables import groups_table, sentences

_MOST_LISTED = 10


def seeds_summary(rows: Sequence[Row]) -> str:
    """The best points by their mean over `seed`, and which algorithms differ by more than its noise.

    Empty where no two valid rows differ in the seed alone.
    """
    if not any("seed" in texts_of(row.overrides) for row in rows):
        return ""
    runs = runs_of_rows(rows)
    selection = selection_of(runs)
    keys = keys_that_vary(runs)
    others = [key for key in keys if key != "seed"]
    compared = with_parameters(["algorithm"], runs) if "algorithm" in others else []
    conditions = conditions_of(keys, ["seed", *compared])
    question = Question(selection.by, selection, (), ("seed",), tuple(compared), conditions, tuple(keys))
    groups = [
        group
        for own in by_condition(runs, conditions)
        for group in group_runs(own, others, question.metrics, question.over, selection)
    ]
    if all(len(group.valid) < 2 for group in groups):
        return ""
    text = as_text(groups_table(groups, others, question, _MOST_LISTED))
    differences = compare(runs, question) if compared else []
    if differences:
        text += "".join(f"\n  → {sentence}" for sentence in sentences(differences, question))
    return text
